"""The filter protocol without I/O, for both ends: parse bytes to values, encode decisions."""

"""The filter protocol without I/O, both ends of it: bytes to values, decisions to bytes."""

"""DKIM and ARC: verification of signatures and chains (RFC 6376, RFC 8617).

`driver.verify` is the door for a filter: all signatures of a message, and its chain. Below it are
engines without I/O: `signatures` and `arc` state what they need and judge it, `canonical` and
`signed_fields` make what is hashed, `keys` reads records of the DNS, `arithmetic` has the library.
Nothing is imported here: who signs needs neither the DNS nor an event loop.
"""

"""Tables kept elsewhere: in databases, directories, on servers, or behind table programs.

Read `source` first. A back-end (`backend.Backend`) answers one key at a time, or lists all entries,
or both; `key_lookups` caches its answers, `source` loads its lists. `configuration` reads the
files.
"""

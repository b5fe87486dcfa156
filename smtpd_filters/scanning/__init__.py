"""The common parts of filters that have messages scanned by a program elsewhere.

`intake` decides whether a message is scanned, and measures and streams it; `options` declares the
settings that all scanners have; `servers` shares a client between filters; `edits` changes the
header block; `outcomes` turns a scanner's result into a decision.
"""

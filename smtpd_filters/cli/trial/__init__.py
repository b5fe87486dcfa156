"""A trial: recorded sessions judged by a chain as it is, and with other values of its settings.

The page (`smtpd_filters.web.trial`) starts `program` as a process of its own, always with the same
command line, and sends it a request. It plays each session to two processes (`subject`), one for
each variant of the chain, and returns what differs.

`changes` has the settings that can be tried, `past` the sessions, `stand_in` filters that repeat
what the journal has of them, `fates` what becomes of messages.

Invariants
----------
*Inward*: only settings whose values name nothing outside of the process can be tried
(`Kind.inward`), of the filters and the chain that the operator's file has. Their own declarations
check the values.
*Apart*: filters run in the strict sandbox without any connection, program or file to write, and
are not set up before they are in it. What they would ask others was recorded, or is reported as
missing.
*Bounded*: sessions, bytes, memory, processor time and time have limits.
*Nothing changes*: nothing is written but two files without a name.
"""

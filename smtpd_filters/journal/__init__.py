"""The journal: what was decided about each message, collected, sent, stored and found again.

In the processes that decide, `collector` keeps the verdicts of a session, `wire` encodes them when
a transaction or a session ends, and `sender` sends them to a unix datagram socket without waiting.
They are imported only if a journal is configured. In the journal's process, `reception` parses
datagrams, `merging` joins those of several processes, and `archive` stores them in a file for each
day (`day`, `rollups`). `query` reads these files: `search`, `story`, `overview`, `rankings`.

Invariants
----------
*No waiting*: a process that decides about mail never waits for the journal. What can't be sent at
once is dropped and counted.
*No harm*: no failure of the journal, in whichever process, changes a decision.
*Untrusted*: a datagram is checked like input from the network; a process that may write to it can
forge stories, but can neither stop the journal nor make it grow beyond its bounds.
"""

"""filter-supervise: keeps smtpd running while a filter program fails, is replaced, or misbehaves.

It stands between smtpd and the program. To smtpd it is the filter, to the program it is smtpd.

Invariants
----------
*Alive*: no input of either side and no failure of a program ends this process; the end of smtpd's
input does, and a program that refuses its configuration before smtpd has a registration.
*Accepted*: smtpd gets no line that it doesn't survive, whatever a program writes (`answers`,
`engine`).
*Answered*: smtpd gets exactly one answer to each request: the program's, or one in its place.
*Whole or refused*: a message whose program fails is given to the next program from its first line,
or refused at `commit`; it is never accepted in part, and never without its verdict.
*Continued*: a program gets the reports of a session that an earlier program got and that are still
valid, before anything else of that session.

How it works
------------
`engine` has no descriptors: it takes bytes of both sides (`smtpd_side`, `program_side`) and makes
those for the other side.
`ledger` is what it keeps of each session, `answers` the rules for an answer, `registration` those
for what a program registers, which `handshake` applies. `fleet` decides when programs are started,
replaced and ended; `process` starts one and has its descriptors; `loop` waits for all of them.
"""

"""What smtpd makes of a filter: every condition on which it exits, hangs or misbehaves.

The law:

1. The oracle watches both directions of the line and complains of the filter. It states smtpd's
   rules again, by itself: nothing of `smtpd_filters.protocol` is used, so that the two can be held
   against each other.
2. `rules.RULES` is the whole of what it complains of, each with what smtpd does about it.
3. It is never the judge of time: an answer is missing when finish() is called, not before.
4. It never raises, whatever the bytes, and how they are cut into chunks changes nothing.
5. What smtpd itself would never write is an oddity, not a complaint. A session in which smtpd broke
   its own rules is lost: of what the filter says in it only the form is checked. (It is odd, too,
   to hand over a `commit` before the filter's final dot: bytes are to be given in the order in
   which they pass.)
6. Where smtpd is lenient by accident (`0x1f` as a session id, `REGISTER|ready`) the oracle is not.

How it works: each session has at most one open request or one open message. A line from smtpd opens
one of them, a line from the filter closes it; what is left at the end was never answered. The
message part knows only what the rules need: whether the header block is whole, which odd bytes came
in, and which side has written its final dot.

`rules` has the tables, `lines` what a line looks like, `decision` what is wrong with a decision,
`message` with a message in transit, `state` what smtpd keeps of each session.
"""

from .rules import RULES, Kind, Rule
from .state import Complaint, Oracle, judge

__all__ = ["RULES", "Complaint", "Kind", "Oracle", "Rule", "judge"]

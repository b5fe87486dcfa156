"""A checker of a filter's output for everything that makes smtpd exit, hang or misbehave.

The oracle observes both directions of the conversation and complains about the filter. Each
session has at most one open request or one open message: a line from smtpd opens it, a line from
the filter closes it, and one that is still open at the end was never answered. Of a message it
tracks only what the rules need: whether the header block is valid, which unusual bytes smtpd sent,
and which side has written its final dot.

`rules` has the tables, `lines` the form of a line, `decision` the checks of a decision, `message`
those of a message in transit, `state` what smtpd keeps of each session.

Invariants
----------
*Independent*: the oracle states smtpd's rules a second time. It uses nothing of
`smtpd_filters.protocol`, so that the two can be checked against each other.
*Complete table*: `rules.RULES` lists every possible complaint, with smtpd's reaction.
*No clock*: an answer is missing when `finish()` is called, not before.
*Total*: it never raises, whatever the bytes, and the division into chunks has no effect.
*Oddities*: a line that smtpd would never write is an oddity, not a complaint. A session in which
smtpd broke its own rules is lost: only the form of the filter's lines in it is checked. (A `commit`
before the filter's final dot is such an oddity: bytes must be fed in the order in which they pass.)
*Strict*: where smtpd is lenient by accident (`0x1f` as a session id, `REGISTER|ready`), the oracle
is not.
"""

from .rules import RULES, Kind, Rule
from .state import Complaint, Oracle, judge

__all__ = ["RULES", "Complaint", "Kind", "Oracle", "Rule", "judge"]

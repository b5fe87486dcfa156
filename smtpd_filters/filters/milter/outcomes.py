"""Decisions for the answers of milters.

The texts of refusals without one are those of Postfix. A reply of several lines becomes one line,
since smtpd takes no other.
"""

from __future__ import annotations

from smtpd_filters.milter import ReplyCode
from smtpd_filters.milter import vocabulary as v
from smtpd_filters.protocol.decisions import Disconnect, Reject, reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.milter import Verdict

REJECTED = "550 5.7.1 Command rejected"
LATER = "451 4.7.1 Service unavailable - try again later"
#: RFC 3463 section 3.8, X.7.0: "Other or undefined security status".
SHUTDOWN = "421 4.7.0 Service unavailable, closing transmission channel"
DISCARDED = "550 5.7.1 Message rejected"
#: RFC 3463 section 3.4, X.3.4: "Message too big for system".
LONG_FIELD = Reject("552 5.3.4 A field of the header is too long")
#: The refusals of answers without a text.
_REFUSALS: dict[bytes, Reject | Disconnect] = {
    v.REJECT: Reject(REJECTED),
    v.TEMPFAIL: Reject(LATER),
    v.SHUTDOWN: Disconnect(SHUTDOWN),
    v.CONNECTION_FAILURE: Disconnect(SHUTDOWN),
}
#: Codes after which the connection is closed: RFC 5321 section 3.8, RFC 7504 section 3.
_CLOSING = frozenset({421, 521})


def refusal(answer: Verdict | ReplyCode) -> Reject | Disconnect | None:
    """Return the refusal for an answer; None for any other answer, discarding included."""
    if isinstance(answer, ReplyCode):
        text = b" ".join(answer.lines).decode("utf-8", "replace")
        fallback = REJECTED if answer.code >= 500 else LATER  # RFC 5321
        if not text.strip():
            text = fallback.split(" ", 2)[2]
        # All replies that refuse have an enhanced status code (RFC 2034 section 4).
        enhanced = answer.enhanced or (SHUTDOWN if answer.code == 421 else fallback).split()[1]
        line = reply(answer.code, enhanced, text)
        return Disconnect(line) if answer.code in _CLOSING else Reject(line)
    return _REFUSALS.get(answer.command)


def closing(decision: Reject | Disconnect) -> Disconnect:
    """Return the refusal of a whole session."""
    return decision if isinstance(decision, Disconnect) else Disconnect(decision.text)

"""The decision on a command that exceeds a limit."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, TypeAlias

from smtpd_filters.protocol.decisions import JUNK as MARK
from smtpd_filters.protocol.decisions import PROCEED, Disconnect, Junk, Proceed, Reject

from .rules import (
    ACTIONS,
    AUTH_FAILURES,
    BLOCK,
    BYTES,
    CONNECTIONS,
    DELAY,
    JUNK,
    LOG,
    MESSAGES,
    NETWORKS,
    RECIPIENTS,
    REFUSED,
    REJECT,
    TEMPFAIL,
)

if TYPE_CHECKING:
    from .steps import Breach

Decided: TypeAlias = Proceed | Junk | Reject | Disconnect

#: The actions, of which the strictest of several decides.
STRICTNESS = {LOG: 0, JUNK: 1, DELAY: 2, TEMPFAIL: 2, BLOCK: 3, REJECT: 4}
#: The temporary and the permanent reply to what is counted.
# RFC 5321 section 4.5.3.1.10: after 452 a client sends the message to the recipients that were
# accepted, and to the rest later. RFC 3463: X.5.3, "Too many recipients"; X.7.0 and X.7.1, security
# and policy. 421 and 450 are Postfix's codes for its limits of connections and rates.
# RFC 4954 section 6: 535 5.7.8, "Authentication credentials invalid".
REPLIES = {
    CONNECTIONS: ("421 4.7.0", "554 5.7.1", "Too many connections"),
    MESSAGES: ("450 4.7.1", "550 5.7.1", "Too many messages"),
    RECIPIENTS: ("452 4.5.3", "550 5.7.1", "Too many recipients"),
    BYTES: ("452 4.7.1", "552 5.7.1", "Too much mail"),
    AUTH_FAILURES: ("421 4.7.0", "535 5.7.8", "Too many failed authentications"),
    REFUSED: ("421 4.7.0", "554 5.7.1", "Too many invalid recipients"),
    NETWORKS: ("450 4.7.1", "550 5.7.1", "Used from too many networks"),
}
#: A message that is larger than the bucket can never pass (RFC 3463 X.3.4).
TOO_LARGE = "552 5.3.4 The message is larger than all that may be sent"


def decision_on(breach: Breach, action: str, handler: str) -> Decided:
    """Return the decision; `handler` is the method of the filter that makes it."""
    claim = breach.claim
    reason = f"{claim.subject} exceeds {claim.rule.text}"
    if action == LOG:
        return PROCEED.because(reason)
    if action == JUNK:
        return MARK.because(reason)
    if claim.rule.counted == BYTES and claim.cost > claim.rule.amount.burst:
        return Reject(TOO_LARGE).because(reason)
    temporary, permanent, text = REPLIES[claim.rule.counted]
    if action == REJECT:
        reply = f"{permanent} {text}"
    else:
        # Of a subject that is blocked from now on, no time would be true.
        waits = breach.wait if action != BLOCK else 0
        later = f", try again in {ceil(round(waits, 2))} s" if waits else ""
        reply = f"{temporary} {text}{later}"
    # A refused connection would stay open without a banner; 421 announces that it is closed.
    if reply.startswith("421") or handler == "connect":
        return Disconnect(reply).because(reason)
    return Reject(reply).because(reason)


assert STRICTNESS.keys() == {*ACTIONS}  # noqa: S101  # each action has its place

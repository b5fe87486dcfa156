"""The replies of a score that refuses, and the header field that shows it."""

from __future__ import annotations

from smtpd_filters.protocol.decisions import Decision, Disconnect, Reject, show_points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .tally import Scale, Tally

#: RFC 5321 section 3.1: "A 554 response MAY be given in the initial connection opening message
#: instead of the 220".
AT_CONNECT = "554 5.7.1 Refused as probable spam"
REPLY = "550 5.7.1 Refused as probable spam"
#: By RFC 5321 section 3.8, 421 is the code to close a connection with.
TEMPORARY_AT_CONNECT = "421 4.7.1 Checks could not be completed, please try again later"
TEMPORARY = "451 4.7.1 Checks could not be completed, please try again later"


def refusal(phase: str, reply: str | None) -> Decision:
    """Return the permanent refusal at a phase, with the operator's reply if there is one."""
    return _refused(phase, reply or (AT_CONNECT if phase == "connect" else REPLY))


def temporary_refusal(phase: str) -> Decision:
    """Return the temporary refusal at a phase."""
    return _refused(phase, TEMPORARY_AT_CONNECT if phase == "connect" else TEMPORARY)


def _refused(phase: str, reply: str) -> Decision:
    # At connect smtpd would keep the connection open after a reject.
    return Disconnect(reply) if phase == "connect" else Reject(reply)


def field_value(scale: Scale, tally: Tally) -> str:
    """Return the value of the header field: `7.5 (junk-at 5, reject-at 10) fcrdns=2.5`."""
    steps = (("junk-at", scale.junk), ("reject-at", scale.reject))
    given = ", ".join(f"{name} {show_points(at)}" for name, at in steps if at is not None)
    words = [show_points(tally.total), f"({given})" if given else "", tally.shown()]
    return " ".join(filter(None, words))

"""A filter's verdict at a phase, and its meaning to smtpd.

Code that plays smtpd uses it: `smtpd_filters.testing.conversation` with a scripted client, and
`smtpd_filters.recording.replay` with a recorded one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.protocol.credentials import SPOILT, SPOILT_REPLY
from smtpd_filters.session import text

if TYPE_CHECKING:
    from smtpd_filters.protocol.events import Result

#: The decisions whose parameter is a reply that refuses the command.
REFUSALS = frozenset({"reject", "disconnect"})
#: The decisions whose parameter replaces the command's; `report` does so, too.
WITH_PARAMETER = frozenset({"rewrite", "report"})
#: The names of two phases in the report `filter-response`.
RESPONSE_NAMES = {"connect": "connected", "starttls": "tls"}
_BY_RESPONSE = {name.encode(): phase for phase, name in RESPONSE_NAMES.items()}
#: The first protocol version that is sent in the hand-shake.
PROTOCOL_IN_HANDSHAKE = (0, 7)
#: The field that smtpd adds at the top of a message with a junk decision.
MARK = b"X-Spam: Yes"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A filter's verdict at a phase, and its effect on the command.

    `verb` is proceed, junk, reject, disconnect or rewrite; for a message ("data-line") it is
    unchanged or changed.
    """

    #: The phase of the request, or "data-line" for a message.
    phase: str
    verb: str
    #: The reply that refuses the command; empty if it isn't refused. After a refusal at `auth` of
    #: a command with credentials it is smtpd's own, and the filter's follows at a later phase.
    reply: str = ""
    #: The parameter that smtpd continues with: the client's, or the rewritten one.
    parameter: str = ""
    #: The lines of a message as the filter returned them, dot-stuffed.
    lines: tuple[bytes, ...] | None = field(default=None, repr=False)
    #: Whether the filter has registered the phase; if not, the verdict is proceed.
    asked: bool = field(default=True, compare=False)

    @property
    def refused(self) -> bool:
        """Whether the command was refused."""
        return bool(self.reply)

    @property
    def closes(self) -> bool:
        """Whether smtpd closes the connection, which it also does after a 421."""
        return self.verb == "disconnect" or self.reply.startswith("421")

    def __str__(self) -> str:
        return (
            f"{self.verb} {self.reply or self.parameter}" if self.verb != "proceed" else "proceed"
        )


def verdict(phase: str, argument: bytes, result: Result | None) -> Verdict:
    """Return the verdict of an answer; `result` is None for a phase that isn't registered."""
    before = text(argument)
    if result is None:
        return Verdict(phase, "proceed", parameter=before, asked=False)
    verb = result.verb.decode("latin-1")
    parameter = text(result.argument or b"")
    if verb in REFUSALS:
        return Verdict(phase, verb, reply=parameter)
    return _not_refused(phase, verb, parameter, before)


def _not_refused(phase: str, verb: str, parameter: str, before: str) -> Verdict:
    """Return the verdict of a decision that isn't a refusal; `before` is the client's parameter."""
    if phase == "auth" and verb == SPOILT.verb and parameter == SPOILT.text:
        return Verdict(phase, verb, reply=SPOILT_REPLY, parameter=parameter)
    return Verdict(phase, verb, parameter=parameter if verb in WITH_PARAMETER else before)


def message_verdict(sent: list[bytes], returned: list[bytes], *, asked: bool = True) -> Verdict:
    """Return the verdict on a message, from the lines sent and returned."""
    verb = "unchanged" if sent == returned else "changed"
    return Verdict("data-line", verb, lines=tuple(returned), asked=asked)


def failure(refusal: Verdict) -> bytes:
    """Return the result field of a `tx-` report for a refused command."""
    return b"tempfail" if refusal.reply.startswith("4") else b"permfail"


def response(phase: str, decided: Verdict) -> tuple[bytes, bytes, bytes]:
    """Return the values of the report `filter-response` for a verdict."""
    parameter = decided.parameter if decided.verb in WITH_PARAMETER else decided.reply
    name = RESPONSE_NAMES.get(phase, phase).encode()
    return name, decided.verb.encode("latin-1"), wire(parameter)


def reported_verdict(values: tuple[bytes, ...], argument: bytes) -> Verdict | None:
    """Return the verdict of a report `filter-response`, or None if fields are missing.

    The inverse of `response`. `argument` is that of the command.
    """
    if len(values) < 2:
        return None
    phase = _BY_RESPONSE.get(values[0]) or values[0].decode("latin-1")
    verb = values[1].decode("latin-1")
    parameter = text(values[2]) if len(values) > 2 else ""
    if verb in REFUSALS:
        return Verdict(phase, verb, reply=parameter)
    return _not_refused(phase, verb, parameter, text(argument))


class Tokens(dict[str, bytes]):
    """The token of each phase, created on first use and the same for all sessions."""

    def __missing__(self, phase: str) -> bytes:
        token = self[phase] = b"%016x" % (0x70C3 << 48 | len(self) + 1)
        return token


def wire(value: str) -> bytes:
    """Encode a text as in the protocol; the inverse of `smtpd_filters.session.text`."""
    return value.encode("utf-8", "surrogateescape")

"""What a filter said at a phase, and what smtpd makes of it.

Whoever plays smtpd needs it: a conversation (`smtpd_filters.testing.conversation`) and a recording
(`smtpd_filters.recording.replay`) differ in who the client is, not in what a verdict means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smtpd_filters.session import text

if TYPE_CHECKING:
    from smtpd_filters.protocol.events import Result

#: The decisions whose text is a reply that refuses the command.
REFUSALS = frozenset({"reject", "disconnect"})
#: A filter's ``report`` puts its text in the place of the command's parameter.
WITH_PARAMETER = frozenset({"rewrite", "report"})
#: What smtpd calls two phases in the report ``filter-response``.
RESPONSE_NAMES = {"connect": "connected", "starttls": "tls"}
_BY_RESPONSE = {name.encode(): phase for phase, name in RESPONSE_NAMES.items()}
#: The first protocol that says its version in the hand-shake.
SAYS_PROTOCOL = (0, 7)
#: What smtpd puts before a message that was called junk.
MARK = b"X-Spam: Yes"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a filter said at a phase, and what became of the command.

    ``verb`` is proceed, junk, reject, disconnect or rewrite; of a message ("data-line") it is
    unchanged or changed.
    """

    #: The phase of the request, or "data-line" for a message.
    phase: str
    verb: str
    #: The reply that refuses the command; empty when it is not refused.
    reply: str = ""
    #: What smtpd goes on with: the client's parameter, or the one it was rewritten to.
    parameter: str = ""
    #: The lines of a message as they came back, dot-stuffed.
    lines: tuple[bytes, ...] | None = field(default=None, repr=False)
    #: Whether the filter was asked; one that does not register a phase proceeds.
    asked: bool = field(default=True, compare=False)

    @property
    def refused(self) -> bool:
        """Whether the client was told no."""
        return bool(self.reply)

    @property
    def closes(self) -> bool:
        """Whether smtpd closes the connection; it does so by itself behind a 421."""
        return self.verb == "disconnect" or self.reply.startswith("421")

    def __str__(self) -> str:
        return (
            f"{self.verb} {self.reply or self.parameter}" if self.verb != "proceed" else "proceed"
        )


def verdict(phase: str, argument: bytes, result: Result | None) -> Verdict:
    """Make a verdict of an answer; None for a phase that was not asked."""
    before = text(argument)
    if result is None:
        return Verdict(phase, "proceed", parameter=before, asked=False)
    verb = result.verb.decode("latin-1")
    said = text(result.argument or b"")
    if verb in REFUSALS:
        return Verdict(phase, verb, reply=said)
    return Verdict(phase, verb, parameter=said if verb in WITH_PARAMETER else before)


def message_verdict(sent: list[bytes], returned: list[bytes], *, asked: bool = True) -> Verdict:
    """Make the verdict on a message of these lines."""
    verb = "unchanged" if sent == returned else "changed"
    return Verdict("data-line", verb, lines=tuple(returned), asked=asked)


def failure(said: Verdict) -> bytes:
    """The result in a ``tx-`` report of a command that was refused so."""
    return b"tempfail" if said.reply.startswith("4") else b"permfail"


def response(phase: str, said: Verdict) -> tuple[bytes, bytes, bytes]:
    """The values of the report ``filter-response`` that tells of a verdict."""
    parameter = said.reply or (said.parameter if said.verb in WITH_PARAMETER else "")
    return RESPONSE_NAMES.get(phase, phase).encode(), said.verb.encode("latin-1"), wire(parameter)


def responded(values: tuple[bytes, ...], argument: bytes) -> Verdict | None:
    """Make the verdict that a report `filter-response` has; None if fields are missing.

    The inverse of `response`. `argument` is that of the command which was judged.
    """
    if len(values) < 2:
        return None
    phase = _BY_RESPONSE.get(values[0]) or values[0].decode("latin-1")
    verb = values[1].decode("latin-1")
    said = text(values[2]) if len(values) > 2 else ""
    if verb in REFUSALS:
        return Verdict(phase, verb, reply=said)
    return Verdict(phase, verb, parameter=said if verb in WITH_PARAMETER else text(argument))


class Tokens(dict[str, bytes]):
    """The token of each phase, made when it is first asked for; it is the same for all sessions."""

    def __missing__(self, phase: str) -> bytes:
        token = self[phase] = b"%016x" % (0x70C3 << 48 | len(self) + 1)
        return token


def wire(said: str) -> bytes:
    """A text as smtpd writes it; the inverse of `smtpd_filters.session.text`."""
    return said.encode("utf-8", "surrogateescape")

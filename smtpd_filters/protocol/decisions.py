"""The decisions of a filter: proceed, junk, reject, disconnect, rewrite.

A decision is checked when it is created, so that an invalid one raises where it is created and is
never sent. smtpd-filters(7) calls decisions filter responses. Its sixth, `report`, is left out:
smtpd 6.8 exits on it, and 7.8 uses the report's text as the client's parameter.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Self

#: Octets of a reply line, without its line end. RFC 5321 section 4.5.3.1.5 allows 512 with it;
#: smtpd itself passes on 5,000, and 7.8 exits on 20,000.
MAX_REPLY = 510
#: Octets of a rewritten parameter. RFC 5321 section 4.5.3.1.3 allows 256 for a path; ESMTP
#: parameters may follow it, and section 4.5.3.1.4 allows 512 for a command line.
MAX_PARAMETER = 512

#: Points that a filter can add or subtract at once. Scores of mail are below 100 in practice
#: (SpamAssassin, Rspamd); beyond this a number is a mistake.
MAX_POINTS = 1_000_000

#: RFC 3463 section 2.
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_PRINTABLE = frozenset(map(chr, range(0x20, 0x7F)))


def reply(code: int, enhanced: str, text: str) -> str:
    """Return a reply line with any text, such as that of a scanner or of the DNS.

    A character that is not printable ASCII becomes `?`, white space of any kind a single space, and
    the line is cut to `MAX_REPLY` octets. `enhanced` is the status code of RFC 3463, or empty. If
    it, or a status code that the text begins with instead, is of another class than `code`, it gets
    that class: `reply(451, "5.7.1", text)` begins with `451 4.7.1`.

    Raise ValueError if `code` is not 400 to 599.
    """
    # Cut before the work for each character: a server may send a megabyte.
    text = text.lstrip()[: 4 * MAX_REPLY]
    clean = "".join(c if c in _PRINTABLE else "?" for c in " ".join(text.split()))
    words = [str(code), enhanced, clean or "Refused"]
    line = " ".join(word for word in words if word)[:MAX_REPLY].rstrip()
    if _contradicting(line):
        line = f"{line[:4]}{line[0]}{line[5:]}"
    check_reply(line)
    return line


def check_reply(text: str) -> None:
    """Raise ValueError unless `text` is a valid reply: a 4xx or 5xx code, a space and a text.

    The text begins with a status code or has none, and may be this code alone. smtpd answers the
    client with 421 instead of an invalid reply. One whose codes contradict each other it passes on,
    and clients disagree whether they may try again.
    """
    code, space, rest = text[:3], text[3:4], text[4:].strip()
    if not (code.isascii() and code.isdigit() and code[0] in "45" and space == " " and rest):
        raise ValueError(f"a reply is a 4xx or 5xx code, a space and a text, not {text[:80]!r}")
    if not _PRINTABLE.issuperset(text):
        raise ValueError(f"a reply is one line of printable ASCII, not {text[:80]!r}")
    if len(text) > MAX_REPLY:
        raise ValueError(f"a reply has at most {MAX_REPLY} octets, not {len(text)}")
    if status := _contradicting(text):
        raise ValueError(
            f"the codes {code} and {status} contradict each other: both begin with 4 (try again "
            f"later) or both with 5 (never), not {text[:80]!r}"
        )


def _contradicting(text: str) -> str:
    """Return the status code of a reply if it contradicts the reply's code, else an empty text.

    RFC 2034 section 4: the codes must "be congruent".
    """
    status = text[4:].partition(" ")[0]
    return status if status[:1] != text[0] and _STATUS.fullmatch(status) else ""


def show_points(thousandths: int) -> str:
    """Format thousandths of a point: `2.5`, `-3`."""
    whole, rest = divmod(abs(thousandths), 1000)
    text = f"{whole}.{rest:03}".rstrip("0").rstrip(".")
    return f"-{text}" if thousandths < 0 else text


class Exemption(str):
    """The reason of the decision on an exempt client, whatever the text of other reasons is."""

    __slots__ = ()


class Decision:
    """A decision and the reason for it.  Immutable, since it is checked only when it is created.

    `reason` is only logged, never sent.
    """

    __slots__ = ("reason", "text", "wire")
    __match_args__ = ("text",)
    #: smtpd's name of the decision: proceed, junk, reject, disconnect, rewrite.
    verb: ClassVar[str]

    #: The bytes sent after session and token.
    wire: bytes
    #: The reply to the client, or the new parameter.  Empty for proceed and junk.
    text: str
    reason: str

    def __init__(self, wire: bytes = b"", text: str = "", reason: str = "") -> None:
        keep = object.__setattr__
        keep(self, "wire", wire)
        keep(self, "text", text)
        keep(self, "reason", reason)

    def because(self, reason: object) -> Self:
        """Return the same decision with a reason for the log: a text, or what has one."""
        if type(reason) is not str and type(reason) is not Exemption:
            # Here, in the handler, since its `__str__` may fail or block.
            reason = "" if reason is None else str(reason)
        copy = object.__new__(type(self))
        Decision.__init__(copy, self.wire, self.text, reason)
        return copy

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: decisions are immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: decisions are immutable")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decision) or isinstance(other, Points):
            return NotImplemented
        return self.wire == other.wire and self.reason == other.reason

    def __hash__(self) -> int:
        return hash((self.wire, self.reason))

    def __repr__(self) -> str:
        shown = [repr(self.text)] if self.text else []
        if self.reason:
            shown.append(f"reason={self.reason!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


class Proceed(Decision):
    """Accept the command."""

    __slots__ = ()
    verb = "proceed"

    def __init__(self) -> None:
        super().__init__(b"proceed")


class Junk(Decision):
    """Accept the command, and mark the message with `X-Spam: Yes`."""

    __slots__ = ()
    verb = "junk"

    def __init__(self) -> None:
        super().__init__(b"junk")


class Marked(Decision):
    """Accept a message that the filter itself has marked as junk, by editing it.

    Only for handlers of messages. smtpd gets `proceed`; the log has `result=junk`, as for every
    other way to mark a message.
    """

    __slots__ = ()
    verb = "junk"

    def __init__(self) -> None:
        super().__init__(b"proceed")


class Points(Decision):
    """Accept the command, and add points to the score of the session or message.

    Points count in a chain with thresholds; anywhere else they are only logged. They are kept as
    whole thousandths, so that sums are exact. `temporary` points can't refuse permanently: they
    stand for a failure or a doubt that may have gone when the client retries. `instead` is the
    decision, as in the log, that a chain has replaced by these points; "" if the filter gave them.

    Raise ValueError for a number beyond `MAX_POINTS` either way.
    """

    __slots__ = ("instead", "temporary", "thousandths")
    __match_args__ = ("points",)
    verb = "proceed"

    #: The number of thousandths of a point.
    thousandths: int
    #: Whether they can't refuse permanently.
    temporary: bool
    #: The decision that they have replaced.
    instead: str

    def __init__(self, points: float, *, temporary: bool = False, instead: str = "") -> None:
        if not -MAX_POINTS <= points <= MAX_POINTS:  # false for NaN, too
            raise ValueError(f"points are a number of at most {MAX_POINTS:,}, not {points!r}")
        super().__init__(b"proceed")
        keep = object.__setattr__
        keep(self, "thousandths", round(points * 1000))
        keep(self, "temporary", temporary)
        keep(self, "instead", instead)

    @property
    def points(self) -> float:
        """The number of points."""
        return self.thousandths / 1000

    def because(self, reason: object) -> Self:
        """Return the same points with a reason for the log: a text, or what has one."""
        copy = super().because(reason)
        for name in ("thousandths", "temporary", "instead"):
            object.__setattr__(copy, name, getattr(self, name))
        return copy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Points) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[object, ...]:
        return self.thousandths, self.temporary, self.instead, self.reason

    def __repr__(self) -> str:
        shown = [show_points(self.thousandths)]
        names = ("temporary", "instead", "reason")
        shown += [f"{name}={value!r}" for name in names if (value := getattr(self, name))]
        return f"Points({', '.join(shown)})"


class Reject(Decision):
    """Refuse the command with a reply such as `550 5.7.1 Go away`.

    Raise ValueError unless the reply is a 4xx or 5xx code and a text, in one printable line, and
    for a status code of the other class, as in `452 5.2.2 Full`. The text may be the status code
    alone: `550 5.1.1`. For text from outside use `reply`.
    """

    __slots__ = ()
    verb = "reject"

    def __init__(self, text: str) -> None:
        check_reply(text)
        super().__init__(b"reject|" + text.encode(), text)


class Disconnect(Decision):
    """Refuse with a reply and close the connection.

    Raise ValueError as `Reject` does.
    """

    __slots__ = ()
    verb = "disconnect"

    def __init__(self, text: str) -> None:
        check_reply(text)
        super().__init__(b"disconnect|" + text.encode(), text)


class Rewrite(Decision):
    """Accept the command as if the client had sent another parameter.

    The parameter is an address at `mail-from` and `rcpt-to`, with or without angle brackets (and
    ESMTP parameters after them), one word at `helo` and `ehlo`, and a mechanism with its
    credentials at `auth`. Any other parameter counts as a failure of the handler: smtpd would
    refuse the client's command because of it.

    Raise ValueError for control characters and for more than `MAX_PARAMETER` octets. Angle brackets
    that are added later don't count.
    """

    __slots__ = ()
    verb = "rewrite"

    def __init__(self, text: str) -> None:
        if any(c < " " or c == "\x7f" for c in text):
            raise ValueError(f"a rewritten parameter is one line, not {text[:80]!r}")
        wire = b"rewrite|" + text.encode("utf-8", "surrogateescape")
        if len(wire) > MAX_PARAMETER + len(b"rewrite|"):
            raise ValueError(f"a rewritten parameter has at most {MAX_PARAMETER} octets")
        super().__init__(wire, text)

    def in_brackets(self) -> Rewrite:
        """Return the form for `mail-from` and `rcpt-to`: smtpd answers 553 without brackets."""
        if self.text.startswith("<"):
            return self
        # Bypasses the check: a valid parameter must not become too long by its brackets.
        copy = object.__new__(Rewrite)
        bare = self.wire.removeprefix(b"rewrite|")
        Decision.__init__(copy, b"rewrite|<%b>" % bare, f"<{self.text}>", self.reason)
        return copy


#: Accept the command, without a reason: the only instance needed.
PROCEED = Proceed()
#: Accept the command and mark the message, without a reason.
JUNK = Junk()
#: Accept a message that the handler has marked by editing it.
MARKED = Marked()

#: The decisions of `connect`, `starttls`, `data` and `noop`.
Answer = Proceed | Junk | Reject | Disconnect
#: The decisions of `helo`, `ehlo`, `auth`, `mail_from` and `rcpt_to`, which have a parameter.
ParameterAnswer = Proceed | Junk | Reject | Disconnect | Rewrite
#: The decisions of `headers` and `message`.
ContentAnswer = Proceed | Junk | Marked | Reject | Disconnect
#: The decisions of `commit` and `rset`.
FinalAnswer = Proceed | Reject | Disconnect

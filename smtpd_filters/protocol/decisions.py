"""What a filter may tell smtpd: proceed, junk, reject, disconnect, rewrite.

A decision checks itself when it is made, so that a bad one is the mistake of the
line that made it and never reaches the wire.  smtpd-filters(7) calls these filter
responses.  Its sixth, ``report``, is not here: 6.8 exits on it, and 7.8 takes the
report's text for the client's parameter.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Self

#: Octets of a reply line, without its line end.  RFC 5321, 4.5.3.1.5 allows 512 with it; smtpd
#: itself passes 5,000, and 7.8 exits on 20,000.
MAX_REPLY = 510
#: Octets of a rewritten parameter.  RFC 5321, 4.5.3.1.3 allows 256 for a path; ESMTP parameters
#: may follow it, and 4.5.3.1.4 gives a command line 512.
MAX_PARAMETER = 512

_PRINTABLE = frozenset(map(chr, range(0x20, 0x7F)))


def reply(code: int, enhanced: str, text: str) -> str:
    """Make a reply line of any text, as one from a scanner or the DNS.

    What is not printable ASCII becomes ``?``, white space of any kind one space,
    and the line is cut at ``MAX_REPLY`` octets.  ``enhanced`` is the status code
    of RFC 3463, or empty.

    Raises ValueError when ``code`` is not 400 to 599.
    """
    clean = "".join(c if c in _PRINTABLE else "?" for c in " ".join(text.split()))
    words = [str(code), enhanced, clean or "Refused"]
    line = " ".join(word for word in words if word)[:MAX_REPLY].rstrip()
    check_reply(line)
    return line


def check_reply(text: str) -> None:
    """ValueError for what is no reply: a 4xx or 5xx code, a space and a text.

    smtpd makes anything else a ``421``.
    """
    code, space, rest = text[:3], text[3:4], text[4:].strip()
    if not (code.isascii() and code.isdigit() and code[0] in "45" and space == " " and rest):
        raise ValueError(f"a reply is a 4xx or 5xx code, a space and a text, not {text[:80]!r}")
    if not _PRINTABLE.issuperset(text):
        raise ValueError(f"a reply is one line of printable ASCII, not {text[:80]!r}")
    if len(text) > MAX_REPLY:
        raise ValueError(f"a reply has at most {MAX_REPLY} octets, not {len(text)}")


class Decision:
    """What smtpd is told, and why.  It never changes, since it was checked when it was made.

    ``reason`` is for the log alone and is never sent.
    """

    __slots__ = ("reason", "text", "wire")
    __match_args__ = ("text",)
    #: The decision as smtpd calls it: proceed, junk, reject, disconnect, rewrite.
    verb: ClassVar[str]

    #: What is sent behind session and token.
    wire: bytes
    #: The reply to the client, or the new parameter.  Empty for proceed and junk.
    text: str
    reason: str

    def __init__(self, wire: bytes = b"", text: str = "", reason: str = "") -> None:
        keep = object.__setattr__
        keep(self, "wire", wire)
        keep(self, "text", text)
        keep(self, "reason", reason)

    def because(self, reason: str) -> Self:
        """The same decision with a reason for the log."""
        copy = object.__new__(type(self))
        Decision.__init__(copy, self.wire, self.text, reason)
        return copy

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: a decision does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name}: a decision does not change")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decision):
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
    """Go on."""

    __slots__ = ()
    verb = "proceed"

    def __init__(self) -> None:
        super().__init__(b"proceed")


class Junk(Decision):
    """Go on, and mark the message ``X-Spam: Yes``."""

    __slots__ = ()
    verb = "junk"

    def __init__(self) -> None:
        super().__init__(b"junk")


class Marked(Decision):
    """Go on: the filter itself has marked the message as junk, by an edit of it.

    For handlers of messages alone. smtpd is told to proceed; the log has ``result=junk``, as it has
    for every other way to mark a message.
    """

    __slots__ = ()
    verb = "junk"

    def __init__(self) -> None:
        super().__init__(b"proceed")


class Reject(Decision):
    """Refuse the command with a reply such as ``550 5.7.1 Go away``.

    Raises ValueError for what is no 4xx or 5xx reply of one printable line; for
    text from outside see `reply`.
    """

    __slots__ = ()
    verb = "reject"

    def __init__(self, text: str) -> None:
        check_reply(text)
        super().__init__(b"reject|" + text.encode(), text)


class Disconnect(Decision):
    """Refuse with a reply and close the connection.

    Raises ValueError as `Reject` does.
    """

    __slots__ = ()
    verb = "disconnect"

    def __init__(self, text: str) -> None:
        check_reply(text)
        super().__init__(b"disconnect|" + text.encode(), text)


class Rewrite(Decision):
    """Go on as if the client had sent another parameter.

    At ``mail-from`` and ``rcpt-to`` it is an address with or without its angle
    brackets (and ESMTP parameters behind them), at ``helo`` and ``ehlo`` one word, and at
    ``auth`` a mechanism with its credentials.  A handler that returns another one there has
    failed: smtpd would refuse the client's command for it.

    Raises ValueError for control characters and for more than ``MAX_PARAMETER`` octets, to which
    brackets that are put around it later don't count.
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
        """The form smtpd wants at ``mail-from`` and ``rcpt-to``: without, the client gets 553."""
        if self.text.startswith("<"):
            return self
        # Not made anew: what was legal must not turn out to be too long now, when smtpd waits.
        copy = object.__new__(Rewrite)
        bare = self.wire.removeprefix(b"rewrite|")
        Decision.__init__(copy, b"rewrite|<%b>" % bare, f"<{self.text}>", self.reason)
        return copy


#: Go on, without a reason: the one instance that is needed.
PROCEED = Proceed()
#: Go on and mark the message, without a reason.
JUNK = Junk()
#: Go on: the handler has marked the message by an edit of it.
MARKED = Marked()

#: The decisions of `connect`, `starttls`, `data` and `noop`.
Answer = Proceed | Junk | Reject | Disconnect
#: The decisions of `helo`, `ehlo`, `auth`, `mail_from` and `rcpt_to`, which have a parameter.
ParameterAnswer = Proceed | Junk | Reject | Disconnect | Rewrite
#: The decisions of `headers` and `message`.
ContentAnswer = Proceed | Junk | Marked | Reject | Disconnect
#: The decisions of `commit` and `rset`.
FinalAnswer = Proceed | Reject | Disconnect

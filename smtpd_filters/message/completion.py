r"""Completion of addresses in From, To and Cc, as smtpd(8) does it after its filters.

smtpd appends the listener's name to an address without a domain. It does so for every message,
after the last filter, so that a filter's signature of these fields would be invalid when the
message is delivered. A filter that signs completes the fields first, by the same rule, and smtpd
changes nothing more.

Invariants
----------
*Same as smtpd*: where smtpd changes nothing, no byte is changed; where it does, the result is the
same. A few cases are left to smtpd: a field on which its versions disagree (7.6 recognises an
escaped quote inside quotes, 6.8 doesn't), one that it changes again each time, one that would
become too long for it, and one that takes more work than `MAX_STEPS`.
*Linear*: an element is scanned once.

How it works. The value of a field is a list whose elements end at commas outside quotes and
comments. The lines of a folded field are one text, each followed by a line feed, so the last
element ends with one. An element is unchanged if it has an `@`, a `:` (of a group), or an
unterminated quote, comment or angle bracket. Otherwise `@` and the name are inserted at the end of
the last pair of brackets, or else after the last character that is neither white space nor part of
a comment. A backslash counts only outside quotes and comments, and only before `( ) "` and itself.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .headers import Headers

#: Bytes of a field's value with its final line feed, beyond which smtpd refuses the message.
MAX_VALUE = 65535
#: Special characters processed in one header block, at about half a microsecond each. A field of
#: the largest size with an address in quotes and brackets every 25 bytes has 3,000.
MAX_STEPS = 20_000
#: Bytes added to one header block: as many as a field may have.
MAX_ADDED = 1 << 16

# A field after a line feed, with its continuation lines.
_FIELD = re.compile(rb"\n(?:From|To|Cc):([^\n]*+(?:\n[ \t][^\n]*+)*+)", re.IGNORECASE)
_WHITE = b" \t\n\v\f\r"
#: A quoted string whose end is the same to all versions.
_QUOTED = rb'"(?:[^"\\]++|\\[^"])*+"'
_STRING = re.compile(_QUOTED, re.DOTALL)
#: An element with a domain, as nearly all are.
_COMPLETE = re.compile(
    rb'(?:[^"\\(),@]++|%b)*@(?:[^"\\(),@]++|@|%b)*(?:,|\Z)' % (_QUOTED, _QUOTED), re.DOTALL
)
#: A value with one such element on one line, the usual case.
_WHOLE = re.compile(rb'[^"\\(),@\n]++@[^"\\(),@\n]++')
_SPECIAL = re.compile(rb'["(,<>@:\\]')
_PARENTHESIS = re.compile(rb"[()]")


def complete(headers: Headers, host: str) -> bool:
    """Complete the fields of a header block; return whether any changed."""
    text = _completed(headers.text(), host)
    if text is None:
        return False
    headers.replace_text(text)
    return True


def completed(lines: list[bytes], host: str) -> list[bytes] | None:
    """Return the lines of a header block with the fields completed, or None if none changes."""
    text = _completed(b"\n".join([b"", *lines]), host)
    return None if text is None else text.split(b"\n")[1:]


def _completed(text: bytes, host: str) -> bytes | None:
    """Return a text, whose lines are each after a line feed, completed; None if none changes."""
    name = host.encode("utf-8", "surrogateescape")
    budget = _Budget()
    result, taken = bytearray(), 0
    for match in _FIELD.finditer(text):
        if len(result) - taken > MAX_ADDED:
            break
        if _WHOLE.fullmatch(text, *match.span(1)):
            continue
        changed = _value(match[1] + b"\n", name, budget)
        if changed is not None:
            result += text[taken : match.start(1)]
            result += changed[:-1]
            taken = match.end()
    if not taken:
        return None
    result += text[taken:]
    return bytes(result)


class _Budget:
    """The number of steps left."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps = MAX_STEPS

    def spend(self) -> bool:
        """Use a step; return whether one was left."""
        self.steps -= 1
        return self.steps >= 0


def _value(value: bytes, host: bytes, budget: _Budget) -> bytes | None:
    """Return a value with its elements completed, or None if it must stay as it is."""
    if len(value) > MAX_VALUE:
        return None
    new = bytearray()
    taken = at = 0
    while at < len(value):
        if not budget.spend():
            return None
        if found := _COMPLETE.match(value, at):
            at = found.end()
            continue
        element = _Element(value, at, budget)
        if not element.ended:
            return None
        if element.place is not None:
            new += value[taken : element.place] + b"@" + host
            taken = element.place
            if len(new) + len(value) - taken > MAX_VALUE:
                return None
        at = element.end + 1
    if not taken:
        return None
    new += value[taken:]
    return bytes(new)


class _Element:
    """One element of a list: where it ends, and where to insert a domain if it lacks one."""

    __slots__ = (
        "_at",
        "_budget",
        "_close",
        "_last",
        "_open",
        "_start",
        "_value",
        "end",
        "ended",
        "place",
    )

    def __init__(self, value: bytes, start: int, budget: _Budget) -> None:
        self._value = value
        self._budget = budget
        self._start = self._at = start
        #: The last character that is neither white space nor part of a comment; whether an angle
        #: bracket is open; the last one that was closed.
        self._last = -1
        self._open = False
        self._close = -1
        #: Whether it was scanned to its end: a comma or the end of the value.
        self.ended = True
        self.end = len(value)
        self.place = self._find_place() if self._scan() else None

    def _scan(self) -> bool:
        """Scan to the end; return whether the element may be an address without a domain."""
        value = self._value
        has_domain = False
        backslash = -1
        while found := _SPECIAL.search(value, self._at):
            if not self._spend():
                return False
            at, special = found.start(), found[0]
            if special == b",":
                self.end = at
                break
            if special in _ENCLOSING:
                if not self._skip(special, at):
                    return False
            elif special == b"\\":
                # It escapes the next character, if that is one of `_ESCAPED`.
                backslash = at + 1
                self._take_text(at + 1 + (value[at + 1 : at + 2] in _ESCAPED))
            else:
                self._take_text(at + 1)
                has_domain = has_domain or special in _NO_ADDRESS
                self._angle(special, at)
        self._take_text(self.end)
        return not (has_domain or self._open or backslash == self.end)

    def _spend(self) -> bool:
        self.ended = self._budget.spend()
        return self.ended

    def _angle(self, special: bytes, at: int) -> None:
        if special == b"<":
            self._open = True
        elif special == b">" and self._open:
            self._open = False
            self._close = at

    def _take_text(self, end: int) -> None:
        """Record that the text up to `end` is not part of a comment."""
        text = self._value[self._at : end].rstrip(_WHITE + b")")
        if text:
            self._last = self._at + len(text) - 1
        self._at = end

    def _skip(self, special: bytes, at: int) -> bool:
        """Skip a quoted string or a comment; return whether it is terminated."""
        if special == b'"':
            if string := _STRING.match(self._value, at):
                self._take_text(string.end())
                return True
            self.ended = b'"' not in self._value[at + 1 :]
            return False
        self._take_text(at)
        depth = 1
        at += 1
        while depth:
            found = _PARENTHESIS.search(self._value, at)
            if found is None or not self._spend():
                return False
            depth += 1 if found[0] == b"(" else -1
            at = found.end()
        self._at = at
        return True

    def _find_place(self) -> int | None:
        if self._close >= 0:
            inside = self._value[self._start : self._close].rstrip(_WHITE)
            return None if inside.endswith(b"<") else self._start + len(inside)
        if self._last >= 0:
            return self._last + 1
        # If there is only a comment, smtpd inserts the domain into it, again each time.
        return self._start + 1 if self._value.startswith(b")", self._start) else None


_ENCLOSING = frozenset({b"(", b'"'})
#: In an element that needs no domain: it has one, or is a group.
_NO_ADDRESS = frozenset({b"@", b":"})
#: The characters that a backslash escapes.
_ESCAPED = frozenset({b"(", b")", b'"', b"\\"})

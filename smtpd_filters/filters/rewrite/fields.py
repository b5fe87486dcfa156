r"""Addresses in the fields of a header block, and their replacement.

Invariants
----------
*Nothing else*: only the bytes of addresses change. Display names, comments, groups, white space
and folds keep theirs.
*Plain ones only*: an address is replaced if every program reads it alike: alone in angle brackets,
or alone between commas beside comments and white space. A field with an unterminated quote,
comment, bracket or group stays as it is.
*Short lines*: a field stays as it is if a line of it would have more than 998 bytes
(RFC 5322 section 2.1.1).
*Bounded*: a value is scanned once, and of all values at most `STEPS_MAX` tokens: a field that goes
beyond that, and those behind it, stay as they are.
"""

from __future__ import annotations

import re
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

MAX_LINE = 998
#: Tokens of a header block, each about a microsecond: those of some 2,500 addresses with names. A
#: field counts as `FIELD` more.
STEPS_MAX, FIELD = 20_000, 20
# RFC 5322 section 3.2: a quoted string, a domain literal, words, white space, single specials.
_TOKEN = re.compile(
    rb'"(?:[^"\\]|\\.)*+"|\[[^\[\]\\"<>]*+\]|[ \t\r\n]++|[^ \t\r\n"\\()<>,;:\[\]]++|.', re.DOTALL
)
#: An address without white space, route or encoded word, as it is written.
_PLAIN = re.compile(
    rb'(?!=\?)(?:"(?:[^"\\\r\n]|\\[^\r\n])++"|[^@"\\ \t\r\n:,;<>()]++)'
    rb'(?:@[^@"\\ \t\r\n:,;<>()]++)?'
)
_NEST = re.compile(rb"\\.|[()]", re.DOTALL)
_BLANKS = b" \t\r\n"
# A field after a line feed with one of some names, and its value with its folds.
_FIELDS = rb"\n(%b)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)"
_LONG = re.compile(rb"[^\n]{%d}" % (MAX_LINE + 1))


class Addresses:
    """The addresses in the fields of a text of `Headers`, by names of fields in lower case."""

    def __init__(self, text: bytes, names: Collection[bytes]) -> None:
        self._text = text
        #: Of each field its name, its begin and end in the text, and where its addresses begin and
        #: end: the next two numbers each.
        self._fields: list[tuple[bytes, int, int, array[int]]] = []
        steps = STEPS_MAX
        pattern = _FIELDS % b"|".join(map(re.escape, sorted(names)))
        for match in re.finditer(pattern, text, re.IGNORECASE):
            scan = _Scan(match[2], steps)
            steps -= scan.steps + FIELD
            if scan.found:
                behind = match.start(2)
                found = array("L", (behind + at for at in scan.found))
                self._fields.append((match[1].lower(), match.start() + 1, match.end(), found))
            if steps <= 0:
                break

    def __iter__(self) -> Iterator[tuple[bytes, str]]:
        """Yield each address as it is written, after the name of its field."""
        for name, _, _, found in self._fields:
            for begin, end in _pairs(found):
                yield name, self._address(begin, end)

    def replaced(self, new: Callable[[bytes, str], str | None]) -> bytes | None:
        """Return the text of the block with other addresses, or None if nothing changes.

        The function gets what iteration yields, and returns another address, or None to keep it.
        """
        text, result, kept = self._text, bytearray(), 0
        for name, begin, end, found in self._fields:
            edited, at = bytearray(), begin
            for one, two in _pairs(found):
                other = new(name, self._address(one, two))
                if other is not None:
                    edited += text[at:one] + other.encode("utf-8", "surrogateescape")
                    at = two
            if at == begin:
                continue
            edited += text[at:end]
            if not _LONG.search(edited):
                result += text[kept:begin] + edited
                kept = end
        return bytes(result + text[kept:]) if kept else None

    def _address(self, begin: int, end: int) -> str:
        return self._text[begin:end].decode("utf-8", "surrogateescape")


def _pairs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Return an iterator of each two numbers."""
    each = iter(numbers)
    return zip(each, each, strict=True)


def addresses(value: bytes) -> list[tuple[int, int]]:
    """Return where the addresses in a field's value begin and end; none if it is malformed."""
    return list(_pairs(_Scan(value, STEPS_MAX).found))


class _Pieces:
    """Pieces of a value: where the first begins, the last ends, and whether nothing is between."""

    __slots__ = ("begin", "end", "whole")

    def __init__(self) -> None:
        self.begin = self.end = -1
        self.whole = False

    def add(self, begin: int, end: int) -> None:
        """Add a piece behind the others."""
        if self.begin < 0:
            self.begin, self.whole = begin, True
        elif begin != self.end:
            self.whole = False
        self.end = end


class _Scan:
    """The list of addresses of a value, scanned from its beginning."""

    def __init__(self, value: bytes, limit: int) -> None:
        self._value = value
        self._limit = limit
        #: The tokens that were read.
        self.steps = 0
        #: Where addresses begin and end.
        self.found = array("L")
        self._begin()
        if not (self._read() and self._end(last=True)):
            self.found = array("L")

    def _begin(self) -> None:
        """Begin an element of the list."""
        #: What isn't white space or comments outside of angle brackets, and what is inside.
        self._plain = _Pieces()
        self._inside = _Pieces()
        #: Whether a bracket is open, and whether one was closed.
        self._open = self._closed = False

    def _read(self) -> bool:  # noqa: C901, PLR0911, PLR0912  # one branch for each special
        """Read all; return whether it is well-formed."""
        value, at, group = self._value, 0, False
        while at < len(value):
            token = _TOKEN.match(value, at)
            self.steps += 1
            if token is None or self.steps > self._limit:
                return False
            end = token.end()
            text = token[0]
            if text == b"(":
                end = self._comment(at)
                if end < 0 or self._open:
                    return False
            elif text == b"<":
                if self._open or self._closed:
                    return False
                self._open = True
            elif text == b">":
                if not self._open:
                    return False
                self._open, self._closed = False, True
            elif text in (b",", b";") and not self._open:
                if (text == b";" and not group) or not self._end():
                    return False
                group = group and text == b","
            elif text == b":" and not self._open:
                if group or self._closed:
                    return False
                group = True
                self._begin()
            elif text in (b")", b"\\", b'"', b"[", b"]"):
                return False
            elif text[:1] not in _BLANKS or self._open:
                (self._inside if self._open else self._plain).add(at, end)
            at = end
        return not group

    def _comment(self, at: int) -> int:
        """Return where a comment ends, or -1; each parenthesis in it is a token."""
        depth = 0
        for each in _NEST.finditer(self._value, at):
            self.steps += 1
            if self.steps > self._limit:
                return -1
            depth += {b"(": 1, b")": -1}.get(each[0], 0)
            if not depth:
                return each.end()
        return -1

    def _end(self, *, last: bool = False) -> bool:
        """End an element; return whether it is well-formed."""
        if self._open:
            return False
        parts = self._inside if self._closed else self._plain
        if parts.whole and _PLAIN.fullmatch(self._value, parts.begin, parts.end):
            self.found.extend((parts.begin, parts.end))
        if not last:
            self._begin()
        return True

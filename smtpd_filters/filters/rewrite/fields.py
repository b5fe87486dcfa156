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
from functools import partial
from itertools import pairwise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

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
_WHITE = (b" ", b"\t")


class Addresses:
    """The addresses in the fields of a header block, by names of fields in lower case."""

    def __init__(self, lines: list[bytes], names: Collection[bytes]) -> None:
        self._lines = lines
        #: Of each field its name, its lines, where its value begins, and its addresses in that.
        self._fields: list[tuple[bytes, int, int, int, list[tuple[int, int]]]] = []
        steps = STEPS_MAX
        at = 0
        while at < len(lines) and steps > 0:
            head, colon, _ = lines[at].partition(b":")
            name = head.rstrip(b" \t").lower()
            begin, at = at, at + 1
            if not colon or name not in names:
                continue
            while at < len(lines) and lines[at].startswith(_WHITE):
                at += 1
            behind = len(head) + 1
            scan = _Scan(b"\n".join(lines[begin:at])[behind:], steps)
            steps -= scan.steps + FIELD
            if scan.found:
                self._fields.append((name, begin, at, behind, scan.found))

    def __iter__(self) -> Iterator[tuple[bytes, str]]:
        """Yield each address as it is written, after the name of its field."""
        for name, begin, end, behind, found in self._fields:
            value = b"\n".join(self._lines[begin:end])[behind:]
            for one, two in found:
                yield name, value[one:two].decode("utf-8", "surrogateescape")

    def replaced(self, new: Callable[[bytes, str], str | None]) -> list[bytes] | None:
        """Return the lines of the block with other addresses, or None if nothing changes.

        The function gets what iteration yields, and returns another address, or None to keep it.
        """
        result: list[bytes] | None = None
        for name, begin, end, behind, found in self._fields:
            old = self._lines[begin:end]
            edited = _edited(old, behind, found, partial(new, name))
            if edited is not None:
                result = result or list(self._lines)
                result[begin:end] = edited
        return result


def _edited(
    lines: list[bytes],
    begin: int,
    found: list[tuple[int, int]],
    edit: Callable[[str], str | None],
) -> list[bytes] | None:
    """Return the lines of a field with its addresses replaced, or None if none is."""
    text = b"\n".join(lines)
    made: list[bytes] = []
    behind = 0
    for one, two in found:
        start, end = one + begin, two + begin
        new = edit(text[start:end].decode("utf-8", "surrogateescape"))
        if new is not None:
            made += (text[behind:start], new.encode("utf-8", "surrogateescape"))
            behind = end
    if not made:
        return None
    changed = b"".join([*made, text[behind:]]).split(b"\n")
    long = [new for old, new in zip(lines, changed, strict=True) if len(new) > MAX_LINE]
    return None if long else changed


def addresses(value: bytes) -> list[tuple[int, int]]:
    """Return where the addresses in a field's value begin and end; none if it is malformed."""
    return _Scan(value, STEPS_MAX).found


class _Scan:
    """The list of addresses of a value, scanned from its beginning."""

    def __init__(self, value: bytes, limit: int) -> None:
        self._value = value
        self._limit = limit
        #: The tokens that were read.
        self.steps = 0
        self.found: list[tuple[int, int]] = []
        self._begin()
        if not (self._read() and self._end(last=True)):
            self.found = []

    def _begin(self) -> None:
        """Begin an element of the list."""
        #: The pieces outside of angle brackets that aren't white space or comments.
        self._plain: list[tuple[int, int]] = []
        #: The pieces inside.
        self._inside: list[tuple[int, int]] = []
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
                (self._inside if self._open else self._plain).append((at, end))
            at = end
        return not group

    def _comment(self, at: int) -> int:
        """Return where a comment ends, or -1."""
        depth = 0
        for each in _NEST.finditer(self._value, at):
            depth += {b"(": 1, b")": -1}.get(each[0], 0)
            if not depth:
                return each.end()
        return -1

    def _end(self, *, last: bool = False) -> bool:
        """End an element; return whether it is well-formed."""
        if self._open:
            return False
        parts = self._inside if self._closed else self._plain
        if parts and all(one[1] == two[0] for one, two in pairwise(parts)):
            begin, end = parts[0][0], parts[-1][1]
            if _PLAIN.fullmatch(self._value, begin, end):
                self.found.append((begin, end))
        if not last:
            self._begin()
        return True

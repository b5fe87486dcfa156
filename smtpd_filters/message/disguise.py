"""Recognition of field names that some reader takes for others.

Programs differ in what they accept as a field's name: some drop NUL and other control characters,
some drop bytes beyond ASCII, some unfold the name, some take a bare CR for the end of a line.

Invariants
----------
*Any reading*: a field has a name if it has it in any of these readings.
*Own trace field*: the first Received field is smtpd's. A client's first line may continue it, and
only what follows may be removed: fields above the first Received are not a client's.
*Linear*: a block takes time proportional to its size; one without such a field is only searched.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .headers import Headers

_BLANKS = (b" ", b"\t")
# Blanks, controls, bytes beyond ASCII and folds, which a name can't have and a reader may drop.
# No look-ahead in a possessive repeat: Python 3.11.2 goes on behind what failed (gh-106052).
_DROPPED = rb"(?:[^\n!-~]|\n[ \t])*+"
# Up to a line end, or a bare CR, that no blank follows.
_VALUE = re.compile(rb"(?:[^\r\n]|[\r\n]++[ \t])*+")
# The line feed before the next field.
_NEXT = re.compile(rb"\n(?![ \t])")
_RECEIVED = re.compile(rb"\nreceived[ \t]*+:", re.IGNORECASE)
_LEADING = re.compile(rb"\n[ \t]++")
# A first line with blanks, a line that is neither a field nor the continuation of one, or a bare
# CR: without any of these no name is disguised.
_ODD = re.compile(rb"\A\n[ \t]|\n(?![ \t]|[!-9;-~]++[ \t]*+:)|\r")
# What may be around the letters of a name: all but visible characters, and the colon.
_NOT_IN_NAME = bytes({*range(256)} - {*range(0x21, 0x7F)} | {ord(":")})
#: Stands for the line feed and the blanks before the first line, which is not a continuation.
_MASK = b"\n\0"


class Name:
    """The name of fields, or with `prefix` the beginning of their names."""

    def __init__(self, name: str, *, prefix: bool = False) -> None:
        letters = name.encode("ascii")
        rest = rb"[!-9;-~]*+" if prefix else b""
        #: A field with the name, after a line feed: as it should be written, and in any reading.
        self._plain = re.compile(rb"\n%b%b[ \t]*+:" % (re.escape(letters), rest), re.IGNORECASE)
        read = _spaced(letters) + (rb"(?:[^\n:]|\n[ \t])*+" if prefix else b"")
        self._read = re.compile(rb"\n(?![ \t])%b%b:" % (_DROPPED, read), re.IGNORECASE)
        rest = rb"[^\r\n:]*+" if prefix else b""
        self._behind_cr = re.compile(
            rb"\r[ \t]*+%b%b[ \t]*+:" % (re.escape(letters), rest), re.IGNORECASE
        )

    def hidden_values(self, headers: Headers) -> Iterator[bytes]:
        """Yield the values of the fields that have the name only in some reading.

        They include what follows a bare CR and the name; of a folded value all lines. A value may
        contain those after it, so that all of them may take the square of the block.
        """
        text = _searchable(headers.text())
        found: Iterator[re.Match[bytes]] = (
            each for each in self._read.finditer(text) if not self._is_plain(each)
        )
        if b"\r" in text:
            found = chain(found, self._behind_cr.finditer(text))
        for each in found:
            yield next(_VALUE.finditer(text, each.end()))[0]  # it matches any text

    def occurs(self, headers: Headers) -> bool:
        """Return whether some field has the name in any reading."""
        return self._occurs(_searchable(headers.text()))

    def remove_disguised(self, headers: Headers) -> int:
        """Remove the fields that have the name only in some reading; return their number.

        A field of another name is removed too if it contains this one behind a bare CR; of smtpd's
        own Received only the lines from there on.
        """
        return self._remove(headers, 0, plain=False)

    def remove_foreign(self, headers: Headers) -> int:
        """Remove the fields that have the name in any reading; return their number.

        The fields above smtpd's own Received are those of earlier filters, and stay.
        """
        if not self.occurs(headers):
            return 0
        own = _RECEIVED.search(headers.text())
        return self._remove(headers, own.start() if own else 0, plain=True)

    def _is_plain(self, match: re.Match[bytes]) -> bool:
        return self._plain.fullmatch(match[0]) is not None

    def _occurs(self, text: bytes) -> bool:
        return self._read.search(text) is not None or self._behind_cr.search(text) is not None

    def _remove(self, headers: Headers, top: int, *, plain: bool) -> int:
        """Remove fields from a place of the text on: disguised ones, or all with `plain`."""
        text = headers.text()
        above, rest = text[:top], text[top:]
        masked = _searchable(rest)
        kept = _Kept(masked)
        kept.remove(self._fields(masked, plain=plain))
        if b"\r" in kept.text:
            kept.remove(self._fields_behind_cr(kept.text))
        if kept.count:
            if masked is not rest and kept.first:
                above += rest[: 1 + _blanks(rest)]
                kept.text = kept.text[len(_MASK) :]
            headers.replace_text(above + kept.text)
        return kept.count

    def _fields(self, text: bytes, *, plain: bool) -> Iterator[tuple[int, int]]:
        """Yield where the fields to remove begin and end in a searchable text."""
        for match in self._read.finditer(text):
            if plain or not self._is_plain(match):
                yield match.start(), _end_of_field(text, match.end())

    def _fields_behind_cr(self, text: bytes) -> Iterator[tuple[int, int]]:
        """Yield where the fields with the name behind a bare CR begin and end."""
        own = _RECEIVED.search(text)
        end = 0
        for match in self._behind_cr.finditer(text) if b"\r" in text else ():
            if match.start() >= end:
                end = _end_of_field(text, match.end())
                start = _start_of_field(text, match.start())
                if own and start == own.start():
                    start = text.rindex(b"\n", 0, match.start())
                yield start, end


def disguised(text: bytes, names: tuple[bytes, ...]) -> frozenset[bytes]:
    """Return the names that some field in a text of `Headers` has only in some reading.

    All names, in lower case, are found in one pass: one for each takes several times as long.
    """
    if not _ODD.search(text):
        return frozenset()
    searched = _searchable(text)
    plain, read, behind_cr = _any_of(names)
    found = [each[0] for each in read.finditer(searched) if not plain.fullmatch(each[0])]
    if b"\r" in searched:
        found += [each[0] for each in behind_cr.finditer(searched)]
    return frozenset(each.translate(None, _NOT_IN_NAME).lower() for each in found)


@cache
def _any_of(names: tuple[bytes, ...]) -> tuple[re.Pattern[bytes], ...]:
    """Return the expressions of `Name` for several names at once."""
    plain = b"|".join(map(re.escape, names))
    read = b"|".join(map(_spaced, names))
    return (
        re.compile(rb"\n(?:%b)[ \t]*+:" % plain, re.IGNORECASE),
        re.compile(rb"\n(?![ \t])%b(?:%b):" % (_DROPPED, read), re.IGNORECASE),
        re.compile(rb"\r[ \t]*+(?:%b)[ \t]*+:" % plain, re.IGNORECASE),
    )


def _spaced(name: bytes) -> bytes:
    """Return an expression for a name with characters that a reader may drop behind each."""
    return b"".join(re.escape(b"%c" % letter) + _DROPPED for letter in name)


class _Kept:
    """What is left of a text, whether with its first field, and how many fields were removed."""

    __slots__ = ("count", "first", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.first = True
        self.count = 0

    def remove(self, spans: Iterator[tuple[int, int]]) -> None:
        """Remove parts of the text, in their order."""
        kept, at = bytearray(), 0
        for start, end in spans:
            kept += self.text[at:start]
            at = end
            self.first = self.first and start > 0
            self.count += 1
        if at:
            kept += self.text[at:]
            self.text = bytes(kept)


def _start_of_field(text: bytes, at: int) -> int:
    """Return the place of the line feed before the field that has a place of a searchable text."""
    at = text.rindex(b"\n", 0, at)
    while text[at + 1 : at + 2] in _BLANKS:
        at = text.rindex(b"\n", 0, at)
    return at


def _end_of_field(text: bytes, at: int) -> int:
    match = _NEXT.search(text, at)
    return match.start() if match else len(text)


def _searchable(text: bytes) -> bytes:
    """Return a text of `Headers`; `_MASK` stands for blanks before the first line."""
    blanks = _blanks(text)
    return _MASK + text[1 + blanks :] if blanks else text


def _blanks(text: bytes) -> int:
    """Return the number of blanks before the first line."""
    found = _LEADING.match(text)
    return found.end() - 1 if found else 0

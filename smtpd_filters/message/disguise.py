"""Recognition of field names that some reader takes for others.

Programs differ in what they accept as a field's name: some drop NUL and other control characters,
some drop bytes beyond ASCII, some unfold the name, some take a bare CR for the end of a line.

Invariants
----------
*Any reading*: a field has a name if it has it in any of these readings.
*Linear*: a block takes time proportional to its size; one without such a field is only searched.
"""

from __future__ import annotations

import re

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
_RECEIVED = re.compile(rb"received[ \t]*+:", re.IGNORECASE)


class Name:
    """The name of fields, or with `prefix` the beginning of their names."""

    def __init__(self, name: str, *, prefix: bool = False) -> None:
        letters = name.encode("ascii")
        rest = rb"[!-9;-~]*+" if prefix else b""
        #: The name as it has to be, and in any reading; both after a line feed.
        self._plain = re.compile(rb"\n%b%b[ \t]*+:" % (re.escape(letters), rest), re.IGNORECASE)
        spaced = b"".join(re.escape(b"%c" % letter) + _DROPPED for letter in letters)
        rest = rb"(?:[^\n:]|\n[ \t])*+" if prefix else b""
        self._read = re.compile(rb"\n(?![ \t])%b%b%b:" % (_DROPPED, spaced, rest), re.IGNORECASE)
        rest = rb"[^\r\n:]*+" if prefix else b""
        self._behind_cr = re.compile(
            rb"\r[ \t]*+%b%b[ \t]*+:" % (re.escape(letters), rest), re.IGNORECASE
        )

    def hidden_values(self, headers: Headers) -> Iterator[bytes]:
        """Yield the values of the fields that have the name only in some reading.

        They include what follows a bare CR and the name; of a folded value all lines. A value may
        contain those after it, so that all of them may take the square of the block.
        """
        text = _searchable(headers.lines())
        found = [each.end() for each in self._read.finditer(text) if not self._is_plain(each)]
        if b"\r" in text:
            found += [each.end() for each in self._behind_cr.finditer(text)]
        for at in found:
            if match := _VALUE.match(text, at):  # it matches any text
                yield match[0]

    def occurs(self, headers: Headers) -> bool:
        """Return whether some field has the name in any reading."""
        return self._occurs(_searchable(headers.lines()))

    def remove_disguised(self, headers: Headers) -> int:
        """Remove the fields that have the name only in some reading; return their number.

        A field of another name is removed too if it contains this one behind a bare CR.
        """
        return self._remove(headers, headers.lines(), 0, plain=False)

    def remove_foreign(self, headers: Headers) -> int:
        """Remove the fields that have the name in any reading; return their number.

        The fields above smtpd's own Received are those of earlier filters, and stay.
        """
        if not self.occurs(headers):
            return 0
        lines = headers.lines()
        top = next((at for at, line in enumerate(lines) if _RECEIVED.match(line)), 0)
        return self._remove(headers, lines, top, plain=True)

    def _is_plain(self, match: re.Match[bytes]) -> bool:
        return self._plain.fullmatch(match[0]) is not None

    def _occurs(self, text: bytes) -> bool:
        return self._read.search(text) is not None or self._behind_cr.search(text) is not None

    def _remove(self, headers: Headers, lines: list[bytes], top: int, *, plain: bool) -> int:
        """Remove fields from the line `top` on: disguised ones, or with `plain` all of the name."""
        text = _searchable(lines[top:])
        spans = self._spans(text, plain=plain)
        if not spans:
            return 0
        kept, at = [], 0
        for start, end in sorted(spans.items()):
            kept.append(text[at:start])
            at = end
        kept.append(text[at:])
        rest = b"".join(kept).split(b"\n")[1:]
        if 0 not in spans:
            rest[0] = lines[top]  # without what stands for its blanks
        headers.replace_lines([*lines[:top], *rest])
        return len(spans)

    def _spans(self, text: bytes, *, plain: bool) -> dict[int, int]:
        """Return where the fields to remove begin and end in a searchable text."""
        spans = {}
        for match in self._read.finditer(text):
            if plain or not self._is_plain(match):
                spans[match.start()] = _end_of_field(text, match.end())
        end = 0
        for match in self._behind_cr.finditer(text) if b"\r" in text else ():
            if match.start() >= end:
                end = _end_of_field(text, match.end())
                spans[_start_of_field(text, match.start())] = end
        return spans


def _start_of_field(text: bytes, at: int) -> int:
    """Return the place of the line feed before the field that has a place of a searchable text."""
    at = text.rindex(b"\n", 0, at)
    while text[at + 1 : at + 2] in _BLANKS:
        at = text.rindex(b"\n", 0, at)
    return at


def _end_of_field(text: bytes, at: int) -> int:
    match = _NEXT.search(text, at)
    return match.start() if match else len(text)


def _searchable(lines: list[bytes]) -> bytes:
    """Return lines, each after a line feed; NUL stands for blanks before the first."""
    first = lines[:1]
    if first and first[0][:1] in _BLANKS:
        first = [b"\x00" + first[0].lstrip(b" \t")]
    return b"\n".join([b"", *first, *lines[1:]])

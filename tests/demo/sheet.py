"""A table for a terminal: columns that share the width, cells that wrap, colour where it helps.

A cell is a list of entries; an entry is a coloured word and a text behind it, which goes on below
itself, indented, where the column is too narrow. Pure: text in, lines out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = "  "
INDENT = "  "
#: No column is made narrower than this, unless its content is.
NARROW = 12
# ECMA-48, 8.3.117, Select Graphic Rendition.
STYLES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
}
# A host name or an address may go on in the next line behind these.
_JOINTS = re.compile(r"[^.@:/=-]*[.@:/=-]+|[^.@:/=-]+")


class Entry(NamedTuple):
    """A word in a style, and what is said of it."""

    word: str
    text: str = ""
    style: str = ""


Cell = list[Entry]


class Painter:
    """Gives text a style, or leaves it alone where there is no colour."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, style: str) -> str:
        """Return the text in a style; an empty style is none."""
        if not (self._colour and style and text):
            return text
        return f"\033[{STYLES[style]}m{text}\033[0m"


def wrap(text: str, width: int, *, hanging: str = INDENT) -> list[str]:
    """Break a text into lines of at most `width` characters, the first without indentation.

    It is broken at spaces. A word that is longer than a line is broken after a dot, a hyphen or the
    like; a word without any of these is broken anywhere.
    """
    lines: list[str] = []
    line = ""
    for word in text.split():
        room = width - len(hanging)
        pieces = [word] if len(word) <= room else _pieces(word, room)
        for number, piece in enumerate(pieces):
            space = " " if line.strip() and not number else ""
            if line.strip() and len(line) + len(space) + len(piece) > width:
                lines.append(line)
                line, space = hanging, ""
            line += space + piece
    return [*lines, line]


def _pieces(word: str, room: int) -> list[str]:
    room = max(1, room)
    return [
        part[start : start + room]
        for part in _JOINTS.findall(word)
        for start in range(0, len(part), room)
    ]


def widths(columns: Sequence[Sequence[Cell]], total: int) -> list[int]:
    """Share `total` characters among columns: each what it needs, or what is fair."""
    wanted = [
        max((len(_flat(entry)) for cell in column for entry in cell), default=0)
        for column in columns
    ]
    least = [min(NARROW, each) for each in wanted]
    room = total - len(GAP) * (len(columns) - 1) - sum(least)
    missing = sum(wanted) - sum(least)
    if missing <= max(0, room):
        return wanted
    # Not in proportion: the longest text would take it all, and a short one must not be broken.
    given = list(least)
    while room > 0:
        hungry = [n for n, width in enumerate(given) if width < wanted[n]]
        share = max(1, room // len(hungry))
        for number in hungry:
            more = min(share, wanted[number] - given[number], room)
            given[number] += more
            room -= more
    return given


def table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], total: int, paint: Painter, rule: str = "-"
) -> list[str]:
    """Return the lines of a table of at most `total` characters, with a blank line between rows."""
    heads: list[Cell] = [[Entry(word, style="bold")] for word in head]
    columns = [[heads[n], *(row[n] for row in rows)] for n in range(len(head))]
    shares = widths(columns, total)
    lines = _row(heads, shares, paint)
    lines.append(paint(GAP.join(rule * share for share in shares), "dim"))
    for number, row in enumerate(rows):
        lines += [""] * bool(number)
        lines += _row(row, shares, paint)
    return lines


def _row(cells: Sequence[Cell], shares: Sequence[int], paint: Painter) -> list[str]:
    wrapped = [_lines(cell, share, paint) for cell, share in zip(cells, shares, strict=True)]
    lines = []
    for number in range(max(map(len, wrapped))):
        line = ""
        at = 0  # where the line ends, colours not counted
        start = 0
        for cell, share in zip(wrapped, shares, strict=True):
            if number < len(cell):
                plain, coloured = cell[number]
                line += " " * (start - at) + coloured
                at = start + len(plain)
            start += share + len(GAP)
        lines.append(line)
    return lines


def _lines(cell: Cell, width: int, paint: Painter) -> list[tuple[str, str]]:
    """Return each line of a cell twice, plain and coloured."""
    return [
        (line, coloured)
        for entry in cell
        for line, coloured in zip(
            wrap(_flat(entry), width), lines_of(entry, width, paint), strict=True
        )
    ]


def lines_of(entry: Entry, width: int, paint: Painter) -> list[str]:
    """Return an entry as lines of at most `width` characters, colours not counted."""
    lines = wrap(_flat(entry), width)
    if not entry.text:
        return [paint(line, entry.style) for line in lines]
    # Only the word is coloured, which stands at the start.
    length = len(entry.word) if lines[0].startswith(entry.word) else 0
    return [paint(lines[0][:length], entry.style) + lines[0][length:], *lines[1:]]


def _flat(entry: Entry) -> str:
    return f"{entry.word} {entry.text}" if entry.text else entry.word

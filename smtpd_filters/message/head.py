"""The header block as its lines come in: where it ends, and how much of it is taken for one.

The law:
1. The block ends before the first empty line. Without one it is all there is, up to HEADER_LIMIT;
   what lies past that is no header any more.
2. A block that is cut is cut in front of a field: what is appended to it must not take over the
   continuation lines of the field before it.
3. What a block costs to keep and to edit grows with its lines as well as with its bytes, so both
   are counted: a header of empty fields by the hundred thousand would hold up every session.
"""

from __future__ import annotations

# Exim's header_maxsize has this default.
HEADER_LIMIT = 1 << 20
# What a line counts beyond its bytes, about what Python takes for one. So a block has 16,000 lines
# at the most; those of the longest lists of recipients have a tenth of that.
LINE_COST = 64

_WHITE = (b" ", b"\t")


class Head:
    """The lines of a header block, as they are on the wire."""

    __slots__ = ("_cost", "lines")

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._cost = 0

    def feed(self, lines: list[bytes]) -> list[bytes] | None:
        """Take the lines of the block. None as long as it goes on; then what is behind it.

        What is behind it begins with the empty line, unless the block was cut.
        """
        end = lines.index(b"") if b"" in lines else len(lines)
        self.lines += lines[:end]
        self._cost += sum(map(len, lines[:end])) + LINE_COST * end
        if self._cost > HEADER_LIMIT:
            return self._cut() + lines[end:]
        return lines[end:] if end < len(lines) else None

    def _cut(self) -> list[bytes]:
        """Take out what is past the limit."""
        lines = self.lines
        cost = at = 0
        while (cost := cost + len(lines[at]) + LINE_COST) <= HEADER_LIMIT:
            at += 1
        while at and lines[at].startswith(_WHITE):
            at -= 1
        past = lines[at:]
        del lines[at:]
        return past

"""Dot-stuffing, both ways (RFC 5321 section 4.5.2).

The law:
1. A line that begins with a dot goes onto the wire with one dot more, and loses its first dot
   when it comes off it; every other line is the same on both sides.
2. The lone dot that ends the data is no line of the message and is never passed here.

`unstuff` is the inverse of `stuff`. The reverse doesn't hold: a client may send ".x" unescaped,
which means "x", so whoever must give back the very bytes that came keeps the wire form.

Lines with a leading dot are rare, so both first ask, in one pass without a Python frame per line,
whether there is any.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# A slice, since an empty line has no first byte.
_first_byte = itemgetter(slice(0, 1))


def stuff(lines: Iterable[bytes]) -> list[bytes]:
    """The lines as they go onto the wire: a leading dot is doubled."""
    lines = list(lines)
    if b"." not in map(_first_byte, lines):
        return lines
    return [b"." + line if line.startswith(b".") else line for line in lines]


def unstuff(lines: Iterable[bytes]) -> list[bytes]:
    """The lines as they were before `stuff`: a leading dot is taken away."""
    lines = list(lines)
    if b"." not in map(_first_byte, lines):
        return lines
    return [line.removeprefix(b".") for line in lines]


def stuff_block(block: bytes) -> bytes:
    """Stuff whole lines that stand in one block, separated by line feeds."""
    if block.startswith(b"."):
        block = b"." + block
    return block.replace(b"\n.", b"\n..")


def unstuff_block(block: bytes) -> bytes:
    """Undo `stuff_block`."""
    return block.removeprefix(b".").replace(b"\n.", b"\n")

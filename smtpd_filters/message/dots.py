"""Dot-stuffing and its inverse (RFC 5321 section 4.5.2).

A line that begins with a dot is sent with one more dot and loses its first dot on receipt; other
lines are unchanged. The lone dot that ends the data isn't a line of the message, and callers never
pass it here.

`unstuff` is the inverse of `stuff`, but not the other way round: a client may send ".x" unescaped,
which means "x". Code that must return the received bytes therefore keeps the wire form.

Lines with a leading dot are rare, so both functions first check, in one pass without a Python frame
per line, whether there is any.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# A slice, since an empty line has no first byte.
_first_byte = itemgetter(slice(0, 1))


def stuff(lines: Iterable[bytes]) -> list[bytes]:
    """Return the lines in wire form, with leading dots doubled."""
    lines = list(lines)
    if b"." not in map(_first_byte, lines):
        return lines
    return [b"." + line if line.startswith(b".") else line for line in lines]


def unstuff(lines: Iterable[bytes]) -> list[bytes]:
    """Return the lines without the leading dots that `stuff` adds."""
    lines = list(lines)
    if b"." not in map(_first_byte, lines):
        return lines
    return [line.removeprefix(b".") for line in lines]


def stuff_block(block: bytes) -> bytes:
    """Stuff a block of whole lines, separated by line feeds."""
    if block.startswith(b"."):
        block = b"." + block
    return block.replace(b"\n.", b"\n..")


def unstuff_block(block: bytes) -> bytes:
    """Reverse `stuff_block`."""
    return block.removeprefix(b".").replace(b"\n.", b"\n")

"""The records of a zip file: its directories, and the headers of its members."""

from __future__ import annotations

from struct import unpack_from
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .content import Storage

#: The longest comment of a zip file behind its record, and its record.
_ZIP_END = 22 + 65535
#: Directories of a zip file that are looked for.
_DIRECTORIES = 5


class Piece(NamedTuple):
    """Where the packed bytes of a member are."""

    at: int
    size: int
    method: int


def directories(store: Storage) -> list[tuple[int, int, int]]:
    """Find the directories of a zip file, from the last on.

    Return of each its start and end, and what to add to offsets in it.
    """
    start = max(0, store.size - _ZIP_END)
    tail = store.read(start, _ZIP_END)
    found: list[tuple[int, int, int]] = []
    at = len(tail)
    for _ in range(_DIRECTORIES):
        at = tail.rfind(b"PK\x05\x06", 0, at)
        if at < 0:
            break
        directory = _end(store, tail[at : at + 22], start + at)
        if directory is not None and directory not in found:
            found.append(directory)
    return found


def _end(store: Storage, record: bytes, end: int) -> tuple[int, int, int] | None:
    """Return the directory that a record at this offset ends, None if there can be none."""
    if len(record) < 22:
        return None
    entries, size, offset = unpack_from("<HLL", record, 10)
    if 0xFFFFFFFF in (size, offset) or entries == 0xFFFF:
        locator = store.read(end - 20, 20) if end >= 20 else b""
        if locator[:4] == b"PK\x06\x07":
            (place,) = unpack_from("<Q", locator, 8)
            head = store.read(place, 56)
            if len(head) < 56 or head[:4] != b"PK\x06\x06":
                return None
            size, offset = unpack_from("<QQ", head, 40)
            end = place
    # Data may precede the archive: its directory ends where its record begins.
    return (end - size, end, end - size - offset) if size <= end else None


def local_header(
    store: Storage, head: bytes, at: int, packed: int, method: int
) -> tuple[bytes, Piece] | None:
    """Return the name in the header of a member, and where its bytes are."""
    if at < 0 or len(head) < 30 or head[:4] != b"PK\x03\x04":
        return None
    name, extra = unpack_from("<HH", head, 26)
    return store.read(at + 30, name), Piece(at + 30 + name + extra, packed, method)


def names(raw: bytes, extra: bytes, flags: int) -> list[str]:
    """Return the readings of a name in a zip file."""
    found = [raw.decode("utf-8", "surrogateescape")]
    if not raw.isascii() and not flags & 0x800:
        found.append(raw.decode("cp437"))
    at = 0
    while at + 4 <= len(extra):
        kind, size = unpack_from("<HH", extra, at)
        if kind == 0x7075:  # Info-ZIP Unicode Path
            found.append(extra[at + 9 : at + 4 + size].decode("utf-8", "surrogateescape"))
        at += 4 + size
    return found

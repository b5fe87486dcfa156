"""The headers of RAR archives, in the formats of RAR 1.5 to 4 and of RAR 5: the names of members.

The formats are those of RAR's technical notes (technote.txt of RAR 4.20 and of RAR 5). Headers are
read as leniently as programs do: checksums are not verified, and fields that a header lacks are 0.
"""

from __future__ import annotations

import re
from struct import unpack_from

from . import zip_records
from .content import Entry
from .limits import NAME, READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from .content import Storage

_SIGNATURE = re.compile(rb"Rar!\x1a\x07(?:\x00|\x01\x00)")
#: Bytes of other data, such as a self-extractor, behind which programs find an archive.
_BEFORE = 1 << 20

#: RAR 4: types of blocks; those with data whatever their flags say, and those without.
_MAIN_4, _FILE_4, _SERVICE_4, _END_4 = 0x73, 0x74, 0x7A, 0x7B
_WITH_DATA_4 = frozenset({0x77, 0x78, _FILE_4, _SERVICE_4})
_WITHOUT_DATA_4 = frozenset({0x72, _MAIN_4, 0x75, 0x76, 0x79})
#: RAR 4: flags of blocks, of the archive, and of files.
_LONG, _LOCKED_MAIN = 0x8000, 0x80
_LOCKED_4, _LARGE, _UNICODE = 0x04, 0x100, 0x200
#: RAR 4: bytes of a header that all blocks have, and of a file's up to its name.
_SHORT, _UP_TO_NAME = 7, 40
#: RAR 4: bytes of a packed name that are read in a step.
_STEP = 1000

#: RAR 5: types of headers, and flags.
_FILE_5, _SERVICE_5, _ENCRYPTION, _END_5 = 2, 3, 4, 5
_HAS_EXTRA, _HAS_DATA = 1, 2
_HAS_TIME, _HAS_CHECKSUM = 2, 4
_LOCKED_5 = 1
#: RAR 5: bytes of a header up to its name, at most.
_NUMBERS = 160
#: RAR 5: records of an extra area that are looked at. There are seven types.
_RECORDS = 16


def behind_signature(store: Storage) -> tuple[int, bool] | None:
    """Return where the first header is, and whether it is one of RAR 5; None if there is none."""
    for at in range(0, min(store.size, _BEFORE), READ):
        # A signature may begin in one piece and end in the next.
        if found := _SIGNATURE.search(store.read(at, READ + 7)):
            return at + found.end(), found[0].endswith(b"\1\0")
    return None


def entries(store: Storage) -> Iterator[Entry]:
    """Yield the headers of an archive, as far as they are sound and not encrypted."""
    if found := behind_signature(store):
        at, is_rar5 = found
        yield from (_rar5 if is_rar5 else _rar4)(store, at)


# -- RAR 4 ---------------------------------------------------------------------------------


def _rar4(store: Storage, at: int) -> Iterator[Entry]:
    while at + _SHORT <= store.size:
        kind, flags, size = unpack_from("<xxBHH", store.read(at, _SHORT))
        if size < _SHORT or kind == _END_4:
            return
        if kind == _MAIN_4 and flags & _LOCKED_MAIN:
            yield Entry(encrypted=True)
            return
        head = store.read(at, size).ljust(_UP_TO_NAME, b"\0")
        if kind == _FILE_4:
            yield from _file_4(head, flags)
        else:
            yield Entry()
        at += size
        if kind in _WITH_DATA_4 or (flags & _LONG and kind not in _WITHOUT_DATA_4):
            (data,) = unpack_from("<L", head, 7)
            at += data
        if kind in (_FILE_4, _SERVICE_4) and flags & _LARGE:
            (high,) = unpack_from("<L", head, 32)
            at += high << 32


def _file_4(head: bytes, flags: int) -> Iterator[Entry]:
    (length,) = unpack_from("<H", head, 26)
    begin = _UP_TO_NAME if flags & _LARGE else _UP_TO_NAME - 8
    raw = head[begin : begin + length]
    plain, nul, _ = raw.partition(b"\0")
    names = zip_records.names(plain, b"", 0)
    if flags & _UNICODE and nul:
        names.append((yield from _decoded(raw, len(plain) + 1)))
    yield Entry(tuple(names), bool(flags & _LOCKED_4), 40 + len(raw) // 50)


def _decoded(raw: bytes, at: int) -> Generator[Entry, None, str]:
    """Return the name in Unicode that is packed from an offset on, behind the plain name.

    Its first byte is the high one of characters. Then two bits for each step say what follows: a
    low byte, one with the high byte, a whole character, or how many bytes of the plain name are
    characters; if the first bit of that is set, with the high byte and a number added to each.
    """
    high = raw[at : at + 1]
    at += 1
    steps = bits = 0
    pause = at + _STEP
    text = bytearray()
    while at < len(raw):
        if at >= pause:
            yield Entry(cost=_STEP // 2, unpacked=0)
            pause = at + _STEP
        if not bits:
            steps, bits = raw[at], 8
            at += 1
        bits -= 2
        step = steps >> bits & 3
        low = raw[at : at + 1]
        at += 1
        if not low:
            break
        if step == 0:
            text += low + b"\0"
        elif step == 1:
            text += low + high
        elif step == 2:  # a step
            text += low + (raw[at : at + 1] or b"\0")
            at += 1
        else:
            place = len(text) // 2
            copied = raw[place : place + (low[0] & 0x7F) + 2]
            above = b"\0"
            if low[0] & 0x80:
                added = sum(raw[at : at + 1])
                at += 1
                copied, above = bytes((each + added) & 0xFF for each in copied), high
            text += b"".join(bytes((each,)) + above for each in copied)
    return text.decode("utf-16-le", "replace")


# -- RAR 5 ---------------------------------------------------------------------------------


class _Numbers:
    """The numbers in some bytes of an archive: 7 bits a byte, the lowest first."""

    def __init__(self, store: Storage, at: int, size: int) -> None:
        self._buffer = store.read(at, min(size, _NUMBERS))
        self._start = at
        self._at = 0

    @property
    def place(self) -> int:
        """The offset of the next number."""
        return self._start + self._at

    @property
    def left(self) -> bool:
        """Whether there are more."""
        return self._at < len(self._buffer)

    def next(self) -> int:
        """Return the next number; 0 if it has no end."""
        value = shift = 0
        while self.left:
            byte = self._buffer[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:  # a bit
                return value & (1 << 64) - 1
        return 0

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        self._at += size


class _Header:
    """A header that begins at an offset with its checksum, and is cut at a limit.

    `next` is the offset behind its data.
    """

    def __init__(self, store: Storage, at: int, limit: int) -> None:
        self._store = store
        numbers = _Numbers(store, at + 4, _NUMBERS)
        size = numbers.next()
        self.empty = not size
        self.end = min(numbers.place + size, limit)
        self._numbers = numbers = _Numbers(store, numbers.place, size)
        self.kind = numbers.next()
        flags = numbers.next()
        extra = numbers.next() if flags & _HAS_EXTRA else 0
        data = numbers.next() if flags & _HAS_DATA else 0
        self.next = self.end + data
        self._extra = max(self.end - extra, numbers.place)

    def name(self) -> tuple[bytes, ...]:
        """Return the name of a file or a service: of a very long one its beginning and its end.

        To be called once.
        """
        numbers = self._numbers
        flags = numbers.next()
        numbers.next()  # its size
        numbers.next()  # its attributes
        numbers.skip(4 * bool(flags & _HAS_TIME) + 4 * bool(flags & _HAS_CHECKSUM))
        numbers.next()  # how it is packed
        numbers.next()  # the system
        length = numbers.next()
        at = numbers.place
        length = max(min(length, self.end - at), 0)
        first = self._store.read(at, min(length, READ))
        if length <= READ:
            return (first,)
        return first, self._store.read(at + length - 4 * NAME, 4 * NAME)

    def encrypted(self) -> bool:
        """Return whether the extra area has a record on encryption."""
        at = self._extra
        for _ in range(_RECORDS):
            if at >= self.end:
                break
            numbers = _Numbers(self._store, at, self.end - at)
            size = numbers.next()
            if size and numbers.next() == _LOCKED_5:
                return True
            at = numbers.place + max(size - 1, 0)
        return False


def _rar5(store: Storage, at: int) -> Iterator[Entry]:
    #: The hashes of names, which may be long.
    seen: set[int] = set()
    while at < store.size:
        header = _Header(store, at, store.size)
        if header.empty or header.kind == _END_5:
            return
        if header.kind == _ENCRYPTION:
            yield Entry(encrypted=True)
            return
        if header.kind == _FILE_5:
            yield _file_5(header, seen)
        else:
            yield Entry()
        if header.kind == _SERVICE_5 and header.name() == (b"QO",):
            yield from _quick_open(store, header, seen)
        at = header.next


def _file_5(header: _Header, seen: set[int]) -> Entry:
    raw = header.name()
    seen.add(hash(raw))
    names = tuple(each.decode("utf-8", "surrogateescape") for each in raw)
    return Entry(names, header.encrypted(), 100 + len(raw[0]) // 50)


def _quick_open(store: Storage, service: _Header, seen: set[int]) -> Iterator[Entry]:
    """Yield what the copies of headers name that no header before does: RAR uses the copies.

    A copy is behind a checksum, the size of what follows, flags, an offset and its size.
    """
    at = service.end
    while at < min(service.next, store.size):
        numbers = _Numbers(store, at + 4, _NUMBERS)
        size = numbers.next()
        if not size:
            return
        following = numbers.place + size
        for _ in range(3):
            numbers.next()
        yield Entry()
        copy = _Header(store, numbers.place, min(following, store.size))
        if copy.kind == _FILE_5 and hash(copy.name()) not in seen:
            yield _file_5(_Header(store, numbers.place, min(following, store.size)), seen)
        at = following

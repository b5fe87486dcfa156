"""The header of 7z archives: the names of members.

The format is that of 7zFormat.txt of the LZMA SDK. The header is at the end of the archive, as it
is or packed with LZMA: 7-Zip packs it if there is more than one file.
"""

from __future__ import annotations

from struct import unpack_from

from .content import Entry
from .limits import MEMBERS, READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from .content import Storage

_SIGNATURE = 32
#: Bytes of a header that are read, how often one may be packed, and folders of packed streams.
_HEADER = 1 << 20
_PACKED = 4
_FOLDERS_MAX = 1 << 16
#: Properties.
_END, _PLAIN, _ARCHIVE, _MORE_STREAMS, _STREAMS, _FILES = range(6)
_PACKS, _FOLDERS, _PARTS, _SIZES, _DIGESTS, _FOLDER, _UNPACKED, _COUNTS = range(6, 14)
_NAMES, _ENCODED = 0x11, 0x17
#: Methods: LZMA, and encryption by AES.
_LZMA, _AES = b"\x03\x01\x01", b"\x06\xf1\x07\x01"
_OPTIONS = 5
#: Coders of a folder, and streams of a coder, in 7-Zip.
_FEW = 32
#: Numbers that are passed over in a step, or bytes of folders.
_STEP = 1000


def entries(store: Storage) -> Iterator[Entry]:
    """Yield the members of an archive; raise ValueError or struct.error if damaged."""
    offset, size = unpack_from("<QQ", store.read(0, _SIGNATURE), 12)
    if size > _HEADER or offset > store.size:
        return
    header = store.read(_SIGNATURE + offset, size)
    for _ in range(_PACKED):
        reader = _Reader(header)
        kind = reader.number()
        if kind == _PLAIN:
            yield from reader.members()
            return
        if kind != _ENCODED:
            return
        yield from reader.streams()
        if _AES in reader.methods:
            yield Entry(encrypted=True)
            return
        header = yield from reader.unpack(store)


class _Reader:
    """A header, and what it has said of streams so far: `methods`, and the first stream."""

    def __init__(self, header: bytes) -> None:
        self._header = header
        self._at = 0
        self.methods: dict[bytes, bytes] = {}
        self._place = self._size = self._unpacked = 0

    def number(self) -> int:
        """Return the next number: the first byte has as many leading ones as bytes follow it."""
        (first,) = self._take(1)
        if first < 0x80:  # a bit
            return first
        count = 8 - (first ^ 0xFF).bit_length()
        above = first & (0x7F >> count)
        return int.from_bytes(self._take(count), "little") | above << 8 * count

    def members(self) -> Iterator[Entry]:
        """Yield the members of a header that isn't packed."""
        while (kind := self.number()) != _FILES:
            yield Entry()
            if kind == _ARCHIVE:
                yield from self._properties(-1)
            elif kind in (_MORE_STREAMS, _STREAMS):
                yield from self.streams()
            else:
                return
        if _AES in self.methods:
            yield Entry(encrypted=True)
        self.number()  # how many there are
        yield from self._properties(_NAMES)

    def _properties(self, wanted: int) -> Iterator[Entry]:
        """Pass over properties with their sizes, and yield names from those of a kind."""
        while (kind := self.number()) != _END:
            size = self.number()
            data = self._take(size)
            yield Entry()
            if kind == wanted and data[:1] == b"\0":
                text = data[1:].decode("utf-16-le", "replace")
                for name in text.split("\0", MEMBERS + 1)[: MEMBERS + 1]:
                    if name:
                        yield Entry((name,), cost=40 + len(name) // 50)

    def streams(self) -> Iterator[Entry]:
        """Read the description of streams."""
        known = ""
        while (kind := self.number()) != _END:
            yield Entry()
            if kind == _PACKS:
                self._place = self.number()
                yield from self._packs(self.number())
            elif kind == _FOLDERS:
                known = yield from self._folders()
            elif kind == _PARTS:
                yield from self._parts(known)
            else:
                raise ValueError("an unknown property")

    def _packs(self, count: int) -> Iterator[Entry]:
        while (kind := self.number()) != _END:
            yield Entry()
            if kind == _SIZES:
                if count:
                    self._size = self.number()
                yield from self._pass(count - 1)
            else:
                self._digests(count)

    def _folders(self) -> Generator[Entry, None, str]:
        """Read the folders; return for each whether its digest is known."""
        if self.number() != _FOLDER:
            raise ValueError("no folders")
        count = self.number()
        if count > _FOLDERS_MAX or self.number():
            raise ValueError("too many folders, or folders elsewhere")
        outputs = 0
        pause = self._at
        for _ in range(count):
            outputs += self._coders()
            if self._at >= pause:
                yield Entry(cost=500)
                pause = self._at + _STEP
        if self.number() != _UNPACKED:
            raise ValueError("no sizes")
        if outputs:
            self._unpacked = self.number()
        yield from self._pass(outputs - 1)
        known = "0" * count
        while self.number() != _END:
            known = self._digests(count)
            yield Entry()
        return known

    def _coders(self) -> int:
        """Read the methods of a folder; return how many outputs they have."""
        inputs = outputs = 0
        for _ in range(self._few()):
            (flags,) = self._take(1)
            method = self._take(flags & 0x0F)
            inputs += self._few() if flags & 0x10 else 1
            outputs += self._few() if flags & 0x10 else 1
            self.methods[method] = self._take(self.number()) if flags & 0x20 else b""
        for _ in range(2 * (outputs - 1)):
            self.number()
        packed = inputs - outputs + 1
        for _ in range(packed if packed > 1 else 0):
            self.number()
        return outputs

    def _few(self) -> int:
        """Return a number of coders or of their streams."""
        count = self.number()
        if count > _FEW:
            raise ValueError("too many coders")
        return count

    def _parts(self, known: str) -> Iterator[Entry]:
        """Pass over what describes the files in each folder."""
        counts = [1] * len(known)
        while (kind := self.number()) != _END:
            yield Entry()
            if kind == _COUNTS:
                for folder in range(len(counts)):
                    counts[folder] = self.number()
                    if folder % _STEP == 0:
                        yield Entry(cost=1000)
            elif kind == _SIZES:
                yield from self._pass(sum(max(each - 1, 0) for each in counts))
            elif kind == _DIGESTS:
                # That of a folder with one file is known already.
                alone = sum(a == 1 and b == "1" for a, b in zip(counts, known, strict=True))
                self._digests(sum(counts) - alone)
            else:
                raise ValueError("an unknown property")

    def _digests(self, count: int) -> str:
        """Read digests; return for each of this number whether it is known, as a 0 or a 1."""
        if count > _HEADER:
            raise ValueError("too many digests")
        known = "1" * count
        if self._take(1) == b"\0":
            size = (count + 7) // 8
            bits = int.from_bytes(self._take(size), "big")
            known = format(bits, f"0{8 * size}b")[:count]
        self._take(4 * known.count("1"))
        return known

    def _pass(self, count: int) -> Iterator[Entry]:
        """Pass over numbers."""
        for each in range(count):
            self.number()
            if each % _STEP == 0:
                yield Entry(cost=1000)

    def _take(self, size: int) -> bytes:
        data = self._header[self._at : self._at + size]
        if len(data) < size:
            raise ValueError("more than there is")
        self._at += size
        return data

    def unpack(self, store: Storage) -> Generator[Entry, None, bytes]:
        """Return the header that is the first stream, packed with LZMA; empty if it can't be."""
        (method, options), *others = self.methods.items() or [(b"", b"")]
        if method != _LZMA or others or self._unpacked > _HEADER or len(options) < _OPTIONS:
            return b""
        from lzma import FILTER_LZMA1, FORMAT_RAW, LZMADecompressor, LZMAError

        first, dictionary = options[0], int.from_bytes(options[1:5], "little")
        filters = {
            "id": FILTER_LZMA1,
            "lc": first % 9,
            "lp": first // 9 % 5,
            "pb": first // 45,
            # No more of it is used than there are bytes.
            "dict_size": max(min(dictionary, _HEADER), 4096),
        }
        data = bytearray()
        packed = store.read(_SIGNATURE + self._place, min(self._size, _HEADER))
        try:
            unpacker = LZMADecompressor(FORMAT_RAW, filters=[filters])
            while len(data) < self._unpacked and not unpacker.eof:
                piece = unpacker.decompress(packed, min(READ, self._unpacked - len(data)))
                packed = b""
                if not piece:
                    break
                data += piece
                yield Entry(cost=3000, unpacked=READ)
        except LZMAError:
            return b""
        return bytes(data)

"""Archives: the names and kinds of their members, and those of archives in them.

The directory of a zip file, the headers of a tar file and the streams of gzip, bzip2 and xz are
read in steps. The standard library's modules for them can't be interrupted, and trust the sizes
that a file declares. Of RAR, 7z and cab archives only the headers are read.
"""

from __future__ import annotations

import re
from struct import error as StructError  # noqa: N812  # a class
from struct import unpack_from

from . import cab_records, rar_records, seven_zip_records, zip_records
from .content import Member
from .limits import ARCHIVE_LEVELS, HEAD, NAMES, READ
from .names import all_readings, extension
from .signatures import ARCHIVES, BEHIND_DATA, LISTED, READABLE, sniff
from .zip_records import Piece

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Protocol

    from .content import Content, Part, Storage

    class Decompressor(Protocol):
        """A decompressor of the standard library, by what zlib's and the others have in common."""

        @property
        def eof(self) -> bool:
            """Whether the end of the stream has been reached."""

        def decompress(self, data: bytes, max_length: int = ..., /) -> bytes:
            """Decompress some data."""


#: Units of work: of a member, of a piece of READ bytes that is unpacked, and of a search in 1 MiB.
_MEMBER_COST, _PIECE_COST = 40, 700
_SEARCH_COST = 1000
_TAR = 512
#: Methods of compression in zip files.
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
#: A memory limit for xz, whose files say how much they need.
_XZ_MEMORY = 64 << 20
#: Kinds of headers that name the next member or all, and of members other than files.
_TAR_NAMES = (b"L", b"x", b"X", b"g")
_TAR_OTHERS = (b"1", b"2", b"3", b"4", b"5", b"6", b"K")
_PAX_PATH = re.compile(rb"(^|[\n ])(?:GNU\.sparse\.name|path)=([^\n]*+)")
#: What reads the headers of archives that are not unpacked, by kind.
_HEADERS = {
    "rar": rar_records.entries,
    "7z": seven_zip_records.entries,
    "cab": cab_records.entries,
}
_MACRO_NAMES = ("vbaproject.bin", "macrosheets/", "basic/script-lc.xml")


def inspect(store: Storage, part: Part, content: Content) -> Iterator[int]:
    """Look into the archive of a part; yield the units of work of each step."""
    inspection = _Inspection(part, content)
    kinds = [part.kind] if part.kind in ARCHIVES else []
    # Programs open a file as an archive by its name, with data before it.
    named = {BEHIND_DATA.get(extension(name), "") for name in part.names} - {"", part.kind}
    if "zip" in named and not kinds:
        kinds.append("zip")
    if "rar" in named:
        yield _SEARCH_COST
        if not kinds or rar_records.behind_signature(store):
            kinds.append("rar")
    for kind in kinds:
        yield from inspection.look(store, kind, part.names, 1)


class _Inspection:
    """One look into an archive and those in it."""

    def __init__(self, part: Part, content: Content) -> None:
        self._part = part
        self._content = content
        #: Where the last unpacking has stopped to read.
        self._at = 0

    def look(self, store: Storage, kind: str, names: tuple[str, ...], depth: int) -> Iterator[int]:
        """Look into an archive of a kind; what is damaged doesn't keep others from being read."""
        try:
            yield from self._look(store, kind, names, depth)
        except (StructError, ValueError, OverflowError):
            self._part.traits.add("unreadable")

    def _look(self, store: Storage, kind: str, names: tuple[str, ...], depth: int) -> Iterator[int]:
        if kind not in READABLE:
            self._part.traits.add("unreadable")
        elif depth > ARCHIVE_LEVELS:
            self._content.odd("too many levels of archives")
            self._part.traits.add("unreadable")
        elif kind in LISTED:
            yield from self._listed(store, kind, depth)
        elif kind == "zip":
            yield from self._zip(store, depth)
        elif kind == "tar":
            yield from self._tar(store, depth)
        else:
            yield from self._packed(store, kind, names, depth)

    def _add(self, raw: list[str], kind: str, depth: int) -> Member | None:
        if self._content.members_left <= 0:
            self._content.odd("too many members of archives")
            return None
        self._content.members_left -= 1
        names, more = all_readings(raw)
        if more:
            self._content.cut_off("too many names of a member")
        member = Member(names, kind, depth)
        self._part.members.append(member)
        return member

    def _listed(self, store: Storage, kind: str, depth: int) -> Iterator[int]:
        """Add the members of an archive of which only the headers are read."""
        self._part.traits.add("unreadable")
        for entry in _HEADERS[kind](store):
            yield entry.cost
            if entry.encrypted:
                self._part.traits.add("encrypted")
            if not entry.names:
                self._content.bytes_left -= entry.unpacked
                if self._content.bytes_left < 0:
                    self._content.odd("too many headers in archives")
                    return
            elif self._add(list(entry.names), "", depth) is None:
                return

    # -- streams -------------------------------------------------------------------------

    def _packed(
        self, store: Storage, kind: str, names: tuple[str, ...], depth: int
    ) -> Iterator[int]:
        """Unpack a stream, which is a file or a tar archive."""
        inner = self._content.storage()
        try:
            whole = yield from self._streams(store, kind, inner)
            if not whole:
                self._part.traits.add("unreadable")
            found = sniff(inner.read(0, HEAD))
            if found != "tar":
                stems = [name.rpartition(".")[0] for name in names]
                if self._add([*stems, *_gzip_name(store, kind)], found, depth) is None:
                    return
                if found in ARCHIVES:
                    yield from self.look(inner, found, names, depth + 1)
            else:
                yield from self._tar(inner, depth)
        finally:
            inner.discard()

    def _streams(self, store: Storage, kind: str, into: Storage) -> Generator[int, None, bool]:
        """Unpack the streams of a file, of which packers that work in parallel write many.

        Return whether all could be unpacked. What is behind the first one and is no stream is junk
        that programs pass over.
        """
        at, first = 0, True
        while at < store.size and (first or sniff(store.read(at, HEAD)) == kind):
            unpacker = _decompressor(kind)
            whole = yield from self._unpack(store, at, store.size - at, unpacker, into)
            if not whole:
                return False
            at = self._at - len(getattr(unpacker, "unused_data", b""))
            first = False
            self._content.bytes_left -= HEAD  # so that their number has a limit
            zeros = piece = b"\0"
            while piece and len(zeros) == len(piece):  # padding
                piece = store.read(at, READ)
                zeros = piece[: len(piece) - len(piece.lstrip(b"\0"))]
                at += len(zeros)
                yield _MEMBER_COST
        return True

    def _unpack(
        self, store: Storage, at: int, size: int, unpacker: Decompressor, into: Storage
    ) -> Generator[int, None, bool]:
        """Unpack bytes of a storage into another; return whether all could be unpacked."""
        end = at + size
        data = b""
        self._at = at
        while not unpacker.eof:
            if not data and getattr(unpacker, "needs_input", True):
                data = store.read(at, min(READ // 4, end - at))
                at += len(data)
                self._at = at
                if not data:
                    return isinstance(unpacker, _Stored)
            try:
                out = unpacker.decompress(data, READ)
            except Exception:  # noqa: BLE001  # zlib.error, OSError, LZMAError, EOFError: invalid
                return False
            # zlib returns what it hasn't consumed, the others keep it.
            data = getattr(unpacker, "unconsumed_tail", b"")
            self._content.bytes_left -= len(out)
            if self._content.bytes_left < 0:
                self._content.odd("archives unpack to too many bytes")
                return False
            into.write(out)
            yield _PIECE_COST
        return True

    # -- tar -----------------------------------------------------------------------------

    def _tar(self, store: Storage, depth: int) -> Iterator[int]:
        at = 0
        every: list[str] = []
        longer: list[str] = []
        while at + _TAR <= store.size:
            head = store.read(at, _TAR)
            if not head.strip(b"\0"):
                return
            size = _tar_number(head[124:136])
            if size is None or head[257:262] not in (b"ustar", b"\0\0\0\0\0"):
                self._part.traits.add("unreadable")
                return
            kind = head[156:157]
            data = at + _TAR
            at = data + (size + _TAR - 1) // _TAR * _TAR
            yield _MEMBER_COST
            if kind in _TAR_NAMES:
                if size > READ:
                    self._content.cut_off("too long a name in a tar file")
                names = _tar_names(store.read(data, min(size, READ)), pax=kind != b"L")
                # The last name counts for most programs.
                every, longer = (names, longer) if kind == b"g" else (every, names + longer[:NAMES])
                continue
            # Kinds that a program doesn't know are files to it.
            if kind not in _TAR_OTHERS:
                piece = Piece(data, size, _STORED)
                full = yield from self._tar_member(store, head, piece, longer + every, depth)
                if full:
                    return
            longer = []
        if at > store.size:
            self._part.traits.add("unreadable")

    def _tar_member(
        self, store: Storage, head: bytes, piece: Piece, longer: list[str], depth: int
    ) -> Generator[int, None, bool]:
        """Add a member; return whether there are too many."""
        name = _string(head[:100])
        path = [name, _string(head[345:500]) + "/" + name, *longer]
        found = sniff(store.read(piece.at, min(piece.size, HEAD)))
        if self._add([each for each in path if each], found, depth) is None:
            return True
        if found in ARCHIVES:
            yield from self._nested(store, piece, found, depth)
        return False

    def _nested(self, store: Storage, piece: Piece, kind: str, depth: int) -> Iterator[int]:
        """Unpack an archive in an archive and look into it."""
        if depth >= ARCHIVE_LEVELS or kind not in READABLE:
            if kind in READABLE:
                self._content.odd("too many levels of archives")
            self._part.traits.add("unreadable")
            return
        inner = self._content.storage()
        try:
            unpacker = _unpacker(piece.method)
            if unpacker is None:
                self._part.traits.add("unreadable")
                return
            whole = yield from self._unpack(store, piece.at, piece.size, unpacker, inner)
            if not whole:
                self._part.traits.add("unreadable")
            names = self._part.members[-1].names
            yield from self.look(inner, kind, names, depth + 1)
        finally:
            inner.discard()

    # -- zip -----------------------------------------------------------------------------

    def _zip(self, store: Storage, depth: int) -> Iterator[int]:
        """Read all directories of a zip file, since programs choose differently, and the gaps."""
        directories = zip_records.directories(store)
        if not directories:
            self._part.traits.add("unreadable")
            yield from self._zip_forward(store, depth, 0, store.size)
            return
        before = len(self._part.members)
        spans: list[tuple[int, int]] = []
        for at, end, shift in directories:
            if any(begin <= at < behind for begin, behind in spans):
                continue  # of an archive in the archive, which is not packed
            if spans:
                self._content.odd("zip file with two directories")
            full = yield from self._zip_directory(store, (at, end, shift), spans, depth)
            if full:
                return
            spans.append((at, end + 22))
        yield from self._zip_gaps(store, spans, depth)
        self._name_kind(before, depth)

    def _zip_directory(
        self,
        store: Storage,
        directory: tuple[int, int, int],
        spans: list[tuple[int, int]],
        depth: int,
    ) -> Generator[int, None, bool]:
        """Read a directory, and note where its members are; return whether there are too many."""
        at, end, shift = directory
        while at + 46 <= end:
            head = store.read(at, 46)
            if head[:4] != b"PK\x01\x02":
                break
            flags, method = unpack_from("<HH", head, 8)
            packed, _, name, extra, comment = unpack_from("<LLHHH", head, 20)
            (offset,) = unpack_from("<L", head, 42)
            raw = store.read(at + 46, name)
            more = store.read(at + 46 + name, min(extra, 1024))
            at += 46 + name + extra + comment
            place = offset + shift
            local = zip_records.local_header(store, store.read(place, 30), place, packed, method)
            if local is not None:
                spans.append((place, min(local[1].at + packed, store.size)))
            full = yield from self._zip_member(store, raw, more, flags, local, depth)
            if full:
                return True
        if at != end:
            self._part.traits.add("unreadable")
        return False

    def _zip_gaps(self, store: Storage, spans: list[tuple[int, int]], depth: int) -> Iterator[int]:
        """Look for members that are in no directory: some programs read a file from its start."""
        at = 0
        for begin, behind in sorted(spans):
            if begin > at:
                found = store.read(at, min(begin - at, READ)).find(b"PK\x03\x04")
                yield 5
                if found >= 0:
                    self._content.odd("zip file with members that its directory lacks")
                    yield from self._zip_forward(store, depth, at + found, begin)
            at = max(at, behind)

    def _zip_member(  # noqa: PLR0913  # the parts of one header
        self,
        store: Storage,
        raw: bytes,
        extra: bytes,
        flags: int,
        local: tuple[bytes, Piece] | None,
        depth: int,
    ) -> Generator[int, None, bool]:
        """Add a member; return whether there are too many."""
        names = zip_records.names(raw, extra, flags)
        if flags & 1:
            self._part.traits.add("encrypted")
        if local is None:
            self._content.odd("zip directory that doesn't agree with the file")
        elif local[0] != raw:
            self._content.odd("zip directory that doesn't agree with the file")
            names += zip_records.names(local[0], b"", flags)
        kind = ""
        if local is not None and not flags & 1 and not raw.endswith(b"/"):
            kind = sniff(_peek(store, local[1]))
        lower = raw.lower()
        if any(each.encode() in lower for each in _MACRO_NAMES):
            self._part.traits.add("macros")
        if self._add(names, kind, depth) is None:
            return True
        yield _MEMBER_COST
        if kind in ARCHIVES and local is not None:
            yield from self._nested(store, local[1], kind, depth)
        return False

    def _zip_forward(self, store: Storage, depth: int, at: int, end: int) -> Iterator[int]:
        """Read the headers of members from a place on, where no directory has them."""
        while at < end:
            local = store.read(at, 30)
            if len(local) < 30 or local[:4] != b"PK\x03\x04":
                return
            flags, method = unpack_from("<HH", local, 6)
            packed, _, name, extra = unpack_from("<LLHH", local, 18)
            piece = Piece(at + 30 + name + extra, packed, method)
            raw = store.read(at + 30, name)
            full = yield from self._zip_member(store, raw, b"", flags, (raw, piece), depth)
            if full or flags & 8:
                return
            at = piece.at + packed

    def _name_kind(self, before: int, depth: int) -> None:
        """Recognise formats that are zip files by the names in them: members after `before`."""
        members = [each for each in self._part.members[before:] if each.depth == depth]
        kind = _zip_kind(members)
        if not kind:
            return
        if depth == 1:
            self._part.kind = kind
        else:
            self._part.members[before - 1].kind = kind


def _zip_kind(members: list[Member]) -> str:
    """Return the kind of a zip file with these members; "" if it isn't a format of its own."""
    names = {name.lower() for member in members for name in member.names}
    if "[content_types].xml" in names:
        return "ooxml"
    if "classes.dex" in names or "androidmanifest.xml" in names:
        return "apk"
    if "manifest.mf" in names and any(member.kind == "class" for member in members):
        return "jar"
    return "odf" if {"content.xml", "mimetype"} <= names else ""


def _peek(store: Storage, piece: Piece) -> bytes:
    """Return the first bytes of a member, unpacked."""
    data = store.read(piece.at, min(piece.size, HEAD))
    unpacker = _unpacker(piece.method)
    if unpacker is None:
        return b"\0"
    try:
        return unpacker.decompress(data, HEAD)
    except Exception:  # noqa: BLE001  # zlib.error, OSError, LZMAError: invalid
        return b"\0"


class _Stored:
    """A decompressor of what isn't compressed."""

    eof = False
    needs_input = True

    def decompress(self, data: bytes, _max: int = 0, /) -> bytes:
        return data


def _unpacker(method: int) -> Decompressor | None:
    """Return the decompressor for a method of zip files; None for one that isn't known here."""
    if method == _STORED:
        return _Stored()
    if method == _DEFLATED:
        from zlib import decompressobj

        return decompressobj(-15)
    return _decompressor("bzip2") if method == _BZIP2 else None


def _decompressor(kind: str) -> Decompressor:
    if kind == "gzip":
        from zlib import decompressobj

        return decompressobj(31)
    if kind == "bzip2":
        from bz2 import BZ2Decompressor

        return BZ2Decompressor()
    from lzma import LZMADecompressor

    return LZMADecompressor(memlimit=_XZ_MEMORY)


def _gzip_name(store: Storage, kind: str) -> list[str]:
    """Return the name in the header of a gzip file (RFC 1952 section 2.3)."""
    head = store.read(0, 12)
    if kind != "gzip" or len(head) < 12 or not head[3] & 8:
        return []
    at = 12 + int.from_bytes(head[10:12], "little") if head[3] & 4 else 10
    return [_string(store.read(at, READ))]


def _tar_number(field: bytes) -> int | None:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        return None


def _tar_names(data: bytes, *, pax: bool) -> list[str]:
    """Return the names in a header for the next member: every path in a pax header, in any order.

    A value may look like a path; it is better to read it than to trust the lengths.
    """
    texts = [each[2] for each in _PAX_PATH.finditer(data)] if pax else [data]
    return [_string(each) for each in reversed(texts[-NAMES:])]


def _string(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")

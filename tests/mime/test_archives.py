"""Archives: names and kinds of members, whatever the file says of itself."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib

import pytest

from smtpd_filters.mime import limits
from tests.mime.reading import EXE, Memory, attached, every_name, read, zipped


def tarred(*members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


PLAIN = ("x/a.exe", EXE)
LONG = ("d/" * 60 + "a.exe", EXE)
_TAR = tarred(PLAIN)


def of_kind(kind: bytes, tar: bytes = _TAR) -> bytes:
    """Return a tar file whose first member is of another kind."""
    return summed(tar[:156] + kind + tar[157:])


def summed(tar: bytes) -> bytes:
    """Return a tar file with the checksum of its first header."""
    total = sum(tar[:148]) + 8 * 0x20 + sum(tar[156:512])
    return tar[:148] + b"%06o\0 " % total + tar[156:]


def with_pax(headers: dict[str, str], everywhere: dict[str, str] | None = None) -> bytes:
    """Return a tar file with a member a.txt that pax headers describe."""
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers=everywhere or {}
    ) as archive:
        info = tarfile.TarInfo("a.txt")
        info.pax_headers, info.size = headers, len(EXE)
        archive.addfile(info, io.BytesIO(EXE))
    return file.getvalue()


_ZIP = zipped(PLAIN)
_HARMLESS = zipped(("b.txt", b"x"))
_LOCAL = _ZIP[: _ZIP.find(b"PK\x01\x02")]
_LAST = tarred(("b.txt", b"x"), PLAIN)
ARCHIVES = {
    "gzip in streams": gzip.compress(_LAST[:700], mtime=0) + gzip.compress(_LAST[700:], mtime=0),
    "bzip2 in streams": bz2.compress(_LAST[:700]) + bz2.compress(_LAST[700:]),
    "xz in streams": lzma.compress(_LAST[:700]) + bytes(8) + lzma.compress(_LAST[700:]),
    "gzip with a field": b"\x1f\x8b\x08\x0c"
    + bytes(6)
    + b"\x02\x00xxa.exe\0"
    + gzip.compress(EXE, mtime=0)[10:],
    "tar without a mark": summed(_TAR[:257] + bytes(8) + _TAR[265:]),
    "tar without a mark, packed": gzip.compress(summed(_TAR[:257] + bytes(8) + _TAR[265:])),
    **{f"tar with a file of kind {kind!r}": of_kind(kind) for kind in (b"S", b"9", b"A", b"7")},
    "tar with a path behind others": with_pax({"comment": "x" * 5000, "path": "a.exe"}),
    "tar with two paths": with_pax({"comment": " path=a.txt\n", "path": "a.exe"}),
    "tar with a path for all": with_pax({}, {"path": "a.exe"}),
    "zip ahead of a zip": _ZIP + _HARMLESS,
    "zip behind a zip": _HARMLESS + _ZIP,
    "zip with another directory in its comment": _ZIP[:-2] + b"\x16\0PK\x05\x06" + bytes(18),
    "zip with a member in no directory": _LOCAL + _HARMLESS,
    "zip": zipped(PLAIN),
    "zip behind data": b"PK00" + zipped(PLAIN),
    "tar": tarred(PLAIN),
    "tar with a long name": tarred(LONG),
    "tar with a long name of GNU": tarred(LONG, form=tarfile.GNU_FORMAT),
    "tar.gz": gzip.compress(tarred(PLAIN), mtime=0),
    "tar.bz2": bz2.compress(tarred(PLAIN)),
    "tar.xz": lzma.compress(tarred(PLAIN)),
    "zip in a zip": zipped(("b.zip", zipped(PLAIN))),
    "zip in a tar.gz": gzip.compress(tarred(("b.zip", zipped(PLAIN))), mtime=0),
    "tar.gz in a zip": zipped(("b", gzip.compress(tarred(PLAIN), mtime=0))),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_members(case: str) -> None:
    part = read(attached(ARCHIVES[case], b"Content-Type: text/plain; name=x.txt\n")).parts[-1]
    assert "a.exe" in {name for member in part.members for name in member.names}
    assert "exe" in {member.kind for member in part.members}
    assert not part.traits & {"unreadable", "encrypted"}


def test_a_packed_file_has_the_name_of_its_archive_without_the_last_extension() -> None:
    packed = gzip.compress(EXE, mtime=0)
    part = read(attached(packed, b"Content-Type: x/y; name=a.exe.gz\n")).parts[-1]
    assert [(member.names, member.kind) for member in part.members] == [(("a.exe",), "exe")]


def test_macros() -> None:
    document = zipped(("[Content_Types].xml", b"<x/>"), ("word/vbaProject.bin", b"x"))
    part = read(attached(document)).parts[-1]
    assert (part.kind, part.traits) == ("ooxml", {"macros"})
    part = read(attached(zipped(("a.docm", document)))).parts[-1]
    assert (part.kind, part.traits) == ("zip", {"macros"})
    assert part.members[0].kind == "ooxml"
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 30_000 + "_VBA_PROJECT".encode("utf-16-le")
    assert read(attached(ole)).parts[-1].traits == {"macros"}


def test_a_document_without_macros_has_none() -> None:
    document = zipped(("[Content_Types].xml", b"<x/>"), ("word/document.xml", b"<x/>"))
    part = read(attached(document)).parts[-1]
    assert (part.kind, part.traits) == ("ooxml", set())


def test_encrypted() -> None:
    data = bytearray(zipped(PLAIN))
    data[6] |= 1  # the flags of the member, and those in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    part = read(attached(bytes(data))).parts[-1]
    assert part.traits == {"encrypted"}
    assert part.members[0].names == ("a.exe",)
    ole = (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 9000 + "EncryptedPackage".encode("utf-16-le")
    )
    assert read(attached(ole)).parts[-1].traits == {"encrypted"}


@pytest.mark.parametrize(
    "data",
    [
        b"Rar!\x1a\x07\x00" + b"\0" * 99,
        b"Rar!\x1a\x07\x01\x00" + b"\0" * 99,
        b"7z\xbc\xaf\x27\x1c" + b"\0" * 99,
        b"MSCF" + b"\0" * 99,
        zipped(PLAIN)[:-30],
        gzip.compress(EXE, mtime=0)[:-20],
        b"\x1f\x8bgarbage",
        b"PK\x03\x04",
        tarred(PLAIN)[:520],
        b"\0" * 0x8001 + b"CD001" + b"\0" * 99,
    ],
)
def test_unreadable(data: bytes) -> None:
    assert "unreadable" in read(attached(data, b"Content-Type: x/y\n")).parts[-1].traits


def test_the_names_in_a_zip_without_its_directory() -> None:
    assert "a.exe" in every_name(read(attached(zipped(PLAIN)[:-60])))


def test_a_name_that_only_the_member_itself_has() -> None:
    data = bytearray(zipped(("x/a.txt", EXE)))
    data[30:37] = b"x/a.exe"
    content = read(attached(bytes(data)))
    assert {"a.txt", "a.exe"} <= every_name(content)
    assert content.ambiguous


def test_archives_in_archives_have_a_limit() -> None:
    data = zipped(PLAIN)
    for level in range(limits.ARCHIVE_LEVELS):
        data = zipped((f"{level}.zip", data))
    content = read(attached(data))
    assert "too many levels of archives" in content.oddities
    assert "unreadable" in content.parts[-1].traits
    assert Memory.kept == 0


def test_members_have_a_limit() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number in range(30):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    content = read(attached(data.getvalue()), members=20)
    assert len(content.parts[-1].members) == 20
    assert content.ambiguous


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_bombs(pack: object) -> None:
    content = read(attached(pack(bytes(2 << 20))), unpacked=1 << 20)  # type: ignore[operator]
    assert "archives unpack to too many bytes" in content.oddities
    assert Memory.kept == 0


def test_an_xz_file_that_needs_too_much_memory_is_unreadable() -> None:
    data = bytearray(lzma.compress(b"x", preset=0))
    # The block header is behind that of the stream: its size, flags, LZMA2, and the dictionary.
    assert data[12:16] == b"\x02\x00\x21\x01"
    data[16] = 30  # 128 MiB
    data[20:24] = zlib.crc32(data[12:20]).to_bytes(4, "little")
    assert lzma.decompress(data) == b"x"
    assert read(attached(bytes(data))).parts[-1].traits == {"unreadable"}


def test_a_zip_file_with_two_directories_is_ambiguous() -> None:
    for data in (_ZIP + _HARMLESS, _HARMLESS + _ZIP):
        assert "zip file with two directories" in read(attached(data)).oddities


def test_the_headers_of_a_tar_file_have_a_limit() -> None:
    content = read(attached(with_pax({"comment": "x" * limits.READ})))
    assert "too long a name in a tar file" in content.oddities
    assert content.cut


def test_a_name_in_an_archive_has_a_limit() -> None:
    content = read(attached(zipped(("a" * 5000 + ".exe", b"x"))))
    assert content.parts[-1].members[0].names[0].endswith("aaa.exe")
    assert "too many names of a member" in content.oddities
    assert content.cut
    assert "a.exe" in every_name(read(attached(zipped(("a.exe" + " " * 5000, b"x")))))


@pytest.mark.parametrize("extra", [b"", b"x" * 3000, b"x" * 65_535])
@pytest.mark.parametrize("name", [b"a.js", b"a" * 3000 + b".js"])
def test_the_name_in_a_gzip_file_is_read_to_its_end(extra: bytes, name: bytes) -> None:
    data = gzip.compress(b"x", mtime=0)
    head = data[:3] + b"\x0c" + data[4:10] + len(extra).to_bytes(2, "little") + extra
    content = read(attached(head + name + b"\0" + data[10:]))
    assert any(each.endswith("a.js") for each in every_name(content))
    assert not content.cut


def test_a_zip_that_declares_terabytes() -> None:
    data = bytearray(zipped(PLAIN))
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = b"\xff" * 8
    assert "a.exe" in every_name(read(attached(bytes(data))))


@pytest.mark.parametrize(
    "before", [b"JUNK", b"hello\n" * 1000, bytes(512), b"GIF89a", b"%PDF-1.4\n"]
)
def test_a_zip_file_behind_other_data_is_opened_by_its_name(before: bytes) -> None:
    fields = b"Content-Type: application/octet-stream; name=a.zip\n"
    assert "a.exe" in every_name(read(attached(before + _ZIP, fields)))


def test_what_has_the_name_of_a_zip_file_and_is_none_is_unreadable() -> None:
    content = read(attached(b"hello\n", b"Content-Type: x/y; name=a.zip\n"))
    assert content.parts[-1].traits == {"unreadable"}


def test_a_zip_file_in_a_zip_file_that_is_not_packed() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("b.zip", _HARMLESS)
    content = read(attached(file.getvalue()))
    assert {"b.zip", "b.txt"} <= every_name(content)
    assert not content.ambiguous


@pytest.mark.parametrize("unit", [gzip.compress(b"", mtime=0), bz2.compress(b"")])
def test_the_number_of_streams_has_a_limit(unit: bytes) -> None:
    content = read(attached(unit * 3000), unpacked=1 << 20)
    assert "archives unpack to too many bytes" in content.oddities


def test_padding_is_passed_over_in_steps() -> None:
    content = read(attached(lzma.compress(b"x") + bytes(1 << 20)))
    assert not content.parts[-1].traits

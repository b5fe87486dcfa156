"""Archives: names and kinds of members, whatever the file says of itself."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

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
ARCHIVES = {
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
    assert part.members[-1].kind == "exe"
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
    for level in range(limits.ARCHIVES):
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


def test_a_zip_that_declares_terabytes() -> None:
    data = bytearray(zipped(PLAIN))
    at = data.index(b"PK\x01\x02")
    data[at + 20 : at + 28] = b"\xff" * 8
    assert "a.exe" in every_name(read(attached(bytes(data))))

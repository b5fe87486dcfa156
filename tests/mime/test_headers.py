"""Archives of which only names are read: RAR, 7z and cabinets, beside libarchive's reading."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from struct import error as StructError  # noqa: N812  # a class
from struct import pack
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtpd_filters.mime import cab_records, limits, rar_records, seven_zip_records
from smtpd_filters.mime.names import all_readings
from tests.effort import part as part_of
from tests.mime.headers import (
    AES,
    LOCKED,
    MAIN_4,
    MAIN_5,
    RAR_4,
    RAR_5,
    TIME,
    block,
    cab,
    copied,
    file_4,
    file_5,
    header,
    number,
    rar_4,
    rar_5,
    seven_zip,
    sized,
    unicode_4,
)
from tests.mime.reading import EXE, Memory, attached, every_name, read, zipped
from tests.mime.test_archives import tarred

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.mime.content import Content, Entry

SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c"
CYRILLIC = "счёт.exe"
#: What libarchive lists as well.
LISTED = {
    "rar 4": rar_4(file_4(b"a.txt"), file_4(b"x\\a.exe")),
    "rar 4 with high sizes": rar_4(file_4(b"b.txt", flags=0x100), file_4(b"a.exe", flags=0x100)),
    "rar 4 with a salt": rar_4(file_4(b"b.txt", flags=0x400), file_4(b"a.exe")),
    "rar 4 with a service": rar_4(file_4(b"CMT", b"hello", kind=0x7A), file_4(b"a.exe")),
    "rar 4 with a name in Unicode": rar_4(file_4(unicode_4("a.exe", b"a.txt"), flags=0x200)),
    "rar 4 with a name in UTF-8": rar_4(file_4("ä/a.exe".encode(), flags=0x200)),
    "rar 4 without an end": RAR_4 + MAIN_4 + file_4(b"a.exe"),
    "rar 5": rar_5(file_5(b"a.txt"), file_5(b"x/a.exe")),
    "rar 5 with a service": rar_5(file_5(b"CMT", b"hello", kind=3), file_5(b"a.exe")),
    "rar 5 with records": rar_5(file_5(b"a.exe", b"x" * 300, TIME)),
    "7z with one file": seven_zip("a.exe"),
    "7z with a header that isn't packed": seven_zip("b.txt", "x/a.exe"),
    "7z with a packed header": seven_zip("b.txt", "x/a.exe", packed=True),
    "7z with padding in its header": seven_zip("a.exe", before=b"\x19" + sized(300) + bytes(300)),
    "cab": cab(b"a.txt", b"x\\a.exe"),
    "cab in UTF-8": cab("ä\\a.exe".encode(), attributes=0xA0),
}
#: What libarchive doesn't list: it finds no archive behind 128 KiB of anything but a program, say.
OTHERS = {
    "rar 4 behind data": b"GIF89a" + bytes(70_000) + rar_4(file_4(b"a.exe")),
    "rar 5 behind data": bytes(limits.READ - 4) + rar_5(file_5(b"a.exe")),
    "rar 5 behind a zip": zipped(("b.txt", b"")) + rar_5(file_5(b"a.exe")),
    "rar 5 with an unknown header": rar_5(header(9, b"x", b"", b"data"), file_5(b"a.exe")),
    "rar 4 cut off": rar_4(file_4(b"a.exe", bytes(999)))[:-500],
    "rar 5 cut off": rar_5(file_5(b"a.exe", bytes(999)))[:-500],
    "rar 4 with a wrong checksum": rar_4(b"xx" + file_4(b"b.txt")[2:], file_4(b"a.exe")),
    "rar 5 with a wrong checksum": rar_5(b"xxxx" + file_5(b"b.txt")[4:], file_5(b"a.exe")),
    "rar 4 with a size in its main header": rar_4(
        file_4(b"a.exe"), main=block(0x73, 0x8000, b"\x09" + bytes(5))
    ),
    "rar 4 with a header of a file that is too short": rar_4(block(0x74, 0x8000), file_4(b"a.exe")),
    "rar 4 with an old comment": rar_4(block(0x75, 0x8000, b"\xff" * 6), file_4(b"a.exe")),
    "rar 4 with an old service": rar_4(block(0x77, 0, pack("<L", 3), b"abc"), file_4(b"a.exe")),
    "rar 5 with a name only in a copy for quick opening": rar_5(
        file_5(b"b.txt"), file_5(b"QO", copied(file_5(b"b.txt")) + copied(file_5(b"a.exe")), kind=3)
    ),
    "rar 5 with invalid copies": rar_5(
        file_5(b"QO", b"\xff" * 30, kind=3), file_5(b"QO", b"\0" * 9, kind=3), file_5(b"a.exe")
    ),
    "rar 5 with a service that is too short": rar_5(header(3), b"", file_5(b"a.exe")),
    "rar 5 with an invalid extra area": rar_5(file_5(b"a.exe", extra=b"\xff" * 40)),
    "rar 5 with a service without an end of a number": rar_5(
        header(3, b"\xff" * 30), file_5(b"a.exe")
    ),
    "cab with a long name": cab(b"b" * 5000 + b"\\a.exe"),
}
CASES = LISTED | OTHERS


def members(data: bytes, fields: bytes = b"Content-Type: x/y; name=a.rar\n") -> Content:
    content = read(attached(data, fields))
    assert Memory.kept == 0
    return content


def listed_by_libarchive(data: bytes, path: Path) -> list[str]:
    program = shutil.which("bsdtar")
    assert program, "bsdtar is missing"
    path.write_bytes(data)
    done = subprocess.run(
        [program, "-tf", str(path)],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    return [line.rpartition("/")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_names(case: str) -> None:
    part = members(CASES[case]).parts[-1]
    assert "a.exe" in {name for member in part.members for name in member.names}
    assert part.traits == {"unreadable"}


@pytest.mark.parametrize("case", LISTED)
def test_libarchive_lists_the_same_names(case: str, tmp_path: Path) -> None:
    found = [set(member.names) for member in members(LISTED[case]).parts[-1].members]
    listed = listed_by_libarchive(LISTED[case], tmp_path / "a")
    assert len(listed) == len(found)
    assert all(name in names for name, names in zip(listed, found, strict=True))
    assert "a.exe" in listed


NAME = st.text(
    st.characters(max_codepoint=0xFFFF, categories=("Lu", "Ll", "Lo", "Nd")),
    min_size=1,
    max_size=40,
)


@settings(max_examples=part_of(60), deadline=None)
@given(names=st.lists(NAME, min_size=1, max_size=5, unique=True), plain=st.binary(max_size=9))
@example(names=["\ufacf"], plain=b"")  # NFKC makes it a character beyond 16 bits
def test_names_of_any_characters_are_those_that_libarchive_lists(
    names: list[str], plain: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # In the form in which names are compared, each once.
    names = list({name for each in names for name in all_readings([each + ".exe"])[0]})
    ascii_only = (
        bytes(each & 0x7F or 0x41 for each in plain).replace(b"/", b"_").replace(b"\\", b"_")
    )
    five = rar_5(*(file_5(each.encode()) for each in names))
    four = rar_4(*(file_4(unicode_4(each, ascii_only + b".exe"), flags=0x200) for each in names))
    path = tmp_path_factory.mktemp("rar") / "a"
    for archive in (five, four):
        content = members(archive)
        assert listed_by_libarchive(archive, path) == names
        assert set(names) <= every_name(content)
    path.unlink()


@pytest.mark.parametrize("names", [["a.exe"], ["a.exe", "\u0431.txt", *map(str, range(300))]])
def test_archives_that_libarchive_makes(names: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(EXE)
    program = shutil.which("bsdtar")
    assert program, "bsdtar is missing"
    command = [program, "--format", "7zip", "-cf", "a.7z", *names]
    subprocess.run(command, env={**os.environ, "LC_ALL": "C.UTF-8"}, cwd=tmp_path, check=True)
    part = members((tmp_path / "a.7z").read_bytes(), b"Content-Type: x/y\n").parts[-1]
    assert {name for member in part.members for name in member.names} == set(names)
    assert part.traits == {"unreadable"}


def test_the_work_on_a_header_of_7z_is_in_steps() -> None:
    """Counts that a header declares, up to its end, in steps of at most some thousand units."""
    many = sized(1 << 62)
    for property_ in (
        b"\x04\x06\0" + many + b"\x09" + b"\1" * 100_000,
        b"\x04\x06\0\0" + b"\x0a\1" * 50_000,
        b"\x04\x07\x0b" + sized(1 << 16) + b"\0" + b"\1\1\0" * 40_000,
        b"\3\0" * 50_000,
    ):
        header = b"\x01" + property_
        data = SEVEN_ZIP + bytes(6) + pack("<QQL", 0, len(header), 0) + header
        found = every_entry(data)
        assert sum(entry.cost for entry in found) > 30_000
        assert max(entry.cost for entry in found) <= 3000


@pytest.mark.parametrize(
    "data",
    [
        SEVEN_ZIP
        + bytes(6)
        + pack("<QQL", 0, 500_000, 0)
        + b"\x01\x04\x07\x0b"
        + sized(200)
        + b"\0"
        + (sized(32) + b"\x11\x21\x20\x20" * 32 + bytes(2 * 1023)) * 200,
        rar_4(file_4(b"a\0" + b"\xff\x80a" * 20_000, flags=0x200)),
    ],
    ids=["coders of 7z", "name of RAR 4"],
)
def test_steps_are_of_at_most_some_thousand_bytes(data: bytes) -> None:
    assert len(every_entry(data)) > len(data) // 3000


def test_a_header_of_7z_of_more_than_a_megabyte_is_not_read() -> None:
    padding = 1 << 20
    data = seven_zip("a.exe", before=b"\x19" + sized(padding) + bytes(padding), packed=True)
    part = members(data).parts[-1]
    assert (part.members, part.traits) == ([], {"unreadable"})


def test_a_name_in_unicode_and_its_plain_form_both_count() -> None:
    content = members(rar_4(file_4(unicode_4(CYRILLIC, b"????.txt"), flags=0x200)))
    assert {"????.txt", CYRILLIC} <= every_name(content)
    # The plain name's bytes from the first on, each plus 1, with the high byte 4.
    raw = b"abcd.exe\0" + b"\x04\xc0\x82\x01"
    content = members(rar_4(file_4(raw, flags=0x200)))
    assert {"abcd.exe", "\u0462\u0463\u0464\u0465"} <= every_name(content)


@pytest.mark.parametrize(
    "data",
    [
        rar_4(file_4(b"a.exe", flags=0x04)),
        rar_4(file_4(b"b.txt"), main=block(0x73, 0x80, bytes(6))),
        rar_5(file_5(b"a.exe", extra=TIME + LOCKED)),
        seven_zip("a.exe", coder=AES),
        RAR_5 + header(4, b"\0\0\x0f" + bytes(16)) + bytes(range(99)),
    ],
)
def test_encrypted(data: bytes) -> None:
    part = members(data).parts[-1]
    assert part.traits == {"encrypted", "unreadable"}
    # Where the headers are encrypted, names can't be read.
    assert every_name(members(data)) <= {"a.exe", "a.rar", "x.txt"}


def test_what_is_not_encrypted_has_no_such_trait() -> None:
    assert members(rar_5(file_5(b"a.exe", extra=TIME))).parts[-1].traits == {"unreadable"}


@pytest.mark.parametrize(
    "archive",
    [rar_4(file_4(b"a.exe")), rar_5(file_5(b"a.exe")), seven_zip("a.exe"), cab(b"a.exe")],
)
def test_in_other_archives(archive: bytes) -> None:
    for outer in (zipped(("b", archive)), tarred(("b", archive))):
        part = members(outer, b"").parts[-1]
        assert [member.depth for member in part.members if "a.exe" in member.names] == [2]
        assert part.traits == {"unreadable"}


def test_a_damaged_archive_does_not_hide_what_is_behind_it() -> None:
    bad = (
        SEVEN_ZIP + b"\xff" * 50,
        SEVEN_ZIP,
        RAR_4 + b"\0" * 20,
        RAR_5 + b"\xff" * 50,
        b"MSCF" + b"\xff" * 50,
        RAR_5,
    )
    for each in bad:
        assert "a.exe" in every_name(members(zipped(("b", each), ("a.exe", EXE)), b""))


def test_levels_of_archives() -> None:
    data = rar_5(file_5(b"a.exe"))
    for level in range(limits.ARCHIVE_LEVELS):
        data = zipped((f"{level}.zip", data))
    assert "too many levels of archives" in members(data, b"").oddities


def test_a_zip_file_with_the_name_of_a_rar_archive() -> None:
    part = members(zipped(("a.exe", EXE))).parts[-1]
    assert (part.kind, part.traits) == ("zip", set())


@pytest.mark.parametrize("name", [b"a.rar", b"a.r00", b"a.cbr"])
def test_what_has_the_name_of_a_rar_archive_and_is_none_is_unreadable(name: bytes) -> None:
    content = members(b"hello\n" * 1000, b"Content-Type: x/y; name=" + name + b"\n")
    assert content.parts[-1].traits == {"unreadable"}


# -- bounds --------------------------------------------------------------------------------


class Counted(Memory):
    """A storage that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.write(data)
        self.calls = self.bytes = 0

    def read(self, at: int, size: int) -> bytes:
        data = super().read(min(at, self.size), size)
        self.calls += 1
        self.bytes += len(data)
        return data


def every_entry(data: bytes) -> list[Entry]:
    """Read all headers of an archive, and check that this is no more work than they say."""
    store = Counted(data)
    read_headers = {b"M": cab_records.entries, b"7": seven_zip_records.entries}.get(
        data[:1], rar_records.entries
    )
    found: list[Entry] = []
    try:
        with contextlib.suppress(ValueError, StructError):
            found.extend(read_headers(store))
    finally:
        store.discard()
    cost = sum(entry.cost for entry in found)
    assert store.calls <= 4 + cost // 4
    # What is read is a small multiple of what is there.
    assert store.bytes <= 2 * limits.READ + 170 * store.calls + 4 * len(data)
    if data[:1] != b"7":  # a header of 7z may be packed
        assert sum(len(name) for entry in found for name in entry.names) <= 4 * len(data)
    return found


@pytest.mark.parametrize("case", CASES)
def test_no_more_is_read_than_there_is(case: str) -> None:
    every_entry(CASES[case])


@settings(max_examples=part_of(2000), deadline=None)
@given(data=st.data())
def test_broken_archives_are_read(data: st.DataObject) -> None:
    archive = bytearray(data.draw(st.sampled_from(list(CASES.values())))[-900:])
    if not archive.startswith((b"Rar", b"MSCF", b"7z")):
        archive[:0] = RAR_5 if b"QO" in archive else RAR_4
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at] = data.draw(st.sampled_from([0, 1, 2, 3, 0x74, 0x7F, 0x80, 0xFF]))
    every_entry(bytes(archive))
    read(attached(bytes(archive)))
    assert Memory.kept == 0


@settings(max_examples=part_of(500), deadline=None)
@given(
    begin=st.sampled_from(
        [RAR_4, RAR_5 + MAIN_5, b"MSCF" + bytes(12), SEVEN_ZIP + bytes(14) + b"\x99" + bytes(11)]
    ),
    rest=st.binary(),
)
def test_any_bytes_are_read_as_headers(begin: bytes, rest: bytes) -> None:
    every_entry(begin + rest)
    read(attached(begin + rest))
    assert Memory.kept == 0


def test_members_have_a_limit() -> None:
    many = 30
    for data in (
        rar_4(*(file_4(b"%d.txt" % each) for each in range(many))),
        rar_5(*(file_5(b"%d.txt" % each) for each in range(many))),
        cab(*(b"%d.txt" % each for each in range(many))),
        seven_zip(*(f"{each}.txt" for each in range(many)), packed=True),
    ):
        content = read(attached(data), members=20)
        assert len(content.parts[-1].members) == 20
        assert "too many members of archives" in content.oddities
        assert not content.cut


@pytest.mark.parametrize(
    "data", [RAR_4 + block(0x7F) * 400, RAR_5 + header(9) * 400], ids=["rar 4", "rar 5"]
)
def test_other_headers_have_a_limit(data: bytes) -> None:
    content = read(attached(data), unpacked=300 * limits.HEAD)
    assert "too many headers in archives" in content.oddities
    assert not read(attached(data), unpacked=500 * limits.HEAD).oddities


@pytest.mark.parametrize(
    "data",
    [
        RAR_4 + MAIN_4 + block(0x74)[:5] + b"\0\0" + file_4(b"a.exe"),  # a header of size 0
        RAR_5 + MAIN_5 + b"crc_\0" + file_5(b"a.exe"),
        RAR_5 + MAIN_5 + b"crc_" + b"\xff" * 300,
        RAR_4 + b"cc\x74\0\x81\xff\xff" + b"\xff" * 40,
        RAR_5 + MAIN_5 + b"crc_" + number(1 << 63) + b"\2\2" + number(1 << 63) + bytes(40),
        b"MSCF" + b"\xff" * 40,
        cab(b"a.txt").replace(b"\x01\0\0\0\0\0", b"\xff\xff\0\0\0\0"),
    ],
)
def test_sizes_that_lead_nowhere(data: bytes) -> None:
    assert len(every_entry(data)) < 10
    assert members(data).parts[-1].traits >= {"unreadable"}


def test_names_of_64_kb() -> None:
    long = b"b" * 65_000
    four = rar_4(
        *[file_4(unicode_4("\u0431" * 6_000 + ".exe", b"b" * 20_000), flags=0x200)] * 5,
        file_4(long + b"/a.exe"),
    )
    five = rar_5(*(file_5(b"%d" % each + long * 3 + b"/a.exe") for each in range(5)))
    for data, count in ((four, 6), (five, 5)):
        assert sum(bool(entry.names) for entry in every_entry(data)) == count
        content = members(data)
        assert "a.exe" in every_name(content)
        assert all(len(name) <= limits.NAME for name in every_name(content))


def test_copies_of_headers_are_not_larger_than_their_records() -> None:
    head = file_5(b"b" * 3000)
    records = copied(head[:60]) * 500 + head
    found = every_entry(rar_5(file_5(b"QO", records, kind=3)))
    assert max(len(name) for entry in found for name in entry.names) < 60

"""Bounds: depth, parts and sizes that no mail has, and the same result however it arrives."""

from __future__ import annotations

import base64
import sys
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.mime import limits, parameters
from smtpd_filters.mime.scanner import Scanner
from tests.effort import part as part_of
from tests.mime.reading import EXE, Memory, attached, blocks, every_name, mixed, read, zipped
from tests.mime.test_corpus import NAMES, STRUCTURES

if TYPE_CHECKING:
    from smtpd_filters.mime.content import Content


def test_levels() -> None:
    levels = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level)
        for level in range(100)
    )
    content = read(levels)
    assert "too many levels" in content.oddities
    messages = b"Content-Type: message/rfc822\n\n" * 100
    content = read(messages)
    assert "too many levels" in content.oddities
    assert max(part.depth for part in content.parts) <= limits.DEPTH


def test_levels_in_base64() -> None:
    message = b"Content-Type: text/plain; name=a.exe\n\nx\n"
    head = b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n"
    for _ in range(limits.DEPTH + 3):
        message = head + base64.b64encode(message) + b"\n"
    assert "too many levels" in read(message).oddities


def test_parts() -> None:
    content = read(mixed(*[b"Content-Type: x/y; name=a.exe\n\nMZ\n"] * 10_000))
    assert len(content.parts) == limits.PARTS
    assert "too many parts" in content.oddities


def test_names_of_a_part() -> None:
    names = b"".join(b"; filename=%d.txt" % number for number in range(100))
    content = read(mixed(b"Content-Disposition: attachment" + names + b"\n\nx\n"))
    assert len(content.parts[-1].names) == limits.NAMES
    assert "too many names of a part" in content.oddities


def test_a_line_of_a_folded_field_that_is_dropped_is_noted() -> None:
    field = b"Content-Disposition: attachment;\n"
    field += b" x=" + b"y" * (limits.PARAMETERS - len(field) - 5) + b";\n filename=a.exe\n"
    content = read(mixed(field + b"\nx\n"))
    assert "a.exe" in every_name(content)
    content = read(mixed(field.replace(b"=y", b"=yyyyy") + b"\nx\n"))
    assert "a.exe" not in every_name(content)
    assert content.cut


def test_boundaries_of_a_multipart() -> None:
    many = b"; ".join(b"boundary=b%d" % number for number in range(100))
    content = read(b"Content-Type: multipart/mixed; " + many + b"\n\n--b0\n\nx\n--b0--\n")
    assert content.cut
    assert "too many boundaries" in content.oddities


def test_values_in_values() -> None:
    field = b"Content-Disposition: attachment; " + b"name=" * 700 + b"a.exe"
    content = read(mixed(field + b"\n\nx\n"))
    assert "too many names of a part" in content.oddities
    assert content.cut
    assert sum(map(len, parameters.names("name=" * 800).values)) < 8 * limits.PARAMETERS
    many = b"boundary=" * 400
    content = read(b"Content-Type: multipart/mixed; " + many + b"\n\n--b0\n\nx\n--b0--\n")
    assert "too many boundaries" in content.oddities
    assert content.cut


@pytest.mark.parametrize("field", [b"x; filename", b"x; name=b; filename"])
def test_comments_of_a_field(field: bytes) -> None:
    def with_comments(count: int) -> Content:
        comments = b"(" * (count // 2) + b")" * (count // 2) + b"()" * (count - count // 2)
        return read(mixed(b"Content-Disposition: " + field + comments + b"=a.exe\n\nx\n"))

    content = with_comments(limits.COMMENTS)
    assert "a.exe" in every_name(content)
    assert not content.cut
    content = with_comments(limits.COMMENTS + 1)
    assert "too many comments in a field" in content.oddities
    assert content.cut


def test_an_archive_beyond_its_limits_is_only_ambiguous() -> None:
    content = read(attached(zipped(*((str(each), b"") for each in range(9)))), members=3)
    assert content.ambiguous
    assert not content.cut


def test_the_header_block_of_a_part() -> None:
    content = read(mixed(b"X: y\n" * 20_000 + b"Content-Type: x/y; name=a.exe\n\nx\n"))
    assert "header block of a part too long" in content.oddities


@pytest.mark.parametrize("encoding", [b"base64", b"7bit", b"quoted-printable", b"x-uuencode"])
def test_a_message_of_35_mb_takes_little_memory(encoding: bytes) -> None:
    line = base64.encodebytes(bytes(57)) if encoding == b"base64" else b"M" + b"!" * 60 + b"\n"
    block = line * (limits.BLOCK // len(line))
    part = b"--b\nContent-Type: x/y\nContent-Transfer-Encoding: " + encoding + b"\n\n"
    scanner = Scanner([b"Content-Type: multipart/mixed; boundary=b"], Memory)
    scanner.feed(part)
    tracemalloc.start()
    for _ in range(part_of((35 << 20) // len(block))):
        scanner.feed(block)
    scanner.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert scanner.content.parts[-1].size > 1 << 20


PIECES = st.one_of(
    st.sampled_from(
        [
            b"--b\n", b"--b--\n", b"--c\n", b"\n", b"\n", b" \n", b"x\n", b"\r", b"begin 644 a\n",
            b"end\n", b"=ybegin name=x\n", b"Content-Transfer-Encoding: base64\n", b"a.exe",
            b"Content-Type: multipart/mixed; boundary=b\n", b"Content-Type: message/rfc822\n",
            b"Content-Type: multipart/mixed; boundary=c\n", b"Content-Type: multipart/digest\n",
            base64.b64encode(zipped(("a.exe", EXE))) + b"\n", base64.encodebytes(EXE),
            b"Content-Disposition: attachment; filename*0=", b"=?utf-8?B?", b'"', b";", b"--",
            b"Content-Type: (;()) multipart/mixed; name=a.eml; boundary(", b"(", b")", b"\\", b"=",
        ]
    ),
    st.sampled_from([b"filename=" + each for each, _ in NAMES.values()]),
    st.binary(max_size=30),
)  # fmt: skip


@settings(max_examples=part_of(400), deadline=None)
@given(pieces=st.lists(PIECES, max_size=40), size=st.integers(1, 200))
def test_the_result_does_not_depend_on_the_blocks(pieces: list[bytes], size: int) -> None:
    message = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"".join(pieces)
    whole, cut = read(message), read(message, size)
    assert whole.parts == cut.parts
    assert whole.oddities == cut.oddities
    assert Memory.kept == 0


def test_the_order_of_files_and_messages_in_text_does_not_depend_on_the_blocks() -> None:
    part = b"\n--c\n\nbegin 644 a.exe\n#0V%T\nend\n" * 3
    inner = b"Content-Type: multipart/mixed; boundary=c\n" + part + b"--c--\n"
    message = mixed(b"Content-Type: text/plain; name=x.eml\n\n" + inner)
    expected = read(message).parts
    assert len(expected) == 11
    assert all(read(message, size).parts == expected for size in (1, 7, 40, 60, 100))


def calls(message: bytes) -> int:
    """Return the number of Python functions that are called to read a message."""
    count, before = 0, sys.getprofile()

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(counted)
    try:
        read(message)
    finally:
        sys.setprofile(before)
    return count


def test_carriage_returns_in_encoded_text_cost_no_more_than_letters() -> None:
    head = b"Content-Type: text/plain; name=x.eml\nContent-Transfer-Encoding: base64\n\n"
    letters, returns = (
        calls(mixed(head + base64.encodebytes(b"\n" + each * 50_000))) for each in (b"x", b"\r")
    )
    assert returns < letters * 1.5


@settings(max_examples=part_of(200), deadline=None)
@given(message=st.binary(max_size=400))
def test_any_bytes_are_read(message: bytes) -> None:
    read(message)


@settings(max_examples=part_of(200), deadline=None)
@given(data=st.data())
def test_broken_archives_are_read(data: st.DataObject) -> None:
    archive = bytearray(zipped(("a.exe", EXE), ("b.zip", zipped(("c", b"x")))))
    for _ in range(data.draw(st.integers(1, 8))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    head = b"Content-Transfer-Encoding: base64\n\n"
    content = read(head + base64.encodebytes(archive))
    assert len(content.parts) == 1
    assert Memory.kept == 0


@pytest.mark.parametrize("case", STRUCTURES)
def test_every_structure_in_blocks_of_any_size(case: str) -> None:
    message, _ = STRUCTURES[case]
    expected = read(message)
    for size in (1, 7, 40):
        assert read(message, size).parts == expected.parts


def test_blocks_are_whole_lines() -> None:
    assert list(blocks(b"ab\nc\nlonger\n", 4)) == [b"ab\n", b"c\n", b"longer\n"]


def test_blocks_with_many_parts_are_cut() -> None:
    scanner = Scanner([b"Content-Type: multipart/mixed; boundary=b"], Memory)
    dense = b"--b\n" * 1000
    pieces = list(scanner.pieces(dense))
    assert b"".join(pieces) == dense
    assert max(map(len, pieces)) <= 512
    for block in (b"x" * 4000 + b"\n", b"a line\n" * 500):
        assert list(scanner.pieces(block)) == [block]


def test_work_counts_lines_and_parts_in_encoded_parts() -> None:
    """What takes long in few bytes is charged to the caller."""
    inner = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--\n" * 1000
    head = b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n"
    assert read(head + base64.encodebytes(inner)).work >= 5000
    names = mixed(*[b"Content-Type: x/y; name==?utf-8?Q?a?=\n\nx\n"] * 100)
    assert read(names).work >= 100 * 80


def test_many_boundaries_are_charged_for() -> None:
    def work(count: int) -> int:
        head = b"; ".join(b"boundary=b%d" % number for number in range(count))
        return read(b"Content-Type: multipart/mixed; " + head + b"\n\n" + b"--b9x\n" * 10_000).work

    assert work(10) == work(1)
    nested = b"".join(
        b"Content-Type: multipart/mixed; "
        + b"; ".join(b"boundary=b%d-%d" % (level, number) for number in range(limits.BOUNDARIES))
        + b"\n\n--b%d-0\n" % level
        for level in range(limits.DEPTH)
    )
    assert read(nested + b"\n" + b"--b9x\n" * 10_000).work > 3 * work(1)


@pytest.mark.parametrize("field", [b'x; filename="a.\rexe"', b"x\r\rX: y; filename=a.exe"])
def test_a_bare_carriage_return_in_a_header_block(field: bytes) -> None:
    content = read(mixed(b"Content-Disposition: " + field + b"\n\nx\n"))
    assert content.cut
    assert not read(mixed(b"Content-Type: x/y\n\nx\ry\n", b"X: y\n\nz\n")).cut


def test_a_kind_is_that_of_the_first_bytes_however_they_arrive() -> None:
    message = mixed(b"Content-Type: x/y\n\nMZ\n" + b"text\n" * 1000 + b"\0\n")
    assert {read(message, size).parts[-1].kind for size in (64, 512, limits.BLOCK)} == {"text"}

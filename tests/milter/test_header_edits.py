"""Edits of a header block as milters request them."""

from __future__ import annotations

import pytest

from smtpd_filters.message.folding import field_lines
from smtpd_filters.milter import AddHeader, ChangeHeader, EditedHeaders, InsertHeader

BLOCK = [
    b"X-Spam: Yes",
    b"Received: by us",
    b"\tfor you",
    b"Received: by them",
    b"Subject: a",
    b"To : b",
    b" c",
    b"SUBJECT:d",
]


def block(lines: list[bytes] = BLOCK) -> EditedHeaders:
    """Return a header block."""
    return EditedHeaders(b"\n".join([b"", *lines]), field_lines)


def lines_of(headers: EditedHeaders) -> list[bytes]:
    """Return the lines of a block."""
    return headers.text().split(b"\n")[1:]


def edited(*edits: AddHeader | InsertHeader | ChangeHeader, lead: bool = False) -> list[bytes]:
    """Return the lines of the block after edits."""
    headers = block()
    for edit in edits:
        headers.apply(edit, leading_space=lead)
    assert headers.changed == (lines_of(headers) != BLOCK)
    return lines_of(headers)


def test_what_a_milter_sees() -> None:
    assert list(block().fields()) == [
        (b"Received", b" by them"),
        (b"Subject", b" a"),
        (b"To", b" b\n c"),
        (b"SUBJECT", b"d"),
    ]
    assert lines_of(block()) == BLOCK


def test_the_line_of_an_mbox_file_is_hidden_but_nothing_with_it() -> None:
    """To some programs it ends the header: what continues it would be the body."""
    line = b"From bob@example.net Mon Sep 17 00:00:00 2001"
    lines = [b"Received: by us", line, b"Subject: a"]
    assert list(block(lines).fields()) == [(b"Subject", b" a")]
    assert block(lines).rest == b""
    lines.insert(2, b" <html>hidden")
    assert list(block(lines).fields()) == []
    assert block(lines).rest == b"\n".join([b"", *lines[1:]])
    assert lines_of(block(lines)) == lines


def test_a_field_is_added_at_the_end_with_one_space() -> None:
    assert edited(AddHeader(b"A", b"b\n\tc")) == [*BLOCK, b"A: b", b"\tc"]
    assert edited(AddHeader(b"A", b" b"), lead=True) == [*BLOCK, b"A: b"]
    assert edited(AddHeader(b"A", b"b"), lead=True) == [*BLOCK, b"A:b"]
    assert edited(AddHeader(b"A", b"b\r\n\tc\r\n")) == [*BLOCK, b"A: b", b"\tc"]
    assert edited(AddHeader(b"A", b"\xff\xe9")) == [*BLOCK, b"A: \xff\xe9"]


@pytest.mark.parametrize(("index", "at"), [(0, 0), (1, 3), (2, 4), (3, 5), (4, 7), (5, 8), (9, 8)])
def test_an_index_counts_smtpds_own_field(index: int, at: int) -> None:
    assert edited(InsertHeader(index, b"A", b"b")) == [*BLOCK[:at], b"A: b", *BLOCK[at:]]


def test_of_several_at_one_index_the_last_is_on_top() -> None:
    lines = edited(InsertHeader(0, b"A", b"1"), InsertHeader(0, b"A", b"2"))
    assert lines == [b"A: 2", b"A: 1", *BLOCK]


def test_a_change_does_not_count_smtpds_own_field() -> None:
    assert edited(ChangeHeader(1, b"received", b"x"))[3] == b"received: x"
    assert edited(ChangeHeader(2, b"Subject", b"x"))[7] == b"Subject: x"
    assert edited(ChangeHeader(0, b"Subject", b"x"))[4] == b"Subject: x"
    assert edited(ChangeHeader(1, b"To", b"")) == [*BLOCK[:5], *BLOCK[7:]]
    assert edited(ChangeHeader(3, b"Subject", b"x")) == [*BLOCK, b"Subject: x"]
    assert edited(ChangeHeader(3, b"Subject", b"")) == BLOCK
    assert edited(ChangeHeader(1, b"Subj", b"")) == BLOCK
    assert edited(ChangeHeader(1, b"X-Spam", b"")) == BLOCK


def test_what_a_milter_inserted_on_top_is_seen_by_the_next() -> None:
    headers = block()
    headers.apply(InsertHeader(0, b"A", b"b"), leading_space=False)
    assert next(headers.fields()) == (b"A", b" b")
    headers.apply(ChangeHeader(1, b"A", b"c"), leading_space=False)
    assert lines_of(headers)[0] == b"A: c"


@pytest.mark.parametrize(
    "value",
    [b"x\nBcc: y", b"x\n\ny", b"x\n \ny", b"x\r\r", b"x\0y", b"x" * 2000, b"a\x0bb", b"\n\n\nz"],
)
def test_an_invalid_value_becomes_one_field(value: bytes) -> None:
    for lead in (False, True):
        lines = edited(AddHeader(b"A", value), lead=lead)[len(BLOCK) :]
        assert lines[0].startswith(b"A:")
        assert all(line.startswith((b" ", b"\t")) and line.strip() for line in lines[1:])
        assert all(len(line) <= 998 and b"\r" not in line and b"\0" not in line for line in lines)


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"\xff", b"x" * 1000, b"a\n"])
def test_an_invalid_name(name: bytes) -> None:
    with pytest.raises(ValueError, match="invalid header field name"):
        edited(AddHeader(name, b"x"))


def test_the_block_ends_before_a_line_that_is_no_field() -> None:
    headers = block([b"Received: by us", b"A: b", b"text", b"C: d"])
    assert list(headers.fields()) == [(b"A", b" b")]
    assert headers.rest == b"\ntext\nC: d"
    headers.apply(AddHeader(b"E", b"f"), leading_space=False)
    assert lines_of(headers) == [b"Received: by us", b"A: b", b"E: f", b"text", b"C: d"]
    headers.drop_rest()
    assert lines_of(headers) == [b"Received: by us", b"A: b", b"E: f"]


def test_a_block_without_a_received_field() -> None:
    headers = block([b"X-Spam: Yes", b"A: b"])
    assert list(headers.fields()) == [(b"X-Spam", b" Yes"), (b"A", b" b")]
    assert lines_of(block([])) == []
    assert list(block([b" x", b"A: b"]).fields()) == []

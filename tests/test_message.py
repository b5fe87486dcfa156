"""The header block, the fields put into it, dot-stuffing, and whole messages."""

from __future__ import annotations

import email
import email.header
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.message import (
    Field,
    Headers,
    Message,
    Spool,
    SpoolError,
    encoded_word,
    stuff,
    unstuff,
)
from smtpd_filters.message.disguise import Name, disguised
from smtpd_filters.message.folding import MAX_LINE, field_lines
from smtpd_filters.message.obsolete import correct_names, replace_odd_blanks, replace_stray_cr
from smtpd_filters.message.spool import CHUNK, ROWS, STORE_COST, Store, directories
from tests import effort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECEIVED = [b"Received: from a.example (a.example [192.0.2.1])", b"\tby mx.example; Sat, 21 Nov"]
BLOCK = [
    *RECEIVED,
    b"From: Anna <anna@example.org>",
    b"X-Spam: Yes",
    b"SUBJECT :  two",
    b" lines \xff",
    b"x-spam:no",
]

# Lines that are likely to mean something, among any others.
line = st.one_of(
    st.sampled_from(
        [b"", b".", b"..", b" ", b"\t x", b"From a@b Sat", b"A: 1", b"a:2", b"B :", b":"]
    ),
    st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")),
)
lines_of_mail = st.lists(line, max_size=12)
name = st.from_regex(r"[!-9;-~]{1,20}", fullmatch=True)
piece = st.sampled_from(
    ["\r", "\n", "\r\n", "\n ", "\r\n\t", " ", "\t", "\0", "\x0b", "\x85", "\ud800", "Bcc: x", "é"]
)
value = st.one_of(
    st.lists(st.one_of(piece, st.text(max_size=8)), max_size=10).map("".join),
    st.lists(piece, max_size=10).map(lambda p: "".join(p).encode("utf-8", "replace")),
    st.binary(max_size=60),
    st.lists(st.text("ab \t", min_size=1, max_size=60), max_size=20).map("".join),
    st.tuples(st.text("xé", min_size=1, max_size=3), st.integers(1, 1200)).map(
        lambda t: t[0] * t[1]
    ),
)


def unfolded(lines: list[bytes]) -> bytes:
    return b"".join(lines)


# --- Dot-stuffing


@pytest.mark.parametrize(
    ("plain", "wire"),
    [
        ([], []),
        ([b"", b"a.", b" ."], [b"", b"a.", b" ."]),
        ([b".", b"", b"..", b".x", b"x"], [b"..", b"", b"...", b"..x", b"x"]),
    ],
)
def test_stuffing(plain: list[bytes], wire: list[bytes]) -> None:
    assert stuff(plain) == wire
    assert unstuff(wire) == plain
    assert stuff(iter(plain)) == wire


def test_stuffing_gives_a_list_of_its_own() -> None:
    plain = [b"a"]
    assert stuff(plain) is not plain
    assert unstuff(plain) is not plain


def test_a_dot_that_the_client_did_not_stuff_is_taken_away() -> None:
    assert unstuff([b".x"]) == [b"x"]


@given(st.lists(st.one_of(st.sampled_from([b"", b".", b".."]), st.binary(max_size=5))))
def test_unstuff_undoes_stuff(plain: list[bytes]) -> None:
    assert unstuff(stuff(plain)) == plain
    assert b"." not in stuff(plain)


# --- Values


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        ("yes", [b"X: yes"]),
        (b"yes \t", [b"X: yes"]),
        ("", [b"X:"]),
        (" \t", [b"X:"]),
        ("  a  b\tc ", [b"X: a  b\tc"]),
        ("Zoë", [b"X: Zo\xc3\xab"]),
        ("raw \udcff", [b"X: raw \xff"]),
        (b"raw \xff", [b"X: raw \xff"]),
        ("no byte \ud800", "X: no byte \ufffd".encode()),
        ("a\r\nBcc: b", [b"X: a Bcc: b"]),
        ("a\nBcc: b", [b"X: a Bcc: b"]),
        ("a\rBcc: b", [b"X: a Bcc: b"]),
        ("a\r\n\r\nbody", [b"X: a  body"]),
        ("a\0b\x1b[2J\x7f", [b"X: a b [2J"]),
        ("a\u0085b", [b"X: a b"]),
        ("\n", [b"X:"]),
        # Folded already.
        ("v=1;\n\tb=2", [b"X: v=1;", b"\tb=2"]),
        (b"v=1;\r\n  b=2", [b"X: v=1;", b"  b=2"]),
        ("v=1; \n b=2 ", [b"X: v=1; ", b" b=2"]),
        ("\n v=1", [b"X:", b" v=1"]),
        ("a\n \n \t\n b", [b"X: a", b" b"]),
        ("a\n \n", [b"X: a"]),
        ("a\n \0\n b", [b"X: a", b" b"]),
        ("a\n\n b", [b"X: a ", b" b"]),
        ("a\n" + " w" * 60, [b"X: a", b" w" * 60]),
    ],
)
def test_a_value_in_a_field(given_value: str | bytes, expected: list[bytes] | bytes) -> None:
    assert field_lines("X", given_value) == (
        [expected] if isinstance(expected, bytes) else expected
    )


@pytest.mark.parametrize("bad", ["", "a b", "a:", "é", "a\n", "\0", "a\tb", "\x7f", "x" * MAX_LINE])
def test_a_name_that_is_none(bad: str) -> None:
    headers = Headers.parse(BLOCK)
    for edit in (headers.prepend, headers.append):
        with pytest.raises(ValueError, match="invalid header field name"):
            edit(bad, "x")
    with pytest.raises(ValueError, match="invalid header field name"):
        headers.insert(0, bad, "x")
    with pytest.raises(ValueError, match="invalid header field name"):
        headers.replace(bad, "x", add=True)
    assert headers.lines() == BLOCK
    assert not headers.changed


@given(name, value)
@example("X" * 997, "x" * 3000)
@example("A", "\n" + " " * 1200 + "x")
def test_no_value_makes_a_second_field_or_ends_the_block(name: str, value: str | bytes) -> None:
    lines = field_lines(name, value)
    assert lines[0].startswith(name.encode() + b":")
    for number, text in enumerate(lines):
        assert not re.search(rb"[\x00-\x08\n-\x1f\x7f]", text)
        assert text.strip(b" \t")
        assert len(text) <= MAX_LINE
        assert (text[:1] in (b" ", b"\t")) == (number > 0)
    headers = Headers.parse([*BLOCK, *lines, *BLOCK])
    assert len(headers) == 2 * len(Headers.parse(BLOCK)) + 1
    # Another implementation's opinion.
    parsed = email.message_from_bytes(b"\r\n".join([*lines, b"", b"the body"]))
    assert len(parsed) == 1
    assert parsed.get_payload() == "the body"


@given(name, st.text("abé \t", max_size=400).map(str.encode))
def test_folding(name: str, value: bytes) -> None:
    lines = field_lines(name, value)
    for text in lines:
        tokens = text.removeprefix(name.encode() + b":").split()
        assert len(text) <= 78 or len(tokens) <= 1
    whole = unfolded(lines).removeprefix(name.encode() + b":")
    assert whole.split() == value.split()
    if b" " * 50 not in value.replace(b"\t", b" "):
        assert whole.strip(b" \t") == value.strip(b" \t")


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        ("a" * 75, [b"X: " + b"a" * 75]),
        # Whole tokens: behind the name if it won't do otherwise, else on a line of their own.
        ("a" * 76, [b"X:", b" " + b"a" * 76]),
        ("a" * 78, [b"X: " + b"a" * 78]),
        ("a" * 995 + " b", [b"X: " + b"a" * 995, b" b"]),
        ("a" * 996, [b"X:", b" " + b"a" * 996]),
        ("a " + "b" * 80 + " c", [b"X: a", b" " + b"b" * 80, b" c"]),
        ("a" * 70 + "  \tb" + " c" * 40, [b"X: " + b"a" * 70 + b"  \tb", b" c" * 39, b" c"]),
        ("a" * 74 + " \tb", [b"X: " + b"a" * 74, b" \tb"]),
        ("a" + " " * 100 + "b", [b"X: a b"]),
        ("a" * 74 + " " * 100 + "b", [b"X: " + b"a" * 74, b" b"]),
        # Hard breaks.
        ("a" * 998, [b"X:", b" " + b"a" * 997, b" a"]),
        ("a" * 996 + "é", [b"X:", b" " + b"a" * 996, " é".encode()]),
        (b"\x80" * 998, [b"X:", b" " + b"\x80" * 997, b" \x80"]),
        ("x\n " + "a" * 997, [b"X: x", b" " + b"a" * 997]),
        ("x\n " + "a" * 998 + " b ", [b"X: x", b" " + b"a" * 997, b" a b"]),
        ("x" * 990 + " yyyyyy\n z", [b"X: " + b"x" * 990, b" yyyyyy", b" z"]),
    ],
)
def test_where_a_value_is_folded(given_value: str | bytes, expected: list[bytes]) -> None:
    assert field_lines("X", given_value) == expected


@pytest.mark.parametrize(
    "hostile",
    [
        "x" * 999 + " " * 300_000 + "\n y",
        "x" * 300_000,
        "x " * 150_000,
        "\n " * 150_000 + "x",
        " \t" * 150_000 + "x",
        "\r" * 300_000 + "x",
    ],
)
def test_folding_takes_time_in_proportion(hostile: str) -> None:
    # Were it in proportion to the square, the run would stand still here for minutes.
    assert unfolded(field_lines("X", hostile)).endswith((b"x", b" y"))


def test_a_long_name_stands_alone() -> None:
    assert field_lines("N" * 77, "a") == [b"N" * 77 + b":", b" a"]


@pytest.mark.parametrize("text", ["", "Hello, world", "50% = half?"])
def test_ascii_needs_no_encoded_word(text: str) -> None:
    assert encoded_word(text) == text


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200))
@example("=?utf-8?Q?already?=")
@example("é" * 100)
def test_encoded_words_decode_to_the_text(text: str) -> None:
    encoded = encoded_word(text)
    assert encoded.isascii()
    assert str(email.header.make_header(email.header.decode_header(encoded))) == text
    if encoded != text:
        assert all(len(word) <= 75 for word in encoded.split(" "))


def test_an_encoded_word_hides_no_line_break() -> None:
    assert encoded_word("a\r\nBcc: é") == encoded_word("a Bcc: é")
    assert encoded_word("a\nb") == "a b"
    assert encoded_word("é\ud800") == encoded_word("é?")


# --- The block


@given(lines_of_mail)
def test_a_block_comes_back_as_it_was(lines: list[bytes]) -> None:
    headers = Headers.parse(lines)
    assert headers.lines() == lines
    named = [field for field in headers if field.name]
    assert len(named) == len(headers)
    assert headers.lines() == lines
    assert not headers.changed


def test_what_is_in_a_block() -> None:
    headers = Headers.parse(BLOCK)
    assert headers.names() == ["Received", "From", "X-Spam", "SUBJECT", "x-spam"]
    assert len(headers) == 5
    assert headers.get("from") == "Anna <anna@example.org>"
    assert headers.get("subject") == "two lines \udcff"
    assert headers.get("X-SPAM") == "Yes"
    assert headers.get_all("X-Spam") == ["Yes", "no"]
    assert headers.get("To") is None
    assert headers.get("To", "nobody") == "nobody"
    assert headers.get_all("To") == []
    assert "FROM" in headers
    assert "To" not in headers
    assert 1 not in headers
    assert "" not in headers
    first = next(iter(headers))
    assert first.lines == tuple(RECEIVED)
    assert repr(list(headers)[2]) == "Field('X-Spam', 'Yes')"
    match first:
        case Field("Received", text):
            assert text.endswith("\tby mx.example; Sat, 21 Nov")
        case _:
            pytest.fail("a field matches by name and value")


OPAQUE = [
    b" stray",
    b"\tmore",
    b"From anna@example.org Sat",
    b" goes on",
    b"A: 1",
    b"text",
    b" b",
    b"",
]


def test_what_is_no_field_is_kept_and_not_found() -> None:
    headers = Headers.parse(OPAQUE)
    assert headers.names() == ["A"]
    assert headers.get("A") == "1"
    assert headers.get("From") is None
    assert headers.remove("From") == 0
    assert headers.remove("") == 0
    assert headers.remove("a") == 1
    assert headers.lines() == [text for text in OPAQUE if text != b"A: 1"]


@pytest.mark.parametrize("parsed", [False, True])
def test_adding_at_both_ends(*, parsed: bool) -> None:
    headers = Headers.parse(BLOCK)
    assert not parsed or len(headers) == 5
    headers.prepend("X-Top", "1")
    headers.append("X-End", "a " * 50)
    headers.prepend("X-Top", "2")
    end = [b"X-End: " + b"a " * 35 + b"a", b" a" * 14]
    assert headers.lines() == [b"X-Top: 2", b"X-Top: 1", *BLOCK, *end]
    assert headers.get_all("x-top") == ["2", "1"]
    assert headers.changed


@pytest.mark.parametrize("parsed", [False, True])
def test_a_new_field_takes_over_no_stray_continuation(*, parsed: bool) -> None:
    headers = Headers.parse(OPAQUE)
    assert not parsed or len(headers) == 1
    headers.prepend("X", "1")
    assert headers.lines() == [*OPAQUE[:2], b"X: 1", *OPAQUE[2:]]
    headers = Headers.parse([b" stray"])
    headers.prepend("X", "1")
    assert headers.lines() == [b" stray", b"X: 1"]


@pytest.mark.parametrize("parsed", [False, True])
def test_an_empty_block(*, parsed: bool) -> None:
    headers = Headers()
    assert not parsed or len(headers) == 0
    headers.prepend("B", "2")
    headers.prepend("A", "1")
    assert headers.lines() == [b"A: 1", b"B: 2"]


def test_adding_at_the_top_parses_nothing() -> None:
    headers = Headers.parse(BLOCK)
    headers.prepend("X-Spam", "Yes")
    headers.append("X-Spam", "Yes")
    assert headers.lines()
    assert headers._entries is None


@pytest.mark.parametrize(
    ("index", "place"),
    [(0, 0), (1, 2), (2, 3), (4, 6), (5, 7), (9, 7), (-1, 6), (-5, 0), (-9, 0)],
)
def test_inserting_counts_fields(index: int, place: int) -> None:
    headers = Headers.parse(BLOCK)
    headers.insert(index, "X-New", "1")
    assert headers.lines() == [*BLOCK[:place], b"X-New: 1", *BLOCK[place:]]
    assert headers.changed


@pytest.mark.parametrize("index", [0, 3, -1])
def test_inserting_into_no_fields(index: int) -> None:
    headers = Headers.parse([b"text"])
    headers.insert(index, "X-New", "1")
    assert headers.lines() == [b"text", b"X-New: 1"]


def test_of_several_inserted_at_one_index_the_last_is_highest() -> None:
    headers = Headers.parse([b"A: 1", b"B: 2"])
    headers.insert(1, "X", "second")
    headers.insert(1, "X", "first")
    assert headers.get_all("x") == ["first", "second"]
    assert headers.names() == ["A", "X", "X", "B"]


@pytest.mark.parametrize(("nth", "place"), [(1, 3), (2, 6), (-1, 6), (-2, 3)])
def test_replacing_the_nth(nth: int, place: int) -> None:
    headers = Headers.parse(BLOCK)
    assert headers.replace("X-SPAM", "maybe", nth)
    assert headers.lines() == [*BLOCK[:place], b"X-SPAM: maybe", *BLOCK[place + 1 :]]
    assert headers.changed


@pytest.mark.parametrize("nth", [3, -3])
def test_replacing_what_is_not_there(nth: int) -> None:
    headers = Headers.parse(BLOCK)
    assert not headers.replace("X-Spam", "maybe", nth)
    assert not headers.changed
    assert not headers.replace("X-Spam", "maybe", nth, add=True)
    assert headers.lines() == [*BLOCK, b"X-Spam: maybe"]


def test_there_is_no_field_number_nought_to_replace() -> None:
    with pytest.raises(ValueError, match="from 1"):
        Headers.parse(BLOCK).replace("X-Spam", "maybe", 0)


@pytest.mark.parametrize(
    ("nth", "left"),
    [
        (0, "2"),
        (1, "2bcd"),
        (3, "a2bd"),
        (-1, "a2bc"),
        (-4, "2bcd"),
        (5, "a2bcd"),
        (-5, "a2bcd"),
        ([1, 2], "2cd"),
        ([-1, 4, 9], "a2bc"),
        ([2, 0], "2"),
        ([], "a2bcd"),
    ],
)
def test_removing(nth: int | list[int], left: str) -> None:
    lines = [b"X: a", b"Y: 2", b"x: b", b"X : c", b"X:", b" d"]
    headers = Headers.parse(lines)
    assert headers.remove("x", nth) == 5 - len(left)
    assert "".join(field.value for field in headers) == left
    assert headers.changed == (len(left) < 5)


@pytest.mark.parametrize("parsed", [False, True])
def test_edits_can_be_taken_back(*, parsed: bool) -> None:
    headers = Headers.parse(BLOCK)
    untouched = headers.snapshot()
    headers.prepend("X", "1")
    once = headers.snapshot()
    assert not parsed or headers.remove("Received") == 1
    headers.append("Y", "1")
    headers.restore(once)
    assert headers.lines() == [b"X: 1", *BLOCK]
    assert headers.names()[0] == "X"
    assert headers.changed
    headers.append("Y", "1")
    for _ in range(2):
        headers.restore(untouched)
        assert (headers.lines(), headers.changed) == (BLOCK, False)
        headers.append("Y", "1")


@given(
    lines_of_mail.map(lambda lines: [text for text in lines if not text.startswith(b"New-")]),
    st.lists(st.tuples(st.integers(-7, 7), name.map("New-".__add__), value), max_size=6),
)
def test_added_fields_leave_all_other_lines_and_their_order(
    lines: list[bytes], added: list[tuple[int, str, str | bytes]]
) -> None:
    headers = Headers.parse(lines)
    for count, (index, name, value) in enumerate(added, 1):
        if index == 6:
            headers.prepend(name, value)
        elif index == 7:
            headers.append(name, value)
        else:
            headers.insert(index, name, value)
        # As it goes out, so it reads: what went in is one field, with no line of another's.
        again = Headers.parse(headers.lines())
        new = [field.lines for field in again if field.name.startswith("New-")]
        assert sorted(new) == sorted(
            tuple(field_lines(name, text)) for _, name, text in added[:count]
        )
        assert len(again) == len(Headers.parse(lines)) + count
    kept = [entry for name, entry in entries(headers.lines()) if not name.startswith("new-")]
    assert [text for entry in kept for text in entry] == lines


def entries(lines: list[bytes]) -> list[tuple[str, list[bytes]]]:
    """Say what is a field, independently: (name in lower case or "", its lines)."""
    found: list[tuple[str, list[bytes]]] = []
    for text in lines:
        before, colon, _ = text.partition(b":")
        before = before.rstrip(b" \t")
        if found and text[:1] in (b" ", b"\t"):
            found[-1][1].append(text)
        elif colon and before and all(33 <= byte <= 126 for byte in before):
            found.append((before.decode().lower(), [text]))
        else:
            found.append(("", [text]))
    return found


@given(
    lines_of_mail,
    st.lists(st.tuples(st.sampled_from("AaB"), st.integers(-3, 3), st.none() | value), max_size=5),
)
def test_replacing_and_removing_leave_all_other_lines_and_their_order(
    lines: list[bytes], edits: list[tuple[str, int, str | bytes | None]]
) -> None:
    headers = Headers.parse(lines)
    model = entries(lines)
    assert headers.lines() == [text for _, entry in model for text in entry]
    for name, nth, value in edits:
        found = [at for at, (other, _) in enumerate(model) if other == name.lower()]
        if nth:
            counted = dict(enumerate(found, 1)) | dict(enumerate(found, -len(found)))
            found = [counted[nth]] if nth in counted else []
        if value is None:
            assert headers.remove(name, nth) == len(found)
            model = [entry for at, entry in enumerate(model) if at not in found]
        elif nth:
            assert headers.replace(name, value, nth) == bool(found)
            for at in found:
                model[at] = (name.lower(), field_lines(name, value))
        assert headers.lines() == [text for _, entry in model for text in entry]


# --- Lines in memory and on disk

#: So little memory that every message goes to disk.
TINY = 1


@given(lines_of_mail, st.sampled_from(["A", "a", "b", "", "A:", "A ", "\n", "é", ":", "From a"]))
@example([b" x", b"A: 1", b" y", b"\tz", b"a :", b"A", b"AA: 2", b"a: 3"], "A")
def test_removing_all_of_a_name_is_the_same_in_a_block_that_is_not_parted(
    lines: list[bytes], name: str
) -> None:
    parted, whole = Headers.parse(lines), Headers.parse(lines)
    parted.names()
    assert whole.remove(name) == parted.remove(name)
    assert whole.lines() == parted.lines()
    assert whole.changed == parted.changed
    assert whole.remove(name) == 0


def test_names_are_removed_by_walks_over_the_block_only_if_they_are_few() -> None:
    headers = Headers.parse([b"A%d: %d" % (number, number) for number in range(100)])
    for number in range(99):
        assert headers.remove(f"a{number}") == 1
    assert headers.lines() == [b"A99: 99"]


def test_replacing_what_has_been_looked_for() -> None:
    headers = Headers.parse([b"A: 1", b"B: 2", b"A: 3"])
    assert headers.remove("B", 2) == 0
    assert headers.replace("a", "4", 2)
    assert headers.get_all("A") == ["1", "4"]
    headers.insert(1, "A", "5")
    assert headers.get_all("A") == ["1", "5", "4"]
    assert headers.remove("C", -1) == 0
    assert Headers.parse([b"A: 1"]).remove("é", 1) == 0


@pytest.mark.parametrize("split", [False, True])
def test_a_lone_surrogate_in_a_name_matches_no_field(split: bool) -> None:  # noqa: FBT001  # a column
    headers = Headers.parse([b"X?: 1"])
    if split:
        headers.insert(0, "A", "2")
    assert headers.get("X\ud800") is None
    assert not headers.fields("X\ud800")
    assert headers.remove("X\ud800") == 0
    assert headers.get("X?") == "1"


def edited_and_restored(headers: Headers) -> object:
    before = headers.snapshot()
    headers.append("A", "b")
    found = headers.differs(before)
    headers.restore(before)
    return found, headers.differs(before)


# What is done to a block whose text is edited, and to one that was split before.
EDITS: dict[str, Callable[[Headers], object]] = {
    "get": lambda headers: (headers.get("a"), headers.get("Z", "none"), "B" in headers),
    "values": lambda headers: (headers.get_all("A"), list(headers.values("b"))),
    "fields": lambda headers: [each.lines for each in headers.fields("a")],
    "names": lambda headers: (headers.names(), len(headers), [*headers.each_line()]),
    "prepend": lambda headers: headers.prepend("A", "first"),
    "append": lambda headers: headers.append("B", "last"),
    "insert": lambda headers: headers.insert(1, "A", "second"),
    "insert above the last": lambda headers: headers.insert(-1, "B", "before"),
    "insert above all": lambda headers: headers.insert(-99, "A", "highest"),
    "insert below all": lambda headers: headers.insert(sys.maxsize + 1, "A", "lowest"),
    "replace": lambda headers: headers.replace("A", "one", -1),
    "replace a second": lambda headers: headers.replace("B", "two", 2, add=True),
    "remove": lambda headers: headers.remove("B"),
    "remove the last": lambda headers: headers.remove("A", [-1, 5]),
    "remove from the second on": lambda headers: headers.remove("A", range(2, sys.maxsize)),
    "remove others": lambda headers: headers.remove("A", range(3, 0, -2)),
    "remove no name": lambda headers: headers.remove("", 1),
    "remove an invalid name": lambda headers: headers.remove("\xe9", 1),
    "replace lines": lambda headers: headers.replace_lines([b" x", b"A: b"]),
    "differs": lambda headers: headers.differs((b"\nA: b", None, False)),
    "edit and restore": edited_and_restored,
}


@given(
    st.lists(st.sampled_from([b" stray", b"A: x", b"a : y", b"\tz", b"AB: 1", b"B:", b"text"])),
    st.lists(st.sampled_from([*EDITS])),
    st.sampled_from([0, 1 << 16]),
)
def test_a_block_is_the_same_as_text_and_as_entries(
    lines: list[bytes], edits: list[str], walked: int
) -> None:
    text, entries = Headers(lines), Headers.of_text(b"\n".join([b"", *lines]))
    text._walk(walked)  # after so much work the next edits split the block
    found = [(EDITS[name](text), text.lines(), text.changed) for name in edits]
    others = []
    for name in edits:
        list(entries)  # splits it
        others.append((EDITS[name](entries), entries.lines(), entries.changed))
    assert found == others
    assert text.lines() == entries.lines()


def is_split(headers: Headers) -> bool:
    return headers._entries is not None


def test_a_block_is_split_after_many_edits_of_its_text() -> None:
    headers = Headers([b"A: 1"] * 10_000 + [b"B: 2"] * 3)
    assert headers.replace("A", "2", -1)
    assert not is_split(headers)
    for _ in range(8):
        assert headers.replace("A", "3", -1)
    assert is_split(headers)
    assert headers.lines() == [b"A: 1"] * 9_999 + [b"A: 3"] + [b"B: 2"] * 3
    headers = Headers([b"A: 1"] * 70_000)
    assert headers.remove("A", 2) == 1
    assert headers.remove("C") == 0
    assert not is_split(headers)


def test_parted_blocks_go_back_to_what_they_were() -> None:
    headers = Headers.parse([b"A: 1", b"B: 2"])
    headers.replace("B", "3")
    before = headers.snapshot()
    headers.replace("B", "4")
    headers.restore(before)
    assert headers.lines() == [b"A: 1", b"B: 3"]


def joined(lines: list[bytes]) -> bytes:
    return b"".join(text + b"\n" for text in lines)


def kept(spool: Spool, *parts: list[bytes]) -> Store:
    store = Store(spool)
    for part in parts:
        store.append(part, len(joined(part)))
    return store


def rows(store: Store) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while True:
        some, at = store.rows(at)
        if not some:
            assert at == store.size
            return found
        assert len(some) <= ROWS
        found += some


@given(
    st.lists(st.lists(line, max_size=8), max_size=6),
    st.sampled_from([TINY, 40, 1 << 20]),
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50)), max_size=4),
)
def test_what_is_kept_comes_back(
    parts: list[list[bytes]], memory: int, reads: list[tuple[int, int]]
) -> None:
    spool = Spool(memory=STORE_COST + memory)
    store = kept(spool, *parts)
    whole = joined([text for part in parts for text in part])
    for at, size in reads:
        assert store.read(at, size) == whole[at : at + size]
        block = store.block(0, size)
        assert whole.startswith(block)
        assert block.endswith(b"\n") or not whole
    assert b"".join(text + b"\n" for text in rows(store)) == whole
    store.append([b"more"], 5)
    assert store.read(0, 1 << 20) == whole + b"more\n"
    store.discard()
    assert (spool.used, spool.on_disk) == (0, 0)


def test_rows_are_bounded_by_their_number_and_by_their_bytes() -> None:
    spool = Spool()
    for text, most in ((b"", ROWS), (b"x" * 100, CHUNK // 101), (b"y" * 100_000, 1)):
        store = kept(spool, *[[text] * 100] * effort.part(50))
        some, _ = store.rows(0)
        assert 0 < len(some) <= most
        assert rows(store) == [text] * 100 * effort.part(50)
        store.discard()


def test_memory_is_one_budget_for_all_messages() -> None:
    spool = Spool(memory=200_000, message=50_000)
    stores = [kept(spool, *[[b"x" * 999] * 10] * number) for number in range(12)]
    assert spool.used <= 200_000 + 10_000 + 64 * 10
    assert spool.on_disk
    for number, store in enumerate(stores):
        assert rows(store) == [b"x" * 999] * 10 * number
        store.discard()
    assert (spool.used, spool.on_disk) == (0, 0)


def test_many_small_messages_keep_to_the_budget() -> None:
    spool = Spool(memory=1 << 20)
    stores = [kept(spool, [b"x"] * 10) for _ in range(400)]
    assert (spool.full, spool.used < 1.03 * (1 << 20)) == (False, True)
    stores += [kept(spool, [b"x"] * 10) for _ in range(400)]
    # They are on disk by now; what is left is what each of them takes by itself.
    assert (spool.full, len(stores)) == (True, 800)
    for store in stores:
        assert rows(store) == [b"x"] * 10
        store.discard()
    assert spool.used == 0


def test_empty_lines_count_with_what_they_take() -> None:
    spool = Spool()
    before = spool.used
    store = Store(spool)
    store.append([b""] * 200, 200)
    assert spool.used - before > 200 * 50
    store.append([b""] * 200_000, 200_000)
    # As a block they take no more than their bytes.
    assert spool.used - before < 210_000
    store.discard()


def test_the_file_has_no_name_and_goes_with_the_last_message(tmp_path: Path) -> None:
    before = open_files()
    spool = Spool(memory=TINY, directories=(str(tmp_path / "missing"), str(tmp_path)))
    stores = [kept(spool, [b"x" * 100_000]) for _ in range(20)]
    assert len(open_files() - before) == 1
    assert list(tmp_path.iterdir()) == []
    size = spool.on_disk
    for store in stores[::2]:
        store.discard()
    assert spool.on_disk == size // 2
    # What was given back is used again.
    stores += [kept(spool, [b"y" * 100_000]) for _ in range(10)]
    assert spool.on_disk == size
    left = stores[1:20:2] + stores[20:]
    assert b"".join(rows(store)[0][:1] for store in left) == b"x" * 10 + b"y" * 10
    for store in stores:
        store.discard()
    assert open_files() == before


def test_a_large_file_is_closed_by_a_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[tuple[object, tuple[int]]] = []
    monkeypatch.setattr("_thread.start_new_thread", lambda *call: begun.append(call))
    spool = Spool(memory=TINY, directories=(str(tmp_path),), large=1 << 16)
    kept(spool, [b"x" * 200_000]).discard()
    [(function, arguments)] = begun
    assert function is os.close
    os.close(*arguments)

    def none(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    before = open_files()
    monkeypatch.setattr("_thread.start_new_thread", none)
    kept(spool, [b"x" * 200_000]).discard()
    assert open_files() == before


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))  # noqa: PTH112, PTH208


# --- Whole messages


@contextmanager
def message(
    lines: list[bytes], *, spool: Spool | None = None, cuts: list[int] | None = None
) -> Iterator[Message]:
    held = Message(spool)
    try:
        places = sorted({min(cut, len(lines)) for cut in cuts or []})
        for start, end in zip([0, *places], [*places, len(lines)], strict=True):
            held.feed(lines[start:end])
        held.close()
        yield held
    finally:
        held.discard()


def wire(held: Message) -> list[bytes]:
    """Have it sent back; it can be asked for nothing else then."""
    held.release()
    found: list[bytes] = []
    while some := held.drain():
        found += some
    assert held.drained
    return found


MAIL = [b"Subject: hello", b"..From: me", b"", b"Hi", b"", b"..", b"...x", b"bye"]


def test_a_message() -> None:
    with message(MAIL) as held:
        assert held.headers.names() == ["Subject", ".From"]
        plain = joined(unstuff(MAIL))
        assert b"".join(held.body()) == b"Hi\n\n.\n..x\nbye\n"
        assert b"".join(held.body(crlf=True)) == b"Hi\r\n\r\n.\r\n..x\r\nbye\r\n"
        assert b"".join(held.iter_bytes()) == plain
        assert b"".join(held.iter_bytes(crlf=True)) == plain.replace(b"\n", b"\r\n")
        assert held.size == len(plain)
        with held.open() as file:
            assert file.read(3) == b"Sub"
            assert file.readline() == b"ject: hello\n"
            assert file.read() == plain[15:]
        with held.open(crlf=True) as file:
            assert file.read() == plain.replace(b"\n", b"\r\n")
        assert wire(held) == MAIL


@pytest.mark.parametrize("edit", [False, True])
def test_a_field_with_nothing_but_a_fold_behind_its_colon_stays(*, edit: bool) -> None:
    lines = [b"Subject:", b" hello", b"To: ", b"\t", b"X:", b" ", b"", b"x"]
    with message(lines) as held:
        assert held.headers.get("subject") == "hello"
        if edit:
            held.headers.append("Y", "1")
            held.headers.insert(0, "Z", "1")
            lines = [b"Z: 1", *lines[:6], b"Y: 1", *lines[6:]]
        assert wire(held) == lines


def test_a_small_message_that_was_read_and_edited_goes_out_in_one_piece() -> None:
    with message(MAIL) as held:
        assert b"".join(held.body()).endswith(b"bye\n")
        held.headers.prepend("X", "1")
        held.release()
        assert held.drain() == [b"X: 1", *MAIL]
        assert held.drained


def test_an_edited_header_goes_out_and_the_body_stays() -> None:
    with message(MAIL) as held:
        held.headers.prepend(".X", "1")
        held.headers.remove("subject")
        size = held.size
        sent = wire(held)
        assert sent == [b"..X: 1", b"..From: me", *MAIL[2:]]
        assert size == len(joined(unstuff(sent)))


@given(
    lines_of_mail.map(lambda lines: [text for text in lines if text != b"."]),
    st.lists(st.integers(0, 12), max_size=4),
    st.sampled_from([TINY, 40, 1 << 20]),
    st.integers(1, 40),
    st.booleans(),
)
@example([], [], TINY, 1, False)  # noqa: FBT003
@example([b""], [], TINY, 1, False)  # noqa: FBT003
@example([b"", b""], [1], TINY, 1, True)  # noqa: FBT003
@example([b"A: 1"], [], TINY, 1, True)  # noqa: FBT003
@example([b"A: 1", b""], [1], TINY, 1, False)  # noqa: FBT003
def test_a_message_comes_back_as_it_was(
    lines: list[bytes],
    cuts: list[int],
    memory: int,
    chunk: int,
    edited: bool,  # noqa: FBT001
) -> None:
    spool = Spool(memory=STORE_COST + memory)
    with message(lines, spool=spool, cuts=cuts) as held:
        plain = joined(unstuff(lines))
        assert held.small() in (plain, None)
        assert b"".join(held.iter_bytes(chunk)) == plain
        with held.open() as file:
            assert file.read() == plain
        assert held.size == len(plain)
        if edited:
            held.headers.append("X", "1")
            end = lines.index(b"") if b"" in lines else len(lines)
            lines = [*stuff(unstuff(lines[:end])), b"X: 1", *lines[end:]]
        assert wire(held) == lines
    assert (spool.used, spool.on_disk) == (0, 0)


@given(
    st.lists(st.lists(line.filter(b".".__ne__), max_size=5), max_size=8),
    st.integers(0, 8),
    st.sampled_from([TINY, 300, 1 << 20]),
    st.booleans(),
)
def test_lines_may_go_on_coming_in_while_it_is_sent_back(
    parts: list[list[bytes]],
    released: int,
    memory: int,
    edited: bool,  # noqa: FBT001
) -> None:
    whole = [b"A: 1", b"", *(text for part in parts for text in part)]
    held = Message(Spool(memory=STORE_COST + memory))
    held.feed([b"A: 1", b""])
    sent: list[bytes] = []
    for number, part in enumerate([*parts, []]):
        if number == min(released, len(parts)):
            if edited:
                held.headers.prepend("X", "1")
                whole.insert(0, b"X: 1")
            held.release()
        if number >= min(released, len(parts)):
            sent += held.drain()
        held.feed(part)
    while some := held.drain():
        sent += some
    assert held.drained
    assert sent == whole
    held.discard()


def test_what_goes_back_comes_in_bounded_lists() -> None:
    lines = [b"A: 1"] * 5000 + [b""] + [b""] * 5000 + [b"x" * 30_000] * 10 + [b"y" * 500_000, b"z"]
    for edit in (False, True):
        with message(lines) as held:
            expected = lines
            if edit:
                held.headers.prepend("X", "1")
                expected = [b"X: 1", *lines]
            held.release()
            lists = []
            while some := held.drain():
                lists.append(some)
            assert [text for part in lists for text in part] == expected
            assert all(len(part) <= ROWS for part in lists)
            assert all(len(joined(part)) <= CHUNK + 30_001 or len(part) == 1 for part in lists)


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("count", [3, 5000])
def test_an_edited_header_waits_within_the_budget(*, count: int, replace: bool) -> None:
    spool = Spool()
    lines = [b"A: 1"] * count + [b"", b"body"]
    with message(lines, spool=spool) as held:
        before = spool.used
        if replace:
            held.replace_body(b"other\n")
        else:
            held.headers.prepend("X", "1")
        held.release()
        edited = spool.used - before
        assert (edited if not replace else spool.used) >= 5 * count
        # As one block, not with an object for each line.
        assert edited <= 7 * count + 2 * STORE_COST + 1024
        sent = 0
        while some := held.drain():
            sent += len(some)
        assert held.drained
        assert sent == len(lines) + (not replace)
    assert spool.used == 0


def test_the_size_of_what_was_received_is_dot_stuffed() -> None:
    with message([b"A: 1", b"", b"..x"]) as held:
        assert held.stored == len(b"A: 1\n\n..x\n")


def test_an_edited_header_waits_to_be_drained() -> None:
    with message([b"A: 1", b"", b"body"]) as held:
        held.headers.prepend("X", "1")
        held.release()
        assert not held.drained


def test_a_message_of_which_nothing_is_left() -> None:
    with message([b"A: 1"]) as held:
        held.headers.remove("A")
        assert wire(held) == []
        assert held.drained


def test_an_edited_header_that_is_not_sent_leaves_nothing_behind() -> None:
    spool = Spool(memory=TINY)
    with message([b"A: 1"] * 5000 + [b"", b"body"], spool=spool) as held:
        held.headers.prepend("X", "1")
        held.release()
        held.drain()
        assert spool.on_disk > 0
    assert (spool.used, spool.on_disk) == (0, 0)


def test_readers_do_not_disturb_each_other() -> None:
    lines = [b"", *(b"%d" % number for number in range(100))]
    with message(lines, spool=Spool(memory=TINY)) as held:
        pairs = list(zip(held.body(10), held.body(10), strict=True))
        assert len(pairs) > 10
        assert all(one == other for one, other in pairs)


@pytest.mark.parametrize("memory", [TINY, 1 << 20])
@pytest.mark.parametrize("cuts", [[], list(range(20))])
@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        # 71 with the line end, four times that are allowed: the cut is in front of a field.
        ([b"A: 123"] * 6 + [b"", b"..x"], 4),
        ([b"A: 123"] * 3 + [b" 45678"] * 5 + [b"", b"x"], 2),
        ([b"A: 123"] + [b" 45678"] * 5, 0),
        ([b"A: " + b"x" * 400, b"", b"x"], 0),
        ([b"A: 123"] * 4 + [b"", b"x"], 4),
        ([b"A: 123"] * 3 + [b"A: 1234", b"", b"x"], 3),
    ],
)
def test_a_header_block_above_its_limit_is_opaque_from_there(
    lines: list[bytes], kept: int, cuts: list[int], memory: int
) -> None:
    spool = Spool(memory=STORE_COST + memory, header=4 * 71)
    with message(lines, spool=spool, cuts=cuts) as held:
        cut = kept < lines.index(b"") if b"" in lines else True
        ended = [*lines[:kept], *[b""] * cut, *lines[kept:]]
        assert held.small() in (joined(unstuff(ended)), None)
        assert b"".join(held.iter_bytes()) == joined(unstuff(ended))
        assert b"".join(held.body()) == joined(unstuff(ended[kept + 1 :]))
        assert len(held.headers) == kept
        assert held.headers.cut == cut
        held.revert()
        assert len(held.headers) == kept
        held.headers.append("X", "1")
        held.headers.prepend("Y", "1")
        assert wire(held) == [b"Y: 1", *lines[:kept], b"X: 1", *ended[kept:]]


@pytest.mark.parametrize("memory", [TINY, 1 << 20])
@pytest.mark.parametrize("read", [False, True])
def test_what_is_beyond_the_limit_is_a_field_for_nobody(memory: int, *, read: bool) -> None:
    lines = [b"A: 123"] * 6 + [b"X-Own: forged", b"", b"..x"]
    with message(lines, spool=Spool(memory=STORE_COST + memory, header=4 * 71)) as held:
        if read:
            assert held.headers.remove("X-Own") == 0
        assert wire(held) == ([*lines[:4], b"", *lines[4:]] if read else lines)


@pytest.mark.parametrize("memory", [TINY, 1 << 20])
@pytest.mark.parametrize("edited", [False, True])
def test_who_only_looks_leaves_a_long_header_as_it_is(memory: int, *, edited: bool) -> None:
    lines = [b"A: 123"] * 6 + [b"", b"..x"]
    with message(lines, spool=Spool(memory=STORE_COST + memory, header=4 * 71)) as held:
        if edited:
            held.headers.prepend("X-Spam", "Yes")
        assert len(held.headers) == 4 + edited
        held.release(end_header=False)
        found: list[bytes] = []
        while some := held.drain():
            found += some
        ended = [*lines[:4], b"", *lines[4:]]
        assert found == ([b"X-Spam: Yes", *ended] if edited else lines)


def test_empty_fields_by_the_hundred_thousand_are_no_header() -> None:
    with message([b"a:"] * 300_000) as held:
        assert 10_000 < len(held.headers) < 20_000
        assert held.headers.cut
        assert len(wire(held)) == 300_001


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b".\r\n..x\r\ny", [b"..", b"...x", b"y"]),
        ([b"a", b"b\r", b"\n.", b"c", b"\n\n", b"", b".\rd"], [b"ab", b"..c", b"", b".. d"]),
        (iter([b"a\n"]), [b"a"]),
    ],
)
def test_another_body(data: bytes | list[bytes], body: list[bytes]) -> None:
    with message(MAIL) as held:
        held.replace_body(data)
        assert b"".join(held.body()) == joined(unstuff(body))
        assert wire(held) == [*MAIL[:3], *body]


@given(
    st.lists(st.one_of(line, st.just(b"\n"), st.just(b"\r\n"))),
    st.sampled_from([TINY, 40, 1 << 20]),
    st.booleans(),
)
def test_another_body_comes_out_stuffed(
    chunks: list[bytes],
    memory: int,
    edited: bool,  # noqa: FBT001
) -> None:
    with message(MAIL, spool=Spool(memory=memory)) as held:
        held.replace_body(iter(chunks))
        data = b"".join(chunks).replace(b"\r\n", b"\n").replace(b"\r", b" ")
        plain = data.removesuffix(b"\n").split(b"\n") if data else []
        plain = [each.replace(b"\0", b"") for each in plain]
        if edited:
            held.headers.append("X", "1")
        header = [*MAIL[:2], *[b"X: 1"][:edited], b""]
        sent = wire(held)
        assert sent == [*header, *stuff(plain)]
        assert b"." not in sent


def test_nothing_is_left_of_a_body_for_a_message_that_was_discarded() -> None:
    """A handler may take another step after the end of its session."""
    spool = Spool()
    with message(MAIL, spool=spool) as held:
        new = held.new_body()
        new.write(b"x" * 1000)
    with pytest.raises(SpoolError, match="the message was discarded"):
        held.replace_body(new)
    assert spool.used == 0


@pytest.mark.parametrize("step", [0, 1, 2])
def test_nothing_is_left_of_a_header_that_is_ended_in_a_message_that_is_discarded(
    step: int,
) -> None:
    spool = Spool()
    with message(MAIL, spool=spool) as held:
        steps = held.end_header(b"\n" + MAIL[1])
        for _ in range(step):
            next(steps)
    with pytest.raises(SpoolError, match="the message was discarded"):
        list(steps)
    assert spool.used == 0


def test_a_body_that_is_written_as_it_comes() -> None:
    spool = Spool()
    with message(MAIL, spool=spool) as held:
        new = held.new_body()
        for piece in (b"one\r", b"\n.two", b"\nthr", b"ee"):
            new.write(piece)
        held.replace_body(new)
        assert wire(held) == [*MAIL[:3], b"one", b"..two", b"three"]
    with message(MAIL, spool=spool) as held:
        given_up = held.new_body()
        given_up.write(b"x\n")
        given_up.discard()
        with pytest.raises(SpoolError, match="new body was discarded"):
            held.replace_body(given_up)
        assert wire(held) == MAIL
    assert spool.used == 0


def test_a_line_without_an_end_is_broken_in_a_new_body() -> None:
    with message(MAIL) as held:
        held.replace_body([b".", *[b"x" * 1000] * 1000, b"\n", b"last"])
        sent = wire(held)[3:]
        assert max(map(len, sent)) < 1 << 16
        assert sent[0].startswith(b"..x")
        assert sent[-1] == b"last"
        assert b"".join([sent[0][1:], *(text[1:] for text in sent[1:-1])]) == b"." + b"x" * 10**6


def test_a_new_body_has_no_nul() -> None:
    """What is read of it, and signed, is what smtpd delivers: it ends a line at a NUL."""
    with message(MAIL) as held:
        held.replace_body([b"a\0b\0", b"\n\0.\n", b"\0last\0"])
        assert b"".join(held.body()) == b"ab\n.\nlast\n"
        assert wire(held)[3:] == [b"ab", b"..", b"last"]


@pytest.mark.parametrize(("body", "kind"), [("text", "str"), (["text"], "str"), ([5], "int")])
def test_a_new_body_is_bytes(body: Any, kind: str) -> None:
    with message(MAIL) as held:
        with pytest.raises(TypeError, match=f"^a body is bytes, not {kind}$"):
            held.replace_body(body)
        assert wire(held) == MAIL


def test_a_body_made_of_the_body() -> None:
    with message(MAIL) as held:
        held.replace_body(block.upper() for block in held.body())
        assert wire(held) == [*MAIL[:3], b"HI", b"", b"..", b"...X", b"BYE"]


def test_a_body_for_a_message_without_one() -> None:
    with message([b"A: 1"]) as held:
        held.replace_body(b"x")
        assert wire(held) == [b"A: 1", b"", b"x"]


@pytest.mark.parametrize("memory", [TINY, 1 << 20])
@pytest.mark.parametrize("body", [[], [b""], [b"", b"x", b"", b"..", b"y" * 70_000] * 3])
@pytest.mark.parametrize("edited", [False, True])
def test_a_header_block_can_be_ended_before_its_end(
    memory: int, body: list[bytes], *, edited: bool
) -> None:
    spool = Spool(memory=memory)
    with message([b"A: 1", b"B: 2", b"..: x", b" y", *body], spool=spool) as held:
        before = held.snapshot()
        size = len(b"\n.: x\n y") + sum(len(each) + 1 for each in body[1:])
        assert sum(held.end_header(b"\n.: x\n y")) == size
        assert held.headers.names() == ["A", "B"]
        if edited:
            held.headers.append("C", "3")
        ended = [b"A: 1", b"B: 2", *[b"C: 3"] * edited, b"", b"..: x", b" y", *body]
        assert b"".join(held.body()) == b"".join(
            [each + b"\n" for each in unstuff(ended[ended.index(b"") + 1 :])]
        )
        assert held.differs(before)
        if not edited:
            held.restore(before)
            assert not held.differs(before)
            assert list(held.end_header(b"\n.: x\n y"))
        assert wire(held) == ended
    assert spool.used == 0


def test_a_header_block_that_is_not_ended_to_the_end_stays(tmp_path: Path) -> None:
    spool = Spool(memory=TINY, directories=(str(tmp_path),))
    with message(MAIL, spool=spool) as held:
        steps = held.end_header(b"\n" + MAIL[1])
        next(steps)
        del steps
        assert wire(held) == MAIL
    assert spool.used == 0


def test_a_body_that_fails_leaves_the_old_one() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"new\n"
        raise KeyError

    with message(MAIL) as held:
        with pytest.raises(KeyError):
            held.replace_body(chunks())
        assert wire(held) == MAIL


@pytest.mark.parametrize("memory", [TINY, 1 << 20])
def test_bodies_can_be_taken_back(memory: int) -> None:
    spool = Spool(memory=STORE_COST + memory)
    with message(MAIL, spool=spool) as held:
        before = held.snapshot()
        held.replace_body(b"one")
        held.headers.append("X", "1")
        between = held.snapshot()
        held.replace_body(b"two")
        held.restore(between)
        assert b"".join(held.body()) == b"one\n"
        held.restore(before)
        assert wire(held) == MAIL
    assert (spool.used, spool.on_disk) == (0, 0)


def test_the_order_of_things() -> None:
    held = Message()
    held.feed([b"A: 1"])
    for early in (lambda: held.headers, held.iter_bytes, held.open):
        with pytest.raises(ValueError, match="not complete"):
            early()
    held.feed([b""])
    assert held.headers.get("a") == "1"
    with pytest.raises(ValueError, match="not complete"):
        held.body()
    held.close()
    held.close()
    with pytest.raises(ValueError, match="is complete"):
        held.feed([b"x"])
    held.discard()
    held.discard()
    with pytest.raises(SpoolError, match="discarded"):
        held.release()


def test_the_fields_of_a_name_and_other_lines() -> None:
    headers = Headers([b"A: 1", b"b: 2", b"\t3", b"a: 4"])
    for odd in ("\xe9", "", "C"):
        assert headers.fields(odd) == []
        assert headers.get_all(odd) == []
    assert [field.value for field in headers.fields("a")] == ["1", "4"]
    headers.insert(0, "A", "0")
    assert [field.lines for field in headers.fields("A")] == [(b"A: 0",), (b"A: 1",), (b"a: 4",)]
    headers.replace_lines([b"A: 5"])
    assert headers.changed
    assert headers.lines() == [b"A: 5"]
    assert headers.get_all("a") == ["5"]


def test_another_header_block_in_front_of_the_same_body() -> None:
    with message([b"A: 1", b"", b"x"]) as held:
        assert held.small([b"B: 2"]) == b"B: 2\n\nx\n"
        assert b"".join(held.iter_bytes(head=[b"B: 2"])) == b"B: 2\n\nx\n"
        assert b"".join(held.iter_bytes(head=b"\nB: 2")) == b"B: 2\n\nx\n"
        assert held.headers.lines() == [b"A: 1"]


def test_a_small_message_in_one_piece() -> None:
    with message(MAIL) as held:
        assert held.small() == joined(unstuff(MAIL))
        held.headers.append(".X", "1")
        held.replace_body(b"")
        assert held.replaced == 1
        assert held.small() == b"Subject: hello\n.From: me\n.X: 1\n\n"
        held.replace_body(b"..other\n")
        assert held.small() is None  # a block
    with message([b"X" * 100] * 500) as held:
        assert held.small() is None


def test_a_reader_left_half_way_when_the_message_is_discarded() -> None:
    with message(MAIL) as held:
        blocks = held.body(4)
        assert next(blocks) == b"Hi\n\n"
    with pytest.raises(SpoolError, match="discarded"):
        next(blocks)


# --- The file system fails


def test_no_folder_for_the_spool(tmp_path: Path) -> None:
    spool = Spool(memory=TINY, directories=(str(tmp_path / "missing"),))
    held = Message(spool)
    where = f"No such file or directory ({tmp_path}/missing)"
    with pytest.raises(SpoolError, match=re.escape(f"cannot spool the message: {where}")):
        held.feed([b"", b"x"])
    with pytest.raises(SpoolError, match="No such file"):
        held.feed([b"y"])
    with pytest.raises(SpoolError, match="No such file"):
        held.close()
    with pytest.raises(SpoolError, match="No such file"):
        held.release()
    held.discard()
    assert (spool.used, spool.on_disk) == (0, 0)


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    assert directories() == ("/var/tmp", "/tmp")  # noqa: S108  # what it should say
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert directories() == (str(tmp_path),)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(
        "smtpd_filters.message.spool._unnamed_file",
        lambda _: (os.open("/dev/full", os.O_RDWR), "/dev"),
    )


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_while_the_message_comes_in() -> None:
    held = Message(Spool(message=30_000))
    held.feed([b"", b"x"])
    with pytest.raises(SpoolError, match="No space left on device"):
        held.feed([b"x" * 100_000])
    with pytest.raises(SpoolError, match="No space left on device"):
        held.close()
    held.discard()


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_full_disk_under_another_body(size: int) -> None:
    spool = Spool(message=50_000)
    with message(MAIL, spool=spool) as held:
        if size == 1:
            spool.memory = TINY
        with pytest.raises(SpoolError, match="No space left on device"):
            held.replace_body(b"x\n" * size)
        assert wire(held) == MAIL


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_under_an_edited_header() -> None:
    spool = Spool()
    with message([b"A: 1"] * 5000 + [b""], spool=spool) as held:
        held.headers.prepend("X", "1")
        spool.memory = TINY
        with pytest.raises(SpoolError, match="No space left"):
            held.release()
    assert (spool.used, spool.on_disk) == (0, 0)


def test_a_spool_that_can_not_be_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(memory=TINY)
    with message(MAIL, spool=spool) as held:
        monkeypatch.setattr(os, "pread", lambda *_: b"")
        with pytest.raises(SpoolError, match="unexpected end of file"):
            wire(held)
    with message(MAIL, spool=spool) as held:

        def fail(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(SpoolError, match="Input/output error"):
            wire(held)


def test_edits_can_be_forgotten() -> None:
    with message(MAIL) as held:
        held.headers.prepend("X-Edit", "1")
        held.headers.remove("subject")
        held.replace_body(b"new")
        held.revert()
        assert not held.headers.changed
        assert wire(held) == MAIL


# -- names in any reading ------------------------------------------------------------------------

SPAM = Name("X-Spam", prefix=True)
#: Blocks, and the fields of each that are removed from the client's.
READINGS: list[tuple[list[bytes], list[bytes]]] = [
    ([b"Subject: a", b" X-Spam: folded", b"Y-X-Spam: b", b"X-Spa: c", b"X-Spam", b"To: d"], []),
    ([b"Subject: a\rb", b"X-Spa"], []),
    ([b"To: a", b"x-sPAM-Flag \t: No", b" folded", b"Cc: b"], [b"x-sPAM-Flag \t: No", b" folded"]),
    ([b"X-Spam", b" -Flag", b"\t: No"], [b"X-Spam", b" -Flag", b"\t: No"]),
    ([b"\x00X-Sp\xffam: No", b"X\x7f-Spam\xa0:"], [b"\x00X-Sp\xffam: No", b"X\x7f-Spam\xa0:"]),
    ([b"To: a\r X-Spam-Flag : No", b"Cc: b"], [b"To: a\r X-Spam-Flag : No"]),
    ([b" X-Spam: No", b"To: a"], [b" X-Spam: No"]),
]


@pytest.mark.parametrize(("lines", "removed"), READINGS)
def test_a_name_in_any_reading(lines: list[bytes], removed: list[bytes]) -> None:
    headers = Headers(lines)
    count = SPAM.remove_foreign(headers)
    assert headers.lines() == [line for line in lines if line not in removed]
    assert headers.changed == bool(count) == bool(removed)
    assert SPAM.remove_foreign(headers) == 0


def test_fields_above_smtpds_own_are_of_earlier_filters() -> None:
    above = [b"X-Spam: Yes", b"received: by mx"]
    headers = Headers([*above, b"X-Spam: No", b"Received: by other"])
    assert SPAM.remove_foreign(headers) == 1
    assert headers.lines() == [*above, b"Received: by other"]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ([b"Subject: x", b"To \t: y", b" Subject: z"], set()),
        ([b"Subject: x", b"a line that isn't a field"], set()),
        ([b"X: y\rSubject: x", b"To: y"], {b"subject"}),
        ([b"X: y\r\r", b"Sub\x0bject: x"], {b"subject"}),
        ([b"To", b" : y", b"S\xc2\xa0ubject: x"], {b"to", b"subject"}),
    ],
)
def test_the_names_that_are_disguised(fields: list[bytes], names: set[bytes]) -> None:
    text = Headers(fields).text()
    assert disguised(text, (b"subject", b"to", b"from")) == names


PIECES = (b"To", b"T", b"o", b"Date", b"date", b"Da", b"te", b":", b" ", b"\r", b"\x80", b"X")


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), max_size=6))
def test_several_names_are_found_as_each_of_them(lines: list[bytes]) -> None:
    headers = Headers(lines)
    names = (b"to", b"date", b"da")
    found = {each for each in names if list(Name(each.decode()).hidden_values(headers))}
    assert disguised(headers.text(), names) == found


def test_a_disguised_name_is_removed_and_a_plain_one_is_not() -> None:
    name = Name("X-Own")
    plain = [b"X-Own: a", b"x-own \t: b", b"X-Own-Other: c", b"Subject: \r"]
    headers = Headers([*plain, b"X-Own\x0c: d", b"To: e\rX-Own: f"])
    assert list(name.hidden_values(headers)) == [b" d", b" f"]
    assert name.remove_disguised(headers) == 2
    assert headers.lines() == plain
    assert not list(name.hidden_values(headers))
    assert name.remove_disguised(headers) == 0
    assert name.remove_disguised(Headers(plain[:3])) == 0
    assert name.remove_disguised(Headers()) == 0


def test_a_field_with_several_names_behind_carriage_returns_is_removed_once() -> None:
    name = Name("X-Own")
    headers = Headers([b"To: a\rX-Own: b\rX-Own: c", b"Cc: d", b" e", b" f\rX-Own: g", b"X: h"])
    assert name.remove_disguised(headers) == 2
    assert headers.lines() == [b"X: h"]


def test_a_line_that_continues_the_trace_field_of_smtpd_is_removed_alone() -> None:
    # Else the next Received, a client's, would protect the fields above it.
    own, forged = [b"Received: a", b"\tby b"], [b"X-Spam: c", b"Received: d"]
    headers = Headers([*own, b" e\rX-Spam: f", b" g", *forged])
    assert SPAM.remove_disguised(headers) == 1
    assert headers.lines() == [*own, *forged]
    headers = Headers([b"X-Spam: ours", *own, b" \rX-Spam:", *forged])
    assert SPAM.remove_foreign(headers) == 2
    assert headers.lines() == [b"X-Spam: ours", *own, b"Received: d"]
    headers = Headers([b"Received: a\rX-Spam: b", b"X: c"])
    assert SPAM.remove_disguised(headers) == 1
    assert headers.lines() == [b"X: c"]


def test_a_line_without_a_name_is_not_part_of_the_next_field() -> None:
    headers = Headers([b"\0\0", b"X-Spam", b"\x00To: a", b"Cc: b"])
    assert not [*SPAM.hidden_values(headers), *Name("Cc").hidden_values(headers)]
    assert SPAM.remove_disguised(headers) == 0
    headers = Headers([b" \x00", b"X-Spam", b"\xffX-Spam: a", b" b", b"\0", b"To: c"])
    assert SPAM.remove_disguised(headers) == 1
    assert headers.lines() == [b" \x00", b"X-Spam", b"\0", b"To: c"]


@pytest.mark.parametrize("line", [b"a:\r", b"a\r: X-Spam", b"X-Spam: a", b" ", b"\rX-Spam"])
def test_fields_are_found_in_a_few_searches(line: bytes) -> None:
    headers = Headers([b"a: b", *[line] * 10_000])
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        SPAM.remove_disguised(headers)
    finally:
        sys.setprofile(None)
    assert calls < (100_000 if line == b"X-Spam: a" else 1000)  # each plain field is one match


@given(st.lists(st.sampled_from([b"X-Spam", b"\x00", b" ", b":", b"\r", b"a", b"-"]), max_size=12))
def test_what_is_not_of_the_name_stays(pieces: list[bytes]) -> None:
    headers = Headers([b"Received: a", b"".join(pieces), b"To: b"])
    SPAM.remove_foreign(headers)
    assert headers.lines()[0] == b"Received: a"
    assert headers.lines()[-1] == b"To: b"
    assert SPAM.remove_foreign(headers) == 0


def test_stray_crs_become_blanks() -> None:
    headers = Headers([b"A: b", b" c", b"D: \xff"])
    assert not replace_stray_cr(headers)
    assert not headers.changed
    headers = Headers([b"A: b\r\rc", b" d\r", b"\rE: f"])
    assert replace_stray_cr(headers)
    assert headers.lines() == [b"A: b  c", b" d ", b" E: f"]


def test_odd_blanks_become_blanks() -> None:
    assert not replace_odd_blanks(Headers([b"A: b", b" c\t", b"D: \xff\x00"]))
    # smtpd refuses a line that begins with one; a blank would make it a continuation.
    headers = Headers([b"A: b", b" c\t", b"D: \xff\x00", b"\f", b"\rF: g"])
    assert not replace_odd_blanks(headers)
    assert not headers.changed
    headers = Headers([b"A: b\v\rc", b" d\f", b"E: \r", b"\r\rF: g"])
    assert replace_odd_blanks(headers)
    assert headers.lines() == [b"A: b  c", b" d ", b"E:  ", b"\r F: g"]


def test_blanks_after_names_are_removed() -> None:
    lines = [b"From someone Mon Sep 17 00:00:00 2001", b"A\xff : b", b" c : d", b"To: : e"]
    headers = Headers(lines)
    assert not correct_names(headers)
    assert headers.lines() == lines
    assert not headers.changed
    headers = Headers([b"From \t: a", *lines[1:3], b"X-Odd\t:", b"Bcc : b"])
    assert correct_names(headers)
    assert headers.lines() == [b"From: a", *lines[1:3], b"X-Odd:", b"Bcc: b"]

"""Datagrams of any size are parsed as they were encoded, and hostile ones refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.journal.merging import joined
from smtpd_filters.journal.reception import MAX_TEXT, InvalidError
from smtpd_filters.journal.wire import LIMIT, MAX_PARTS, PACKED, encode, trimmed
from tests.effort import part as effort

from .made import parse, parse_all

HEAD: dict[str, Any] = {
    "v": 1, "k": "tx", "p": "filter-x", "s": "a8713f36db93ca67", "m": "0fd8b853", "t": 1, "d": 2,
    "e": "commit", "c": ["192.0.2.1:25", "mx.example.org", "pass", "192.0.2.2:25"],
}  # fmt: skip
#: Any text, lone surrogates as of invalid UTF-8 among them.
TEXT = st.text(st.characters(), max_size=300)
SMALL = st.integers(0, 1 << 40)
ROWS = st.builds(
    lambda *row: trimmed(list(row)),
    st.sampled_from(["dnsbl", "fcrdns", "rspamd-2"]),
    st.sampled_from(["connect", "rcpt-to", "message"]),
    st.sampled_from(["proceed", "reject", "points"]),
    SMALL, SMALL, st.integers(1, 1000), SMALL, TEXT, TEXT, TEXT, st.integers(-5000, 5000),
    st.sampled_from(["", "d", "ft"]), TEXT,
)  # fmt: skip


def clean(text: str) -> str:
    return text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()


@settings(max_examples=effort(100))
@given(rows=st.lists(ROWS, max_size=40), sender=TEXT, recipients=st.lists(TEXT, max_size=50))
def test_a_story_survives_its_datagrams(
    rows: list[list[Any]], sender: str, recipients: list[str]
) -> None:
    head = {**HEAD, "f": sender, "r": [[each, 0] for each in recipients]}
    datagrams = encode(head, rows)
    assert len(datagrams) <= MAX_PARTS
    assert all(len(data) <= LIMIT for data in datagrams)
    parts = [parse(data) for data in datagrams]
    story = joined({**part, "p": [part["p"]]} for part in parts)
    assert len(story["w"]) + len(story["r"]) + story["y"] == len(rows) + len(recipients)
    if encode(head, rows, 1 << 30) == datagrams:  # nothing had to be shortened
        assert story["f"] == clean(sender)
        assert [trimmed(row) for row in story["w"]] == [
            trimmed([clean(each) if isinstance(each, str) else each for each in row])
            for row in rows
        ]


def test_the_facts_alone_may_be_too_long() -> None:
    head = {**HEAD, "f": "\u20ac" * 320, "j": "\u20ac" * 200, "a": ["\u20ac" * 200] * 16}
    datagrams = encode(head, [["dnsbl", "connect", "reject"]])
    assert all(len(data) <= LIMIT for data in datagrams)
    parts = [parse(data) for data in datagrams]
    assert [row[0] for part in parts for row in part["w"]] == ["dnsbl"]
    assert parts[0]["s"] == HEAD["s"]


@settings(max_examples=effort(300))
@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_story_are_refused(data: bytes) -> None:
    try:
        found = parse_all(data)
    except InvalidError:
        found = []
    assert found == []  # as there is none in an empty array


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)


@settings(max_examples=effort(300))
@given(key=st.sampled_from(sorted({*HEAD, "w", "r", "a", "x", "y", "z", "h", "u"})), value=JSON)
def test_forged_values_are_checked(key: str, value: object) -> None:
    try:
        part = parse(json.dumps({**HEAD, key: value}).encode())
    except InvalidError:
        return
    assert isinstance(part["s"], str)
    assert all(len(row) == 13 for row in part["w"])
    json.dumps(part).encode()  # can be stored


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 60_000,
        b'{"v":1,"t":' + b"9" * 60_000 + b"}",
        b'{"v":NaN}',
        b"\xff" * 100,
        b"",
        json.dumps({**HEAD, "s": "../../etc"}).encode(),
        json.dumps({**HEAD, "s": "a\n"}).encode(),
        json.dumps({**HEAD, "w": [["x", "connect", "reject"]] * 201}).encode(),
        json.dumps({**HEAD, "w": [["connect", 1, *["x", 0] * PACKED]] * 40}).encode(),
        json.dumps({**HEAD, "w": [["x", "no-phase", "reject"]]}).encode(),
        json.dumps({**HEAD, "w": [[["connect"], 1, 2, "x"]]}).encode(),
        json.dumps({**HEAD, "w": [[{}, 1, 2, "x"]]}).encode(),
        json.dumps({**HEAD, "w": [["x", [], "reject"]]}).encode(),
        json.dumps({**HEAD, "w": [["x", "connect", {}]]}).encode(),
        json.dumps({**HEAD, "w": [["x", "connect", "exec"]]}).encode(),
        json.dumps({**HEAD, "w": [["x", "connect", "reject", 0, 0, 10**9]]}).encode(),
        json.dumps({**HEAD, "t": True}).encode(),
        json.dumps({**HEAD, "t": 1.5}).encode(),
        json.dumps({**HEAD, "r": [["a@b", 7]]}).encode(),
        json.dumps({**HEAD, "k": "session"}).encode(),
        json.dumps({**HEAD, "e": "exit"}).encode(),
    ],
    ids=lambda data: data[:20].decode("latin-1") + str(len(data)),
)
def test_hostile_datagrams(data: bytes) -> None:
    with pytest.raises(InvalidError):
        parse(data)


@pytest.mark.parametrize(
    "row",
    [
        ["connect", -3, "x", -1],
        ["connect", -3, -1, "x"],
        ["connect", -3, -1, "x", 1, -1],
        ["x", "connect", "proceed", -3, -1],
    ],
)
def test_a_time_before_the_start_counts_as_the_start(row: list[Any]) -> None:
    [found] = parse(json.dumps({**HEAD, "w": [row]}).encode())["w"]
    assert found[:5] == ["x", "connect", "proceed", 0, 0]


def test_a_truncated_datagram_is_refused() -> None:
    [whole] = encode(HEAD, [["dnsbl", "connect", "reject"]])
    for size in (*range(len(whole)), 0):
        with pytest.raises(InvalidError):
            parse(whole[:size])


def test_names_that_would_be_labels_are_plain() -> None:
    row = ["fil\x1b[2Jter", "connect", "reject"]
    assert parse(json.dumps({**HEAD, "w": [row], "p": "<b>"}).encode())["w"][0][0] == "other"

"""The completion of From, To and Cc, which changes what smtpd would change, and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.message import Headers, completion
from smtpd_filters.message.completion import MAX_STEPS, MAX_VALUE, complete, completed
from smtpd_filters.oracle.completion import completed as by_smtpd

HOST = "mx.example.org"


@pytest.mark.parametrize(
    ("field", "delivered"),
    [
        ("To: root", "To: root@mx.example.org"),
        ("to:root", "to:root@mx.example.org"),
        ("From: Doe, Alice <a@b>", "From: Doe@mx.example.org, Alice <a@b>"),
        ("From: root (Charlie Root)", "From: root@mx.example.org (Charlie Root)"),
        ("From: Charlie <root >", "From: Charlie <root@mx.example.org >"),
        (
            "Cc: a, b@c,\n\td ,\n e",
            "Cc: a@mx.example.org, b@c,\n\td@mx.example.org ,\n e@mx.example.org",
        ),
        ('To: "a, b" <c>', 'To: "a, b" <c@mx.example.org>'),
        ('To: "a@b"', 'To: "a@b"@mx.example.org'),
        ("To: a (b, c), d@e", "To: a@mx.example.org (b, c), d@e"),
        ("To: a (b (c) d) e", "To: a (b (c) d) e@mx.example.org"),
        ("To: J\udcf6rg", "To: J\udcf6rg@mx.example.org"),
        ("To: a\\(b", "To: a\\(b@mx.example.org"),
        ("To: a\\\\(b)", "To: a\\\\@mx.example.org(b)"),
        ("To:)", "To:)@mx.example.org"),
    ],
)
def test_an_address_without_a_domain_gets_one(field: str, delivered: str) -> None:
    lines = field.encode("utf-8", "surrogateescape").split(b"\n")
    assert completed(lines, HOST) == delivered.encode("utf-8", "surrogateescape").split(b"\n")
    assert by_smtpd(lines, HOST.encode()) == completed(lines, HOST)


@pytest.mark.parametrize(
    "field",
    [
        "To: a@b",
        "To: undisclosed-recipients:;",
        "To: friends: a, b@c;",
        "To: <>",
        "To: < >",
        "To:",
        "To: ",
        "To: a@b,",
        "To: (nobody)",
        'To: "a',
        "To: a (b",
        "To: <a",
        "To: a <a@b>, ,",
        "Reply-To: a",
        "Sender: a",
        "To : a",
        "X-To: a",
        "Resent-To: a",
        "From a Mon Sep 17 00:00:00 2001",
        "T",
        'To: "a \\"b\\"" <c>, d',
        "To: a\\,b@c",
        "To:(a)",
    ],
)
def test_all_else_stays(field: str) -> None:
    headers = Headers(field.encode().split(b"\n"))
    assert not complete(headers, HOST)
    assert not headers.changed
    if field not in ("To:(a)", 'To: "a \\"b\\"" <c>, d'):  # which are left to it
        assert by_smtpd(headers.lines(), HOST.encode()) == headers.lines()


def test_a_header_block_is_changed() -> None:
    lines = [b"Received: x", b"\ty", b"TO: a", b"Subject: a", b"cc: b,", b" c@d", b"From: e"]
    headers = Headers(lines)
    assert headers.get("Subject") == "a"
    assert complete(headers, HOST)
    assert headers.changed
    assert headers.get_all("cc") == ["b@mx.example.org, c@d"]
    assert headers.lines() == by_smtpd(lines, HOST.encode())
    assert not complete(headers, HOST)


TEXTS = st.lists(
    st.sampled_from([*'abc@:;,<>()"\\ \t', "\n ", "\n\t", "a, ", '"x" ', "<a>", "\xe9", "a@b,"]),
    max_size=14,
).map("".join)


@given(TEXTS)
@example("(a)")
@example('"\\"')
def test_what_is_completed_is_what_smtpd_delivers(text: str) -> None:
    lines = [b"X: y", *f"To:{text}".encode().split(b"\n"), b"Z: z"]
    host = HOST.encode()
    mine = completed(lines, HOST) or lines
    old, new = by_smtpd(lines, host, old=True), by_smtpd(lines, host)
    # An escaped quote may leave a string open: smtpd completes the address, `complete` leaves it.
    if old == new == by_smtpd(new, host) and not re.search(r'\\"', text):
        assert mine == new
    assert by_smtpd(mine, host) == new
    assert by_smtpd(mine, host, old=True) == old
    assert completed(mine, HOST) is None


def test_a_field_that_would_get_too_long_for_smtpd_stays() -> None:
    # smtpd refuses a value of more than 65,534 bytes, and has taken this one.
    full = b"To: " + b"a@b," * 16_370
    for more in (0, 1):
        line = full + b"x" * (MAX_VALUE - len(full) + len(b"To:") - len(HOST) - 2 + more)
        assert (completed([line], HOST) is None) is bool(more)
    assert completed([b"To: a," + b"b@c," * (MAX_VALUE // 4)], HOST) is None


@pytest.mark.parametrize(
    "value",
    [
        b"(" * 60_000,
        b"()" * 30_000,
        b'""' * 30_000,
        b"<>" * 30_000,
        b",a" * 30_000,
        b"a@b," * 15_000 + b"x",
        b"\\(" * 30_000,
        b"((" + b")(" * 29_000,
    ],
)
def test_work_is_bounded(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    class Counted(completion._Budget):
        def spend(self) -> bool:
            steps.append(1)
            return super().spend()

    monkeypatch.setattr(completion, "_Budget", Counted)
    completed([b"To: " + value] * 16, HOST)
    assert len(steps) <= MAX_STEPS + 16 * 3


def test_a_list_of_the_largest_size_is_completed() -> None:
    # As many addresses as smtpd takes in a field; none takes more than a step.
    line = b"To: root" + b', "A, B" <a@b>' * 4_600
    assert completed([line], HOST) == [line.replace(b"root", b"root@mx.example.org")]


def test_a_block_does_not_grow_without_limit() -> None:
    lines = [b"To:a"] * 10_000
    done = completed(lines, HOST) or []
    assert done[0] == b"To:a@mx.example.org"
    assert done[-1] == b"To:a"
    assert len(b"".join(done)) - len(b"".join(lines)) <= completion.MAX_ADDED + len(HOST) + 1

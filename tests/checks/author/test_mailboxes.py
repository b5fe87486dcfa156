"""The mailboxes in fields of addresses, as filters get them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtpd_filters import Headers, Mailboxes, read_addresses
from smtpd_filters.checks.author.from_field import ADDRESSES_MAX, FROM_MAX, WORDS_MAX
from tests.effort import part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.addresses import Address

#: Pieces of fields, and of their syntax.
PIECES = (
    *("a@b.example", "c@d.example", "Jane", "@", ".", " ", '"', "\\", "<", ">", "(", ")", ",", ";"),
    *(
        ":",
        "[192.0.2.1]",
        "=?utf-8?q?x=40y.example?=",
        "=?utf-8?q?=2C?=",
        "\udcff",
        "\0",
        "é",
        "\uff20",
    ),
    *("\u202e", "\r", "\t"),
)


def read(*values: str, name: str = "From", field: str = "From") -> Mailboxes:
    lines = [f"{field}: {each}".encode("utf-8", "surrogateescape") for each in values]
    return asyncio.run(read_addresses(Headers(lines), name))


def listed(addresses: Iterable[Address]) -> list[str]:
    return list(map(str, addresses))


@pytest.mark.parametrize(
    ("value", "mailboxes"),
    [
        ("a@b.example", [("a@b.example", "", [])]),
        ("Jane <a@b.example>", [("a@b.example", "Jane", [])]),
        ('"Doe, \\"J\\" Jane" <a@b.example>', [("a@b.example", 'Doe, "J" Jane', [])]),
        ("=?utf-8?q?J=C3=A4ne?=\r\n =?utf-8?q?_Doe?= <a@b.example>",
         [("a@b.example", "Jäne Doe", [])]),
        ("a@b.example (Jane (the) Doe)", [("a@b.example", "Jane the Doe", [])]),
        ("Jane (her) <a@b.example>", [("a@b.example", "Jane", [])]),
        ("Us: Jane <a@b.example>, c@d.example;",
         [("a@b.example", "Jane", []), ("c@d.example", "", [])]),
        ('"a b"@c.example', [("a b@c.example", "", ["b@c.example"])]),
        ("<@r.example:a@[192.0.2.1]>", [("a@[192.0.2.1]", "", [])]),
        # no domain, which smtpd adds
        ("root, Boss <boss>", [("root", "", []), ("boss", "Boss", [])]),
        ("Doe, Jane <a@b.example>", [("Doe", "", []), ("a@b.example", "Jane", [])]),
        # none at all
        ("undisclosed-recipients:;", []),
        (" , ;<>", []),
        # other addresses in names
        ('"x@y.example" <a@b.example>', [("a@b.example", "x@y.example", ["x@y.example"])]),
        ("x@y.example <a@b.example>", [("a@b.example", "x@y.example", ["x@y.example"])]),
        ("=?utf-8?q?x=40y.example?= <a@b.example>",
         [("a@b.example", "x@y.example", ["x@y.example"])]),
        ("x\uff20y.example <a@b.example>", [("a@b.example", "x\uff20y.example", ["x@y.example"])]),
        ("a@b.example (x@y.example)", [("a@b.example", "x@y.example", ["x@y.example"])]),
        ("'x@y.example' <a@b.example>",
         [("a@b.example", "'x@y.example'",
           ["'x@y.example", "'x@y.example'", "x@y.example", "x@y.example'"])]),
        ("us: x@y.example, a@b.example;", [("x@y.example", "", []), ("a@b.example", "", [])]),
        # its own
        ('"A@B.example" <a@b.example>', [("a@b.example", "A@B.example", [])]),
        ("a@bü.example <a@xn--b-eha.example>", [("a@xn--b-eha.example", "a@bü.example", [])]),
        # two in one place
        ("Jane <a@b.example> <c@d.example>",
         [("a@b.example", "Jane", []), ("c@d.example", "Jane", [])]),
    ],
)  # fmt: skip
def test_mailboxes_and_their_names(value: str, mailboxes: list[tuple[str, str, list[str]]]) -> None:
    found = read(value)
    assert [(str(each.address), each.name, listed(each.shown)) for each in found] == mailboxes
    assert len(found) == len(mailboxes)
    assert not found.cut


def test_what_only_some_programs_read() -> None:
    found = read('"x@y.example" z@y.example <a@b.example> (c@d.example)')
    assert listed(found.possible) == ["a@b.example", "z@y.example", "x@y.example", "c@d.example"]
    assert listed(found.shown) == ["x@y.example", "z@y.example", "c@d.example"]
    assert found.malformed


def test_the_name_of_a_group_may_show_an_address() -> None:
    found = read('"x@y.example": a@b.example;')
    assert [each.shown for each in found] == [()]
    assert listed(found.shown) == ["x@y.example"]
    assert not found.malformed


@pytest.mark.parametrize(
    ("value", "malformed"),
    [
        ('"Doe, Jane" (c) <a@b.example>, Us: c@d.example, root;', False),
        ("", False),
        ("Bob @ Work <a@b.example>", True),
        ("<a@b.example> x", True),
        ("Jane <a@b.example", True),
    ],
)
def test_a_field_against_the_syntax(value: str, *, malformed: bool) -> None:
    assert read(value).malformed is malformed


def test_all_fields_of_a_name_are_read() -> None:
    found = read("a@b.example", "c@d.example", name="reply-to", field="Reply-To")
    assert listed(each.address for each in found) == ["a@b.example", "c@d.example"]
    assert len(read("a@b.example", name="Cc")) == 0


def test_a_field_whose_name_only_some_programs_read() -> None:
    found = read("a@b.example", name="To", field="T\0o")
    assert listed(each.address for each in found) == ["a@b.example"]
    assert found.malformed


def test_the_readings_of_a_name() -> None:
    [mailbox] = read("=?iso-2022-jp?q?=E2=82=AC?= <a@b.example>")
    assert len(mailbox.names) > 1
    assert mailbox.name == mailbox.names[0]
    assert len(set(mailbox.names)) == len(mailbox.names)


@pytest.mark.parametrize(
    "value",
    [
        "a" * (FROM_MAX + 1),
        "=?utf-8?q?a?= " * (WORDS_MAX + 1),
        ",".join(f"a{each}@b" for each in range(ADDRESSES_MAX + 1)),
        "a," * (ADDRESSES_MAX + 1),
    ],
)
def test_beyond_a_limit_mailboxes_are_missing(value: str) -> None:
    assert read(value).cut


def test_a_field_before_one_beyond_a_limit_is_read() -> None:
    many = ",".join(f"a{each}@b" for each in range(ADDRESSES_MAX + 1))
    found = read("c@d.example", many)
    assert found.cut
    assert listed(each.address for each in found)[0] == "c@d.example"


def test_elements_without_an_address_do_not_count() -> None:
    found = read("," * (FROM_MAX // 2) + "a@b.example" + " ,; g:" * 1000)
    assert [str(each.address) for each in found] == ["a@b.example"]
    assert not found.cut


def test_a_header_that_goes_on() -> None:
    assert asyncio.run(read_addresses(Headers([b"To: a@b.example"], cut=True), "To")).cut


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@example("<" * 9)
@settings(max_examples=part(300))
def test_no_field_raises_and_mailboxes_are_possible(value: str) -> None:
    found = read(value)
    assert {*listed(each.address for each in found)} <= {*listed(found.possible)}
    assert {*listed(each for mailbox in found for each in mailbox.shown)} <= {*listed(found.shown)}
    for mailbox in found:
        assert mailbox.address.local
        assert all(mailbox.names)

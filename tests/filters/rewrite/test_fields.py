"""Addresses in header fields: which are replaced, and that nothing else changes."""

from __future__ import annotations

from email.utils import getaddresses
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.filters.rewrite.fields import MAX_LINE, STEPS_MAX, Addresses, addresses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def edit_addresses(
    lines: list[bytes], new: Mapping[bytes, Callable[[str], str | None]]
) -> list[bytes] | None:
    text = b"\n".join([b"", *lines])
    edited = Addresses(text, new.keys()).replaced(lambda name, text: new[name](text))
    return None if edited is None else edited.split(b"\n")[1:]


def found(value: bytes) -> list[bytes]:
    return [value[begin:end] for begin, end in addresses(value)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b" a@b.c", [b"a@b.c"]),
        (b" Joe <a@b.c>", [b"a@b.c"]),
        (b' "Doe, J <x@y.z>" <a@b.c> (at <no@no.no>)', [b"a@b.c"]),
        (b" a@b.c, d@e.f,, ", [b"a@b.c", b"d@e.f"]),
        (b" a@b.c,\n\td@e.f (Joe)", [b"a@b.c", b"d@e.f"]),
        (b" Team: a@b.c, Joe <d@e.f>;, g@h.i", [b"a@b.c", b"d@e.f", b"g@h.i"]),
        (b" undisclosed-recipients:;", []),
        (b" root", [b"root"]),
        (b' "j d"@e.f', [b'"j d"@e.f']),
        (b" <a@[192.0.2.1]>", [b"a@[192.0.2.1]"]),
        (b" x@y.z <a@b.c>", [b"a@b.c"]),
        (b" =?utf-8?q?a=40b.c?= <d@e.f>", [b"d@e.f"]),
        # What not every program reads alike stays as it is.
        (b" <>", []),
        (b" two words@b.c", []),
        (b" a @ b.c", []),
        (b" < a@b.c >", []),
        (b" <a@b.c\n >", []),
        (b" <@relay.example:a@b.c>", []),
        (b" <a(c)@b.c>", []),
        (b" a@b@c", []),
        (b" =?utf-8?q?a=40b.c?=", []),
        # In a malformed field nothing is replaced.
        (b' "un, a@b.c', []),
        (b" <a@b.c, d@e.f", []),
        (b" (un, a@b.c", []),
        (b" <a@b.c> <d@e.f>", []),
        (b" Team: a@b.c", []),
        (b" a@b.c; d@e.f", []),
        (b" a\\@b.c, d@e.f", []),
    ],
)
def test_which_addresses_are_found(value: bytes, expected: list[bytes]) -> None:
    assert found(value) == expected


BLOCK = [b"Received: from x <a@b.c>", b"From: A <a@b.c>,", b" a@b.c (A)", b"TO: a@b.c", b"", b"x"]


def test_only_the_named_fields() -> None:
    new = edit_addresses(BLOCK, {b"from": lambda _: "new@example.org"})
    assert new == [
        BLOCK[0], b"From: A <new@example.org>,", b" new@example.org (A)", *BLOCK[3:]
    ]  # fmt: skip
    assert edit_addresses(BLOCK, {b"cc": lambda _: "new@example.org"}) is None
    assert edit_addresses(BLOCK, {b"from": lambda _: None}) is None


def test_a_line_that_would_be_too_long() -> None:
    block = [b"From: " + b"x" * (MAX_LINE - 20) + b" <a@b.c>"]
    assert edit_addresses(block, {b"from": lambda _: "longer-than-before@example.org"}) is None


PIECES = st.sampled_from(
    [b"a@b.c", b"<", b">", b'"', b"(", b")", b",", b";", b":", b" ", b"\n ", b"\\", b"[", b"]",
     b"x", b"@", b"=?utf-8?q?x?=", b"\xff", b"\r", b"Joe <a@b.c>"]
)  # fmt: skip
VALUES = st.one_of(
    st.lists(PIECES, max_size=24).map(b"".join),
    st.binary(max_size=60).map(lambda each: each.replace(b"\n", b"\n ")),
)


@given(VALUES)
@example(b'"')
@example(b"((a@b.c)")
def test_nothing_else_changes(value: bytes) -> None:
    """The bytes between the addresses are those of before, and each address is found again."""
    lines = (b"To:" + value).split(b"\n")
    seen: list[str] = []

    def replace(text: str) -> str:
        seen.append(text)
        return "new@example.org"

    new = edit_addresses(lines, {b"to": replace})
    if not seen:
        assert new is None
        return
    assert new is not None
    assert len(new) == len(lines)
    old, rest = b"\n".join(lines), b"\n".join(new)
    for text in seen:
        at = rest.index(b"new@example.org")
        encoded = text.encode("utf-8", "surrogateescape")
        assert old[:at] == rest[:at]
        assert old[at:].startswith(encoded)
        old, rest = old[at + len(encoded) :], rest[at + len("new@example.org") :]
    assert old == rest
    assert len(found(b"\n".join(new)[3:])) == len(seen)


ATOM = st.text("abcxyz0-+", min_size=1, max_size=8)
NAMES = st.sampled_from(["", "Joe ", '"Doe, Joe" ', "=?utf-8?q?J=C3=B6?= ", "(hm) "])


@given(st.lists(st.tuples(NAMES, ATOM, ATOM), min_size=1, max_size=5))
def test_a_well_formed_list_is_read_as_the_standard_library_reads_it(
    parts: list[tuple[str, str, str]],
) -> None:
    value = ", ".join(f"{name}<{local}@{domain}.example>" for name, local, domain in parts)
    theirs = [address for _, address in getaddresses([value])]
    assert [each.decode() for each in found(value.encode())] == theirs


def test_the_work_is_bounded() -> None:
    value = b",\n ".join([b"Joe <a@b.c>"] * 2_000)
    assert len(found(value)) == 2_000
    assert found(b",\n ".join([b"Joe <a@b.c>"] * 10_000)) == []
    assert found(b"(" * 60_000) == []
    assert found(b'"' * 59_999) == []
    # What goes beyond stays, and so does what is behind it.
    block = [b"To: a@b.c", b"Cc: " + b"," * 40_000, b"To: a@b.c"]
    new = edit_addresses(block, dict.fromkeys((b"to", b"cc"), lambda _: "x@y.z"))
    assert new == [b"To: x@y.z", *block[1:]]
    new = edit_addresses([b"To: a@b.c"] * 16_000, {b"to": lambda _: "x@y.z"})
    assert new is not None
    assert new.count(b"To: x@y.z") < 1_000


def test_parentheses_in_comments_count() -> None:
    assert found(b"a@b.c (" + b"()" * (STEPS_MAX // 2 - 20) + b")") == [b"a@b.c"]
    assert found(b"a@b.c (" + b"()" * (STEPS_MAX // 2) + b")") == []

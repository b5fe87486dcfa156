"""Parsing of envelope addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.addresses import Address, path, unquoted


@pytest.mark.parametrize(
    ("written", "local", "domain"),
    [
        ("", "", ""),
        ("<>", "", ""),
        ("<a@b>", "a", "b"),
        (" a@b\t", "a", "b"),
        ("a@B.", "a", "B"),
        ("a@b..", "a", "b"),
        ("a@b@c", "a@b", "c"),
        ("a", "a", ""),
        ('"a b"@c', "a b", "c"),
        ('"a"', "a", ""),
        ('"a@b"', "a@b", ""),
        ('"a\\"b"@c', 'a"b', "c"),
        ('"a"b@c', '"a"b', "c"),
        ('"a"@b@c', '"a"@b', "c"),
        ('"a', '"a', ""),
        ('"', '"', ""),
        ("@x:a@b", "a", "b"),
        ("@x,@y:a@b", "a", "b"),
        ("@[IPv6:::1]:a@b", "a", "b"),
        ("x:a@b", "a", "b"),  # smtpd takes whatever stands before a colon for a route
        ('"x:a"@b', "x:a", "b"),
        # smtpd sees no quotes before the colon.
        ('"x":a@b', "a", "b"),
        ('"x:a@b', "a", "b"),
        ('"x@y":a@b', "a", "b"),
        ('"x"@y:a@b', "a", "b"),
        ('"\\":a@b', "a", "b"),
        ('"x":"a"@b', "a", "b"),
        ("x:", "", ""),
        ("x:@", "", ""),
        (":", "", ""),
        ('"x":', "", ""),
        ('"x:', "", ""),
        ("a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]"),
        ("@b", "", "b"),
    ],
)
def test_path(written: str, local: str, domain: str) -> None:
    address = path(written)
    assert (address.local, address.domain) == (local, domain)
    assert bool(address) == bool(local or domain)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (Address("a", "b"), "a@b"),
        (Address("a", ""), "a"),
        (Address("a@b", ""), '"a@b"'),
        (Address("", ""), ""),
    ],
)
def test_how_it_is_shown(address: Address, shown: str) -> None:
    assert str(address) == shown


def test_completed_with_the_name_of_the_server() -> None:
    assert str(Address("bob", "").completed("mx.example.org")) == "bob@mx.example.org"
    assert str(Address("bob", "a.example").completed("mx.example.org")) == "bob@a.example"
    assert str(Address("bob", "").completed(None)) == "bob"
    assert not Address("", "").completed("mx.example.org")


def test_unquoted() -> None:
    assert unquoted('"a\\b\\"c"') == 'ab"c'
    assert unquoted('"') == '"'
    assert unquoted("a\\b") == "a\\b"


@given(st.text(st.characters(codec=None) | st.sampled_from('"\\@:<>.'), max_size=30))
def test_no_address_raises(text: str) -> None:
    assert str(path(text)) == str(path(text))

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.lookups.stream import ADDRESS, Address
from smtpd_filters.sandbox.needs import Needs


@pytest.mark.parametrize(
    ("text", "address", "label"),
    [
        ("localhost:3310", Address("localhost", 3310), "localhost:3310"),
        ("localhost", Address("localhost", 783), "localhost:783"),
        ("192.0.2.1:1", Address("192.0.2.1", 1), "192.0.2.1:1"),
        ("[::1]:3310", Address("::1", 3310), "[::1]:3310"),
        ("[::1]", Address("::1", 783), "[::1]:783"),
        ("::1", Address("::1", 783), "[::1]:783"),
        ("/run/clamd", Address(path="/run/clamd"), "/run/clamd"),
        ("unix:/run/clamd", Address(path="/run/clamd"), "/run/clamd"),
    ],
)
def test_addresses(text: str, address: Address, label: str) -> None:
    assert ADDRESS(783).parse(text) == address
    assert address.label == label
    assert ADDRESS.parse(label) == address


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "localhost:0", "localhost:65536", "localhost:x", "a b:1", "[::1:1", "[a]:1",
     "unix:run/clamd", "/" + "x" * 107, "/a\0b", ":1", "@abstract"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected "):
        ADDRESS.parse(text)


def test_a_word_alone_is_no_port() -> None:
    error = 'expected a host and a port, HOST:PORT, or PATH of a socket, not "foo"'
    with pytest.raises(ValueError, match=f"^{error}$"):
        ADDRESS.parse("foo")


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_reason(text: str) -> None:
    try:
        address = ADDRESS(25).parse(text)
    except ValueError:
        return
    assert ADDRESS.parse(address.label) == address


def test_what_a_process_needs_for_it() -> None:
    needs = Needs()
    Address("localhost", 25).declare(needs)
    Address(path="/run/x").declare(needs)
    assert needs.tcp == [("localhost", 25)]
    assert needs.sockets == ["/run/x"]
    assert needs.threads > Needs().threads

"""The answers of DNS lists: listings, and what they say about who asks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.checks.listings import trouble

ZEN = "zen.spamhaus.org"
DQS = "k3ykk7zqabcdefghij.zen.dq.spamhaus.net"


@pytest.mark.parametrize(
    ("zone", "address"),
    [
        (ZEN, "127.0.0.2"),
        (ZEN, "127.0.0.11"),
        (DQS, "127.0.0.4"),
        ("dbl.spamhaus.org", "127.0.1.2"),
        ("dbl.spamhaus.org", "127.0.1.106"),
        ("list.dnswl.org", "127.0.5.3"),
        ("list.dnswl.org", "127.0.10.0"),
        ("multi.surbl.org", "127.0.0.8"),
        ("multi.surbl.org", "127.0.0.88"),
        ("multi.uribl.com", "127.0.0.2"),
        ("notsurbl.org", "127.0.0.9"),
        ("bl.example", "127.0.0.255"),
        ("bl.example", "127.255.254.255"),
    ],
)
def test_listings(zone: str, address: str) -> None:
    assert trouble(zone, address) is None


@pytest.mark.parametrize(
    ("zone", "address", "advice"),
    [
        (ZEN, "127.255.255.252", "misspelt"),
        (ZEN, "127.255.255.254", "public name servers: .*--nameserver.* Data Query Service"),
        (DQS, "127.255.255.255", "too many queries: .*Data Query Service"),
        ("score.senderscore.com", "127.255.255.255", "register at my.validity.com"),
        ("list.dnswl.org", "127.0.0.255", "more queries than are free"),
        ("list.dnswl.org", "127.0.10.3", "more queries than are free"),
        ("multi.surbl.org", "127.0.0.1", "refuses this name server"),
        ("multi.surbl.org", "127.0.0.9", "refuses this name server"),
        ("multi.uribl.com", "127.0.0.1", "refuses this name server"),
        ("bl.example", "127.255.255.1", "register"),
        ("bl.example", "127.255.255.254", "--nameserver"),
        ("bl.example", "127.0.0.1", "blocks the list"),
        ("bl.example", "192.0.2.1", "outside 127.0.0.0/8"),
        ("bl.example", "128.0.0.2", "outside 127.0.0.0/8"),
        (ZEN, "203.0.113.66", "outside 127.0.0.0/8"),
    ],
)
def test_what_says_something_of_who_asks(zone: str, address: str, advice: str) -> None:
    said = trouble(zone, address)
    assert said is not None
    assert re.search(advice, said)
    assert said.startswith(f"answers {address}")


@pytest.mark.parametrize("address", ["127.0.1.255", "127.0.2.255"])
def test_what_can_be_passed_over(address: str) -> None:
    assert trouble("dbl.spamhaus.org", address) == ""


def test_what_an_operator_asks_for_counts_unless_it_is_known_better() -> None:
    assert trouble("hostkarma.example", "127.0.0.1", wanted=True) is None
    assert trouble("multi.surbl.org", "127.0.0.1", wanted=True)
    assert trouble("bl.example", "127.255.255.254", wanted=True)
    assert trouble("bl.example", "10.0.0.1", wanted=True)


@given(st.sampled_from([ZEN, DQS, "bl.example", "list.dnswl.org"]), st.ip_addresses(v=4))
def test_outside_loopback_nothing_is_a_listing(zone: str, address: object) -> None:
    text = str(address)
    inside = text.startswith("127.") and not text.startswith("127.255.255.")
    assert inside or trouble(zone, text)

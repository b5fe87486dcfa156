"""The meaning of answers, error codes included, and the part of a name that is a key."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.filters.dnsbl.codes import hidden, probes, redact, shown, trouble

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


@pytest.mark.parametrize(
    ("zone", "public"),
    [
        (ZEN, ZEN),
        (DQS, "zen.dq.spamhaus.net"),
        ("short.zen.dq.spamhaus.net", "zen.dq.spamhaus.net"),
        ("zen.dq.spamhaus.net", "zen.dq.spamhaus.net"),
        ("abc.combined.mail.abusix.zone", "combined.mail.abusix.zone"),
        ("f00f00f00f00f00f00.lists.example", "lists.example"),
        ("averylongnamewithoutdigits.lists.example", "averylongnamewithoutdigits.lists.example"),
        ("1234567890123456.lists.example", "1234567890123456.lists.example"),
        ("s3cret.lists.example", "lists.example"),
        ("bl.example", "bl.example"),
        ("example", "example"),
    ],
)
def test_what_is_shown_of_a_zone(zone: str, public: str) -> None:
    assert shown(zone, ("s3cret",)) == public
    assert all(label not in public.split(".") for label in hidden(zone, ("s3cret",)))


def test_a_key_is_taken_out_of_what_a_list_says() -> None:
    said = "see https://check.example/?key=K3ykk7zqabcdefghij&ip=192.0.2.1"
    assert redact(said, hidden(DQS)) == "see https://check.example/?key=***&ip=192.0.2.1"
    assert redact(said, ()) == said


def test_names_to_test_with() -> None:
    assert probes("dbl.example") == ("test",)
    assert probes("dbl.spamhaus.org") == ("test", "dbltest.com")
    assert probes("key.dbl.dq.spamhaus.net") == ("test", "dbltest.com")
    assert probes("spamhaus.org") == ("test", "dbltest.com")
    assert probes("notspamhaus.org") == ("test",)

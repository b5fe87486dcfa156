"""The parts of a list's name that are a key, and its test entries."""

from __future__ import annotations

import pytest

from smtpd_filters.checks.zone_names import hidden, probes, redact, shown

ZEN = "zen.spamhaus.org"
DQS = "k3ykk7zqabcdefghij.zen.dq.spamhaus.net"


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

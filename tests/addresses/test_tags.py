"""Tags of local parts, and the character with which they begin."""

from __future__ import annotations

import pytest

from smtpd_filters.addresses import Address
from smtpd_filters.addresses.tags import TAGS, Tags
from smtpd_filters.checks.correspondents import _hash
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.limit.subjects import written
from smtpd_filters.filters.rcpt import Rcpt
from smtpd_filters.tables import AddressTable
from smtpd_filters.testing import Conversation


@pytest.fixture
def dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TAGS, "delimiter", "-")


@pytest.mark.parametrize(
    ("local", "plus", "dash"),
    [
        ("user", "user", "user"),
        ("user+a-b", "user", "user+a"),
        ("user-a+b", "user-a", "user"),
        ("user-a-b", "user-a-b", "user"),
        ("-user", "-user", "-user"),
        ("+user", "+user", "+user"),
    ],
)
def test_a_tag_begins_with_the_delimiter(local: str, plus: str, dash: str) -> None:
    assert (Tags().without(local), Tags("-").without(local)) == (plus, dash)


@pytest.mark.usefixtures("dash")
def test_whatever_compares_addresses_has_the_delimiter() -> None:
    table = AddressTable.of(["trap@example.org", "anybody@"])
    assert table.match("Trap-Sale@Example.org") == "trap@example.org"
    assert table.match("anybody-x@example.com") == "anybody@"
    assert table.match("trap+sale@example.org") is None
    assert list(table.asked_keys("a-b@example.org")) == [
        "a-b@example.org",
        "a@example.org",
        "@example.org",
    ]
    assert written(Address("A-b", "example.org")) == "a@example.org"
    assert _hash("a-b@example.org") == _hash("a@example.org") != _hash("a+b@example.org")


def test_a_filter_has_that_of_its_flag() -> None:
    flags = ("--traps", "{ trap@example.org }")
    verdicts = []
    for more in (("--sub-addr-delim", "-"), ()):
        with Conversation(Rcpt, *flags, *more) as smtpd:
            for name in ("trap-sale", "trap+sale"):
                client = smtpd.connect()
                client.ehlo("mail.example.com")
                client.mail_from("a@example.com")
                verdicts.append(client.rcpt_to(f"{name}@example.org").verb)
        assert TAGS.delimiter == "+"
    assert verdicts == ["junk", "proceed", "proceed", "junk"]


@pytest.mark.parametrize("text", ["", "--", "@", " ", "é"])
def test_one_that_smtpd_does_not_accept(text: str) -> None:
    with pytest.raises(ConfigError, match="--sub-addr-delim: expected a printable character"):
        Conversation(Rcpt, "--sub-addr-delim", text)

"""filter-sender under a real server: whose mail could be returned, and a DNS that fails."""

from __future__ import annotations

from functools import partial
from select import select
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.sender import REPLIES
from smtpd_filters.testing.server import filter_command
from tests.e2e.sending import (
    ALICE,
    GOOD,
    GOOD6,
    NAMELESS,
    NAMELESS6,
    ZONE,
    Outcome,
    attempt,
    crowd,
    folders,
    logged,
    transact,
)

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

# Addresses on the public Internet, of which nothing but this zone speaks here.
PUBLIC, PUBLIC6 = "1.2.3.4", "2a00:1:2:3::4"
LATER = "451 4.4.3 Temporary failure, please try again later"
DOMAINS: dict[str, dict[str, Any]] = {
    **ZONE,
    "mx.public.example": {"A": PUBLIC, "AAAA": PUBLIC6},
    "mx6.public.example": {"AAAA": PUBLIC6},
    "mx.private.example": {"A": "10.1.2.3", "AAAA": "fd00::1"},
    "good.example": {"MX": "10 mx.public.example."},
    "six.example": {"MX": "10 mx6.public.example."},
    "plain.example": {"A": PUBLIC},
    "plain6.example": {"AAAA": PUBLIC6},
    "empty.example": {"TXT": "nothing"},
    "null.example": {"MX": "0 ."},
    "private.example": {"MX": "10 mx.private.example."},
    "loop.example": {"MX": "10 localhost."},
    "both.example": {"MX": ["10 mx.private.example.", "20 mx.public.example."]},
    "broken.example": {"servfail": True},
}
GOOD_SENDERS = (
    "", "a@good.example", "A@GOOD.Example", "a@six.example", "a@plain.example", "a@plain6.example",
    "@relay.example:a@good.example", "a@both.example",
)  # fmt: skip
BAD_SENDERS = {
    "a@gate": "non_fqdn",
    "a@missing.example": "unknown",
    "a@empty.example": "unknown",
    "a@null.example": "null_mx",
    "a@private.example": "bad_mx",
    "a@loop.example": "bad_mx",
    "a@[127.0.0.1]": "bad_mx",
}


def launch(start: Start, *flags: str, zone: dict[str, Any] | None = None) -> Smtpd:
    nameserver = () if any("nameserver" in flag for flag in flags) else ("--nameserver=127.0.0.1",)
    command = filter_command("sender", *nameserver, *flags)
    return start(zone=DOMAINS if zone is None else zone, filters={"sender": command})


def refusal(check: str) -> Outcome:
    code, _, text = REPLIES[check].partition(" ")
    return Outcome("MAIL", int(code), text, stayed=True)


@pytest.mark.parametrize("action", ["log", "junk", "reject"])
def test_who_may_send(start: Start, action: str) -> None:
    flags = [f"--{check.replace('_', '-')}={action}" for check in REPLIES]
    server = launch(start, *flags)
    sources = (NAMELESS, NAMELESS6)
    for source in sources:
        for sender in GOOD_SENDERS:
            assert attempt(server, source, sender=sender).stage == "", sender
    good = len(sources) * len(GOOD_SENDERS)
    assert folders(server) == [""] * good
    for source in sources:
        for sender, check in BAD_SENDERS.items():
            outcome = attempt(server, source, sender=sender)
            if action == "reject":
                assert outcome == refusal(check), sender
            else:
                assert outcome.stage == "", sender
    bad = len(sources) * len(BAD_SENDERS)
    found = sorted(folders(server))
    more = {"log": [""] * bad, "junk": ["Junk"] * bad, "reject": []}[action]
    assert found == [""] * good + more
    verb = {"log": "proceed"}.get(action, action)
    logged(server, f'^sender: .* sender mail-from result={verb} reason="sender ', bad)


def test_a_sender_without_a_domain(start: Start) -> None:
    """It is completed by the server with its own name, but only behind the filter."""
    server = launch(start)
    assert attempt(server, NAMELESS, sender="root") == refusal("non_fqdn")


def test_one_bad_exchanger_is_enough_with_the_flag(start: Start) -> None:
    server = launch(start, "--any-bad-mx")
    assert attempt(server, NAMELESS, sender="a@both.example") == refusal("bad_mx")
    assert attempt(server, NAMELESS, sender="a@good.example").stage == ""


def test_exempt_clients(start: Start) -> None:
    server = launch(start, f"--allow={{ {GOOD}, {GOOD6} }}")
    senders = [*BAD_SENDERS, "a@broken.example"]
    for sender in senders:
        for source in (GOOD, GOOD6, "127.0.0.1", "::1"):
            assert attempt(server, source, sender=sender).stage == "", sender
        assert attempt(server, NAMELESS, sender=sender, user="alice").stage == ""
    server.submit(b"Subject: hello\n\nhello\n", "a@missing.example", ALICE)
    assert len(server.maildir("alice")) == 5 * len(senders) + 1
    assert attempt(server, NAMELESS, sender="a@missing.example").code == 550


FAULTS: dict[str, dict[str, Any]] = {
    "dead.example": {"drop": True},
    "slow.example": {"delay": 60},
    "servfail.example": {"servfail": True},
    "lying.example": {"wrong-id": True},
    "other.example": {"wrong-owner": True},
}


@pytest.mark.parametrize("on_error", ["", "proceed", "junk", "tempfail"])
def test_a_dns_that_fails(start: Start, on_error: str) -> None:
    zone = dict(DOMAINS)
    for name, fault in FAULTS.items():
        zone[name] = {"MX": "10 mx.public.example.", **fault}
        zone[f"mx.{name}"] = {"A": PUBLIC, "AAAA": PUBLIC6, **fault}
        zone[f"by-mx.{name}"] = {"MX": f"10 mx.{name}."}
    flags = ["--timeout=50ms", *([f"--on-error={on_error}"] if on_error else [])]
    server = launch(start, *flags, zone=zone)
    for name in FAULTS:
        for domain, source in ((name, NAMELESS), (f"by-mx.{name}", NAMELESS6)):
            outcome = attempt(server, source, sender=f"a@{domain}")
            if on_error in {"", "tempfail"}:
                assert (outcome.stage, outcome.said, outcome.stayed) == ("MAIL", LATER, True)
            else:
                assert outcome.stage == ""
            # Whatever the DNS does.
            assert attempt(server, source, sender="").stage == ""
    junk = sorted(folders(server))
    count = 2 * len(FAULTS)
    more = {"junk": ["Junk"], "proceed": [""]}.get(on_error, []) * count
    assert junk == [""] * count + more
    logged(server, '^sender: .* sender mail-from result=.* cause="', 1)


def test_nobody_answers_at_all(start: Start) -> None:
    server = launch(start, "--timeout=50ms", "--nameserver=127.0.0.1:54", "--nameserver=[::1]:54")
    assert attempt(server, NAMELESS, sender="a@good.example").said == LATER
    assert attempt(server, NAMELESS6, sender="a@gate") == refusal("non_fqdn")
    assert attempt(server, NAMELESS6, sender="").stage == ""


def test_a_dns_that_flaps(start: Start) -> None:
    zone = {
        **DOMAINS,
        "flap.example": {"MX": "10 mx.flap.example.", "flap": True},
        "mx.flap.example": {"A": PUBLIC, "AAAA": PUBLIC6, "flap": True},
    }
    server = launch(start, "--timeout=1s", zone=zone)
    for source in (NAMELESS, NAMELESS6, NAMELESS):
        assert attempt(server, source, sender="a@flap.example").stage == ""


def test_a_client_comes_again_when_the_dns_is_mended(start: Start) -> None:
    server = launch(start, "--nameserver=[::1]:53")
    with server.connection(NAMELESS) as connection:
        connection.reply()
        connection.command("EHLO client.example")
        assert transact(connection, "a@broken.example").said == LATER
        assert transact(connection, "a@good.example").stage == ""
        assert transact(connection, "a@null.example") == refusal("null_mx")
        server.lab.dns.zone["mended.example"] = {"MX": "10 mx.public.example."}
        assert transact(connection, "a@mended.example").stage == ""
    assert len(server.maildir("alice")) == 2


def test_a_dead_dns_holds_up_nobody_else(start: Start) -> None:
    zone = {**DOMAINS, "dead.example": {"drop": True}}
    server = launch(start, "--timeout=60s", zone=zone)
    with server.connection(NAMELESS) as waiting:
        assert waiting.reply() is not None
        assert waiting.command("EHLO client.example") is not None
        waiting.send(b"MAIL FROM:<a@dead.example>\r\n")
        for source in (GOOD, GOOD6, NAMELESS, NAMELESS6):
            assert attempt(server, source, sender="a@good.example").stage == ""
            assert attempt(server, source, sender="a@null.example") == refusal("null_mx")
        assert select([waiting.socket], [], [], 0) == ([], [], [])


def test_fifty_sessions_at_once(start: Start) -> None:
    server = launch(start)
    kinds = [
        (250, {"source": NAMELESS, "sender": "a@good.example"}),
        (250, {"source": NAMELESS6, "sender": "a@six.example"}),
        (550, {"source": NAMELESS, "sender": "a@missing.example"}),
        (550, {"source": NAMELESS6, "sender": "a@private.example"}),
        (451, {"source": NAMELESS, "sender": "a@broken.example"}),
        (250, {"source": NAMELESS, "sender": "a@missing.example", "user": "alice"}),
        (250, {"source": NAMELESS, "sender": ""}),
    ]
    outcomes = crowd(partial(attempt, server), [client for _, client in kinds] * 7)
    assert [outcome.code for outcome in outcomes] == [code for code, _ in kinds] * 7
    assert len(server.maildir("alice")) == 28

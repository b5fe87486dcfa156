"""filter-helo under a real server: who may call himself what, and a DNS that fails."""

from __future__ import annotations

from functools import partial
from select import select
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.helo import REPLIES
from smtpd_filters.testing.dns import host, merge
from smtpd_filters.testing.server import filter_command
from smtpd_filters.testing.server.lab import HOSTNAME
from tests.e2e.sending import (
    ALICE,
    BROKEN,
    GOOD,
    GOOD6,
    LIAR,
    LIAR6,
    NAMELESS,
    NAMELESS6,
    ZONE,
    Outcome,
    attempt,
    crowd,
    folders,
    greeted,
    is_release,
    logged,
    transact,
)

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Spy, Start

HERE = "127.0.0.1"
NAMES = merge(
    ZONE,
    host("mail.nine.example", NAMELESS, NAMELESS6),
    {
        "four.example": {"A": "192.0.2.77"},
        "six.example": {"AAAA": "2001:db8::77"},
        "exchanged.example": {"MX": "10 mail.good.example."},
    },
)
# The PTR records that host() has made would confirm them.
for name in [name for name, entry in NAMES.items() if entry.get("PTR") == ["mail.nine.example"]]:
    del NAMES[name]
STAGES = {"helo": "EHLO", "mail-from": "MAIL", "rcpt-to": "RCPT"}


def launch(start: Start, *flags: str, zone: dict[str, Any] | None = None, **more: Any) -> Smtpd:
    asks = () if "--unknown=off" in flags else ("--nameserver", HERE)
    command = filter_command("helo", *asks, *flags)
    return start(zone=NAMES if zone is None else zone, filters={"helo": command}, **more)


def greet(server: Smtpd, name: str, source: str = NAMELESS, **more: Any) -> Outcome:
    return attempt(server, source, helo=f"EHLO {name}", **more)


def refusal(check: str, stage: str = "MAIL") -> Outcome:
    code, _, text = REPLIES[check].partition(" ")
    return Outcome(stage, int(code), text, stayed=True)


@pytest.mark.parametrize("source", [NAMELESS, NAMELESS6])
def test_what_a_stranger_may_call_itself(start: Start, source: str) -> None:
    server = launch(start, "--own-names=*.own.example", "--own-addresses=203.0.113.0/24")
    literal, tag = (f"IPv6:{source}", "IPv6:") if ":" in source else (source, "")
    for name in ("mail.example.net", "under_score.example.net", f"[{literal}]"):
        assert greet(server, name, source).stage in {"", "EHLO"}, name
    assert greet(server, "mail.example.net", source).stage == ""
    assert greet(server, f"[{literal}]", source).stage == ""
    for name, check in (
        ("localhost", "own"),
        ("localhost.localdomain", "own"),
        (HOSTNAME, "own"),
        (HOSTNAME.upper(), "own"),
        ("a.own.example", "own"),
        ("workstation", "non_fqdn"),
        (f"[{tag}{'2001:db8::99' if tag else '192.0.2.99'}]", "foreign_literal"),
        ("[127.0.0.1]" if not tag else "[IPv6:::1]", "own"),
        ("[203.0.113.9]", "own"),
        ("192.0.2.99", "invalid"),
        ("mail.example.123", "invalid"),
        ("[2001:db8::99]", "invalid"),
    ):
        outcome = greet(server, name, source)
        if outcome.stage == "EHLO":
            # The server itself wants no such name; it never got to the filter.
            assert outcome.code == 501, name
            assert check == "invalid", name
            continue
        assert outcome == refusal(check), name
    lines = logged(server, "helo: .* helo mail-from result=reject ", 9)
    assert all(' reason="helo ' in line for line in lines)


@pytest.mark.parametrize("phase", STAGES)
@pytest.mark.parametrize("action", ["log", "junk", "reject"])
def test_the_action_is_taken_in_its_phase(start: Start, action: str, phase: str) -> None:
    server = launch(start, f"--non-fqdn={action}", "--unknown=off", "--own=off", "--phase", phase)
    assert greet(server, "gate.example.net").stage == ""
    for source in (NAMELESS, NAMELESS6):
        outcome = greet(server, "gate", source)
        if action == "reject":
            assert outcome == refusal("non_fqdn", STAGES[phase])
        else:
            assert outcome.stage == ""
    assert attempt(server, helo="HELO gate").stage == (
        "" if action != "reject" else STAGES[phase].replace("EHLO", "HELO")
    )
    found = sorted(folders(server))
    assert found == {"log": [""] * 4, "junk": ["", *["Junk"] * 3], "reject": [""]}[action]
    verb = {"log": "proceed"}.get(action, action)
    phase = "(ehlo|helo)" if phase == "helo" else phase
    # Not at the start of a line: smtpd's processes write to one log, now and then into one line.
    logged(server, f"helo: .* helo {phase} result={verb} .*gate is not fully qualified", 3)


@pytest.mark.parametrize("phase", ["mail-from", "rcpt-to"])
def test_an_authenticated_client_is_exempt(start: Start, phase: str) -> None:
    server = launch(start, "--unknown=reject", "--phase", phase)
    for name in ("workstation", "[192.168.1.5]"):
        assert greet(server, name, user="alice").stage == ""
        assert greet(server, name).stage == STAGES[phase]
    assert len(server.maildir("alice")) == 2


def test_allowed_and_local_clients_are_exempt(start: Start) -> None:
    server = launch(start, "--unknown=reject", f"--allow={{ {NAMELESS}, {NAMELESS6} }}")
    for source in (NAMELESS, NAMELESS6, "127.0.0.1", "::1", "127.0.0.77"):
        assert greet(server, "gate", source).stage == ""
    server.submit(b"Subject: hello\n\nhello\n", "root@local.example", ALICE)
    assert len(server.maildir("alice")) == 6
    assert greet(server, "gate", LIAR).stage == "MAIL"


def test_a_confirmed_client_may_use_its_name(start: Start) -> None:
    server = launch(start, "--own-names=*.good.example", "--elsewhere=reject", "--unknown=reject")
    for source in (GOOD, GOOD6):
        assert greet(server, "mail.good.example", source).stage == ""
    queries = server.lab.dns.queries
    before = len(queries)
    for source in (LIAR, LIAR6):
        assert greet(server, "mail.good.example", source) == refusal("own")
    # smtpd's own questions about the liars apart, nothing was asked.
    assert not [name for name, _ in queries[before:] if name == "mail.good.example"]


@pytest.mark.parametrize("phase", STAGES)
def test_what_the_dns_says(start: Start, phase: str) -> None:
    server = launch(start, "--unknown=reject", "--elsewhere=junk", "--phase", phase)
    stage = STAGES[phase]
    for source in (NAMELESS, NAMELESS6):
        assert greet(server, "mail.nine.example", source).stage == ""
        assert greet(server, "missing.example", source) == refusal("unknown", stage)
    assert folders(server) == ["", ""]
    for name in ("four.example", "six.example", "exchanged.example"):
        assert greet(server, name).stage == ""
        assert greet(server, name, NAMELESS6).stage == ""
    assert sorted(folders(server)) == ["", "", *["Junk"] * 6]
    logged(server, "helo: .* result=junk reason=.*four.example does not lead to", 2)


FAULTS: dict[str, dict[str, Any]] = {
    "dead.example": {"drop": True},
    "slow.example": {"delay": 60},
    "servfail.example": {"servfail": True},
    "lying.example": {"wrong-id": True},
    "other.example": {"wrong-owner": True},
}


@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
def test_a_dns_that_fails(start: Start, on_error: str) -> None:
    addresses = {"A": NAMELESS, "AAAA": NAMELESS6}
    zone = {**NAMES, **{name: {**addresses, **fault} for name, fault in FAULTS.items()}}
    flags = ("--unknown=reject", "--elsewhere=reject", "--timeout=50ms", "--on-error", on_error)
    server = launch(start, *flags, zone=zone)
    for name in FAULTS:
        for source in (NAMELESS, NAMELESS6):
            outcome = greet(server, name, source)
            if on_error == "tempfail":
                said = "451 4.4.3 Temporary failure, please try again later"
                assert (outcome.stage, outcome.said, outcome.stayed) == ("MAIL", said, True)
            else:
                assert outcome.stage == ""
    junk = [mail.folder == "Junk" for mail in server.maildir("alice")]
    count = 2 * len(FAULTS)
    assert junk == {"proceed": [False] * count, "junk": [True] * count, "tempfail": []}[on_error]
    logged(server, '^helo: .* helo mail-from result=.* cause="helo name: ', 1)


def test_a_dns_that_flaps(start: Start) -> None:
    zone = {**NAMES, "mail.nine.example": {"A": NAMELESS, "AAAA": NAMELESS6, "flap": True}}
    flags = (
        "--unknown=reject",
        "--elsewhere=reject",
        "--timeout=1s",
        "--on-error=tempfail",
    )
    server = launch(start, *flags, zone=zone)
    for source in (NAMELESS, NAMELESS6, NAMELESS):
        assert greet(server, "mail.nine.example", source).stage == ""


def test_a_dns_that_recovers(start: Start) -> None:
    flags = ("--unknown=reject", "--on-error=tempfail")
    server = launch(start, *flags, zone={**NAMES, "mail.nine.example": {"servfail": True}})
    assert greet(server, "mail.nine.example").code == 451
    assert greet(server, "missing.example").code == 550
    server.lab.dns.zone["mail.nine.example"] = {"A": NAMELESS}
    # A failure is remembered for a second or so; another name is not concerned.
    server.lab.dns.zone["missing.example"] = {"A": NAMELESS}
    server.lab.dns.zone["new.example"] = {"A": NAMELESS}
    assert greet(server, "new.example").stage == ""


@pytest.mark.parametrize("phase", STAGES)
def test_a_dead_dns_holds_up_nobody_else(start: Start, phase: str) -> None:
    zone = {**NAMES, "dead.example": {"drop": True}}
    flags = ("--unknown=reject", "--timeout=60s", "--on-error=tempfail", "--phase", phase)
    server = launch(start, *flags, zone=zone)
    with server.connection(NAMELESS) as waiting:
        assert waiting.reply() is not None
        waiting.send(b"EHLO dead.example\r\n")
        if phase != "helo":
            assert waiting.reply() is not None
            waiting.send(b"MAIL FROM:<a@example.net>\r\n")
            if phase == "rcpt-to":
                assert waiting.reply() is not None
                waiting.send(b"RCPT TO:<alice@local.example>\r\n")
        for source in (GOOD, GOOD6, NAMELESS, NAMELESS6):
            assert greet(server, "mail.nine.example", source).stage == ""
        assert select([waiting.socket], [], [], 0) == ([], [], [])


def test_a_dead_resolver_and_no_questions(start: Start) -> None:
    """What is wrong as it is written is refused whatever the DNS does."""
    zone = {**NAMES, "mail.nine.example": {"drop": True}, "workstation": {"drop": True}}
    server = launch(start, "--unknown=reject", "--timeout=50ms", zone=zone)
    assert greet(server, "workstation") == refusal("non_fqdn")
    assert greet(server, "[192.0.2.99]") == refusal("foreign_literal")
    assert greet(server, "mail.nine.example").stage == ""  # looked up in vain


def test_fifty_sessions_at_once(start: Start) -> None:
    server = launch(
        start, "--unknown=reject", "--elsewhere=log", zone={**NAMES, "slow.example": {"drop": True}}
    )
    kinds = [
        ("", {"source": NAMELESS, "name": "mail.nine.example"}),
        ("", {"source": NAMELESS6, "name": "mail.nine.example"}),
        ("MAIL", {"source": NAMELESS, "name": "missing.example"}),
        ("MAIL", {"source": LIAR6, "name": "gate"}),
        ("", {"source": GOOD, "name": "mail.good.example"}),
        ("", {"source": BROKEN, "name": "workstation", "user": "alice"}),
    ]
    outcomes = crowd(partial(greet, server), [client for _, client in kinds] * 8)
    assert [outcome.stage for outcome in outcomes] == [stage for stage, _ in kinds] * 8
    assert len(server.maildir("alice")) == 32


def test_a_greeting_within_a_transaction(start: Start, spy: Spy) -> None:
    """OpenSMTPD 7.9 takes it and ends the transaction; earlier releases refuse it."""
    server = start(filters={"spy": filter_command("supervise", spy())})
    taken = is_release(server, 7, 9)
    with server.connection(GOOD) as connection:
        greeted(connection)
        commands = "MAIL FROM:<someone@good.example>", "EHLO other.example", f"RCPT TO:<{ALICE}>"
        replies = [connection.command(command) for command in (*commands, "RSET")]
        assert [reply and reply.code for reply in replies] == (
            [250, 250, 503, 250] if taken else [250, 503, 250, 250]
        )
        assert transact(connection).code == 250
        assert connection.command("QUIT") is not None
    assert [each.rest for each in spy.seen(server, "link-identify")] == [
        "EHLO|client.example",
        *["EHLO|other.example"] * taken,
    ]
    assert len(spy.seen(server, "tx-rollback")) == 1
    assert len(spy.seen(server, "tx-commit")) == 1

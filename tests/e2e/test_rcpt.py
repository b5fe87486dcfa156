"""filter-rcpt under a real server: what smtpd reports of recipients, and what becomes of them."""

from __future__ import annotations

import re
import select
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.server import filter_command
from tests.e2e.sending import (
    ALICE,
    BOB,
    GOOD,
    GOOD6,
    MESSAGE,
    SENDER,
    ZONE,
    attempt,
    folders,
    greeted,
    local,
    logged,
    transact,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.server import Connection, Reply, Smtpd
    from tests.e2e.conftest import Spy, Start

CLIENTS = (GOOD, GOOD6)
TRAP = "trap@local.example"
#: As sendmail(8) takes it.
LOCAL = local(MESSAGE)
#: Users may write to anybody; what they write goes nowhere from here.
RELAY = """\
action "relay" relay host smtp://127.0.0.99:2599
match from any for domain <domains> action "deliver"
match from local for local action "deliver"
match auth from any for any action "relay"
"""


def rcpt(start: Start, *flags: str, zone: dict[str, Any] | None = None, **server: Any) -> Smtpd:
    command = filter_command("rcpt", *flags)
    return start(zone=merge(ZONE, zone or {}), filters={"rcpt": command}, **server)


def begun(connection: Connection, sender: str = SENDER) -> Connection:
    reply = greeted(connection).command(f"MAIL FROM:<{sender}>")
    assert reply is not None
    assert reply.code == 250
    return connection


def name(connection: Connection, recipient: str) -> str:
    reply = connection.command(f"RCPT TO:<{recipient}>")
    return said(reply)


def said(reply: Reply | None) -> str:
    return f"{reply.code} {reply.text}" if reply is not None else "closed"


def unknown(recipient: str) -> str:
    """Return what smtpd itself says of a recipient that it doesn't know."""
    return f"550 Invalid recipient: <{recipient}>"


# -- recipients ------------------------------------------------------------------------------------

NOT_QUALIFIED = "504 5.5.2 The recipient's address is not fully qualified"


@pytest.mark.parametrize("source", CLIENTS)
def test_recipients_that_cannot_be_meant(start: Start, source: str) -> None:
    server = rcpt(start, "--domains", "local.example")
    assert attempt(server, source).stage == ""
    assert attempt(server, source, recipients=["alice@Local.Example"]).stage == ""
    for recipient in ("alice@local", "alice", "@relay.example:alice@local"):
        outcome = attempt(server, source, recipients=[ALICE, recipient])
        assert (outcome.stage, outcome.said, outcome.stayed) == ("RCPT", NOT_QUALIFIED, True)
    assert folders(server) == ["", ""]
    server.submit(LOCAL, SENDER, ALICE, "bob")
    assert folders(server, "bob") == [""]


def test_the_postmaster_is_smtpds_own_business(start: Start) -> None:
    server = rcpt(start)
    with server.connection(GOOD) as connection:
        assert "fully qualified" not in name(begun(connection), "postmaster")


@pytest.mark.parametrize("action", ["log", "junk"])
def test_what_is_not_refused_is_delivered(start: Start, action: str) -> None:
    server = rcpt(start, "--max-recipients", "1", "--many-recipients", action)
    assert attempt(server, recipients=[ALICE, BOB]).stage == ""
    assert folders(server, "bob") == (["Junk"] if action == "junk" else [""])
    verb = "junk" if action == "junk" else "proceed"
    logged(server, f'rcpt rcpt-to result={verb} reason="1 recipients already"', 1)


@pytest.mark.parametrize("source", CLIENTS)
def test_too_many_recipients(start: Start, source: str) -> None:
    server = rcpt(start, "--max-recipients", "1")
    with server.connection(source) as connection:
        begun(connection)
        assert name(connection, ALICE).startswith("250 ")
        assert name(connection, BOB) == (
            "452 4.5.3 Too many recipients, send the others another message"
        )
        assert connection.command("RSET") is not None
        assert transact(connection, recipients=[BOB]).stage == ""


@pytest.mark.parametrize("source", CLIENTS)
def test_a_bounce_to_several(start: Start, source: str) -> None:
    server = rcpt(start, "--null-sender", "reject")
    assert attempt(server, source, sender="").stage == ""
    outcome = attempt(server, source, sender="", recipients=[ALICE, BOB])
    assert outcome.said == "550 5.5.3 A message without a sender has one recipient"
    assert attempt(server, source, recipients=[ALICE, BOB]).stage == ""


# -- traps -----------------------------------------------------------------------------------------


def test_each_form_of_the_null_sender_is_one(start: Start) -> None:
    server = rcpt(start, "--null-sender", "reject")
    for sender in ("", "@", "x:", "x:@", "@relay.example:@"):
        with server.connection(GOOD) as connection:
            begun(connection, sender)
            assert name(connection, ALICE).startswith("250")
            assert name(connection, BOB).startswith("550 5.5.3")
            connection.command("DATA")
            connection.send(MESSAGE)
            reply = connection.command(b".")
            assert reply is not None
            assert reply.code == 250
    envelopes = logged(server, "smtp envelope", 5)
    assert all(" from=<> " in line for line in envelopes)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("source", CLIENTS)
def test_a_trapped_client_is_marked(start: Start, source: str, *, exists: bool) -> None:
    users = ("alice", "bob", "trap") if exists else ("alice", "bob")
    server = rcpt(start, "--traps", TRAP, users=users)
    with server.connection(source) as connection:
        greeted(connection)
        assert transact(connection).stage == ""
        assert connection.command(f"MAIL FROM:<{SENDER}>") is not None
        assert name(connection, BOB).startswith("250 ")
        # What smtpd has to say of the trap is its own.
        answer = name(connection, TRAP)
        assert answer.startswith("250 ") if exists else answer == unknown(TRAP)
        assert name(connection, ALICE).startswith("250 ")
        assert said(connection.command("DATA")).startswith("354 ")
        connection.send(MESSAGE)
        assert said(connection.command(".")).startswith("250 ")
        assert transact(connection).stage == ""
    assert attempt(server, source).stage == ""
    assert folders(server) == ["", "Junk", "Junk", ""]
    # smtpd marks the message, for all its recipients.
    assert folders(server, "bob") == ["Junk"]


@pytest.mark.parametrize("source", CLIENTS)
def test_a_trapped_client_is_refused(start: Start, source: str) -> None:
    server = rcpt(start, "--traps", TRAP, "--trapped", "reject", users=("alice", "trap"))
    reply = "550 5.7.1 Refused by local policy"
    with server.connection(source) as connection:
        begun(connection)
        assert name(connection, ALICE).startswith("250 ")
        assert name(connection, TRAP) == reply
        assert name(connection, ALICE) == reply
        assert said(connection.command("DATA")) == reply
        assert connection.command("RSET") is not None
        assert transact(connection).said == reply
    assert attempt(server, source).stage == ""
    assert attempt(server, source, sender="", recipients=[TRAP]).stage == ""
    assert folders(server) == [""]


# -- guessing --------------------------------------------------------------------------------------

GOODBYE = "421 4.7.0 Too many unknown recipients, closing the connection"


@pytest.mark.parametrize("source", CLIENTS)
def test_a_dictionary_attack(start: Start, source: str) -> None:
    server = rcpt(start, "--max-unknown", "5", "--domains", "local.example")
    with server.connection(source) as connection:
        begun(connection)
        # What we refuse ourselves is reported just as what smtpd does, and is no guess.
        for _ in range(6):
            assert name(connection, "alice@local") == NOT_QUALIFIED
        for number in range(3):
            assert name(connection, f"x{number}@local.example") == unknown(
                f"x{number}@local.example"
            )
        assert name(connection, ALICE).startswith("250 ")
        assert connection.command("RSET") is not None
        assert connection.command(f"MAIL FROM:<{SENDER}>") is not None
        # Neither relaying nor what is no address is asked about first.
        assert name(connection, "x@elsewhere.example") == unknown("x@elsewhere.example")
        assert name(connection, "x@@local.example").startswith("501 ")
        assert name(connection, ALICE) == GOODBYE
        assert connection.reply() is None
    logged(server, 'rcpt rcpt-to result=disconnect reason="5 unknown recipients"', 1)
    assert attempt(server, source).stage == ""


def test_what_smtpd_reports_of_a_recipient(start: Start, spy: Spy) -> None:
    """What the counting stands on, on both versions."""
    server = start(zone=ZONE, filters={"spy": spy()})
    with server.connection(GOOD) as connection:
        begun(connection)
        for recipient in (ALICE, "x@local.example", "x@@local.example", "x@elsewhere.example"):
            name(connection, recipient)
        assert connection.command("QUIT") is not None
    results = [line.rest.split("|")[1] for line in spy.seen(server, "tx-rcpt")]
    assert results == ["ok", "permfail", "permfail", "permfail"]


def test_a_guesser_waits_and_nobody_else(start: Start) -> None:
    server = rcpt(start, "--max-unknown", "4", "--delay", "200s", "--max-delay", "200s")
    with server.connection(GOOD) as guesser:
        begun(guesser)
        for _ in range(2):
            assert name(guesser, "x@local.example") == unknown("x@local.example")
        guesser.send(b"RCPT TO:<x@local.example>\r\n")
        for source in (GOOD, GOOD6, GOOD, GOOD6):
            assert attempt(server, source).stage == ""
        assert not select.select([guesser.socket], [], [], 0)[0], "the guesser was not held up"
    assert folders(server) == [""] * 4


def test_a_guesser_is_answered_in_the_end(start: Start) -> None:
    server = rcpt(start, "--max-unknown", "4", "--delay", "500ms", "--max-delay", "500ms")
    with server.connection(GOOD) as guesser:
        begun(guesser)
        for _ in range(2):
            assert name(guesser, "x@local.example") == unknown("x@local.example")
        started = time.monotonic()
        assert name(guesser, "x@local.example") == unknown("x@local.example")
        assert time.monotonic() - started >= 0.5


def test_a_client_that_leaves_while_it_waits(start: Start) -> None:
    server = rcpt(start, "--max-unknown", "2", "--delay", "200s", "--max-delay", "200s")
    for source in CLIENTS:
        with server.connection(source) as connection:
            begun(connection)
            name(connection, "x@local.example")
            connection.send(b"RCPT TO:<alice@local.example>\r\n")
        assert attempt(server, source).stage == ""


def test_a_dry_run(start: Start) -> None:
    flags = ("--dry-run", "--max-unknown", "2", "--delay", "20s", "--traps", TRAP)
    server = rcpt(start, *flags, users=("alice", "trap"))
    with server.connection(GOOD) as connection:
        begun(connection)
        assert name(connection, "alice@local") == unknown("alice@local")
        assert name(connection, "x@local.example") == unknown("x@local.example")
        assert name(connection, TRAP).startswith("250 ")
        assert name(connection, ALICE).startswith("250 ")
        assert connection.command("RSET") is not None
        assert transact(connection).stage == ""
    assert folders(server) == [""]
    logged(server, "rcpt rcpt-to result=proceed would=reject reason=", 1)
    logged(server, 'would=disconnect reason="2 unknown recipients"', 1)


@pytest.mark.parametrize("flags", [(), ("--allow", "{ 192.0.2.0/24, 2001:db8::/32 }")])
def test_exempt_clients(start: Start, flags: tuple[str, ...]) -> None:
    server = rcpt(start, "--max-recipients", "1", "--traps", TRAP, "--max-unknown", "1", *flags)
    for source in CLIENTS:
        user = None if flags else "alice"
        assert attempt(server, source, recipients=[ALICE, BOB], user=user).stage == ""
    server.submit(LOCAL, SENDER, ALICE, BOB)
    assert attempt(server, "127.0.0.1", recipients=[ALICE, BOB]).stage == ""
    assert folders(server, "bob") == [""] * 4


# -- domains ---------------------------------------------------------------------------------------

DOMAINS: dict[str, dict[str, Any]] = {
    "mail.example": {"MX": ["10 mx.mail.example"]},
    "null.example": {"MX": ["0 ."]},
    "text.example": {"TXT": ["no mail here"]},
    "host6.example": {"AAAA": ["2001:db8::80"]},
    "broken.example": {"servfail": True},
    "dead.example": {"drop": True},
    "lying.example": {"MX": ["10 mx.mail.example"], "wrong-owner": True},
    "flapping.example": {"MX": ["10 mx.mail.example"], "flap": True},
    "late.example": {"MX": ["10 mx.mail.example"], "delay": 60},
}
CASES = {
    "mail.example": "250",
    "host6.example": "250",
    "flapping.example": "250",
    "gone.example": "550 5.1.2 The recipient's domain does not exist",
    "text.example": "550 5.1.2 The recipient's domain has no mail exchanger and no address",
    "null.example": "556 5.1.10 The recipient's domain accepts no mail (null MX)",
}
FAILING = ("broken.example", "dead.example", "lying.example", "late.example")


def relay(start: Start, nameserver: str, *flags: str) -> Smtpd:
    own = ("--domains", "local.example", "--unknown-domain", "reject", "--check-users")
    asking = ("--nameserver", nameserver, "--timeout", "1s")
    return rcpt(start, *own, *asking, *flags, zone=DOMAINS, matches=RELAY)


def logged_in(server: Smtpd, source: str) -> Connection:
    """Return the connection of a user, in a message."""
    from base64 import b64encode

    from smtpd_filters.testing.server import password

    connection = greeted(server.connection(source))
    assert connection.starttls() is not None
    assert connection.command("EHLO client.example") is not None
    secret = b64encode(f"\0alice\0{password('alice')}".encode()).decode()
    assert said(connection.command(f"AUTH PLAIN {secret}")).startswith("235 ")
    assert said(connection.command(f"MAIL FROM:<{ALICE}>")).startswith("250 ")
    return connection


@pytest.mark.parametrize(
    ("source", "nameserver"), [(GOOD, "127.0.0.1"), (GOOD6, "[::1]:53")], ids=["IPv4", "IPv6"]
)
def test_users_get_an_error_for_domains_without_mail(
    start: Start, source: str, nameserver: str
) -> None:
    server = relay(start, nameserver, "--on-error", "tempfail")
    with logged_in(server, source) as connection:
        for domain, reply in CASES.items():
            assert name(connection, f"x@{domain}").startswith(reply), domain
        assert name(connection, BOB).startswith("250 ")


@pytest.mark.parametrize(
    ("on_error", "reply"),
    [("tempfail", "451 4.4.3 Temporary failure, please try again later"), ("proceed", "250 ")],
)
def test_a_failing_dns_is_not_the_clients_fault(start: Start, on_error: str, reply: str) -> None:
    server = relay(start, "127.0.0.1", "--on-error", on_error)

    def write_to(domain: str) -> str:
        with logged_in(server, GOOD) as connection:
            return name(connection, f"x@{domain}")

    with ThreadPoolExecutor(8) as pool:
        failing = pool.map(write_to, FAILING * 2)
        # Nobody else is held up by them.
        for source in CLIENTS:
            assert attempt(server, source).stage == ""
        assert all(answer.startswith(reply) for answer in failing)
    # It recovers, and with it the domain.
    server.lab.dns.zone["broken.example"] = {"MX": ["10 mx.mail.example"]}
    server.lab.dns.zone["gone.example"] = {"MX": ["10 mx.mail.example"]}
    assert write_to("gone.example").startswith("250 ")


def test_a_name_server_that_is_dead(start: Start) -> None:
    server = relay(start, "127.0.0.98", "--on-error", "tempfail")
    with logged_in(server, GOOD) as connection:
        assert name(connection, "x@mail.example").startswith("451 4.4.3 ")
        assert name(connection, BOB).startswith("250 ")
    lines = logged(server, "rcpt rcpt-to result=reject cause=", 1)
    assert not re.search("Traceback|Error", lines[0])


@pytest.fixture(autouse=True)
def no_bugs(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    from tests.e2e.conftest import SERVERS

    for server in request.node.stash.get(SERVERS, []):
        assert not [line for line in server.log if " bug " in line or " unhandled " in line]


def test_tags_begin_as_in_smtpd(start: Start) -> None:
    server = rcpt(
        start,
        *("--traps", TRAP, "--sub-addr-delim", "-"),
        declarations='smtp sub-addr-delim "-"',
    )
    local, domain = ALICE.split("@")
    for tag, code in (("-list", 250), ("+list", 550)):
        assert attempt(server, recipients=[f"{local}{tag}@{domain}"]).code == code
    assert len(server.maildir("alice")) == 1
    local, domain = TRAP.split("@")
    assert attempt(server, GOOD6, recipients=[f"{local}-sale@{domain}"]).code == 550
    assert logged(server, "is a spam trap: trap@local.example", 1)

"""filter-policy under real servers: postgrey, quota-status, policyd-spf, and a scripted one."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.dns import merge
from smtpd_filters.testing.server import Lab, Smtpd, file_path, filter_command, system_version
from tests.e2e.policy_set_up import (
    MAILBOX,
    POSTGREY,
    QUOTA,
    no_policyd_spf,
    no_postgrey,
    no_quota_status,
    policyd_spf,
    postgrey,
    quota_status,
)
from tests.e2e.sending import (
    ALICE,
    BOB,
    DYNAMIC,
    GOOD,
    GOOD6,
    MESSAGE,
    NAMELESS,
    SENDER,
    ZONE,
    Outcome,
    attempt,
    crowd,
    greeted,
    logged,
)
from tests.effort import brief
from tests.filters.policy.scripted import Scripted, action
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Start

#: Seconds for a client to be accepted that retries all the time.
PATIENCE = 60.0
STAGES = ("connect", "helo", "mail-from", "rcpt-to", "data", "end-of-message")
ZONES = merge(ZONE, {"good.example": {"TXT": f"v=spf1 ip4:{GOOD} -all"}})
SPF = "policyd-spf.conf"


def policy(server: str, *flags: str) -> str:
    return filter_command("policy", "--server", server, *flags)


# -- the daemons ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    for reason in (no_postgrey(), no_quota_status(), no_policyd_spf()):
        need(reason)
    with Lab(ZONES) as made, postgrey(made), quota_status(made):
        yield made


@pytest.fixture(scope="module")
def server(lab: Lab) -> Iterator[Smtpd]:
    """A server whose mail passes policyd-spf, quota-status and postgrey."""
    filters = {
        "spf": policy(f"exec:{policyd_spf(file_path(SPF))}"),
        "quota": policy(f"inet:127.0.0.1:{QUOTA}", "--prepend", "ignore"),
        "greylist": policy(f"inet:127.0.0.1:{POSTGREY}"),
    }
    files = {SPF: "debugLevel = 0\nTestOnly = 1\nHELO_reject = False\nMail_From_reject = Fail\n"}
    with Smtpd(system_version(), filters=filters, files=files, lab=lab) as made:
        yield made


def accepted_at_last(server: Smtpd, source: str = GOOD) -> None:
    """Send again until postgrey has seen the client wait."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        outcome = attempt(server, source)
        if not outcome.stage:
            return
        assert re.match(r"450 4\.2\.0 Greylisted, see http", outcome.said), outcome
    raise AssertionError("postgrey does not let the client pass")


def test_postgrey_and_policyd_spf(server: Smtpd) -> None:
    assert attempt(server).said.startswith("450 4.2.0 Greylisted, see ")
    accepted_at_last(server)
    mail = server.maildir("alice")[-1]
    assert re.search(rb"^X-Greylist: delayed \d+ seconds by postgrey", mail.content, re.MULTILINE)
    assert re.search(rb"^Received-SPF: Pass \(mailfrom\)", mail.content, re.MULTILINE)
    assert mail.content.index(b"Received-SPF:") > mail.content.index(b"X-Greylist:")
    refused = attempt(server, DYNAMIC)
    assert (refused.stage, refused.code) == ("RCPT", 550)
    assert "5.7.23 Message rejected due to: SPF fail" in refused.text
    # One process is asked about all.
    started = [each.arguments[1:2] for each in server.lab.processes()]
    assert started.count(["-c"]) == 1
    # A client on this machine has an address.
    assert attempt(server, NAMELESS, sender="").said.startswith("450 4.2.0 ")


def test_a_silent_name_server_of_helo_hides_no_sender() -> None:
    """With a short Lookup_Time, as the manual page says: policyd-spf goes on to the sender."""
    need(no_policyd_spf())
    forged = {"forged.example": {"TXT": "v=spf1 -all"}, "silent.example": {"drop": True}}
    command = policy(f"exec:{policyd_spf(file_path(SPF))}", "--on-error", "proceed")
    files = {SPF: "debugLevel = 0\nTestOnly = 1\nMail_From_reject = Fail\nLookup_Time = 1\n"}
    with (
        Lab(merge(ZONE, forged)) as lab,
        Smtpd(system_version(), filters={"spf": command}, files=files, lab=lab) as server,
    ):
        outcome = attempt(server, sender="boss@forged.example", helo="EHLO silent.example")
    assert outcome.said.startswith("550 5.7.23 Message rejected due to: SPF fail"), outcome


def test_a_full_mailbox(server: Smtpd) -> None:
    accepted_at_last(server)
    with server.connection(GOOD) as connection:
        greeted(connection)
        replies = []
        for size in (MAILBOX * 2, MAILBOX // 2):
            mail = connection.command(f"MAIL FROM:<{SENDER}> SIZE={size}")
            rcpt = connection.command(f"RCPT TO:<{ALICE}>")
            assert mail is not None
            assert rcpt is not None
            assert mail.code == 250
            replies.append(f"{rcpt.code} {rcpt.text}")
            connection.command("RSET")
    assert replies[0] == "552 5.2.2 Mailbox is full"
    # The size of the message before is not kept.
    assert replies[1].startswith("250 ")


def test_dovecot_keeps_no_size_of_the_message_before(server: Smtpd) -> None:
    accepted_at_last(server)
    with server.connection(GOOD) as connection:
        greeted(connection)
        connection.command(f"MAIL FROM:<{SENDER}> SIZE={MAILBOX * 2}")
        refused = connection.command(f"RCPT TO:<{ALICE}>")
        connection.command("RSET")
        connection.command(f"MAIL FROM:<{SENDER}>")
        accepted = connection.command(f"RCPT TO:<{ALICE}>")
    assert refused is not None
    assert accepted is not None
    assert (refused.code, accepted.code) == (552, 250)


# -- a scripted server ---------------------------------------------------------------------


@pytest.fixture
def network() -> Iterator[Lab]:
    with Lab(ZONES) as made:
        yield made


@pytest.fixture
def scripted(network: Lab) -> Iterator[Scripted]:
    with Scripted(listener=network.new_socket) as made:
        yield made


def test_every_stage(start: Start, network: Lab, scripted: Scripted) -> None:
    at = [word for stage in STAGES for word in ("--at", stage)]
    server = start(filters={"policy": policy(scripted.name, *at)}, lab=network)

    assert attempt(server, GOOD6, recipients=[ALICE, BOB]).stage == ""
    states = ["CONNECT", "EHLO", "MAIL", "RCPT", "RCPT", "DATA", "END-OF-MESSAGE"]
    assert [each["protocol_state"] for each in scripted.seen] == states
    end = scripted.seen[-1]
    assert (end["client_address"], end["client_name"]) == (GOOD6, "mail.good.example")
    assert (end["sender"], end["recipient"], end["recipient_count"]) == (SENDER, "", "2")
    assert int(end["size"]) > len(MESSAGE)
    assert re.fullmatch(r"[0-9a-f]{8}", end["queue_id"])
    assert len({each["instance"] for each in scripted.seen[2:]}) == 1

    # Over TLS, as a user who isn't exempt.
    scripted.requests.clear()
    assert attempt(server, GOOD, user="alice").stage == ""
    assert [each["protocol_state"] for each in scripted.seen] == ["CONNECT", "EHLO", "EHLO"]
    assert scripted.seen[-1]["encryption_protocol"].startswith("TLS")
    assert server.alive()


def test_every_action(start: Start, network: Lab, scripted: Scripted) -> None:
    said: dict[str, str] = {}
    scripted.script = lambda request: action(said.get(request["protocol_state"], "DUNNO"))
    at = [word for stage in STAGES[2:] for word in ("--at", stage)]
    flags = (*at, "--on-error", "tempfail", "--action", "bcc=proceed")
    server = start(filters={"policy": policy(scripted.name, *flags)}, lab=network)

    for state, stage in {
        "MAIL": "MAIL",
        "RCPT": "RCPT",
        "DATA": "DATA",
        "END-OF-MESSAGE": ".",
    }.items():
        for text, reply in {
            "REJECT": "554 5.7.1 Access denied",
            "REJECT 5.1.1 no such user": "554 5.1.1 no such user",
            "DEFER": "450 4.7.1 Try again later",
            "DEFER_IF_PERMIT 4.2.0 later": "450 4.2.0 later",
            "450 4.1.1 later": "450 4.1.1 later",
            "552 full \x07 \udcff": "552 5.7.1 full ? ?",
            "DISCARD": "554 5.7.1 Access denied",
            "421 4.7.0 enough": "421 4.7.0 enough",
            "521 5.7.0 go away": "521 5.7.0 go away",
            "FILTER smtp:[127.0.0.1]:25": "451 4.3.5 ",
            "permit_mynetworks": "451 4.3.5 ",
            "REJECT " + "x" * 15_000: "554 5.7.1 xxx",
        }.items():
            said = {state: text}
            outcome = attempt(server)
            assert outcome.stage == stage, (state, text, outcome)
            assert outcome.said.startswith(reply), (state, text, outcome)
            assert outcome.stayed is (outcome.code not in (421, 521))
        for text in ("OK", "dunno", "PERMIT", "1669852800", "WARN look", "INFO x",
                     "DEFER_IF_REJECT x", "BCC a@b"):  # fmt: skip
            said = {state: text}
            assert attempt(server).stage == "", (state, text)
        for text in ("HOLD", f"PREPEND X-{state.title()}: \x07 some text"):
            said = {state: text}
            assert attempt(server).stage == ""
            mail = server.maildir("alice")[-1]
            if text == "HOLD":
                assert mail.folder == "Junk"
            else:
                assert b"X-%b: some text\n" % state.title().encode() in mail.content
    said = {"RCPT": f"REDIRECT {BOB}"}
    before = len(server.maildir("bob"))
    assert attempt(server).stage == ""
    assert len(server.maildir("bob")) == before + 1
    logged(server, r"^policy: [0-9a-f]{16} policy rcpt-to action=WARN text=look", 1)
    assert server.alive()


@pytest.mark.parametrize("version", [system_version()], indirect=True)
def test_faults(start: Start, network: Lab, scripted: Scripted) -> None:
    flags = ("--timeout", str(brief(0.9)), "--deadline", "60s")
    server = start(filters={"policy": policy(scripted.name, *flags)}, lab=network)
    assert attempt(server).stage == ""
    for fault in (
        (b"", True),
        (b"action=DUN", True),
        b"",
        b"action=DUNNO\n",
        b"action=" + b"x" * (8 << 20),
        b"220 mail.example.org\r\n",
    ):
        scripted.script = lambda _, fault=fault: fault  # type: ignore[misc]
        outcome = attempt(server)
        assert (outcome.stage, outcome.code) == ("RCPT", 451), fault
        assert outcome.text.startswith("4.3.5 ")
    scripted.script = lambda _: action("DUNNO")
    assert attempt(server).stage == ""
    scripted.stop()
    assert attempt(server).said.startswith("451 4.3.5 ")
    scripted.start()
    assert attempt(server).stage == ""
    assert server.alive()


@pytest.mark.parametrize("version", [system_version()], indirect=True)
def test_a_server_that_breaks_off_under_load(
    start: Start, network: Lab, scripted: Scripted
) -> None:
    server = start(filters={"policy": policy(scripted.name, "--timeout", "20s")}, lab=network)
    seen = 0

    def script(_request: dict[str, str]) -> bytes | tuple[bytes, bool]:
        nonlocal seen
        seen += 1
        return (b"", True) if seen % 7 == 0 else action("PREPEND X-Asked: yes")

    def send(source: str) -> Outcome:
        return attempt(server, source)

    scripted.script = script
    outcomes = crowd(send, [{"source": source} for source in (GOOD, NAMELESS) * 25])
    assert {each.code for each in outcomes} <= {250, 451}
    accepted = [each for each in outcomes if each.code == 250]
    assert len(accepted) >= 40
    # None is accepted of which the server was not asked, and none is lost.
    mails = server.maildir("alice")
    assert len(mails) == len(accepted)
    assert all(b"X-Asked: yes\n" in mail.content for mail in mails)

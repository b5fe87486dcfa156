"""Paths that smtpd accepts, but doesn't report: no check is evaded with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import filter_command, scratch_path
from tests.e2e.sending import ALICE, attempt, refusal, transact
from tests.e2e.test_tls import secure

if TYPE_CHECKING:
    from tests.e2e.conftest import Spy, Start

DOMAIN = f"{'d' * 60}.{'d' * 60}.{'d' * 60}.example"
#: Its path has 256 octets with its brackets: the longest of RFC 5321, and the one after it.
LONGEST = f"{'l' * (253 - len(DOMAIN))}@{DOMAIN}"
LONG = f"l{LONGEST}"
#: What smtpd completes, but would report as it is; and what it takes for alice.
BARE, TAGGED = "l" * 255, f"alice+{'t' * 235}@local.example"


def test_what_smtpd_reports(start: Start, spy: Spy) -> None:
    """It reports paths of 254 octets, and accepts and delivers mail with longer ones."""
    server = start(filters={"spy": spy()})
    for sender in (LONGEST, LONG, BARE):
        assert attempt(server, sender=sender).code == 250
    assert attempt(server, recipients=(TAGGED,)).code == 250
    assert len(server.maildir("alice")) == 4
    for name, address in (("tx-mail", LONGEST), ("tx-rcpt", ALICE)):
        told = [line.rest.rpartition("|")[2] for line in spy.seen(server, name)]
        assert told.count(address) == (1 if name == "tx-mail" else 3)
        assert not [each for each in told if len(each) > 254]


@pytest.mark.parametrize("sender", [LONG, BARE])
def test_a_long_sender_evades_no_greylisting(start: Start, sender: str) -> None:
    greylist = filter_command(
        "greylist",
        "--store",
        f"sqlite:{scratch_path('greylist')}",
        "--store-timeout=30",
        "--on-error=proceed",
    )
    server = start(filters={"greylist": greylist})
    said = attempt(server, sender=sender)
    assert (said.stage, said.said) == (
        "RCPT",
        "451 4.1.7 The sender's path is too long, or not known yet",
    )
    assert attempt(server, sender=LONGEST).code == 451


def test_a_long_sender_needs_a_certificate(start: Start) -> None:
    tls = filter_command(
        "tls", f"--require=any certificate sender-domain={DOMAIN}", "--on-error=proceed"
    )
    server = start(filters={"tls": tls})
    assert secure(server, LONG).said == "501 5.1.7 Path too long"
    assert secure(server, BARE).said == "501 5.1.7 Path too long"
    assert secure(server, LONGEST).said.startswith("550 5.7.1 A verified client certificate")


def test_a_long_recipient_is_refused_alone(start: Start) -> None:
    rcpt = filter_command("rcpt", "--max-recipients=100", "--many-recipients=reject")
    server = start(filters={"rcpt": rcpt})
    with server.connection() as connection:
        assert connection.reply() is not None
        assert connection.command("EHLO client.example") is not None
        assert connection.command("MAIL FROM:<a@good.example>") is not None
        said = refusal(connection, "RCPT", connection.command(f"RCPT TO:<{TAGGED}>"))
        assert said is not None
        assert said.said == "501 5.1.3 Path too long"
        connection.command("RSET")
        assert transact(connection).code == 250

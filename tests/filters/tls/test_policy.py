from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from smtpd_filters import PROCEED, Filter, Headers, Proceed, Session
from smtpd_filters.filters.tls import Tls
from smtpd_filters.filters.tls.rules import REQUIREMENT
from smtpd_filters.testing import Conversation
from tests.filters.executables import answered, complaint, loaded_to_set_up, serve

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.testing import Client, Verdict

STRANGER = "192.0.2.1"
TLS13 = "TLSv1.3:TLS_AES_256_GCM_SHA384:256"
TLS12 = "TLSv1.2:ECDHE-RSA-AES128-GCM-SHA256:128"
OLD = "TLSv1:ECDHE-RSA-AES256-SHA:256"
PLAIN = ""


def come(smtpd: Conversation, tls: str, *, user: str = "", address: str = STRANGER) -> Client:
    """A client that has greeted, with STARTTLS unless it has none."""
    client = smtpd.connect(address=address)
    client.ehlo("mail.example.net")
    if tls:
        client.tls(tls)
        if client.ehlo("mail.example.net").refused:
            return client
    if user:
        client.auth(user, "secret")
    return client


def summary(smtpd: Conversation) -> str:
    """The summary of what has come so far."""
    smtpd.advance(3601)
    come(smtpd, TLS13, address="192.0.2.250").mail_from("a@b.example")
    return next(line for line in smtpd.log[::-1] if line.startswith("tls summary "))


def verdict(
    rule: str, tls: str, sender: str = "a@b.example", recipient: str = "", user: str = ""
) -> Verdict:
    """The verdict on a message at MAIL, or at RCPT if it has a recipient."""
    with Conversation(Tls, "--require", rule) as smtpd:
        client = come(smtpd, tls, user=user)
        said = client.mail_from(sender)
        return client.rcpt_to(recipient) if recipient and not said.refused else said


def test_without_tls() -> None:
    said = verdict("1.2", PLAIN)
    assert said.reply == "530 5.7.0 TLS 1.2 or later is required here: issue STARTTLS first"
    assert verdict("any", PLAIN).reply == "530 5.7.0 TLS is required here: issue STARTTLS first"
    assert verdict("any action=tempfail", PLAIN).reply.startswith("450 4.7.0 TLS is required here")
    assert not verdict("any", TLS12).refused


def test_an_old_version_is_refused_before_the_password() -> None:
    with Conversation(
        Tls, "--require=1.2 forward-secrecy", "--info=See https://x.example"
    ) as smtpd:
        client = smtpd.connect(address=STRANGER)
        assert not client.ehlo("mail.example.net").refused  # it may still issue STARTTLS
        client.tls(OLD)
        refused = [client.ehlo("mail.example.net"), client.helo("mail.example.net")]
        text = (
            "550 5.7.1 TLS 1.2 or later with forward secrecy is required here, not TLSv1: update "
            "your mail server's TLS library or its settings. See https://x.example"
        )
        assert [said.reply for said in refused] == [text, text]
        line = summary(smtpd)
    assert 'reason="TLSv1, required is 1.2 forward-secrecy"' in smtpd.log[0]
    assert " messages=1 " in line  # a client that tries twice is counted once
    assert " failing=1 " in line


def test_implicit_tls() -> None:
    with Conversation(Tls, "--require", "1.2") as smtpd:
        assert not smtpd.connect(address=STRANGER, tls=TLS13).ehlo("x.example").refused
        assert smtpd.connect(address=STRANGER, tls=OLD).ehlo("x.example").refused


def test_senders() -> None:
    rule = "1.2 sender-domain={ bank.example, *.bank.example }"
    said = verdict(rule, OLD, "joe@bank.example")
    assert said.phase == "mail-from"
    assert said.reply.startswith(
        "550 5.7.1 TLS 1.2 or later is required for this sender, not TLSv1"
    )
    assert verdict(rule, PLAIN, "joe@a.bank.example").reply.startswith("530 5.7.0 ")
    assert not verdict(rule, TLS12, "joe@bank.example").refused
    assert not verdict(rule, PLAIN, "joe@other.example").refused
    assert not verdict(rule, PLAIN, "").refused


def test_an_address_without_a_domain_is_one_of_the_server() -> None:
    assert verdict("any sender=@mx.example.org", PLAIN, "root").refused


def test_recipients() -> None:
    rule = "1.3 recipient=board@example.org"
    refused = verdict(rule, TLS12, recipient="board@example.org")
    assert refused.phase == "rcpt-to"
    assert refused.reply.startswith("550 5.7.1 TLS 1.3 or later is required for this recipient")
    assert not verdict(rule, TLS12, recipient="joe@example.org").refused
    assert not verdict(rule, TLS13, recipient="board+tag@example.org").refused
    assert verdict(rule, TLS12, recipient="<@relay.example:board@example.org>"[1:-1]).refused


def test_users() -> None:
    assert not verdict("1.3 authenticated", TLS12).refused
    assert "for this user" in verdict("1.3 authenticated", TLS12, user="joe").reply
    assert verdict("1.3 user={ ann, joe }", TLS12, user="joe").refused
    assert not verdict("1.3 user=ann", TLS12, user="joe").refused


def test_the_strictest_counts() -> None:
    with Conversation(
        Tls, "--require=any action=log", "--require=1.2 sender=@b.example action=tempfail",
        "--require=1.3 client=192.0.2.0/24 action=junk",
    ) as smtpd:  # fmt: skip
        assert come(smtpd, PLAIN).mail_from("a@b.example").reply.startswith("450 4.7.0 TLS 1.2")
        marked = come(smtpd, TLS12)
        assert not marked.mail_from("a@c.example").refused
        marked.rcpt_to("b@example.org")
        assert marked.data().verb == "junk"
        assert come(smtpd, TLS13).mail_from("a@b.example").verb == "proceed"
    assert "no TLS, required is any action=log; no TLS, required is 1.2" in smtpd.log[0]


def test_log_only() -> None:
    with Conversation(Tls, "--require", "any", "--action", "log") as smtpd:
        client = come(smtpd, PLAIN)
        assert client.mail_from("a@b.example").verb == "proceed"
        line = summary(smtpd)
    assert 'reason="no TLS, required is any"' in smtpd.log[0]
    assert "messages=1" in line
    assert "failing=1" in line


def test_each_message_of_a_session_is_counted() -> None:
    with Conversation(Tls, "--require=any recipient=b@example.org action=log") as smtpd:
        client = come(smtpd, PLAIN)
        for _ in range(2):
            client.mail_from("a@b.example")
            for _ in range(2):
                client.rcpt_to("b@example.org")
            client.rset()
        line = summary(smtpd)
    assert " messages=2 " in line
    assert " failing=2 " in line


def test_exempt_clients() -> None:
    with Conversation(Tls, "--require", "any", "--exempt", "192.0.2.128/25") as smtpd:
        assert not come(smtpd, PLAIN, address="192.0.2.200").mail_from("a@b.example").refused
        assert not come(smtpd, PLAIN, address="127.0.0.1").mail_from("a@b.example").refused
        assert come(smtpd, PLAIN, address="192.0.2.1").mail_from("a@b.example").refused
        line = summary(smtpd)
    assert "messages=1 " in line
    assert "exempt=2" in line


@pytest.mark.parametrize("address", ["192.0.2.200", STRANGER])
def test_exempt_clients_need_no_encryption_for_a_recipient_either(address: str) -> None:
    rules = "--require=1.3 recipient=board@example.org", "--require=any certificate"
    with Conversation(Tls, *rules, "--action=junk", "--exempt=192.0.2.128/25") as smtpd:
        client = come(smtpd, TLS12, address=address)
        said = [client.mail_from("a@b.example"), client.rcpt_to("board@example.org")]
        headers = client.message().headers
        exempt = address != STRANGER
        assert [each.verb for each in said] == ["proceed", "proceed" if exempt else "junk"]
        assert headers.get("X-Spam") == (None if exempt else "Yes")
        assert summary(smtpd).count(" failing=0 exempt=1 ") == exempt


def test_exempt_users_are_not_refused_before_they_authenticate() -> None:
    flags = "--require=1.2", "--exempt=authenticated"
    with Conversation(Tls, *flags) as smtpd:
        assert not come(smtpd, OLD, user="joe").mail_from("a@b.example").refused
        assert come(smtpd, OLD).mail_from("a@b.example").refused


@pytest.mark.parametrize("verified", [True, False])
def test_certificates(*, verified: bool) -> None:
    with Conversation(Tls, "--require", "any certificate sender=@b.example") as smtpd:
        client = smtpd.connect(address=STRANGER)
        client.ehlo("mail.example.net")
        client.tls(TLS13, verified=verified)
        client.ehlo("mail.example.net")
        assert not client.mail_from("a@b.example").refused
        client.rcpt_to("b@example.org")
        said = client.message(b"Subject: x\r\n\r\nx\r\n")
        text = "550 5.7.1 A verified client certificate is required for this sender"
        assert said.reply == ("" if verified else text)


def test_a_field_of_the_client_is_no_certificate() -> None:
    """If a filter ahead has removed smtpd's own field, nobody knows."""
    forged = f"Received: by x (OpenSMTPD) with ESMTPS id 00000000 ({TLS13}:YES); x\r\n\r\nx\r\n"

    class Remover(Filter):
        def headers(self, _session: Session, headers: Headers) -> Proceed:
            headers.remove("Received", 1)
            return PROCEED

    chain = [Remover(), Tls(Tls.Options(require=REQUIREMENT.parse("any certificate")))]
    with Conversation(chain) as smtpd:
        client = come(smtpd, TLS13)
        client.mail_from("a@b.example")
        client.rcpt_to("b@example.org")
        assert client.message(forged.encode()).reply.startswith("451 ")
    assert "Received field is not the first" in smtpd.log[0]


def test_mail_without_a_certificate_from_others_passes() -> None:
    with Conversation(Tls, "--require", "any certificate sender=@b.example") as smtpd:
        client = come(smtpd, TLS13)
        client.mail_from("a@c.example")
        client.rcpt_to("b@example.org")
        assert not client.message(b"Subject: x\r\n\r\nx\r\n").refused
        # Without TLS there can't be a certificate.
        assert come(smtpd, PLAIN).mail_from("a@b.example").reply.startswith("530 ")


def test_shares_are_logged_after_the_interval() -> None:
    with Conversation(Tls, "--summary", "1h") as smtpd:
        for tls in (PLAIN, TLS12, TLS13, TLS13):
            come(smtpd, tls).mail_from("a@b.example")
        assert smtpd.log == []
        smtpd.advance(3601)
        come(smtpd, PLAIN).mail_from("a@b.example")
        [line] = smtpd.log
        assert line.startswith(
            'tls summary messages=4 shares="plain 25.0%, TLSv1.2 25.0%, TLSv1.3 50.0%" plain=1 '
            "TLSv1.2=1 TLSv1.3=2 users=0 failing=0 exempt=0 hours=1.0"
        )
        assert "messages=1 " in summary(smtpd)


def test_what_is_not_known_is_a_failure() -> None:
    """A client whose connection was not reported isn't one without TLS."""
    clients = [("||", "mail-from", "a@b.example")]
    answers, log = serve("tls", "--require=any", clients=clients)
    assert answers == [answered(0, "reject|451 4.3.0 Temporary failure, please try again later")]
    assert "the client's address is not known" in log


def test_tables_are_reloaded(tmp_path: Path) -> None:
    table = tmp_path / "banks"
    table.write_text("@bank.example\n")
    with Conversation(Tls, "--require", f"any sender=file:{table}") as smtpd:
        assert come(smtpd, PLAIN).mail_from("a@bank.example").refused
        assert not come(smtpd, PLAIN).mail_from("a@other.example").refused
        table.write_text("@other.example\n")
        smtpd.reload()
        assert come(smtpd, PLAIN).mail_from("a@other.example").refused
        assert not come(smtpd, PLAIN).mail_from("a@bank.example").refused


def test_a_table_in_a_database(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db")) as connection:
        connection.execute("CREATE TABLE partners (domain TEXT)")
        connection.execute("INSERT INTO partners VALUES ('bank.example')")
        connection.commit()
    query = "SELECT domain FROM partners"
    rule = f"any sender-domain='sqlite:{tmp_path}/db?list={query}'"
    with Conversation(Tls, "--require", rule) as smtpd:
        assert come(smtpd, PLAIN).mail_from("a@bank.example").refused
        assert not come(smtpd, PLAIN).mail_from("a@other.example").refused


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--require=1.2", "--require=1.2"], "there twice"),
        (["--action=junk"], "--action has no effect"),
        (["--require=1.2 action=log", "--action=junk"], "--action has no effect"),
        (["--require=1.2 action=log", "--info=x"], "--info has no effect"),
        (["--require=1.2", "--info=ü"], "--info: expected at most"),
        (["--require=1.5"], "--require: begins with any"),
        (["--require=1.2 sender=file:/nonexistent/x"], "--require: sender: "),
    ],
)
def test_wrong_flags(flags: list[str], reason: str) -> None:
    assert reason in complaint("tls", *flags)


def test_it_needs_no_event_loop() -> None:
    assert "asyncio" not in loaded_to_set_up(Tls, "--require=1.2 sender=@b.example")

"""filter-rewrite under real servers: what is delivered of addresses, tags and subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.testing.server import file_path, filter_command
from tests.e2e.sending import ALICE, GOOD, content_of, greeted, logged, transact

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

#: The table of Postfix for machines without a domain of their own, and the flag for it.
FILES = {"canonical": "/(.*)@(.*)\\.domainelocal/    ${1}-${2}.domainelocal@example.org\n"}
CANONICAL = f"canonical=regexp:{file_path('canonical')}"
ROOT, CANONICAL_ROOT = "root@serveur.domainelocal", "root-serveur.domainelocal@example.org"
MAIL = (
    b"From: Cron <root@serveur.domainelocal>\r\nTo: alice, Bob <bob@pc.local.example>\r\n"
    b"Subject: =?utf-8?q?f=C3=BCr?= Sie\r\nX-Note: root@serveur.domainelocal\r\n\r\nhello\r\n"
)


def send(server: Smtpd, sender: str, recipient: str = ALICE, source: str = GOOD) -> str:
    with server.connection(source) as connection:
        return transact(greeted(connection), sender, [recipient], MAIL).said


def test_a_sender_without_a_domain_of_its_own(start: Start) -> None:
    """Only the envelope changes, and only of whole addresses."""
    command = filter_command("rewrite", f"--sender-{CANONICAL}", "--where=envelope")
    server = start(filters={"rewrite": command}, files=FILES)
    for sender in (ROOT, f"{ROOT}.good.example", ""):
        assert send(server, sender).startswith("250 ")
    first, second, bounce = server.maildir("alice")
    assert first.content.startswith(b"Return-Path: <" + CANONICAL_ROOT.encode() + b">\n")
    assert second.content.startswith(b"Return-Path: <root@serveur.domainelocal.good.example>\n")
    assert b"Return-Path:" not in bounce.content
    assert b"From: Cron <root@serveur.domainelocal>\n" in first.content
    logged(server, f'rewrite mail-from result=rewrite reason="{ROOT} -> {CANONICAL_ROOT}"', 1)


def test_header_and_masquerade(start: Start) -> None:
    """A client on this machine; smtpd would complete `alice` with the name that is masqueraded."""
    command = filter_command(
        "rewrite", f"--{CANONICAL}", "--masquerade=local.example",
        "--subject-prefix=[Système]",
    )  # fmt: skip
    server = start(filters={"rewrite": command}, files=FILES)
    assert send(server, ROOT, source="127.0.0.1").startswith("250 ")
    [mail] = server.maildir("alice")
    lines = content_of(mail.content).split(b"\n")
    assert lines[0] == b"From: Cron <root-serveur.domainelocal@example.org>"
    assert lines[1] == b"To: alice@local.example, Bob <bob@local.example>"
    assert lines[2].startswith(b"Subject: =?utf-8?B?")
    assert lines[2].endswith(b"?= =?utf-8?q?f=C3=BCr?= Sie")
    assert lines[3] == b"X-Note: root@serveur.domainelocal"


def test_tags_and_parameters(start: Start) -> None:
    """`alice-list` is `alice+list` to smtpd; the parameters of RCPT reach it."""
    command = filter_command(
        "rewrite", "--tags=plus", "--tag-delimiters=+-", "--mailboxes={ alice@local.example }",
        "--tag-field=X-Folder",
    )  # fmt: skip
    server = start(filters={"rewrite": command})
    assert send(server, "a@good.example", "alice-list@local.example").startswith("250 ")
    assert send(server, "a@good.example", "bob-list@local.example").startswith("550 ")
    [mail] = server.maildir("alice")
    assert b"\nX-Folder: list\n" in mail.content
    assert b"Delivered-To: alice+list@local.example\n" in mail.content
    with server.connection(GOOD) as connection:
        greeted(connection)
        for command, code in (
            ("MAIL FROM:<a@good.example> RET=HDRS", 250),
            ("RCPT TO:<alice-x@local.example> NOTIFY=NEVER", 250),
            # smtpd gets the parameters, and so can refuse them.
            ("RCPT TO:<alice-x@local.example> MORE=1", 503),
            ("RCPT TO:<alice@local.example> MORE=1", 503),
        ):
            reply = connection.command(command)
            assert reply is not None
            assert (command, reply.code // 100) == (command, code // 100), reply


def test_no_filter_behind_it_is_asked_about_a_replaced_address(start: Start) -> None:
    """As its manual and `smtpd-filters check` say: filters that check addresses come first."""
    rewrite = filter_command("rewrite", f"--sender-{CANONICAL}", "--where=envelope")
    server = start(
        filters={"rewrite": rewrite, "tls": filter_command("tls", "--require=any")}, files=FILES
    )
    assert send(server, "a@good.example").startswith("530 5.7.0 TLS is required")
    assert send(server, ROOT).startswith("250 ")

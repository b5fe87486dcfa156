"""filter-tls under real servers: who must use which TLS, and with which certificate."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from smtpd_filters.testing.server import Connection, filter_command
from smtpd_filters.testing.server.credentials import certificate
from tests.e2e.sending import GOOD, NAMELESS, Outcome, attempt, greeted, logged, refusal, transact

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

BANK, OTHER = "joe@bank.example", "joe@good.example"
SMTPS = 465
LISTENERS = f"""\
listen on socket
listen on 127.0.0.1 port 25 $tls auth-optional <credentials> $filter
listen on 127.0.0.1 port {SMTPS} smtps pki lab $filter
"""


def secure(
    server: Smtpd, sender: str, *, port: int = 25, context: ssl.SSLContext | None = None
) -> Outcome:
    """Send a message over STARTTLS, or over TLS from the beginning."""
    tls = context or server.tls
    raw = server.lab.connect(port, source=GOOD, timeout=60)
    if port == SMTPS:
        raw = tls.wrap_socket(raw, server_hostname="client.example")
    with Connection(raw, tls) as connection:
        if port == SMTPS:
            assert connection.reply() is not None
        else:
            greeted(connection)
            assert connection.starttls() is not None
        hello = "EHLO client.example"
        refused = refusal(connection, hello, connection.command(hello))
        return refused or transact(connection, sender)


def test_who_must_use_tls(start: Start) -> None:
    command = filter_command(
        "tls", "--require=1.2 bits=128 forward-secrecy sender-domain=bank.example",
        "--require=1.3 client=192.0.2.6 sender=@ action=junk", "--require=any action=log",
    )  # fmt: skip
    server = start(filters={"tls": command}, listeners=LISTENERS)
    refused = attempt(server, sender=BANK)
    assert refused.said == (
        "530 5.7.0 TLS 1.2 or later with a key of 128 bits and forward secrecy is required for "
        "this sender: issue STARTTLS first"
    )
    assert (refused.stage, refused.stayed) == ("MAIL", True)
    assert secure(server, BANK).code == 250
    assert secure(server, BANK, port=SMTPS).code == 250
    assert attempt(server, sender=OTHER).code == 250
    assert attempt(server, NAMELESS, sender=OTHER).code == 250
    logged(server, 'tls mail-from result=proceed reason="no TLS, required is any action=log"', 1)
    assert [mail.folder for mail in server.maildir("alice")] == ["", "", "", "Junk"]


def test_an_old_version_is_refused_before_the_password(start: Start) -> None:
    """The ciphers of 6.8 are anonymous and end with TLS 1.2."""
    command = filter_command("tls", "--require=1.3", "--info=See https://www.local.example/tls")
    server = start(filters={"tls": command}, listeners=LISTENERS)
    if server.version != "6.8":
        assert secure(server, OTHER).code == 250
    context = server.tls
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for port in (25, SMTPS):
        refused = secure(server, OTHER, port=port, context=context)
        assert refused.stage == "EHLO"
        assert refused.said == (
            "550 5.7.1 TLS 1.3 or later is required here, not TLSv1.2: update your mail server's "
            "TLS library or its settings. See https://www.local.example/tls"
        )
    assert attempt(server, user="alice").stage == "EHLO"


def test_certificates(start: Start, tmp_path: Path, version: str) -> None:
    """A listener with `verify` is the only one on which smtpd asks for a certificate."""
    old = version == "6.8"  # it has no certificates with OpenSSL 3
    verifying = "listen on 127.0.0.1 port 2525 tls-require verify pki lab ca lab $filter\n"
    server = start(
        filters={"tls": filter_command("tls", "--require=any certificate sender=@bank.example")},
        declarations='ca lab cert "/srv/lab/certificate.pem"',
        listeners="listen on socket\nlisten on 127.0.0.1 port 25 $tls $filter\n"
        + ("" if old else verifying),
    )
    for name, pem in zip(("certificate", "key"), certificate(), strict=True):
        (tmp_path / name).write_text(pem)
    context = server.tls
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    if not old:
        assert secure(server, BANK, port=2525).code == 250
    refused = secure(server, BANK)  # not asked for it
    assert (refused.stage, refused.said) == (
        ".", "550 5.7.1 A verified client certificate is required for this sender"
    )  # fmt: skip
    assert secure(server, OTHER).code == 250
    assert attempt(server, sender=BANK).code == 530

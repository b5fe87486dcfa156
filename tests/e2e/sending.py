"""The senders of the end-to-end tests: attempts from chosen addresses, and their results."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.testing.dns import host, merge
from smtpd_filters.testing.server import CODE, password, script_command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from smtpd_filters.testing.server import Connection, Reply, Smtpd

ALICE = "alice@local.example"
BOB = "bob@local.example"
SENDER = "someone@good.example"
#: Seconds to send a message, and for each reply: several clients may send 35 MB at once.
PATIENCE = 300
MESSAGE = b"From: someone@good.example\r\nSubject: hello\r\n\r\nhello\r\n"

GOOD, GOOD6 = "192.0.2.9", "2001:db8::9"
DYNAMIC, DYNAMIC6 = "192.0.2.8", "2001:db8::8"
LIAR, LIAR6 = "192.0.2.7", "2001:db8::7"
NAMELESS, NAMELESS6 = "192.0.2.6", "2001:db8::6"
BROKEN = "192.0.2.5"  # its DNS fails
ZONE = merge(
    host("mail.good.example", GOOD, GOOD6, "127.0.0.1", "::1"),
    host("192-0-2-8.dyn.example", DYNAMIC),
    host("2001-db8-0-0-0-0-0-8.dyn.example", DYNAMIC6),
    {
        "7.2.0.192.in-addr.arpa": {"PTR": "liar.example"},
        f"7.{'0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa": {"PTR": "liar.example"},
        "liar.example": {"A": "192.0.2.99", "AAAA": "2001:db8::99"},
        "5.2.0.192.in-addr.arpa": {"servfail": True},
    },
)


class Outcome(NamedTuple):
    """How a client fared: the command that was refused ("" for none) and the reply to it.

    `stayed` says whether the connection was still there afterwards.
    """

    stage: str
    code: int
    text: str
    stayed: bool

    @property
    def said(self) -> str:
        """The reply as it stood on the wire."""
        return f"{self.code} {self.text}"


def attempt(  # noqa: PLR0913  # keyword-only, each with a default
    server: Smtpd,
    source: str = GOOD,
    *,
    sender: str = SENDER,
    recipients: Sequence[str] = (ALICE,),
    message: bytes = MESSAGE,
    user: str | None = None,
    helo: str = "EHLO client.example",
) -> Outcome:
    """Send a message as far as the server lets us; as `user` over STARTTLS and AUTH."""
    with server.connection(source, timeout=PATIENCE) as connection:
        outcome = _greet(connection, connection.reply(), helo)
        if outcome is None and user is not None:
            outcome = _log_in(connection, user, helo)
        return outcome or transact(connection, sender, recipients, message)


def crowd(send: Callable[..., Outcome], clients: Iterable[Mapping[str, Any]]) -> list[Outcome]:
    """Let clients come at once, each with its arguments of `send`; return how they fared."""
    with ThreadPoolExecutor(50) as pool:
        futures = [pool.submit(send, **client) for client in clients]
        return [future.result() for future in futures]


def is_release(server: Smtpd, *numbers: int) -> bool:
    """Return whether the server is this release of OpenSMTPD or a later one."""
    return tuple(map(int, server.version.split("."))) >= numbers


def greeted(connection: Connection) -> Connection:
    """Take the server's banner, and greet it."""
    assert connection.reply() is not None
    assert connection.command("EHLO client.example") is not None
    return connection


def transact(
    connection: Connection,
    sender: str = SENDER,
    recipients: Sequence[str] = (ALICE,),
    message: bytes = MESSAGE,
) -> Outcome:
    """Send a message on a connection that has been greeted."""
    commands = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>" for each in recipients), "DATA"]
    for command in commands:
        if refused := refusal(connection, command, connection.command(command)):
            return refused
    connection.send(stuffed(message))
    reply = connection.command(b".")
    return refusal(connection, ".", reply) or accepted(reply)


def stuffed(message: bytes) -> bytes:
    """Double the dots at the beginning of lines: RFC 5321 section 4.5.2."""
    return b"".join(b"." + line if line.startswith(b".") else line for line in _lines(message))


def _lines(message: bytes) -> list[bytes]:
    # Not splitlines(), for which a CR alone ends a line.
    return [line + b"\n" for line in message.split(b"\n")[:-1]]


def accepted(reply: Reply | None) -> Outcome:
    """Say that all went well."""
    assert reply is not None
    return Outcome("", reply.code, reply.text, stayed=True)


def refusal(connection: Connection, command: str, reply: Reply | None) -> Outcome | None:
    """Say what was refused, and whether the server still listens; None if nothing was."""
    if reply is not None and reply.code < 400:
        return None
    stage = command.partition(" ")[0]
    if reply is None:
        return Outcome(stage, 0, "", stayed=False)
    return Outcome(stage, reply.code, reply.text, connection.command("RSET") is not None)


def _greet(connection: Connection, banner: Reply | None, helo: str) -> Outcome | None:
    return refusal(connection, "connect", banner) or refusal(
        connection, helo, connection.command(helo)
    )


def _log_in(connection: Connection, user: str, helo: str) -> Outcome | None:
    secret = base64.b64encode(f"\0{user}\0{password(user)}".encode()).decode()
    return (
        refusal(connection, "STARTTLS", connection.starttls())
        or refusal(connection, helo, connection.command(helo))
        or refusal(connection, "AUTH", connection.command(f"AUTH PLAIN {secret}"))
    )


def folders(server: Smtpd, user: str = "alice") -> list[str]:
    """Return the folder of each message that a user has got ("" or "Junk"), oldest first."""
    return [mail.folder for mail in server.maildir(user)]


def local(message: bytes) -> bytes:
    """Return a message as it is delivered: line ends are LF."""
    return message.replace(b"\r\n", b"\n")


def content_of(delivered: bytes) -> bytes:
    """Return a delivered message without the fields that smtpd puts at its top."""
    lines = delivered.split(b"\n")
    at = 0
    for name in (b"Return-Path:", b"Delivered-To:", b"Received:"):
        assert lines[at].startswith(name), lines[: at + 1]
        at += 1
        while lines[at].startswith((b" ", b"\t")):
            at += 1
    return b"\n".join(lines[at:])


def logged(server: Smtpd, pattern: str, count: int) -> list[str]:
    """Return the lines of the log in which a regular expression is found; wait for so many.

    A filter's log takes another way to smtpd than its answer, and may arrive later.
    """
    since = 0
    for _ in range(count):
        server.wait_for(pattern, since=since)
        since += 1 + next(
            at for at, line in enumerate(server.log[since:]) if re.search(pattern, line)
        )
    return [line for line in server.log if re.search(pattern, line)]


def policy(name: str, *arguments: str) -> str:
    """Return the command line of one of `policies`."""
    return script_command(f"{CODE}/tests/e2e/policies.py", name, *arguments)

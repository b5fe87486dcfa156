"""Filters that refuse at `auth` under real servers: no password gets into the log."""

from __future__ import annotations

import base64
import shlex
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import (
    CODE,
    filter_command,
    password,
    scratch_path,
    script_command,
)
from tests.e2e.sending import ALICE, GOOD, MESSAGE, SENDER, greeted, logged

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Connection, Smtpd
    from tests.e2e.conftest import Spy, Start

RIGHT = base64.b64encode(f"\0alice\0{password('alice')}".encode()).decode()
WRONG = base64.b64encode(b"\0alice\0wrong").decode()
REFUSED = "501 5.5.2 Syntax error: Syntax error"
ECHO = shlex.split(script_command(f"{CODE}/tests/e2e/spy_filter.py", scratch_path("echo")))


def says(connection: Connection, line: str) -> str:
    """Return the reply to a command, or "" if the connection is closed."""
    reply = connection.command(line)
    return "" if reply is None else f"{reply.code} {reply.text}"


def secured(connection: Connection) -> None:
    greeted(connection)
    assert connection.starttls() is not None
    assert connection.command("EHLO client.example") is not None


def check_log(server: Smtpd) -> None:
    """No credential was logged, and smtpd has masked the refused commands."""
    server.terminate()
    for secret in (RIGHT, WRONG, password("alice")):
        assert not [line for line in server.log if secret in line]
    assert [line for line in server.log if 'command="AUTH PLAIN (...)" result="501' in line]


@pytest.mark.parametrize("flags", [(), ("--supervised",)], ids=["", "supervised"])
def test_the_right_password_after_wrong_ones(
    start: Start, spy: Spy, flags: tuple[str, ...]
) -> None:
    limit = "--limit=client failed-auth 2/10m action=block"
    command = filter_command("limit", limit, "--store=memory:", *flags)
    server = start(filters={"limit": command, "spy": spy()})
    with server.connection(GOOD) as connection:
        secured(connection)
        for _ in range(2):
            assert says(connection, f"AUTH PLAIN {WRONG}").startswith("535 ")
        for _ in range(2):
            assert says(connection, f"AUTH PLAIN {RIGHT}") == REFUSED
        assert says(connection, "NOOP").startswith("421 4.7.0 Too many failed authentications")
        assert says(connection, "NOOP") == ""
    with server.connection(GOOD) as connection:
        secured(connection)
        assert says(connection, f"AUTH PLAIN {RIGHT}") == REFUSED
        # It is blocked, which a command without credentials says at once.
        assert says(connection, "AUTH LOGIN").startswith("450 4.7.1 ")
        assert says(connection, f"AUTH PLAIN {RIGHT}") == REFUSED
        assert says(connection, f"MAIL FROM:<{SENDER}>").startswith("450 4.7.1 ")
    check_log(server)
    failures = [each.rest for each in spy.seen(server, "link-auth")]
    assert len(failures) == 2, failures


def test_a_policy_that_fails(start: Start) -> None:
    hostile = script_command(
        f"{CODE}/tests/hostile_filter.py",
        *("--mode", "raise", "--on-error", "tempfail", "--phase", "auth"),
    )
    server = start(filters={"hostile": hostile})
    with server.connection() as connection:
        secured(connection)
        assert says(connection, f"AUTH PLAIN {RIGHT}") == REFUSED
        assert says(connection, f"MAIL FROM:<{SENDER}>") == "454 4.7.0 Temporary failure"
        assert says(connection, f"MAIL FROM:<{SENDER}>").startswith("250 ")
    check_log(server)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("auth=reject|550 5.7.1 No", "550 5.7.1 No"),
        ("auth=disconnect|421 4.7.0 Go", "421 4.7.0 Go"),
        ("auth=rewrite|X Y", "250 2.0.0 Ok"),
        ("exit@auth", "454 4.7.0 Temporary failure"),
    ],
)
def test_a_foreign_program(start: Start, answer: str, reply: str) -> None:
    command = filter_command("supervise", *ECHO, answer)
    server = start(filters={"foreign": command})
    with server.connection() as connection:
        secured(connection)
        assert says(connection, f"AUTH PLAIN {RIGHT}") == REFUSED
        assert says(connection, f"MAIL FROM:<{SENDER}>") == reply
        if reply[0] != "4":
            # Nothing is left of the refusal, nor is the client authenticated.
            says(connection, f"MAIL FROM:<{SENDER}>")
            assert says(connection, "RCPT TO:<x@elsewhere.example>").startswith("550 ")
    check_log(server)


def test_a_client_without_credentials_is_refused_at_once(start: Start) -> None:
    command = filter_command("supervise", *ECHO, "auth=reject|550 5.7.1 No")
    server = start(filters={"foreign": command})
    with server.connection() as connection:
        secured(connection)
        assert says(connection, "AUTH LOGIN") == "550 5.7.1 No"
        assert says(connection, "AUTH PLAIN") == "550 5.7.1 No"
        assert says(connection, f"MAIL FROM:<{SENDER}>").startswith("250 ")
        assert says(connection, f"RCPT TO:<{ALICE}>").startswith("250 ")
        assert says(connection, "DATA").startswith("354 ")
        connection.send(MESSAGE)
        assert says(connection, ".").startswith("250 ")
    logged(server, 'command="AUTH LOGIN" result="550 5.7.1 No"', 1)

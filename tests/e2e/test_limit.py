"""filter-limit under real servers: users, connections and passwords, with a store in a file."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.testing.server import filter_command, scratch_path
from tests.e2e.sending import ALICE, GOOD, GOOD6, NAMELESS, attempt, greeted, logged
from tests.filters.limit.limiting import limits, serving
from tests.needed import need

if TYPE_CHECKING:
    from smtpd_filters.testing.server import Connection
    from tests.e2e.conftest import Start

LIMITS = (
    "user messages 2/1h action=block",
    "client connections 3",
    "client+user failed-auth 2/1h",
    "client refused-recipients 2/1h",
    "sender bytes 20k/1h",
)

#: The first write of a busy machine takes its time.
STORE = (f"--store=sqlite:{scratch_path('limits')}", "--store-timeout=30")


def guess(connection: Connection, user: str, secret: str) -> str:
    """Try a password; return the reply."""
    response = base64.b64encode(f"\0{user}\0{secret}".encode()).decode()
    reply = connection.command(f"AUTH PLAIN {response}")
    return "" if reply is None else f"{reply.code} {reply.text}"


def test_limits(start: Start) -> None:
    command = filter_command("limit", *(f"--limit={each}" for each in LIMITS), *STORE)
    server = start(filters={"limit": command})

    # A user, from wherever the mail comes.
    assert attempt(server, GOOD, user="alice").stage == ""
    assert attempt(server, GOOD6, user="alice", sender="other@good.example").stage == ""
    refused = attempt(server, NAMELESS, user="alice", sender="third@good.example")
    assert (refused.stage, refused.code) == ("MAIL", 450)
    assert refused.text == "4.7.1 Too many messages"  # it is blocked from now on
    logged(
        server, f'^limit: .* limit blocked address={NAMELESS} user=alice limit="user messages', 1
    )
    blocked = attempt(server, GOOD, user="alice", sender="third@good.example")
    assert blocked.said == "450 4.7.1 Sending is suspended, please contact the postmaster"
    assert attempt(server, GOOD, user="bob", sender="b@good.example").stage == ""

    # Connections at once.
    with server.connection(GOOD) as one, server.connection(GOOD) as two:
        greeted(one)
        greeted(two)
        with server.connection(GOOD) as three:
            greeted(three)
            assert attempt(server, GOOD).said == "421 4.7.0 Too many connections"
            assert attempt(server, NAMELESS, sender="n@good.example").stage == ""

    # Passwords.
    with server.connection(GOOD6) as connection:
        greeted(connection)
        assert connection.starttls() is not None
        assert connection.command("EHLO client.example") is not None
        assert guess(connection, "bob", "wrong").startswith("535 ")
        assert guess(connection, "bob", "wrong").startswith("535 ")
        assert guess(connection, "bob", "wrong").startswith("501 ")
        reply = connection.command("NOOP")
        assert reply is not None
        assert f"{reply.code} {reply.text}".startswith("421 4.7.0 Too many failed authentications")
        assert connection.command("NOOP") is None
    assert attempt(server, GOOD6, user="bob").stage == "AUTH"
    assert attempt(server, NAMELESS, user="bob", sender="c@good.example").stage == ""

    # Recipients that are unknown.
    for number in range(2):
        unknown = attempt(
            server, NAMELESS, sender="g@good.example", recipients=[f"x{number}@local.example"]
        )
        assert unknown.code == 550
    unknown = attempt(server, NAMELESS, sender="g@good.example", recipients=[ALICE])
    assert unknown.said.startswith("421 4.7.0 Too many invalid recipients")

    # Bytes.
    large = b"Subject: large\r\n\r\n" + b"x" * 70 + b"\r\n"
    sizes = [attempt(server, GOOD, message=large + (b"y" * 70 + b"\r\n") * n) for n in (100, 200)]
    assert [each.code for each in sizes] == [250, 452]
    assert attempt(server, GOOD, message=large + (b"y" * 70 + b"\r\n") * 500).code == 552
    assert len(server.maildir("alice")) == 6


#: The addresses that fail2ban finds in `breaches`, by its filter's mode.
BANNED = {
    "auth": {"192.0.2.1", "2001:db8::1"},
    "recipients": {"192.0.2.2"},
    "guesses": {"192.0.2.1", "2001:db8::1", "192.0.2.2"},
    "accounts": {"192.0.2.3"},
    "all": {"192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"},
}


def breaches() -> list[str]:
    """Return the log of a filter whose limits are exceeded in every way."""
    rules = limits(
        "client+user failed-auth 1/1h",
        "client refused-recipients 1/1h",
        "user messages 1/1h action=block",
        "client connections 2",
    )
    with serving(*rules, "-v") as server:
        # What a client says must not pass for the address of another.
        trap = 'address=192.0.2.66 limit="client failed-auth 1/1h"'
        for address in ("192.0.2.1", "2001:db8::1", "127.0.0.1"):
            for _ in range(2):
                server.client(address).auth(f"x breach {trap}", "x", ok=False)
        guessing = server.client("192.0.2.2")
        guessing.mail_from(f'"breach {trap}"@example.org')
        guessing.rcpt_to("guess@example.org", accepted=False)
        assert guessing.rcpt_to("guess@example.org").refused
        alice = server.client("192.0.2.3", "alice")
        for _ in range(2):
            server.send(alice)
        for _ in range(3):
            server.smtpd.connect(address="192.0.2.4")
        log = server.smtpd.log
    # Others have used up these limits, or may have: the last client is not to blame.
    for rule in ("all failed-auth 1/1h", "user failed-auth 1/1h", "network failed-auth 1/1h"):
        with serving(*limits(rule)) as server:
            for _ in range(2):
                server.client("192.0.2.5").auth("alice", "x", ok=False)
            log += server.smtpd.log
    return log


def test_fail2ban_finds_the_clients(tmp_path: Path) -> None:
    program = shutil.which("fail2ban-regex") or ""
    need(None if program else "fail2ban is not installed")
    log = tmp_path / "mail.log"
    lines = [f"limits: {line}" for line in breaches()]
    assert any("192.0.2.66" in line for line in lines)
    log.write_text("".join(f"Nov 30 18:44:14 mx smtpd[123]: {line}\n" for line in lines))
    configuration = Path(__file__).parents[2] / "docs" / "examples" / "fail2ban-filter.conf"
    for mode, expected in BANNED.items():
        done = subprocess.run(
            [program, "-o", "ip", str(log), f"{configuration}[mode={mode}]"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert set(done.stdout.split()) == expected, mode


def test_what_two_processes_count_is_one(start: Start) -> None:
    """Two filters with one file, and one of them killed, lose nothing."""
    flags = ("--limit=sender messages 4/1h", *STORE)
    server = start(
        filters={
            "one": filter_command("limit", *flags),
            "two": filter_command("limit", *flags, "--dry-run"),
        }
    )
    outcomes = [attempt(server, GOOD).code for _ in range(3)]
    assert outcomes == [250, 250, 450]

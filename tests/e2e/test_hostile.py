"""Tests of hostile policies under a real server: it stays up, and clients get their replies."""

from __future__ import annotations

import base64
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.handlers import CONTENT
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.testing.server import CODE, password, script_command
from tests.e2e.sending import (
    ALICE,
    MESSAGE,
    SENDER,
    content_of,
    folders,
    local,
)
from tests.e2e.test_credentials import REFUSED
from tests.hostile_filter import LEAK_BLOCKING_TASK, MODES, NEEDS_LOOP, PLACES, SLOW

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.testing.server import Reply, Smtpd
    from tests.e2e.conftest import Start

FIRST_PORT = 1001
SECRET = base64.b64encode(f"\0alice\0{password('alice')}".encode()).decode()
#: A session through every phase: what the client says, and which phase that is.
STEPS = (
    *(("noop", "NOOP"), ("starttls", "STARTTLS"), ("ehlo", "EHLO client.example")),
    *(("auth", f"AUTH PLAIN {SECRET}"), ("rset", "RSET"), ("mail-from", f"MAIL FROM:<{SENDER}>")),
    *(("rcpt-to", f"RCPT TO:<{ALICE}>"), ("data", "DATA"), ("commit", "."), ("quit", "QUIT")),
)
GROUP = 8
#: What becomes of the fields of "header-break".
TOP = b"X-Null: a b . .\n"
BOTTOM = b"X-Break: 1 X-Injected: 1  body .\n"
#: Of those that take their time at each phase, enough to see it.
SOME = ("connect", "mail-from", "message")


def command(mode: str, *flags: str, later: bool = False) -> str:
    script = f"{CODE}/tests/hostile_filter.py"
    manner = ("--mode", mode, *(["--async"] if later else []))
    # Short where it has to pass; where it must not, it doesn't on a busy machine.
    deadline = "0.2s" if mode in {*SLOW, LEAK_BLOCKING_TASK} else "30s"
    return script_command(script, *manner, "--deadline", deadline, *flags)


def serve(start: Start, commands: Iterable[str]) -> Smtpd:
    """Start a server with a port for each of these filters."""
    filters = {f"hostile{number}": each for number, each in enumerate(commands)}
    listeners = "".join(
        f"listen on 127.0.0.1 port {FIRST_PORT + number} $tls auth-optional <credentials> "
        f'filter "{name}"\n'
        for number, name in enumerate(filters)
    )
    return start(filters=filters, listeners=listeners)


def walk(server: Smtpd, port: int, greeting: str = "EHLO") -> list[tuple[str, Reply | None]]:
    """Go through every phase as far as the server lets us: each phase, and the reply there."""
    with server.connection(port=port) as connection:
        replies = [("connect", connection.reply())]
        steps = [(greeting.lower(), f"{greeting} client.example"), *STEPS]
        for phase, line in steps:
            reply = replies[-1][1]
            if reply is None or reply.code >= 400:
                break
            if phase == "starttls":
                reply = connection.starttls()
            else:
                if phase == "commit":
                    connection.send(MESSAGE)
                reply = connection.command(line)
            replies.append((phase, reply))
    return replies


def check_walk(server: Smtpd, port: int) -> None:
    """Go through every phase, and be refused nowhere."""
    replies = walk(server, port)
    assert replies[-1][0] == "quit", replies
    assert all(reply is not None and reply.code < 400 for _, reply in replies), replies


# Each mode once, half of them as coroutines; what takes its time waits for the others' sake.
MANNERS = [(mode, mode in NEEDS_LOOP or number % 2 == 0) for number, mode in enumerate(MODES)]
QUICK = [manner for manner in MANNERS if manner[0] not in SLOW]
GROUPS = [QUICK[at : at + GROUP] for at in range(0, len(QUICK), GROUP)]
GROUPS.append([manner for manner in MANNERS if manner[0] in SLOW])


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group[0][0]}...{group[-1][0]}")
def test_every_phase_of_a_session(start: Start, group: list[tuple[str, bool]]) -> None:
    """Policies that fail at every phase, and proceed then: nobody notices."""
    phases = {True: SOME, False: ("all",)}
    server = serve(
        start,
        [
            command(mode, "--on-error", "proceed", "--phase", *phases[mode in SLOW], later=later)
            for mode, later in group
        ],
    )
    ports = range(FIRST_PORT, FIRST_PORT + len(group))
    for _ in range(2):  # what went wrong hasn't gone wrong for good
        with ThreadPoolExecutor(GROUP) as pool:
            list(pool.map(lambda port: check_walk(server, port), ports))
    assert server.alive()
    delivered = [content_of(mail.content.replace(TOP, b"")) for mail in server.maildir("alice")]
    assert len(delivered) == 2 * len(group)
    # What a policy tried to put into the header has become one field, of each of its handlers.
    touched = [content for content in delivered if BOTTOM in content]
    assert len(touched) == 2 * ("header-break" in dict(group))
    delivered = [content.replace(BOTTOM, b"") for content in delivered]
    assert {_undated(content) for content in delivered} == {local(MESSAGE)}
    server.terminate()  # the log is complete then
    assert not [line for line in server.log if SECRET in line or password("alice") in line]


def _undated(content: bytes) -> bytes:
    """Return a message without what smtpd adds where it is missing."""
    return re.sub(rb"(?m)^(Date|Message-ID): .*\n", b"", content)


@pytest.mark.parametrize(
    ("mode", "later"),
    [("wrong-phase", False), ("raise-base", True)],
)
def test_the_fallback_at_each_phase(start: Start, mode: str, later: bool) -> None:  # noqa: FBT001
    """The exact reply, of one policy for each phase; the session after it gets it, too."""
    server = serve(
        start,
        [
            command(mode, "--on-error", "tempfail", "--phase", place, later=later)
            for place in PLACES
        ],
    )
    for number, place in enumerate(PLACES):
        phase = "commit" if place in CONTENT else place
        greeting = "HELO" if place == "helo" else "EHLO"
        for _ in range(2):
            asked, reply = walk(server, FIRST_PORT + number, greeting)[-1]
            assert reply is not None
            text = PHASES[phase].fallbacks["tempfail"].text
            if phase == "auth":  # of credentials: it is said at MAIL FROM
                text = REFUSED
            assert (asked, f"{reply.code} {reply.text}") == (phase, text)
    assert server.alive()
    # A client that isn't refused by then gets a message through.
    assert len(server.maildir("alice")) == 2


@pytest.mark.parametrize("later", [False, True])
def test_junk_as_the_fallback(start: Start, later: bool) -> None:  # noqa: FBT001
    places = ("connect", "ehlo", "mail-from", "rcpt-to", "data", "headers", "message")
    server = serve(
        start,
        [command("raise", "--on-error", "junk", "--phase", place, later=later) for place in places],
    )
    for number in range(len(places)):
        check_walk(server, FIRST_PORT + number)
    assert folders(server) == ["Junk"] * len(places)


def test_many_sessions_of_a_policy_that_waits(start: Start) -> None:
    """All wait at the same time, so all are answered at about the same time."""
    waiting = command("await-forever", "--on-error", "tempfail", "--phase", "mail-from", later=True)
    server = serve(start, [waiting, command("raise", "--phase", "noop")])
    with ThreadPoolExecutor(40) as pool:
        ends = [pool.submit(walk, server, FIRST_PORT) for _ in range(30)]
        others = [pool.submit(check_walk, server, FIRST_PORT + 1) for _ in range(10)]
    for other in others:
        other.result()
    assert {end.result()[-1][0] for end in ends} == {"mail-from"}
    assert len(server.maildir("alice")) == 10

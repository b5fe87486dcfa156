"""The journal of a real server: what it tells of mail that was refused, whichever filter did it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.testing.server import CODE, filter_command, scratch_path, script_command
from tests.e2e.sending import (
    ALICE,
    BOB,
    DYNAMIC,
    GOOD,
    MESSAGE,
    NAMELESS,
    SENDER,
    ZONE,
    attempt,
    folders,
    greeted,
    transact,
)
from tests.e2e.test_chain_file import CHAINS, command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.e2e.conftest import Start

TOOL = [sys.executable, "-c", "import sys; from smtpd_filters.cli import main; sys.exit(main())"]
SOCKET = "/mnt/socket"
#: Seconds that the journal may take.
PATIENCE = 60.0
CHAIN = f"""\
journal = "{SOCKET}"

[chain.inbound]
filters = ["fcrdns", "helo", "dyndns"]

[filter.fcrdns]
require = "rdns"
action = "reject"
"""


class Kept:
    """A journal on this side, whose socket the server sees.

    `environment` is that of the journal and of those who ask it, by default this process's.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.environment = environment
        self.days = folder / "days"
        self.binds = {"/mnt": folder}
        folder.chmod(0o755)
        self.open()

    def open(self) -> None:
        flags = ("--directory", self.days, "--socket", self.folder / "socket", "--free", "1M")
        self.process = subprocess.Popen(
            [*TOOL, "journal", *map(str, flags)],
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )
        assert self.process.stderr is not None
        assert "ready" in self.process.stderr.readline()
        # The user of the server's root may have another number.
        (self.folder / "socket").chmod(0o666)

    def end(self, number: int = signal.SIGTERM) -> str:
        """End the journal; return what it logged since it was ready."""
        self.process.send_signal(number)
        _, logged = self.process.communicate(timeout=PATIENCE)
        return logged

    def why(self, what: str, count: int = 1) -> list[dict[str, Any]]:
        """Ask for stories until there are so many."""
        until = time.monotonic() + PATIENCE
        while True:
            ended = subprocess.run(
                [*TOOL, "why", what, "--json", "--number=100", f"--directory={self.days}"],
                capture_output=True, text=True, timeout=PATIENCE, check=False,
                env=self.environment,
            )  # fmt: skip
            found: list[dict[str, Any]] = json.loads(ended.stdout or "[]")
            if len(found) >= count:
                assert ended.stderr == ""
                return found
            assert time.monotonic() < until, (ended, self.end())
            time.sleep(0.1)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    made = Kept(tmp_path)
    yield made
    made.process.kill()
    made.process.communicate()


def test_why_a_client_was_refused(start: Start, kept: Kept) -> None:
    filters = {"fcrdns": filter_command("fcrdns", "--require", "rdns", "--action", "reject")}
    filters["fcrdns"] += f" --journal {SOCKET}"
    server = start(zone=ZONE, filters=filters, binds=kept.binds)
    refused = attempt(server, NAMELESS)
    assert refused.stage
    assert attempt(server, GOOD).stage == ""
    [told] = kept.why(NAMELESS)
    assert told["outcome"] == "deferred"  # its code is 421
    assert told["decided_by"] == "fcrdns"
    assert told["deciding"]["setting"] == "--action"
    assert told["reply"] == refused.said
    [told] = kept.why(ALICE)
    assert told["outcome"] == "accepted"
    assert told["client"] == GOOD
    assert told["sender"] == SENDER
    assert told["identity"] == "client.example"
    assert told["recipients"] == [{"address": ALICE, "result": "accepted"}]
    assert told["size"] > 50
    assert [each["verb"] for each in told["verdicts"]] == ["proceed"]
    [mail] = server.maildir("alice")
    assert told["msgid"].encode() in mail.content


def test_a_supervised_program_of_others(start: Start, kept: Kept) -> None:
    foreign = script_command(
        f"{CODE}/tests/e2e/spy_filter.py", scratch_path("spy"), "rcpt-to=reject|550 5.7.1 Not you"
    )
    server = start(
        filters={"foreign": filter_command("supervise", "--journal", SOCKET, foreign)},
        binds=kept.binds,
    )
    refused = attempt(server, GOOD, recipients=[BOB])
    assert refused.said == "550 5.7.1 Not you"
    [told] = kept.why(BOB)
    assert told["outcome"] == "refused"
    assert told["reply"] == refused.said
    [verdict] = [each for each in told["verdicts"] if each["verb"] == "reject"]
    assert verdict["phase"] == "rcpt-to"
    assert verdict["argument"] == BOB
    assert told["decided_by"] == verdict["filter"]


def test_each_message_of_a_session_is_told_as_it_was(start: Start, kept: Kept) -> None:
    dyndns = filter_command("dyndns", "--action", "junk", "--journal", SOCKET)
    server = start(zone=ZONE, filters={"dyndns": dyndns}, binds=kept.binds)
    loop = b"Received: by a.example\r\n" * 120 + MESSAGE
    with server.connection(DYNAMIC) as connection:
        greeted(connection)
        assert transact(connection, "first@good.example").stage == ""
        # The client's second sender is refused, and the first one stays.
        assert connection.command("MAIL FROM:<second@good.example>") is not None
        refused = connection.command("MAIL FROM:<forged@good.example>")
        assert refused is not None
        assert refused.code == 503
        assert connection.command(f"RCPT TO:<{ALICE}>") is not None
        assert connection.command("DATA") is not None
        connection.send(MESSAGE)
        assert connection.command(b".") is not None
        looping = transact(connection, "third@good.example", message=loop)
        assert looping.code == 500
    assert folders(server) == ["Junk", "Junk"]
    third, second, first = kept.why(DYNAMIC, 3)
    assert [each["sender"].partition("@")[0] for each in (first, second, third)] == [
        "first", "second", "third",
    ]  # fmt: skip
    assert [each["outcome"] for each in (first, second, third)] == ["junk", "junk", "refused"]
    assert (second["decided_by"], third["decided_by"]) == ("dyndns", "smtpd")
    assert third["reply"] == looping.said


def test_mail_passes_whatever_happens_to_the_journal(start: Start, kept: Kept) -> None:
    server = start(
        zone=ZONE,
        files={CHAINS: CHAIN},
        filters={"chain": command("--chain", "inbound")},
        binds=kept.binds,
    )

    def send(number: int) -> None:
        assert attempt(server, GOOD, sender=f"s{number}@good.example").stage == ""

    send(1)
    kept.why("s1@good.example")
    kept.end(signal.SIGKILL)
    send(2)
    (kept.folder / "socket").unlink()
    send(3)
    kept.open()
    until = time.monotonic() + PATIENCE
    number = 4
    while True:  # filters try to connect once a second at most
        send(number)
        found = subprocess.run(
            [*TOOL, "why", "@good.example", "--json", "--directory", str(kept.days)],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        if len(json.loads(found.stdout)) > 1:
            break
        assert time.monotonic() < until
        number += 1
        time.sleep(0.5)
    assert len(server.maildir("alice")) == number
    server.wait_for("journal not reached")
    server.wait_for("journal reached again")

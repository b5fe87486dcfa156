"""filter-supervise under real servers: they stay up, and no mail is lost or damaged."""

from __future__ import annotations

import os
import shlex
import signal
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import (
    CODE,
    LabError,
    file_path,
    filter_command,
    script_command,
)
from tests.e2e.sending import ALICE, MESSAGE, SENDER, local
from tests.e2e.test_chain_file import CHAINS

if TYPE_CHECKING:
    from tests.e2e.conftest import Start

#: Longer than a start of the program on a busy machine, shorter than a client's patience.
DEADLINE = 10.0
FLAGS = ("--deadline", f"{DEADLINE:g}s")
ECHO = shlex.split(script_command(f"{CODE}/tests/supervise/misbehaving.py"))


def supervised(*command: str, flags: tuple[str, ...] = FLAGS) -> str:
    return filter_command("supervise", *flags, *command)


def test_a_filter_that_is_killed(start: Start) -> None:
    server = start(filters={"echo": supervised(*ECHO)})
    with server.connection() as connection:
        replies = connection.dialogue(["EHLO client.example", f"MAIL FROM:<{SENDER}>"])
        assert [reply.code for reply in replies] == [220, 250, 250]
        for process in server.find("misbehaving"):
            if "filter-supervise" not in " ".join(process.arguments):
                os.kill(process.pid, signal.SIGKILL)
        server.wait_for("supervise ended .*killed by signal 9")
        reply = connection.command(f"RCPT TO:<{ALICE}>")
        assert reply is not None
        assert reply.code == 250
        reply = connection.command("DATA")
        assert reply is not None
        connection.send(MESSAGE)
        reply = connection.command(".")
        assert reply is not None
        assert reply.code == 250
    assert len(server.maildir("alice")) == 1


SCORED = """\
[filter.helo]
non-fqdn = "junk"
unknown = "off"
exempt = ["authenticated"]
phase = "helo"
score = 6

[chain.scored]
filters = ["helo"]
reject-at = 5
score-at = "data"
"""


@pytest.mark.parametrize(("name", "code"), [("nodots", 550), ("client.example", 354)])
def test_a_chain_that_is_killed_keeps_its_score(start: Start, name: str, code: int) -> None:
    chain = filter_command("chain", "--config", file_path(CHAINS))
    server = start(files={CHAINS: SCORED}, filters={"chain": supervised(*shlex.split(chain))})
    with server.connection() as connection:
        replies = connection.dialogue([f"HELO {name}", f"MAIL FROM:<{SENDER}>"])
        assert [reply.code for reply in replies] == [220, 250, 250]
        for process in server.find("chain"):
            if "supervise" not in " ".join(process.arguments):
                os.kill(process.pid, signal.SIGKILL)
        server.wait_for("supervise ended .*killed by signal 9")
        for line, expected in ((f"RCPT TO:<{ALICE}>", 250), ("DATA", code)):
            reply = connection.command(line)
            assert reply is not None
            assert reply.code == expected


@pytest.mark.parametrize("size", [65485, 65486, 65533])
def test_a_line_that_would_hang_the_server(start: Start, size: int) -> None:
    """Behind a filter that returns each line as it is: unsupervised, it hangs all sessions."""
    server = start(filters={"echo": supervised(*ECHO)})
    line = b"x" * size
    with server.client() as client:
        client.sendmail(SENDER, [ALICE], MESSAGE + line + b"\r\n")
    with server.client() as client:
        client.sendmail(SENDER, [ALICE], MESSAGE)
    first, second = server.maildir("alice")
    assert first.content.replace(b"\n", b"").replace(b" ", b"").count(b"x" * 900) >= size // 1000
    assert first.content.count(b"x") >= size
    assert second.content.endswith(local(MESSAGE).split(b"\n\n")[1])


def test_long_lines_are_not_cut(start: Start) -> None:
    """6.8 would cut lines from a filter at 1,997 bytes."""
    server = start(filters={"echo": supervised(*ECHO)})
    body = b"y" * 5000
    with server.client() as client:
        client.sendmail(SENDER, [ALICE], MESSAGE + body + b"\r\n")
    [mail] = server.maildir("alice")
    assert mail.content.replace(b"\n ", b"").endswith(body + b"\n")


def test_a_program_that_cannot_be_started(start: Start) -> None:
    server = start(filters={"none": supervised("/nonexistent", flags=("--on-error", "proceed"))})
    with server.client() as client:
        client.sendmail(SENDER, [ALICE], MESSAGE)
    assert len(server.maildir("alice")) == 1


@pytest.mark.parametrize("form", ["short", "long"])
def test_a_filter_with_a_wrong_configuration(start: Start, form: str) -> None:
    wrong = "--delay", "3d", "--store", "memory:"
    command = {
        "short": filter_command("greylist", *wrong, "--supervised"),
        "long": supervised(*shlex.split(filter_command("greylist", *wrong))),
    }
    with pytest.raises(LabError, match="--delay must be shorter than --window") as raised:
        start(filters={"greylist": command[form]})
    # Two processes log it, in any order.
    assert "greylist: supervise smtpd is not started" in str(raised.value)


def test_a_reload(start: Start) -> None:
    server = start(filters={"echo": supervised(*ECHO)})
    for _ in range(3):
        since = len(server.log)
        server.signal_filter("supervise", signal.SIGHUP)
        server.wait_for("supervise reload result=ok", since=since)
        with server.client() as client:
            client.sendmail(SENDER, [ALICE], MESSAGE)
    assert len(server.maildir("alice")) == 3

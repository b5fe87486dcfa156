"""Processes send their state whether or not mail comes."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.journal.collector import Collector
from smtpd_filters.journal.process_state import INTERVAL
from smtpd_filters.journal.reception import decode, is_state, part_of
from smtpd_filters.journal.sender import Sender
from smtpd_filters.runtime.log import Log
from tests.runtime.process import FilterProcess, policy, sid
from tests.supervise.supervised import PATIENCE, Started, Supervised

from .deciding import Sent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Received:
    """The socket of a journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(PATIENCE)
        self._unread: list[Any] = []

    def next(self, kind: str = "state") -> dict[str, Any]:
        """Return the next object of a kind."""
        while True:
            if not self._unread:
                self._unread = decode(self.socket.recv(1 << 16))
            found = self._unread.pop(0)
            if found["k"] == kind:
                return dict(found) if is_state(found) else part_of(found)


@pytest.fixture
def received(tmp_path: Path) -> Iterator[Received]:
    made = Received(tmp_path / "socket")
    yield made
    made.socket.close()


@pytest.mark.parametrize("name", ["Plain", "Later"])
def test_an_idle_filter(received: Received, name: str) -> None:
    flags = ("--journal", str(received.path))
    with FilterProcess(policy(name, *flags), env={"BEAT": "0.05"}) as process:
        process.hand_shake()
        first = received.next()
        assert first["o"] == first["r"] == first["x"] == 0
        process.connect(sid(1))
        # The next ones come by themselves.
        while (second := received.next())["o"] == 0:
            pass
        assert (second["n"], second["o"]) == (first["n"], 1)


@pytest.mark.parametrize("name", ["Plain", "Later"])
def test_stories_that_wait_are_sent_soon(received: Received, name: str) -> None:
    with FilterProcess(policy(name, "--journal", str(received.path))) as process:
        process.hand_shake()
        received.next()
        for number in (1, 2, 3):
            process.connect(sid(number))
            process.report("link-disconnect", sid(number))
        received.socket.settimeout(INTERVAL / 2)  # all are sent with the next state
        found = [received.next("session") for _ in range(3)]
        assert [part["s"].encode() for part in found] == [sid(1), sid(2), sid(3)]


@pytest.mark.parametrize("name", ["Plain", "Later"])
def test_stories_that_wait_are_sent_at_the_end(received: Received, name: str) -> None:
    with FilterProcess(policy(name, "--journal", str(received.path))) as process:
        process.hand_shake()
        for number in (1, 2, 3):
            process.connect(sid(number))
        process.finish()
    assert len({received.next("session")["s"] for _ in range(3)}) == 3


def test_a_supervisors_stories_that_wait_are_sent_soon(received: Received) -> None:
    with Supervised("--journal", str(received.path), "--on-error", "proceed") as smtpd:
        received.next()
        received.socket.settimeout(INTERVAL / 2)
        for _ in range(3):
            smtpd.connect().quit()
        assert len({received.next("session")["s"] for _ in range(3)}) == 3


def test_ends_of_a_supervised_program(received: Received) -> None:
    flags = ("--journal", str(received.path), "--on-error", "proceed")
    with Supervised(*flags) as smtpd:
        assert received.next()["r"] == 0
        client = smtpd.connect()
        assert client.begin(b"exit@example.org").verb == b"proceed"
        found = received.next()  # at once
        assert (found["r"], found["o"]) == (1, 1)
        client.quit()
        [verdict] = [row for row in received.next("tx")["w"] if row[11]]
        assert verdict[1:3] == ["mail-from", "proceed"]
        assert verdict[11:] == ["f", "--on-error"]


def test_a_message_that_is_lost_with_its_program(received: Received) -> None:
    flags = ("--journal", str(received.path), "--on-error", "proceed")
    with Supervised(*flags) as smtpd:
        client = smtpd.connect()
        client.begin()
        # Each program that is given the message ends.
        assert client.message(b"Do: exit", b"", b"x").verb == b"reject"
        client.quit()
        [verdict] = [row for row in received.next("tx")["w"] if row[2] == "reject"]
        assert verdict[1] == "commit"
        assert verdict[7] == "the message was lost with the program"
        assert verdict[8].startswith("451 4.3.0")
        assert verdict[11] == "f"


def test_the_short_form_tells_its_own_answers_only(received: Received) -> None:
    """The filter tells its decisions; the supervisor those that it made in its place."""
    command = [sys.executable, "-m", "smtpd_filters.filters.trace", "--detail", "all"]
    with Started([*command, "--journal", str(received.path), "--supervised"]) as smtpd:
        processes = {"filter-trace", "filter-supervise trace"}
        while processes:  # one of them may send its second state before the other's first
            processes.discard(received.next()["p"])
        client = smtpd.connect()
        client.ask("helo", b"mx.example.org")
        client.quit()
        assert received.next("session")["p"] == "filter-trace"
        pid = int(smtpd.logged("supervise ready").partition("pid=")[2].split()[0])
        os.kill(pid, signal.SIGSTOP)
        client = smtpd.connect()
        client.send("mail-from", b"a@example.org")
        os.kill(pid, signal.SIGKILL)
        assert client.result().verb == b"proceed"
        client.quit()
        story = received.next("session")
        assert story["p"] == "filter-supervise trace"
        [verdict] = story["w"]
        assert verdict[:3] == ["trace", "mail-from", "proceed"]
        assert verdict[11:] == ["f", "--on-error"]


def test_a_state_that_fails_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Collector(Sent(), "x", Log(fd=2))  # type: ignore[arg-type]

    def fails(_sessions: int, _ends: int) -> None:
        raise MemoryError

    monkeypatch.setattr(found._state, "send", fails)
    assert 0 < found.beat(3) <= INTERVAL


def test_a_state_is_sent_once_in_its_interval_and_at_the_end_of_a_program() -> None:
    sent = Sent()
    found = Collector(sent, "x", Log(fd=2))  # type: ignore[arg-type]
    for _ in range(100):
        found.beat(3)
    assert len(sent.datagrams) == 1
    for _ in range(100):
        found.beat(3, 1)
    assert len(sent.datagrams) == 2


def test_a_state_that_is_not_sent_is_no_lost_event(tmp_path: Path) -> None:
    sender = Sender(str(tmp_path / "none"), Log(fd=2))
    assert not sender.send(b"x", 0)
    assert sender.dropped == sender.unreported == 0
    assert not sender.send(b"x")
    assert sender.dropped == sender.unreported == 1
    sender.close()

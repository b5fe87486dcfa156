"""The journal's process: its socket, its locks, and its end."""

from __future__ import annotations

import errno
import grp
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.errors import ConfigError, user_name
from smtpd_filters.journal import service
from smtpd_filters.journal.archive import Archive
from smtpd_filters.journal.merging import Merger
from smtpd_filters.journal.query import Journal
from smtpd_filters.journal.reception import MAX_DATAGRAM
from smtpd_filters.journal.records import Search
from smtpd_filters.journal.sender import Sender
from smtpd_filters.journal.service import Service
from smtpd_filters.journal.states import Collected
from smtpd_filters.journal.wire import encode
from smtpd_filters.runtime.log import Log
from smtpd_filters.startup import STRAY

from .made import NOON, PASSED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Seconds that a process may take.
PATIENCE = 60.0
COMMAND = [sys.executable, "-c", "import sys; from smtpd_filters.cli import main; sys.exit(main())"]


class Running:
    """A journal's process."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.path = folder / "socket"
        self.days = folder / "days"
        self.flags = ("--directory", str(self.days), "--socket", str(self.path), "--free", "1M")
        self.process = subprocess.Popen(
            [*COMMAND, "journal", *self.flags, *flags], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()

    def end(self, number: int = signal.SIGTERM) -> str:
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=PATIENCE)
        return said

    def search(self, **wanted: object) -> list[str]:
        found = Journal(str(self.days)).search(Search(**wanted))  # type: ignore[arg-type]
        return [each.session for each in found]

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + PATIENCE
        while len(self.search(limit=count)) < count:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    assert "ready" in made.first
    yield made
    made.process.kill()
    made.process.communicate()


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    made = Sender(str(tmp_path / "socket"), Log(fd=2))
    yield made
    made.close()


def datagram(number: int, at: float = NOON) -> bytes:
    head = {
        "v": 1, "k": "tx", "p": "x", "s": f"{number:016x}", "m": f"{number:08x}", "e": "rollback",
        "t": int(at * 1000), "f": "alice@example.org",
    }  # fmt: skip
    [data] = encode(head, [PASSED, REFUSED])
    return data


def test_a_clean_end_writes_everything(running: Running, sender: Sender) -> None:
    assert sender.send(b"nonsense")
    for number in range(5):
        assert sender.send(datagram(number))
    assert "events not stored: 1 invalid; mail is not affected" in running.end()
    assert running.process.returncode == 0
    assert running.search() == [f"{number:016x}" for number in (4, 3, 2, 1, 0)]
    assert not running.path.exists()


def test_signals_that_mean_nothing(running: Running) -> None:
    for number in STRAY:
        running.process.send_signal(number)
    assert running.end() == ""
    assert running.process.returncode == 0


def test_all_losses_are_logged_by_the_end(running: Running, sender: Sender) -> None:
    """They are logged once a minute, and the rest at the end."""
    assert sender.send(b"nonsense")
    assert sender.send(datagram(1))
    running.wait_for(1)
    assert sender.send(b"nonsense")
    said = running.end()
    assert said.count("events not stored: 1 invalid;") == 2


def test_who_may_write_to_the_socket(running: Running) -> None:
    assert stat.S_IMODE(running.path.stat().st_mode) == 0o620
    assert stat.S_IMODE((running.days / "lock").stat().st_mode) == 0o600
    [day] = running.days.glob("*.sqlite")
    assert stat.S_IMODE(day.stat().st_mode) == 0o640


class Kept(Archive):
    """An archive that keeps nothing but the number of stories in a batch."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.unwritten = 0

    def write(self, stories: Any, _now: float, _sums: object = None) -> bool:
        self.batches.append(len(stories))
        return True


class Socket:
    """A socket with so many datagrams."""

    def __init__(self, data: bytes, number: int) -> None:
        self.data, self.number = data, number

    def recv(self, size: int) -> bytes:
        if not self.number:
            raise BlockingIOError
        self.number -= 1
        return self.data[:size]


def test_a_flood_of_large_datagrams_takes_limited_memory() -> None:
    made = Service(Kept(), "/none", group=None, note=print, max_queued=100_000)
    made._read(Socket(b"x" * 100_000, 900))  # type: ignore[arg-type]
    assert sum(map(len, made._queue)) <= 100_000 + MAX_DATAGRAM
    assert made.counts["overflow"] == 900 - len(made._queue)
    made._parse_all()
    made._read(Socket(b"x" * 1000, 5))  # type: ignore[arg-type]
    assert len(made._queue) == 5


def test_an_invalid_object_is_not_the_fault_of_others(running: Running, sender: Sender) -> None:
    odd = [b"1", b"[]", b'{"v":2}', b'{"v":1,"k":"state"}', b'{"v":1,"k":"tx"}']
    assert sender.send(b"[" + b",".join([datagram(1), *odd, datagram(2)]) + b"]", 2)
    assert (
        f"events not stored: {len(odd) - 1} invalid, 1 from filters of another "
        "release (restart smtpd to start those of this release); mail is not affected"
    ) in running.end()
    assert running.search() == [f"{number:016x}" for number in (2, 1)]


def test_all_stories_of_a_datagram_count_as_lost() -> None:
    made = Service(Kept(), "/none", group=None, note=print, max_queued=100)
    several = b"[" + datagram(1) + b"," + datagram(2) + b"]"
    made._read(Socket(several, 3))  # type: ignore[arg-type]
    assert (len(made._queue), made.counts["overflow"]) == (1, 4)


def test_a_disk_that_takes_no_states_is_logged_once(tmp_path: Path) -> None:
    at = [0.0]
    notes: list[str] = []
    archive = Kept()
    archive.directory = str(tmp_path / "missing")
    made = Service(archive, "/none", group=None, note=notes.append)
    made._states = Collected(lambda: at[0])

    def seconds(number: int) -> None:
        for _ in range(number):
            at[0] += 1.0
            made._write_states()

    seconds(30)
    once = "the state of processes can't be written: No such file or directory"
    assert notes == [once]
    (tmp_path / "missing").mkdir()
    seconds(10)
    (tmp_path / "missing").rename(tmp_path / "moved")
    seconds(30)
    assert notes == [once, once]


def test_stories_are_written_before_too_many_are_held() -> None:
    archive = Kept()
    made = Service(archive, "/none", group=None, note=print)
    made._merger = Merger(max_held=10)
    made._queue.extend(map(datagram, range(100)))
    made._complete.set()
    made._write()
    assert max(archive.batches) <= 11
    assert sum(archive.batches) == 100


def test_a_time_that_cannot_be_is_replaced_by_that_of_arrival() -> None:
    times: list[int] = []

    class Timed(Kept):
        def write(self, stories: Any, now: float, _sums: object = None) -> bool:
            times.extend(int(each["t"] / 1000 - now) for each in stories)
            return True

    made = Service(Timed(), "/none", group=None, note=print)
    now = time.time()
    made._queue.extend(datagram(n, now + at) for n, at in enumerate((-3600, -90_000, 3600)))
    made._complete.set()
    made._write()
    early, *others = sorted(times)
    assert -3700 < early <= -3600
    assert others == [0, 0]


def test_a_bug_is_logged_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    def part_of(_found: object) -> None:
        raise TypeError("a bug")

    notes: list[str] = []
    monkeypatch.setattr(service, "part_of", part_of)
    made = Service(Kept(), "/none", group=None, note=notes.append)
    made._queue.extend(map(datagram, range(100)))
    made._complete.set()
    made._write()
    assert notes == ["bug: TypeError: a bug"]


def test_a_second_journal_is_refused(running: Running, tmp_path: Path) -> None:
    for flags, of in (
        (running.flags, running.days),
        (("--directory", str(tmp_path / "other"), "--socket", str(running.path)), running.path),
    ):
        second = subprocess.run(
            [*COMMAND, "journal", *flags],
            stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert second.returncode == 2
        assert second.stderr == f"smtpd-filters journal: {of}: in use by another journal\n"
    assert running.process.poll() is None
    assert running.path.exists()


def test_what_is_killed_starts_again(running: Running, sender: Sender, tmp_path: Path) -> None:
    sender.send(datagram(1))
    running.wait_for(1)
    running.end(signal.SIGKILL)
    assert running.path.is_socket()
    assert not sender.send(datagram(2))
    again = Running(tmp_path)
    assert "ready" in again.first
    until = time.monotonic() + PATIENCE
    while not sender.send(datagram(3)):  # it connects again once a second at most
        assert time.monotonic() < until
        time.sleep(0.05)
    again.end()
    assert again.search() == [f"{number:016x}" for number in (3, 1)]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--socket", "FOLDER/missing/s"], "--socket: the directory FOLDER/missing is missing; "),
        (["--socket", "/dev/" + "x" * 120], "xxx: longer than 103 bytes, too long for a socket"),
        (["--directory", "/dev/null/x"], "--directory: /dev/null/x: Not a directory"),
        (["--socket-group", "nobody-at-all"], "--socket-group: no group nobody-at-all"),
        (["--days", "0"], "--days: "),
    ],
)
def test_flags_that_are_wrong(flags: list[str], error: str, tmp_path: Path) -> None:
    default = ["--directory", str(tmp_path / "d"), "--socket", str(tmp_path / "s")]
    *flags, error = (text.replace("FOLDER", str(tmp_path)) for text in (*flags, error))
    ended = subprocess.run(
        [*COMMAND, "journal", *default, *flags],
        stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert error in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(("group", "name"), [(os.getgid(), ""), (1 << 30, str(1 << 30))])
def test_a_user_who_is_not_of_the_group(
    group: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.chown", refuse)
    path = tmp_path / "socket"
    made = Service(Kept(), str(path), group=group, note=print)
    with pytest.raises(ConfigError) as refused:
        made._bind()
    os.close(made._socket_lock)
    name = name or grp.getgrgid(group).gr_name
    assert str(refused.value) == (
        f"{path}: user {user_name()} can't give it to the group {name}, whose members send to it: "
        f"make the user a member of {name}, or name another group with --socket-group"
    )
    assert not path.exists()


def test_a_fifo_named_like_a_day_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "days" / "2999-01-01.sqlite"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    refused = Running(tmp_path)
    refused.process.communicate(timeout=PATIENCE)
    assert refused.process.returncode == 2
    assert refused.first == f"smtpd-filters journal: {fifo}: not a regular file\n"


def test_a_file_at_the_sockets_path_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("precious")
    refused = Running(tmp_path)
    refused.process.communicate(timeout=PATIENCE)
    assert refused.process.returncode == 2
    assert path.read_text() == "precious"


def test_a_sender_never_waits(tmp_path: Path, sender: Sender) -> None:
    assert not sender.send(b"x")  # no socket
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "socket"))
    sender._next_try = 0.0
    try:
        sent = [sender.send(b"x" * 2000) for _ in range(10_000)]
        assert sent[0]
        assert not sent[-1]
        assert sender.dropped == sender.unreported == 1 + sent.count(False)
        too_large = sender.send(b"x" * (1 << 20))
        assert not too_large
    finally:
        receiver.close()
    assert not sender.send(b"x")  # nobody receives
    (tmp_path / "socket").unlink()
    sender._next_try = 0.0
    assert not sender.send(b"x")


def test_a_journal_that_is_restarted_gets_the_next_story(tmp_path: Path, sender: Sender) -> None:
    path = tmp_path / "socket"
    for number in range(3):
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(str(path))
        receiver.settimeout(PATIENCE)
        sender._next_try = 0.0  # a second has passed
        try:
            assert sender.send(b"%d" % number)
            assert receiver.recv(10) == b"%d" % number
        finally:
            receiver.close()
            path.unlink()
    assert sender.dropped == 0


def test_a_burst_of_many_senders(running: Running, tmp_path: Path) -> None:
    each, threads = 500, 4
    dropped = []

    def burst(first: int) -> None:
        sender = Sender(str(running.path), Log(fd=2))
        for number in range(first, first + each):
            sender.send(datagram(number))
        dropped.append(sender.dropped)
        sender.close()

    workers = [threading.Thread(target=burst, args=(at * each,)) for at in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    running.end()
    found = running.search(limit=10_000)
    assert found
    assert len(found) == len(set(found)) == each * threads - sum(dropped)
    assert os.listdir(tmp_path / "days")  # noqa: PTH208

"""Two descriptors and the signals."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.runtime.channel import READ, Channel, Signals
from smtpd_filters.runtime.wiretap import TappedChannel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Logbook


class Peer:
    """smtpd's end."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        os.set_blocking(source, False)

    def everything(self) -> bytes:
        data = b""
        try:
            while part := os.read(self.source, 1 << 20):
                data += part
        except BlockingIOError:
            pass
        return data

    def close(self) -> None:
        for fd in {self.source, self.sink} - {-1}:
            os.close(fd)


def read(channel: Channel) -> bytes | None:
    """Read, and have taken it."""
    data = channel.read()
    channel.unread = 0
    return data


@pytest.fixture(params=["socket", "pipes"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Channel, Peer]]:
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        source = ours.detach()
        channel = Channel(source, os.dup(source))
        number = theirs.detach()
        peer = Peer(number, os.dup(number))
    else:
        source, their_sink = os.pipe()
        their_source, sink = os.pipe()
        channel, peer = Channel(source, sink), Peer(their_source, their_sink)
    yield channel, peer
    channel.close()
    peer.close()


def test_bytes_pass_both_ways(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    os.write(peer.sink, b"report|...\n")
    assert read(channel) == b"report|...\n"
    assert read(channel) is None
    channel.write([b"filter-result|...\n"], [])
    assert channel.size == 0
    assert peer.everything() == b"filter-result|...\n"


def test_a_read_is_bounded(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    os.set_blocking(peer.sink, False)
    sent = os.write(peer.sink, b"x" * (READ + 1000))
    assert sent > READ
    assert read(channel) == b"x" * READ
    assert read(channel) == b"x" * (sent - READ)


def test_the_end_of_input(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    peer.close()
    peer.source = peer.sink = -1
    assert read(channel) == b""
    assert read(channel) == b""


def test_unwritten_output_is_kept_in_order(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    sent = b"".join(b"%08d\n" % number for number in range(200_000))
    for at in range(0, len(sent), 50_000):
        channel.write([sent[at : at + 50_000]], [])
    assert 0 < channel.size < len(sent)
    got = b""
    while len(got) < len(sent):
        part = peer.everything()
        assert part
        got += part
        channel.write([], [])
    assert got == sent
    assert channel.size == 0


def test_an_answer_overtakes_lines_of_messages(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    lines = b"".join(b"filter-dataline|%07d\n" % number for number in range(100_000))
    channel.write([b"first\n"], [lines])
    pending = channel.size
    assert pending > 1 << 20
    channel.write([b"answer\n"], [b"last\n"])
    got = peer.everything()
    taken = len(got)
    while channel.size:
        channel.flush()
        got += peer.everything()
    rows = got.splitlines()
    assert [row for row in rows if row.startswith(b"filter-")] == lines.splitlines()
    assert [row for row in rows if not row.startswith(b"filter-")] == [b"first", b"answer", b"last"]
    # It came behind what had been taken, and behind the line that was in the middle of that.
    assert got.index(b"answer\n") <= taken + len(b"filter-dataline|0000000\n")


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 40), st.integers(0, 60)),
        max_size=12,
    )
)
def test_no_line_is_broken_by_partial_writes(
    steps: list[tuple[int, int, int, int]],
) -> None:
    taken: list[int] = []
    written = bytearray()

    def writev(_fd: int, pieces: list[memoryview]) -> int:
        if not taken:
            raise BlockingIOError
        data = b"".join(pieces)[: taken.pop()]
        written.extend(data)
        return len(data)

    source, sink = os.pipe()
    channel = Channel(source, sink)
    expected: dict[bytes, list[bytes]] = {b"A": [], b"L": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", writev)
        patch.setattr(os, "write", lambda fd, data: writev(fd, [data]))
        for number, (answers, lines, size, take) in enumerate(steps):
            said = []
            for kind, count in ((b"A", answers), (b"L", lines)):
                rows = [b"%b%d-%d%b" % (kind, number, each, b"x" * size) for each in range(count)]
                expected[kind] += rows
                said.append(b"".join(row + b"\n" for row in rows))
            if take:
                taken.append(take)
            channel.write(*([piece] if piece else [] for piece in said))
            taken.clear()
            assert channel.size == sum(map(len, [*expected[b"A"], *expected[b"L"]])) + len(
                expected[b"A"] + expected[b"L"]
            ) - len(written)
        taken.extend([1 << 20] * 2)
        channel.flush()
    channel.close()
    rows = bytes(written).splitlines()
    assert [row for row in rows if row[:1] == b"A"] == expected[b"A"]
    assert [row for row in rows if row[:1] == b"L"] == expected[b"L"]
    assert len(rows) == len(expected[b"A"] + expected[b"L"])


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 40), st.integers(0, 60)),
        max_size=12,
    )
)
def test_answers_written_directly_are_written_as_those_that_are_kept(
    steps: list[tuple[int, int, int, int]],
) -> None:
    room = 0
    written: dict[int, bytes] = {}

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise BlockingIOError
        taken = data[:room]
        room -= len(taken)
        written[fd] = written.get(fd, b"") + bytes(taken)
        return len(taken)

    channels = [Channel(*os.pipe()) for _ in range(2)]
    channels[1].direct = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", write)
        patch.setattr(os, "writev", lambda fd, pieces: write(fd, b"".join(pieces)))
        for answers, lines, size, taken in [*steps, (0, 0, 0, 1 << 20)]:
            for channel in channels:
                room = taken
                channel.write(
                    [b"a" * size + b"\n" for _ in range(answers)],
                    [b"l" * size + b"\n" for _ in range(lines)],
                )
            one, other = channels
            assert one.size == other.size
            assert written.get(one.sink) == written.get(other.sink)
    for channel in channels:
        assert not channel.size
        channel.close()


def test_input_is_not_lost_for_lack_of_memory(
    ends: tuple[Channel, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, peer = ends
    os.write(peer.sink, b"report|...\n")

    def none(_view: object) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("smtpd_filters.runtime.channel.bytes", none, raising=False)
        for _ in range(2):
            with pytest.raises(MemoryError):
                channel.read()
    os.write(peer.sink, b"more\n")
    # Nor if there is no memory for its reader.
    assert channel.read() == b"report|...\n"
    assert read(channel) == b"report|...\n"
    assert read(channel) == b"more\n"


def test_a_closed_reader(ends: tuple[Channel, Peer]) -> None:
    channel, peer = ends
    channel.write([b"x" * (1 << 22)], [])
    assert channel.size
    peer.close()
    peer.source = peer.sink = -1
    channel.write([b"y"], [])
    assert channel.broken
    assert channel.size == 0
    channel.write([b"z"], [])
    assert channel.size == 0


def test_a_file_stays_as_others_expect_it(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(b"config|ready\n")
    fd = os.open(path, os.O_RDWR)
    channel = Channel(fd, fd)
    assert os.get_blocking(fd)
    assert read(channel) == b"config|ready\n"
    assert read(channel) == b""
    channel.close()


def test_stdin_and_stdout_are_moved_away() -> None:
    code = """
import os
from smtpd_filters.runtime.channel import Channel, Ends
ends = Ends()
channel = Channel(ends.source, ends.sink)
print("a stray line")
os.write(1, b"another")
assert os.read(0, 10) == b""
channel.write([b"the true line " + channel.read()], [])
assert not os.get_inheritable(channel.source) and not os.get_inheritable(channel.sink)
"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"input")
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"a stray line\nanother")
        assert ours.recv(100) == b"the true line input"


@pytest.fixture
def signals() -> Iterator[Signals]:
    numbers = [
        *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1),
        *(signal.SIGUSR2, signal.SIGALRM, signal.SIGXCPU),
    ]
    before = {number: signal.getsignal(number) for number in numbers}
    made = Signals(lambda: None)
    yield made
    made.close()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "stop", "reload"),
    [
        (signal.SIGTERM, True, False),
        (signal.SIGHUP, False, True),
        (signal.SIGINT, False, False),
        (signal.SIGPIPE, False, False),
        (signal.SIGUSR1, False, False),
        (signal.SIGUSR2, False, False),
        (signal.SIGXCPU, False, False),
    ],
)
def test_signals_set_stop_and_reload(
    number: signal.Signals, stop: object, reload: object, signals: Signals
) -> None:
    signal.raise_signal(number)
    assert (signals.stop, signals.reload) == (stop, reload)
    signals.drain()
    signals.drain()


def test_handlers_that_a_policy_replaced_are_restored(signals: Signals) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    heard: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, _frame: heard.append(number))
    signals.restore()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE, signal.SIGINT, signal.SIGUSR2):
        signal.raise_signal(number)
    assert (signals.stop, signals.reload, heard) == (False, True, [signal.SIGUSR2])


def test_a_signal_wakes_the_loop_even_without_the_descriptor_of_python(signals: Signals) -> None:
    signal.set_wakeup_fd(-1)
    signal.raise_signal(signal.SIGHUP)
    assert select.select([signals.wakeup], [], [], 0)[0] == [signals.wakeup]
    for _ in range(1 << 17):  # a full pipe blocks nothing
        signals._wake()


class Noted:
    """A tap."""

    reports: frozenset[str] = frozenset()
    phases: frozenset[str] = frozenset()

    def __init__(self, *, fails: bool = False) -> None:
        self.heard: list[bytes] = []
        self.fails = fails

    def received(self, data: bytes) -> None:
        self.heard.append(b"< " + data)
        if self.fails:
            raise ValueError

    def sent(self, data: bytes) -> None:
        self.heard.append(b"> " + data)

    def close(self) -> None:
        self.heard.append(b".")


def test_taps_get_input_and_output(logbook: Logbook) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        source = ours.detach()
        good, bad = Noted(), Noted(fails=True)
        channel = TappedChannel(source, os.dup(source), [bad, good], logbook.log)
        theirs.sendall(b"in")
        assert read(channel) == b"in"
        assert read(channel) is None
        channel.write([b"out"], [])
        channel.write([], [])
        channel.close()
        assert theirs.recv(10) == b"out"
    assert good.heard == [b"< in", b"> out", b"."]
    assert bad.heard == [b"< in"]
    assert len(logbook.lines) == 1
    assert "tap failed" in logbook.lines[0]

"""Both loops, as processes of their own, over a socket and over pipes."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from smtpd_filters.protocol.events import Line
from smtpd_filters.runtime import asyncio_loop, poll_loop
from smtpd_filters.runtime.channel import READ, Channel
from smtpd_filters.runtime.log import Log
from smtpd_filters.runtime.poll_loop import add_chore, do_chore
from tests.effort import part
from tests.runtime.process import PATIENCE, POLICIES, TOKENS, FilterProcess, policy, sid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from smtpd_filters.runtime.interfaces import Service

BOTH = pytest.mark.parametrize("name", ["Plain", "Later"])
PIPES = pytest.mark.parametrize("pipes", [False, True], ids=["socket", "pipes"])
MEGABYTE = 1 << 20
LINE = b"x" * 79


def body(size: int) -> list[bytes]:
    return [b"Subject: x", b"", *[LINE] * (size // 80)]


def serve(name: str, *flags: str, pipes: bool = False) -> FilterProcess:
    return FilterProcess(policy(name, *flags), pipes=pipes).hand_shake()


@BOTH
@PIPES
@pytest.mark.parametrize("protocol", [(0, 5), (0, 6), (0, 7)])
def test_a_session(name: str, pipes: bool, protocol: tuple[int, int]) -> None:  # noqa: FBT001
    with FilterProcess(policy(name), pipes=pipes, protocol=protocol) as process:
        process.hand_shake()
        process.connect(sid(1))
        assert process.ask("rcpt-to", sid(1), b"a@example.org").verb == b"proceed"
        process.report("link-disconnect", sid(1))
        process.finish()
    assert process.last_words == ""


@BOTH
@PIPES
def test_the_end_of_input_ends_it(
    name: str,
    pipes: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    notes = tmp_path / "notes"
    with serve(name, "--notes", str(notes), pipes=pipes) as process:
        process.connect(sid(1))
        process.send(process.request("rcpt-to", sid(1), b"a@example.org"))
        # Not waited for: what was asked before the end is answered after it.
        process.finish()
        assert process.answer_of(sid(1)).verb == b"proceed"
    assert notes.read_text() == f"gone {sid(1).decode()}\nclosed\n"
    assert process.last_words == ""


@BOTH
def test_sigterm_ends_it_likewise(name: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with serve(name, "--notes", str(notes)) as process:
        process.connect(sid(1))
        process.ask("rcpt-to", sid(1), b"a@example.org")
        process.kill(signal.SIGTERM)
        while not process.eof:
            process.wait()
        assert process.child.wait(PATIENCE) == 0
    assert notes.read_text() == f"gone {sid(1).decode()}\nclosed\n"
    assert process.last_words == ""


@BOTH
@pytest.mark.parametrize(
    "number",
    [
        *(signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGALRM),
        signal.SIGXCPU,
    ],
)
def test_signals_that_mean_nothing(name: str, number: signal.Signals) -> None:
    with serve(name) as process:
        process.connect(sid(1))
        for _ in range(5):
            process.kill(number)
            assert process.ask("rcpt-to", sid(1), b"a@example.org").verb == b"proceed"
        process.finish()
    assert process.last_words == ""


def test_refresh_is_called_again_after_any_failure() -> None:
    with serve("Refreshing") as process:
        process.until_logged("3 times")
        process.connect(sid(1))
        assert process.ask("rcpt-to", sid(1), b"a@example.org").verb == b"proceed"
        process.finish()


@BOTH
def test_sighup_reloads_tables(name: str, tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text("one@example.org\n")
    with serve(name, "--names", f"file:{path}") as process:
        process.connect(sid(1))
        assert process.ask("rcpt-to", sid(1), b"one@example.org").verb == b"junk"
        path.write_text("two@example.org\n")
        process.kill(signal.SIGHUP)
        process.until_logged("result=ok")
        assert process.ask("rcpt-to", sid(1), b"one@example.org").verb == b"proceed"
        path.unlink()
        process.kill(signal.SIGHUP)
        process.until_logged("result=kept")
        assert process.ask("rcpt-to", sid(1), b"two@example.org").verb == b"junk"
        process.finish()


@BOTH
def test_endless_reloads_delay_no_session(name: str, tmp_path: Path) -> None:
    """The table of every answer is one that there was, and in the end the last one."""
    path, other = tmp_path / "names", tmp_path / "other"
    others = "".join(f"n{number}@example.org\n" for number in range(20_000))
    path.write_text(f"0@example.org\n{others}")
    with serve(name, "--names", f"file:{path}") as process:
        process.connect(sid(1))
        for number in range(1, 41):
            other.write_text(f"{number}@example.org\n{others}")
            other.replace(path)
            process.kill(signal.SIGHUP)
            said = process.ask("rcpt-to", sid(1), b"n19999@example.org")
            assert said.verb == b"junk"
        # The last of them was never dropped, whatever went on when it came.
        while process.ask("rcpt-to", sid(1), b"40@example.org").verb != b"junk":
            pass
        assert process.ask("rcpt-to", sid(1), b"0@example.org").verb == b"proceed"
        process.finish()
    reloads = [line for line in process.last_words.splitlines() if " reload " in line]
    assert 2 <= len(reloads) <= 40
    kept = 'error="' + f"{path}: changed while it was read" + '" result=kept'
    for line in reloads:
        ended = line.partition(" table=names ")[2]
        result, _, rest = ended.partition(" file=")
        assert result in {"result=ok", "result=unchanged", kept}
        assert rest == f"{path} entries=20001"


def test_one_reload_at_a_time_and_one_more() -> None:
    done: list[str] = []

    class Reloading:
        def reload(self) -> Iterator[None]:
            done.append("begins")
            yield
            done.append("ends")

    chores: deque[Iterator[None]] = deque()
    service = cast("Service", Reloading())
    log = Log()
    for _ in range(3):
        add_chore(chores, service)
    do_chore(chores, log)
    for _ in range(3):
        add_chore(chores, service)
    while chores:
        do_chore(chores, log)
    assert done == ["begins", "ends"] * 2


def test_a_coroutine_is_cancelled_with_its_session(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    with serve("Later", "--notes", str(notes)) as process:
        process.connect(sid(1))
        process.connect(sid(2))
        process.send(process.request("rcpt-to", sid(1), b"wait@example.org"))
        process.send(process.request("rcpt-to", sid(2), b"wait@example.org"))
        # They have begun to wait once they say so.
        while notes.read_text().count("waiting") < 2:
            process.ask("helo", sid(3))
        process.report("link-disconnect", sid(2))
        while "cancelled" not in notes.read_text():
            process.ask("helo", sid(3))
        process.ask("noop", sid(3))
        assert process.answer(sid(1)).verb == b"proceed"
        process.finish()
        assert not process.answers
    said = notes.read_text().splitlines()
    assert f"cancelled {sid(2).decode()}" in said
    assert f"cancelled {sid(1).decode()}" not in said
    assert process.last_words == ""


def test_requests_that_need_not_wait_are_answered_first() -> None:
    with serve("Later") as process:
        process.connect(sid(1))
        process.connect(sid(2))
        data = process.request("rcpt-to", sid(1), b"turn@example.org")
        values = (b"mx.example.org", b"pass", b"192.0.2.1:25", b"192.0.2.2:25")
        others = 2
        while len(data) < 2.5 * READ:  # the other request comes with the third read
            others += 1
            data += process.smtpd.report("link-connect", sid(others), *values)
        data += process.request("helo", sid(2))
        process.kill(signal.SIGSTOP)
        os.waitpid(process.child.pid, os.WUNTRACED)
        process.oracle.from_smtpd(data)
        assert os.write(process.sink, data) == len(data)
        process.kill(signal.SIGCONT)
        process.until(lambda: len(process.answers) == 2)
        assert [each.session for each in process.answers] == [sid(2), sid(1)]
        process.finish()


@pytest.mark.parametrize("started", ["task", "soon", "later", "plain"])
def test_what_a_handler_has_started_blocks_nothing(started: str) -> None:
    with serve("Leaking", "--deadline", "0.4") as process:
        process.connect(sid(1))
        process.ask("helo", sid(1), started.encode())
        process.until_logged("OverdueError")
        assert process.ask("helo", sid(1)).verb == b"proceed"
        assert process.ask("rcpt-to", sid(1), b"a@example.org").verb == b"proceed"
        process.finish()
    assert "blocked the process" in process.last_words


def test_a_cancel_that_blocks_is_interrupted() -> None:
    with serve("Leaking", "--deadline", "0.4", "--on-error", "tempfail") as process:
        process.connect(sid(1))
        assert process.ask("rcpt-to", sid(1), b"cancel@example.org").verb == b"reject"
        process.until_logged("OverdueError")
        process.close_input()
        assert process.child.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", ["EndlessHandler", "EndlessClose", "EndlessCloseLater"])
def test_what_ignores_everything_does_not_keep_the_process(name: str) -> None:
    with serve(name, "--deadline", "0.1") as process:
        process.connect(sid(1))
        process.ask("rcpt-to", sid(1), b"a@example.org")
        process.close_input()
        assert process.child.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", ["Texts", "TextsLater"])
def test_code_of_a_policy_that_the_framework_calls_blocks_nothing(name: str) -> None:
    phase = "helo" if name == "Texts" else "ehlo"
    with serve(name, "--deadline", "0.4", "--on-error", "tempfail") as process:
        for number, (identity, verb) in enumerate(
            [(b"raise", b"reject"), (b"because", b"reject"), (b"del", b"proceed")]
        ):
            process.connect(sid(number))
            assert process.ask(phase, sid(number), identity).verb == verb
            process.report("link-disconnect", sid(number))
        process.connect(sid(9))
        assert process.ask(phase, sid(9), b"del").verb == b"proceed"
        process.until_logged("unraisable")
        process.finish()
    assert process.last_words.count("(no text)") == 1
    assert "OverdueError: blocked the process" in process.last_words


@pytest.mark.parametrize("name", ["Alarming", "AlarmingLater"])
def test_a_policy_that_stops_the_timer_is_interrupted(name: str) -> None:
    with serve(name, "--deadline", "0.4", "--on-error", "tempfail") as process:
        process.connect(sid(1))
        assert process.ask("helo", sid(1), b"alarm").verb == b"proceed"
        while "stopped the timer" not in process.logged:
            assert process.ask("helo", sid(1), b"x").verb == b"proceed"
        assert process.ask("helo", sid(1), b"alarm").verb == b"proceed"
        assert process.ask("helo", sid(1), b"block").verb == b"reject"
        process.finish()


@pytest.mark.parametrize("name", ["Alarming", "AlarmingLater"])
@pytest.mark.parametrize("how", [b"ignore", b"default"])
def test_a_policy_that_takes_the_timer_signal_is_interrupted(name: str, how: bytes) -> None:
    with serve(name, "--deadline", "0.4", "--on-error", "tempfail") as process:
        process.connect(sid(1))
        assert process.ask("helo", sid(1), how).verb == b"proceed"
        assert process.ask("helo", sid(1), b"block").verb == b"reject"
        process.finish()


@pytest.mark.parametrize("name", ["Alarming", "AlarmingLater"])
def test_a_policy_that_takes_a_signal_does_not_end_the_process(name: str, tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_text("one@example.org\n")
    with serve(name, "--names", f"file:{path}") as process:
        process.connect(sid(1))
        process.ask("helo", sid(1), b"hangup")
        while not process.catches(signal.SIGHUP):
            process.ask("helo", sid(1), b"x")
        process.kill(signal.SIGHUP)
        process.until_logged("result=unchanged")
        process.finish()


@pytest.mark.parametrize("name", ["Stubborn", "StubbornLater"])
def test_sigterm_ends_it_whatever_a_handler_ignores(name: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    with serve(name, "--deadline", "0.1", "--notes", str(notes)) as process:
        process.connect(sid(1))
        process.send(process.request("helo", sid(1), b"x"))
        process.until_noted(notes, "begun")
        process.kill(signal.SIGTERM)
        assert process.child.wait(PATIENCE) == 0


def test_a_descriptor_whose_callback_blocks_is_no_longer_watched() -> None:
    with serve("Readable", "--deadline", "0.4") as process:
        process.connect(sid(1))
        assert process.ask("helo", sid(1), b"watch").verb == b"proceed"
        process.until_logged("removed a callback that blocked")
        process.until_asleep()
        assert process.ask("helo", sid(1), b"x").verb == b"proceed"
        process.finish()
    assert process.last_words.count("OverdueError") == 1


def test_times_that_are_no_numbers_stop_nothing() -> None:
    with serve("Numbers", "--on-error", "tempfail") as process:
        process.until_logged("refreshed")
        process.connect(sid(1))
        assert process.ask("helo", sid(1), b"x").verb == b"reject"
        process.until_asleep()
        process.finish()
    assert "ValueError: a time that is not a number" in process.last_words
    # The second call was due before the interval was replaced.
    assert 1 <= process.last_words.count("RuntimeError: refreshed") <= 2


@pytest.mark.parametrize("interval", [None, "x", float("nan"), -1.0, 0.02])
def test_the_interval_of_refresh(interval: Any) -> None:
    refresher: Any = SimpleNamespace(refresh_interval=interval)
    known = isinstance(interval, float) and interval == interval  # noqa: PLR0124  # not NaN
    wanted = max(interval, asyncio_loop.SHORTEST) if known else asyncio_loop.UNKNOWN
    assert asyncio_loop._pause(refresher) == wanted


def test_a_file_that_gets_the_number_of_stderr_is_not_the_log(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    with serve("Reusing", "--notes", str(notes), "--on-error", "tempfail") as process:
        process.connect(sid(1))
        assert process.ask("helo", sid(1), b"x").verb == b"reject"
        process.until_logged("ValueError: for the log")
        assert notes.read_text() == ""
        process.finish()


def test_a_task_factory_that_exits_ends_nothing(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.touch()
    with serve("Exiting", "--notes", str(notes)) as process:
        process.connect(sid(1))
        assert process.ask("helo", sid(1), b"x").verb == b"proceed"
        notes.write_text("")
        process.until_noted(notes, "refreshed")
        process.finish()
    assert "refreshed" in notes.read_text()
    assert notes.read_text().endswith("closed\n")


def test_a_session_that_ends_before_its_coroutine_has_begun() -> None:
    with serve("Later") as process:
        # In one read: the task is made and given up in the same turn.
        process.send(
            process.request("rcpt-to", sid(1), b"turn@example.org")
            + process.smtpd.report("link-disconnect", sid(1))
        )
        process.connect(sid(2))
        assert process.ask("rcpt-to", sid(2), b"turn@example.org").verb == b"proceed"
        process.finish()
    assert process.last_words == ""


def test_pending_requests_are_answered_at_the_end_of_input() -> None:
    with serve("Later", "--deadline", "0.1", "--on-error", "tempfail") as process:
        process.connect(sid(1))
        process.send(process.request("rcpt-to", sid(1), b"wait@example.org"))
        process.finish()
        assert process.answer_of(sid(1)).verb == b"reject"
    assert "not done after 0.1 s" in process.last_words


@pytest.mark.parametrize("name", ["Head", "HeadLater", "Whole", "WholeLater"])
@PIPES
def test_a_large_message_is_returned(name: str, pipes: bool) -> None:  # noqa: FBT001
    lines = body(part(4 * MEGABYTE))
    with serve(name, pipes=pipes) as process:
        process.connect(sid(1))
        back = process.message(sid(1), lines)
        if name.startswith("Head"):
            assert back == [b"X-Head: 1", *lines]
        else:
            size = sum(map(len, lines)) + len(lines)
            assert back == [lines[0], b"X-Size: %d" % size, *lines[1:]]
        process.report("link-disconnect", sid(1))
        process.finish()
    assert process.last_words == ""


@pytest.mark.parametrize("name", ["Head", "HeadLater", "Whole", "WholeLater"])
def test_a_peer_that_does_not_read(name: str) -> None:
    """While 50 MB are pending memory is bounded, and nothing is lost when it reads again."""
    lines = body(part(50 * MEGABYTE))
    with serve(name) as process:
        process.connect(sid(1))
        before = process.memory()
        data = process.smtpd.lines(sid(1), TOKENS["data-line"], lines)
        sent = process.push(data)
        assert process.memory() - before < 12 * MEGABYTE
        if name.startswith("Whole"):
            # It went to the disk: before its end there is nothing to be sent back.
            assert sent == len(data)
        elif name == "Head":
            # The body passes: it is read no faster than it is taken.
            assert sent < len(data) // 2, "it reads on though nobody takes what it writes"
        assert process.exchange(data[sent:], b"|.\n") == len(lines) + 2
        assert process.memory() - before < 12 * MEGABYTE
        process.close_input()
        assert process.child.wait(PATIENCE) == 0
    assert process.last_words == ""


def test_a_reader_that_closes() -> None:
    with FilterProcess(policy("Head"), pipes=True).hand_shake() as process:
        process.connect(sid(1))
        ours = os.open(os.devnull, os.O_RDONLY)
        os.dup2(ours, process.source)
        os.close(ours)
        process.send(
            process.smtpd.lines(sid(1), TOKENS["data-line"], body(MEGABYTE)), reading=False
        )
        process.close_input()
        assert process.child.wait(PATIENCE) == 0
    assert process.last_words == ""


def test_a_full_disk_is_a_temporary_failure(tmp_path: Path) -> None:
    limit = 3 * MEGABYTE

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    lines = body(8 * MEGABYTE)
    with FilterProcess(policy("Whole"), before=limited, env={"TMPDIR": str(tmp_path)}) as process:
        process.hand_shake()
        process.connect(sid(1))
        process.send(process.smtpd.lines(sid(1), TOKENS["data-line"], lines))
        process.until_dot(sid(1))
        process.answers.clear()
        said = process.ask("commit", sid(1))
        assert (said.verb, said.argument) == (b"reject", b"452 4.3.1 Insufficient system storage")
        # The next message, a small one, has room.
        back = process.message(sid(1), body(1000))
        assert back[1].startswith(b"X-Size: ")
        assert process.ask("commit", sid(1)).verb == b"proceed"
        process.finish()
    assert f"{sid(1).decode()} smtpd-filters message refused" in process.last_words
    assert not list(tmp_path.iterdir())


@BOTH
def test_a_protocol_that_is_too_old(name: str) -> None:
    with FilterProcess(policy(name)) as process:
        process.send(b"config|smtpd-version|6.4.0\nconfig|protocol|0.4\nconfig|ready\n")
        while not process.eof:
            process.wait()
        assert process.child.wait(PATIENCE) == 2
        assert not process.smtpd.ready
    assert process.last_words.count("\n") == 1
    assert "0.4" in process.last_words


@pytest.mark.parametrize(
    "flags", [["--nonsense"], ["--deadline", "x"], ["--names", "file:/nonexistent"], ["stray"]]
)
def test_bad_flags_are_one_line_before_anything_else(flags: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, POLICIES, "Plain", *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(POLICIES))),  # noqa: PTH120
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert flags[0].encode() in done.stderr


@BOTH
def test_an_unread_log_blocks_nothing(name: str) -> None:
    ends = os.pipe()
    try:
        with FilterProcess(policy(name, "-v"), stderr=ends[1]) as process:
            process.hand_shake()
            process.connect(sid(1))
            for _ in range(20):
                request = process.request("rcpt-to", sid(1), b"a@example.org")
                for _ in range(100):
                    process.send(request)
                    process.answer(sid(1))
            process.finish()
    finally:
        for end in ends:
            os.close(end)


def test_lines_of_many_sessions_do_not_mix() -> None:
    with serve("Whole") as process:
        sessions = [sid(number) for number in range(20)]
        for session in sessions:
            process.connect(session)
        for number in range(50):
            line = b"Subject: x" if not number else b"" if number == 1 else b"%d " % number
            for session in sessions:
                lines = [line + session if number > 1 else line]
                process.send(
                    process.smtpd.lines(session, TOKENS["data-line"], lines, end=number == 49)
                )
        for session in sessions:
            process.until_dot(session)
            got = [a.line for a in process.answers if isinstance(a, Line) and a.session == session]
            assert got[3:-1] == [b"%d %b" % (number, session) for number in range(2, 50)]
        process.finish()


def test_one_turn_of_messages_in_a_round_of_the_loop() -> None:
    class Backlog:
        """An engine that always has something to do for messages."""

        spawn: Any = None
        holds = False
        queue = (None,)
        scarce = stalled = False
        unread = b""
        connection = SimpleNamespace(answers=[], lines=[], ended=set())
        received = turns = 0

        def resume(self) -> None:
            self.received += len(self.unread)
            self.stalled = False

        def work(self) -> None:
            self.turns += 1

    ours, theirs = socket.socketpair()
    loop = asyncio_loop._EventLoop()
    with ours, theirs:
        channel: Any = Channel(ours.fileno(), ours.fileno())
        stub: Any = SimpleNamespace(armed=True)
        engine: Any = Backlog()
        filter_loop = asyncio_loop._Loop(loop, stub, engine, channel, stub, Log(), stub, stub)
        theirs.settimeout(0)
        filter_loop._turn()
        for _ in range(20):
            try:
                theirs.send(b"x" * READ * 2)
            except BlockingIOError:
                pass
            before = engine.turns
            # However much is read, and however many coroutines are done.
            filter_loop._turn_soon()
            loop.call_soon(loop.stop)
            loop.run_forever()
            assert engine.turns == before + 1
        assert engine.received >= 20 * READ
        loop.close()


@pytest.mark.parametrize(("seconds", "reads"), [(0.0, asyncio_loop.READS), (1.0, 1)])
def test_reads_in_a_row_end_after_a_number_and_a_time(
    seconds: float, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, processed = 0.0, 0

    def take_full_read(_channel: object, _engine: object) -> int:
        nonlocal now, processed
        processed += 1
        now += seconds
        return READ

    monkeypatch.setattr(asyncio_loop, "hand_over", take_full_read)
    monkeypatch.setattr(asyncio_loop, "monotonic", lambda: now)
    stub: Any = SimpleNamespace(stalled=False)
    loop = asyncio_loop._EventLoop()
    filter_loop = asyncio_loop._Loop(loop, stub, stub, stub, stub, Log(), stub, stub)
    filter_loop._receive = filter_loop._turn = lambda: None  # type: ignore[method-assign]
    filter_loop.reading = True
    filter_loop._readable()
    assert processed == reads
    loop.close()


def test_the_state_is_told_again_after_a_lack_of_memory() -> None:
    class Telling:
        """An engine that has no memory the second time."""

        spawn: Any = None
        holds = False
        told = 0

        def beat(self) -> float:
            self.told += 1
            if self.told == 2:
                raise MemoryError
            return 60.0

    loop = asyncio_loop._EventLoop()
    stub: Any = SimpleNamespace()
    engine: Any = Telling()
    filter_loop = asyncio_loop._Loop(loop, stub, engine, stub, stub, Log(), stub, stub)
    filter_loop._send_journal()
    filter_loop._restart_journal()
    assert engine.told == 1  # the next time is scheduled
    with pytest.raises(MemoryError):
        filter_loop._send_journal()
    filter_loop._restart_journal()
    assert engine.told == 3
    loop.close()


def test_the_loop_goes_on_when_a_signal_finds_no_memory_between_two_rounds() -> None:
    class Interrupted(asyncio_loop._Loop):
        rounds = 0

        def _run_rounds(self, going: Callable[[], bool]) -> None:
            self.rounds += 1
            if self.rounds == 1:  # where no `try` is
                raise SystemError("error return without exception set")
            super()._run_rounds(going)

    loop = asyncio_loop._EventLoop()
    stub: Any = SimpleNamespace(relieve=lambda: None, beat=lambda: None, stalled=False)
    filter_loop = Interrupted(loop, stub, stub, stub, stub, Log(), stub, stub)
    filter_loop._turn = lambda: None  # type: ignore[method-assign]
    filter_loop._forever(lambda: False)
    assert filter_loop.rounds == 2
    assert not filter_loop.out_of_memory
    loop.close()


def test_the_poll_loop_goes_on_when_a_signal_finds_no_memory_between_two_rounds() -> None:
    class Interrupted(poll_loop._Loop):
        rounds = 0

        def _run_rounds(self) -> None:
            self.rounds += 1
            if self.rounds == 1:  # where no `try` is
                raise MemoryError
            self.signals.stop = True

        def _listen(self) -> None:
            """Nothing to listen to."""

        def _finish(self) -> None:
            """Nothing to answer."""

    stub: Any = SimpleNamespace(stop=False, wakeup=0)
    loop = Interrupted(stub, stub, stub, Log(), stub, stub)
    loop.run()
    assert loop.rounds == 2

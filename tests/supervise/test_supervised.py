"""A real filter-supervise with real programs that misbehave: smtpd notices nothing of it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.startup import STRAY
from tests.supervise.supervised import PROGRAM, ROOT, Started, Supervised
from tests.test_start import HEAVY

if TYPE_CHECKING:
    from pathlib import Path

MESSAGE = (b"Subject: x", b"", b"text", b"..dot", b"a|b|")
TEMPFAIL = PHASES["mail-from"].fallbacks["tempfail"].text.encode()
#: What each mode looks like in the log.
FAULTS = {
    "exit": "exited with status 3",
    "kill": "killed by signal 9",
    "garbage": "unknown line",
    "twice": "answer without a request",
    "token": "answer without a request",
    "session": "answer without a request",
    "early-dot": "line outside of a message",
    "close-output": "closed its output",
}
HANGS = {
    "stop": "no answer at mail-from",
    "hang": "no answer",
    "half": "no answer",
    "leave-group": "no answer",
}


def check_next(smtpd: Supervised) -> None:
    """A program serves the next session, or one after it where it misses a short deadline."""
    assert any(served(smtpd) for _ in range(20)), smtpd.log


def served(smtpd: Supervised) -> bool:
    client = smtpd.connect()
    proceeds = (
        client.begin().verb == b"proceed"
        and client.message(*MESSAGE).verb == b"proceed"
        and client.returned == [*MESSAGE, b"."]
    )
    client.quit()
    return proceeds


def started(smtpd: Supervised, count: int) -> None:
    """Wait until so many programs have got ready, which may take longer than a deadline."""
    smtpd.until(lambda: sum("supervise ready" in line for line in smtpd.log) >= count)


@pytest.mark.parametrize("protocol", [(0, 6), (0, 7)])
@pytest.mark.parametrize("mode", FAULTS)
def test_a_fault_at_a_request(mode: str, protocol: tuple[int, int]) -> None:
    with Supervised(protocol=protocol) as smtpd:
        other = smtpd.connect()
        assert other.ask("ehlo", b"x").verb == b"proceed"
        other.report("link-identify", b"EHLO", b"x")
        client = smtpd.connect()
        answer = client.begin(f"{mode}@example.org".encode())
        if mode != "twice":  # its first answer was right
            assert (answer.verb, answer.argument) == (b"reject", TEMPFAIL)
        smtpd.logged("supervise ended", FAULTS[mode])
        # Both sessions go on with a new program, which gets their reports.
        if mode == "twice":  # it is asked again, and ends of it again
            assert client.ask("rcpt-to", b"who@example.org").argument == TEMPFAIL
        else:
            _, reports = client.who()
            assert reports == ["link-connect", "tx-begin", "tx-mail"]
        _, reports = other.who()
        assert reports == ["link-connect", "link-identify"]
        check_next(smtpd)


@pytest.mark.parametrize("mode", HANGS)
def test_a_program_that_hangs(mode: str) -> None:
    with Supervised("--deadline", "1s") as smtpd:
        client = smtpd.connect()
        assert client.begin(f"{mode}@example.org".encode()).argument == TEMPFAIL
        smtpd.logged("supervise ended", HANGS[mode])
        started(smtpd, 2)
        check_next(smtpd)


def test_proceed_on_error() -> None:
    with Supervised("--on-error", "proceed") as smtpd:
        client = smtpd.connect()
        assert client.begin(b"exit@example.org").verb == b"proceed"
        assert client.message(*MESSAGE).verb == b"proceed"


def test_junk_on_error() -> None:
    with Supervised("--on-error", "junk") as smtpd:
        assert smtpd.connect().begin(b"exit@example.org").verb == b"junk"
        client = smtpd.connect()
        assert client.begin(b"junk-at-commit@example.org").verb == b"proceed"
        # It can't be marked any more.
        assert client.message(*MESSAGE).argument == TEMPFAIL


@pytest.mark.parametrize("mode", ["exit", "kill", "garbage", "session"])
def test_a_message_of_which_lines_have_gone_back_is_refused(mode: str) -> None:
    with Supervised("--on-error", "proceed") as smtpd:
        client = smtpd.connect()
        client.begin()
        client.lines([b"Subject: x"])
        smtpd.until(lambda: bool(client.returned))
        client.lines([f"Do: {mode}".encode()])
        smtpd.logged("supervise ended", "refused=1")
        client.lines([b"", b"text"], end=True)
        assert client.commit().argument == TEMPFAIL
        check_next(smtpd)


@pytest.mark.parametrize("mode", ["exit", "kill", "garbage"])
def test_a_message_of_which_nothing_has_gone_back_is_given_again(mode: str, tmp_path: Path) -> None:
    command = (*PROGRAM, "--whole", "--once", str(tmp_path / "once"))
    with Supervised(command=command) as smtpd:
        client = smtpd.connect()
        client.begin()
        lines = [b"Subject: x", b"Do: " + mode.encode(), b"", *[b"x" * 70] * 20000]
        assert client.message(*lines).verb == b"proceed"
        assert client.returned == [*lines, b"."]
        assert "given-again=1" in smtpd.logged("supervise ended", FAULTS[mode])


def test_a_message_that_ends_each_program_is_refused() -> None:
    with Supervised(command=(*PROGRAM, "--whole")) as smtpd:
        client = smtpd.connect()
        client.begin()
        assert client.message(b"Do: exit", b"", b"x").argument == TEMPFAIL
        assert sum("supervise ended" in line for line in smtpd.log) == 3
        check_next(smtpd)


def test_a_verdict_that_is_lost_between_message_and_commit() -> None:
    with Supervised("--on-error", "proceed") as smtpd:
        client = smtpd.connect()
        pid, _ = client.who()
        client.begin()
        client.lines(MESSAGE, end=True)
        smtpd.until(lambda: b"." in client.returned)
        os.kill(pid, signal.SIGKILL)
        smtpd.logged("supervise ended", "refused=1")
        assert client.commit().argument == TEMPFAIL
        check_next(smtpd)


def test_signals_that_mean_nothing() -> None:
    with Supervised() as smtpd:
        for number in (signal.SIGINT, *STRAY):
            smtpd.process.send_signal(number)
        assert served(smtpd)


def test_a_flood() -> None:
    with Supervised() as smtpd:
        client = smtpd.connect()
        client.begin()
        client.lines([b"", b"Do: flood"])
        smtpd.logged("supervise ended", "flood of lines")
        client.lines([], end=True)
        assert client.commit().argument == TEMPFAIL
        check_next(smtpd)


@pytest.mark.parametrize("protocol", [(0, 6), (0, 7)])
def test_a_line_of_64_kib_is_broken(protocol: tuple[int, int]) -> None:
    with Supervised(protocol=protocol) as smtpd:
        client = smtpd.connect()
        client.begin()
        assert client.message(b"", b"Do: long-line", b"x" * 65485).verb == b"proceed"
        assert b"".join(client.returned).replace(b" ", b"").count(b"x") == 70000 + 65485
        smtpd.logged("long lines broken")


def test_a_message_with_a_long_line_is_refused_if_wanted() -> None:
    with Supervised("--long-lines", "refuse") as smtpd:
        client = smtpd.connect()
        client.begin()
        argument = client.message(b"", b"Do: long-line").argument
        assert argument == b"554 5.6.0 Message has a line that is too long"


def test_a_program_that_closes_its_input() -> None:
    with Supervised() as smtpd:
        client = smtpd.connect()
        client.send("mail-from", b"close-input@example.org")

        def closed() -> bool:
            client.report("link-identify", b"EHLO", b"x")
            return bool(client.results)

        smtpd.until(closed)
        assert client.result().argument == TEMPFAIL
        smtpd.logged("supervise ended", "closed its input")
        check_next(smtpd)


def test_a_reply_is_made_safe() -> None:
    with Supervised() as smtpd:
        client = smtpd.connect()
        pid, _ = client.who()
        assert client.begin(b"bad-reply@example.org").argument == b"451 go away"
        assert client.who()[0] == pid


def test_a_program_that_does_not_read() -> None:
    with Supervised("--deadline", "1s", command=(*PROGRAM, "--whole")) as smtpd:
        client = smtpd.connect()
        client.begin()
        client.lines([b"Do: deaf", *[b"x" * 900] * 5000])
        smtpd.logged("supervise ended", "has not read")
        client.quit()
        started(smtpd, 2)
        check_next(smtpd)


@pytest.mark.parametrize("whole", [(), ("--whole",)])
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_program_that_does_not_read_delays_no_other(
    whole: tuple[str, ...], *, goes_on: bool
) -> None:
    """Its messages wait for it, or are given to the next program if none was returned in part."""
    lines = [b"Subject: x", b"", *(b"%d%b" % (number, b"x" * 900) for number in range(5000))]
    with Supervised("--workers", "2", "--deadline", "10s", command=(*PROGRAM, *whole)) as smtpd:
        started(smtpd, 2)
        client, other = smtpd.connect(), smtpd.connect()
        pids = client.who()[0], other.who()[0]
        assert len({*pids}) == 2
        client.begin()
        client.lines(lines[:1])
        if not whole:
            smtpd.until(lambda: bool(client.returned))
        os.kill(pids[0], signal.SIGSTOP)
        for at in range(1, len(lines), 50):
            client.lines(lines[at : at + 50])
        assert other.who()[0] == pids[1]
        assert smtpd.connect().who()[0] == pids[1]
        assert not any("supervise ended" in line for line in smtpd.log)
        if goes_on:
            os.kill(pids[0], signal.SIGCONT)
        answer = client.message()
        if goes_on or whole:
            assert answer.verb == b"proceed"
            assert client.returned == [*lines, b"."]
        else:
            assert answer.argument == TEMPFAIL


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory() -> None:
    with Supervised("--memory-limit", "100M") as smtpd:
        client = smtpd.connect()
        assert client.begin(b"memory@example.org").argument == TEMPFAIL
        smtpd.logged("supervise ended", "more than --memory-limit")
        check_next(smtpd)


def test_the_log_of_a_program() -> None:
    with Supervised() as smtpd:
        assert smtpd.connect().begin(b"stderr@example.org").verb == b"proceed"
        smtpd.logged("line 199")
        assert smtpd.connect().begin(b"exit@example.org").verb == b"reject"
        smtpd.logged("misbehaving: exits")
        smtpd.logged("log lines dropped")
        assert len(smtpd.log) < 400


def test_a_process_that_a_program_leaves_behind_and_that_never_stops_writing() -> None:
    """It ends when its log is closed, which must not wait for the end of what it writes."""
    leaves = "setsid sh -c 'kill $0; exec yes >&2' $$ & wait"
    with Supervised(command=("sh", "-c", leaves)) as smtpd:
        assert smtpd.side.phases >= {*PHASES}
        assert smtpd.connect().begin(b"alice@example.org").verb == b"reject"


@pytest.mark.parametrize("command", [("env X=1 greet",), ("env", "X=1", "greet"), ("greet",)])
def test_a_program_beside_the_supervisor_is_found(command: tuple[str, ...], tmp_path: Path) -> None:
    supervisor, program = tmp_path / "filter-supervise", tmp_path / "greet"
    supervisor.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from smtpd_filters.supervise.program import main\nsys.exit(main())\n"
    )
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    with Started([sys.executable, str(supervisor), *command]) as smtpd:
        smtpd.connect().who()
        assert not any("supervise ended" in line for line in smtpd.log)


def test_a_program_that_fails_at_every_start(tmp_path: Path) -> None:
    fail = tmp_path / "fail"
    fail.touch()
    with Supervised(command=(*PROGRAM, "--fail", str(fail))) as smtpd:
        assert smtpd.side.phases >= {*PHASES}
        smtpd.logged("misbehaving: cannot start")
        client = smtpd.connect()
        assert client.ask("connect").verb == b"disconnect"
        client.quit()
        fail.unlink()
        smtpd.reload()
        smtpd.logged("supervise ready")
        check_next(smtpd)


def test_a_command_that_does_not_exist() -> None:
    with Supervised("--on-error", "proceed", command=("/nonexistent/filter",)) as smtpd:
        smtpd.logged("exited with status 127")
        client = smtpd.connect()
        assert client.begin().verb == b"proceed"
        assert client.message(*MESSAGE).verb == b"proceed"
        assert client.returned == [*MESSAGE, b"."]


def test_programs_end_with_smtpd() -> None:
    with Supervised("--workers", "2", command=(*PROGRAM,)) as smtpd:
        started(smtpd, 2)
        pids = {smtpd.connect().who()[0] for _ in range(2)}
        assert len(pids) == 2
        os.kill(pids.pop(), signal.SIGSTOP)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_a_program_inherits() -> None:
    script = (
        "import os, signal, sys; "
        "print(os.listdir('/proc/self/fd') if os.path.exists('/proc') else [], "
        "signal.getsignal(signal.SIGPIPE), os.getpgid(0) == os.getpid(), file=sys.stderr)"
    )
    read, write = os.pipe()
    os.set_inheritable(write, True)  # noqa: FBT003  # by position only
    try:
        command = (sys.executable, "-S", "-c", script)
        with Supervised("--on-error", "proceed", command=command) as smtpd:
            line = smtpd.logged("True")
    finally:
        os.close(read)
        os.close(write)
    # 3 is the listing itself. Python ignores SIGPIPE by itself.
    assert line.startswith("['0', '1', '2', '3']")


def test_workers_share_the_sessions() -> None:
    with Supervised("--workers", "2") as smtpd:
        clients = [smtpd.connect() for _ in range(6)]
        smtpd.logged("supervise ready")
        pids = [client.who()[0] for client in clients]
        assert len(set(pids)) <= 2
        # Those that leave make room: the least loaded program gets the next session.
        by_pid = {pid: [c for c, p in zip(clients, pids, strict=True) if p == pid] for pid in pids}
        assert sum(map(len, by_pid.values())) == 6
        first = pids[0]
        for client in by_pid[first]:
            client.quit()
        started(smtpd, 2)
        assert smtpd.connect().who()[0] in {*pids, smtpd.connect().who()[0]}


def test_a_worker_takes_only_its_own_sessions_with_it() -> None:
    with Supervised("--workers", "2") as smtpd:
        started(smtpd, 2)
        one, two = smtpd.connect(), smtpd.connect()
        one.begin()
        two.begin()
        pids = one.who()[0], two.who()[0]
        assert pids[0] != pids[1]
        one.lines([b"Subject: x"])
        two.lines([b"Subject: y"])
        smtpd.until(lambda: bool(one.returned and two.returned))
        os.kill(pids[0], signal.SIGKILL)
        smtpd.logged("supervise ended", "refused=1")
        assert two.message(b"", b"text").verb == b"proceed"
        one.lines([], end=True)
        assert one.commit().argument == TEMPFAIL
        assert two.who()[0] == pids[1]


def test_reload() -> None:
    with Supervised() as smtpd:
        old = smtpd.connect()
        pid, _ = old.who()
        old.begin()
        old.lines([b"Subject: x"])
        smtpd.reload()
        smtpd.logged("supervise reload", "result=ok")
        new = smtpd.connect()
        successor, _ = new.who()
        assert successor != pid
        assert old.message(b"", b"text").verb == b"proceed"
        assert old.who()[0] == pid
        old.quit()
        smtpd.logged("supervise drained", str(pid))
        assert new.who()[0] == successor


def test_a_reload_while_a_program_starts(tmp_path: Path) -> None:
    """It may have read its old configuration."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    go.touch()
    wait = f"touch {begun}; until test -e {go}; do sleep 0.01; done"
    command = ("sh", "-c", f'{wait}; exec "$@"', "sh", *PROGRAM)
    with Supervised(command=command) as smtpd:
        pid, _ = smtpd.connect().who()
        go.unlink()
        begun.unlink()
        os.kill(pid, signal.SIGKILL)
        smtpd.until(begun.exists)
        smtpd.reload()
        go.touch()
        smtpd.logged("supervise reload", "result=ok")
        ready = [line for line in smtpd.log if "supervise ready" in line]
        assert len(ready) == 3


def test_a_replaced_program_is_ended_in_time() -> None:
    with Supervised("--drain-timeout", "1s") as smtpd:
        client = smtpd.connect()
        pid, _ = client.who()
        client.begin()
        smtpd.reload()
        smtpd.logged("supervise ended", "sessions left after --drain-timeout")
        successor, reports = client.who()
        assert successor != pid
        assert reports == ["link-connect", "tx-begin", "tx-mail"]


def test_a_reload_that_fails_leaves_the_old_program(tmp_path: Path) -> None:
    fail = tmp_path / "fail"
    with Supervised(command=(*PROGRAM, "--fail", str(fail))) as smtpd:
        client = smtpd.connect()
        pid, _ = client.who()
        fail.touch()
        smtpd.reload()
        line = smtpd.logged("supervise reload failed")
        assert "exited with status 4" in line
        assert client.who()[0] == pid
        check_next(smtpd)
        fail.unlink()
        smtpd.reload()
        smtpd.logged("supervise reload", "result=ok")
        assert smtpd.connect().who()[0] != pid


@pytest.mark.parametrize("register", ["auto", "all"])
def test_a_program_that_registers_more_later(register: str, tmp_path: Path) -> None:
    phases = tmp_path / "phases"
    phases.write_text("mail-from rcpt-to")
    command = f'{" ".join(PROGRAM)} --register "$(cat {phases})"'
    with Supervised("--register", register, command=(command,)) as smtpd:
        client = smtpd.connect()
        pid, _ = client.who()
        phases.write_text("rcpt-to data")
        smtpd.reload()
        if register == "auto":
            line = smtpd.logged("supervise reload failed")
            assert "registers filter data, which was not registered with smtpd at its start" in line
            assert smtpd.connect().who()[0] == pid
        else:
            smtpd.logged("supervise reload", "result=ok")
            assert smtpd.connect().who()[0] != pid
            assert smtpd.connect().ask("data").verb == b"proceed"
        # What it has not registered it is not asked.
        assert smtpd.connect().ask("mail-from", b"exit2@example.org").verb == b"proceed"


def test_what_takes_long_to_import_is_not() -> None:
    words = [sys.executable, "-S", "-E", "-X", "importtime", "-m"]
    done = subprocess.run(
        [*words, "smtpd_filters.supervise.program", "/nonexistent"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0
    imported = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()}
    assert "smtpd_filters.supervise.loop" in imported
    assert imported.isdisjoint({*HEAVY, "subprocess", "threading", "contextvars", "socket"})
    assert imported.isdisjoint(f"smtpd_filters.{name}" for name in ("filter", "main", "session"))

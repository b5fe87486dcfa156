"""Before a filter has registered: signals, and descriptors that are closed or shared."""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime import engine, serve
from smtpd_filters.runtime.log import MAX_LINE, Log
from tests.effort import some
from tests.runtime.process import PATIENCE, POLICIES, ROOT, FilterProcess, policy, sid

if TYPE_CHECKING:
    from collections.abc import Callable

GREETING = SmtpdConnection().configure()
#: What follows the name of a class whose settings are not those of its flags.
UNSET = ".__init__ doesn't call super().__init__(settings) with its settings"
HANG_UP = "import os, signal; os.kill(os.getpid(), signal.SIGHUP)"


@pytest.mark.parametrize("by_smtpd", [True, False])
def test_a_hangup_while_a_filter_is_loaded_does_not_end_it(*, by_smtpd: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", f"import smtpd_filters.errors; {HANG_UP}"],
            stdin=theirs.fileno() if by_smtpd else subprocess.DEVNULL,
            stdout=theirs.fileno() if by_smtpd else subprocess.DEVNULL,
            cwd=ROOT,
            check=False,
            timeout=PATIENCE,
            # A test before this one may have ignored it, which a child inherits.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
    # A program that only uses the package keeps its signals.
    assert done.returncode == (0 if by_smtpd else -signal.SIGHUP)


INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    ("program", "ignored", "status", "traceback"),
    [
        ("/usr/bin/smtpd-filters", False, -signal.SIGINT, False),
        ("/usr/libexec/opensmtpd/filter-chain", False, -signal.SIGINT, False),
        ("/usr/bin/smtpd-filters", True, 0, False),
        ("/usr/bin/other", False, -signal.SIGINT, True),
    ],
)
def test_an_interrupt_while_a_program_is_loaded(
    program: str, *, ignored: bool, status: int, traceback: bool
) -> None:
    """A shell has its background processes ignore SIGINT."""
    action = signal.SIG_IGN if ignored else signal.SIG_DFL
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"import sys; sys.argv = [{program!r}]; import smtpd_filters.errors; {INTERRUPT}",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, action),
    )
    assert done.returncode == status
    assert (b"KeyboardInterrupt" in done.stderr) is traceback


@pytest.mark.parametrize("by_smtpd", [False, True])
def test_a_thread_may_load_the_package(*, by_smtpd: bool) -> None:
    code = (
        "import sys; from threading import Thread; sys.argv = ['filter-x']; "
        "loader = Thread(target=__import__, args=['smtpd_filters.errors']); "
        "loader.start(); loader.join(); sys.exit('smtpd_filters.errors' not in sys.modules)"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=theirs.fileno() if by_smtpd else subprocess.DEVNULL,
            stdout=theirs.fileno() if by_smtpd else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            check=False,
            timeout=PATIENCE,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_of_the_tool_once_it_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['smtpd-filters', 'list']; "
        "from smtpd_filters.cli import listing, main; "
        f"listing.VERB._run = lambda *_: exec({INTERRUPT!r}); sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (130, b"")


def test_a_hangup_while_the_packaged_launcher_loads_a_filter(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project.scripts]\nfilter-x = "hung:main"\n')
    (tmp_path / "hung.py").write_text(f"{HANG_UP}\n\n\ndef main():\n    return 7\n")
    subprocess.run(
        [
            *(sys.executable, ROOT / "packaging/launchers.py", "--python", sys.executable),
            *("--path", str(tmp_path), "--filters", str(tmp_path), "--tools", str(tmp_path)),
            project,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    done = subprocess.run([tmp_path / "filter-x"], check=False, timeout=PATIENCE)
    assert done.returncode == 7


def test_a_hangup_while_a_filter_is_set_up_does_not_end_it(tmp_path: Path) -> None:
    # By then no one need be smtpd: what is served on a terminal or a pipe is ready as well.
    program = tmp_path / "slow.py"
    program.write_text(
        f"{HANG_UP.partition(';')[0]}\n"
        "from smtpd_filters import PROCEED, Filter, Proceed, Session, run\n"
        "class Slow(Filter):\n"
        "    def setup(self) -> None:\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        "    def connect(self, session: Session) -> Proceed:\n"
        "        return PROCEED\n"
        "raise SystemExit(run(Slow))\n"
    )
    with FilterProcess([str(program)], pipes=True) as process:
        process.hand_shake()
        process.finish()


@pytest.mark.parametrize("handler", ["def", "async def"])
@pytest.mark.parametrize("pipes", [False, True])
def test_a_hangup_while_a_filter_is_set_up_reloads_its_tables(
    tmp_path: Path, handler: str, *, pipes: bool
) -> None:
    """It has read the table already, which was replaced since."""
    program, names = tmp_path / "slow.py", tmp_path / "names"
    names.write_text("old@example.org\n")
    program.write_text(
        f"{HANG_UP.partition(';')[0]}\n"
        "from smtpd_filters import JUNK, PROCEED, Decision, Filter, Session, Settings\n"
        "from smtpd_filters import option, run\n"
        "from smtpd_filters.settings import table\n"
        "from smtpd_filters.tables import StringTable\n"
        "class Slow(Filter):\n"
        "    class Options(Settings):\n"
        "        names = option(table(StringTable), default=None, help='Names.')\n"
        "    def setup(self) -> None:\n"
        f"        with open({str(names)!r}, 'w') as file:\n"
        "            file.write('new@example.org\\n')\n"
        "        os.kill(os.getpid(), signal.SIGHUP)\n"
        f"    {handler} rcpt_to(self, session: Session, address: str) -> Decision:\n"
        "        return JUNK if self.settings.names.match(address) else PROCEED\n"
        "raise SystemExit(run(Slow))\n"
    )
    with FilterProcess([str(program), "--names", f"file:{names}"], pipes=pipes) as process:
        process.hand_shake()
        process.until_logged("result=ok")
        process.connect(sid(1))
        assert process.ask("rcpt-to", sid(1), b"new@example.org").verb == b"junk"
        process.finish()


def closed() -> None:
    os.close(2)


def shared() -> None:
    os.dup2(1, 2)


@pytest.mark.parametrize("name", ["Plain", "Later"])
@pytest.mark.parametrize("pipes", [False, True])
@pytest.mark.parametrize("before", [closed, shared])
def test_the_log_never_gets_to_smtpd(name: str, before: Callable[[], None], *, pipes: bool) -> None:
    with FilterProcess(policy(name, "-v"), pipes=pipes, before=before) as process:
        process.hand_shake()
        process.connect(sid(1))
        assert process.ask("rcpt-to", sid(1), b"a@example.org").verb == b"proceed"
        folder = Path(f"/proc/{process.child.pid}/fd")
        assert (folder / "2").readlink() == Path(os.devnull)
        # Nothing that the process has opened for itself has one of the three numbers.
        assert all(stat.S_ISCHR((folder / str(fd)).stat().st_mode) for fd in range(3))
        process.finish()
    assert process.last_words == ""


def test_errors_are_shown_though_the_log_is_shared() -> None:
    # By hand: filter-x 2>&1 | cat
    done = subprocess.run(
        [sys.executable, POLICIES, "Plain", "--names", "file:/nonexistent"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 2
    assert b"/nonexistent" in done.stdout
    assert done.stdout.count(b"\n") == 1


@pytest.mark.parametrize(("number", "name"), [(0, b"stdin"), (1, b"stdout")])
def test_without_smtpd_a_filter_ends_at_once(number: int, name: bytes) -> None:
    done = subprocess.run(
        [sys.executable, POLICIES, "Plain"],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": "."},
        preexec_fn=lambda: os.close(number),  # what a shell does
    )
    assert done.returncode == 2
    assert done.stderr == b"filter-plain: %b is closed: a filter must be started by smtpd\n" % name


@pytest.mark.parametrize(
    ("output", "kind", "given", "name"),
    some(
        (output, kind, given, name)
        for output in ("null", "file", "pipe")
        for kind, given in [
            ("null", b""),
            *((kind, said) for kind in ("file", "pipe") for said in (b"", GREETING)),
        ]
        for name in ("Plain", "Later")
    ),
)
def test_by_hand_input_may_be_anything(
    name: str, kind: str, given: bytes, output: str, tmp_path: Path
) -> None:
    """As when flags are tried: `filter-x </dev/null | cat`, `filter-x <recorded >output`."""
    source, sink = tmp_path / "input", tmp_path / "output"
    source.write_bytes(given)
    with (
        (Path(os.devnull) if kind == "null" else source).open("rb") as file,
        (Path(os.devnull) if output == "null" else sink).open("wb") as said,
    ):
        process = subprocess.Popen(
            [sys.executable, POLICIES, name],
            stdin=subprocess.PIPE if kind == "pipe" else file,
            stdout=subprocess.PIPE if output == "pipe" else said,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": "."},
        )
        told, logged = process.communicate(given if kind == "pipe" else None, PATIENCE)
    assert logged == b""
    assert process.returncode == 0
    if output != "null":
        registered = told if output == "pipe" else sink.read_bytes()
        assert registered.endswith(b"register|ready\n") == bool(given)


@pytest.mark.parametrize("name", ["Plain", "Later"])
@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        ([], 0, "flags and files are right, as user "),
        (["--names", "file:/nonexistent"], 2, "--names: /nonexistent: No such file"),
    ],
)
def test_on_a_terminal_it_ends_at_once(name: str, flags: list[str], status: int, said: str) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, POLICIES, name, *flags],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": "."},
    )
    nothing_written = not select.select([ours], [], [], 0)[0]
    os.close(ours)
    os.close(theirs)
    assert nothing_written
    assert done.returncode == status
    assert done.stderr.startswith(f"filter-{name.lower()}: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [0, 1])
def test_with_one_end_on_a_terminal_it_serves(number: int, tmp_path: Path) -> None:
    """As in `filter-x <recorded`, `filter-x >output`."""
    ours, theirs = pty.openpty()
    other = tmp_path / "other"
    other.write_bytes(b"" if number == 0 else GREETING)
    with other.open("rb+") as file:
        process = subprocess.Popen(
            [sys.executable, POLICIES, "Plain"],
            stdin=theirs if number == 0 else file,
            stdout=theirs if number == 1 else file,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": "."},
        )
        if number == 0:
            os.write(ours, GREETING + b"\4")  # the end of input, as it is typed
        _, logged = process.communicate(timeout=PATIENCE)
        written = os.read(ours, 4096).replace(b"\r\n", b"\n")
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, logged) == (0, b"")
    assert (written if number == 1 else other.read_bytes()).endswith(b"register|ready\n")


@pytest.mark.parametrize("before", [None, closed])
def test_prints_of_a_filter_are_in_the_log_at_once(
    before: Callable[[], None] | None, tmp_path: Path
) -> None:
    program = tmp_path / "talking.py"
    program.write_text(
        "print('loaded')\n"
        "from smtpd_filters import PROCEED, Filter, Proceed, Session, run\n"
        "class Talking(Filter):\n"
        "    def setup(self) -> None:\n"
        "        print('set up')\n"
        "    def rcpt_to(self, session: Session, address: str) -> Proceed:\n"
        "        print(address)\n"
        "        return PROCEED\n"
        "raise SystemExit(run(Talking))\n"
    )
    log, end = os.pipe()
    buffered = {"PYTHONUNBUFFERED": ""}
    with FilterProcess([str(program)], stderr=end, before=before, env=buffered) as process:
        os.close(end)
        process.hand_shake()
        process.connect(sid(1))
        assert process.ask("rcpt-to", sid(1), b"a\xff@example.org").verb == b"proceed"
        there = select.select([log], [], [], 0)[0]
        logged = os.read(log, 4096) if there else b"nothing"
        process.finish()
    os.close(log)
    assert logged == (b"" if before else b"loaded\nset up\na\\udcff@example.org\n")


def test_prints_of_a_filter_are_bounded_and_never_waited_for(tmp_path: Path) -> None:
    """A line of 64 KiB silences smtpd's log for good, and its pipe is full from then on."""
    program = tmp_path / "talking.py"
    program.write_text(
        "import logging, sys\n"
        "from smtpd_filters import PROCEED, Filter, Proceed, Session, run\n"
        "logging.basicConfig(format='%(message)s')\n"
        "class Talking(Filter):\n"
        "    def rcpt_to(self, session: Session, address: str) -> Proceed:\n"
        "        print('p' * 70_000)\n"
        "        print('e' * 70_000, file=sys.stderr)\n"
        "        logging.warning('l' * 70_000)\n"
        "        return PROCEED\n"
        "    def noop(self, session: Session, text: str) -> Proceed:\n"
        "        print('a line of some length\\n' * 10_000)\n"
        "        return PROCEED\n"
        "raise SystemExit(run(Talking))\n"
    )
    log, end = os.pipe()
    with FilterProcess([str(program)], stderr=end) as process:
        os.close(end)
        process.hand_shake()
        process.connect(sid(1))
        assert process.ask("rcpt-to", sid(1), b"a@example.org").verb == b"proceed"
        assert os.read(log, 1 << 17).split(b"\n") == [
            *(letter * MAX_LINE for letter in (b"p", b"e", b"l")),
            b"",
        ]
        assert process.ask("noop", sid(1), b"").verb == b"proceed"  # nobody reads the log
        process.finish()
    logged = os.read(log, 1 << 17)
    os.close(log)
    assert set(logged.splitlines()) <= {b"a line of some length", b""}
    assert b"OverdueError" not in logged


@pytest.mark.parametrize(
    ("method", "what", "error"),
    [
        ("__init__(self, settings)", "1 / 0", "cannot be set up: ZeroDivisionError"),
        ("__init__(self, settings)", "raise SystemExit", "the filter exits during setup"),
        ("__init__(self, settings)", "self.own = 1", f"cannot be set up: Failing{UNSET}"),
        ("__init__(self, settings)", "super().__init__()", f"cannot be set up: Failing{UNSET}"),
        ("setup(self) -> None", "return 5", "cannot be set up: TypeError: setup returned int, "),
        ("setup(self) -> None", "1 / 0", "cannot be set up: ZeroDivisionError"),
        ("setup(self) -> None", "raise SystemExit(0)", "the filter exits during setup"),
    ],
)
def test_a_filter_that_fails_at_start_is_one_line(
    method: str, what: str, error: str, tmp_path: Path
) -> None:
    program = tmp_path / "failing.py"
    program.write_text(
        "from smtpd_filters import PROCEED, Filter, Proceed, Session, run\n"
        "class Failing(Filter):\n"
        f"    def {method}:\n"
        f"        {what}\n"
        "    def connect(self, session: Session) -> Proceed:\n"
        "        return PROCEED\n"
        "raise SystemExit(run(Failing))\n"
    )
    with FilterProcess([str(program)]) as process:
        process.send(process.smtpd.configure())
        while not process.eof:
            process.wait()
        assert process.child.wait(PATIENCE) == 2
    assert process.last_words.count("\n") == 1
    assert f"filter-failing: {error}" in process.last_words


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file", "/dev/null"), "/dev/null: No such file"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (MemoryError(), "out of memory"),
        (ImportError("no x"), "no x"),
    ],
    ids=repr,
)
def test_what_keeps_a_process_from_starting(
    error: OSError | MemoryError | ImportError, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(engine, "Engine", failing)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with pytest.raises(ConfigError) as raised:
        serve(Mock(), Log(), Mock())
    assert str(raised.value) == f"cannot start: {text}"


def test_wrong_flags_with_everything_closed_end_it_quietly() -> None:
    done = subprocess.run(
        [sys.executable, POLICIES, "Plain", "--nonsense"],
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": "."},
        preexec_fn=lambda: os.closerange(0, 3),
    )
    assert done.returncode == 2


LIMITED = (
    "import importlib, resource, sys; name, number, *flags = sys.argv[1:]; "
    "module = importlib.import_module(f'smtpd_filters.filters.{name}'); "
    "resource.setrlimit(resource.RLIMIT_NOFILE, (int(number), int(number))); "
    "sys.exit(module.main(flags))"
)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("sender", ["--nameserver", "127.0.0.1:9"]),  # on asyncio
        ("mailfrom", ["--domains", "example.org"]),
        ("trace", ["--record", "/tmp"]),  # noqa: S108  # nothing is recorded
        ("trace", ["--record", "/tmp", "--journal", "/nonexistent"]),  # noqa: S108
    ],
)
def test_without_descriptors_a_filter_ends_with_one_line_or_serves(
    name: str, flags: list[str]
) -> None:
    statuses = []
    for number in range(4, 13):
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, name, str(number), *flags],
            input=GREETING,
            capture_output=True,
            check=False,
            cwd=ROOT,
            timeout=PATIENCE,
        )
        statuses.append(done.returncode)
        ready = done.stdout.endswith(b"register|ready\n")
        assert (done.returncode, ready) in {(0, True), (2, False)}, done.stderr
        if not ready:
            assert done.stdout == b""
            *noted, line = done.stderr.decode().splitlines()
            assert all(each.startswith("journal not reached ") for each in noted)
            assert line.startswith(f"filter-{name}: "), line
            assert "Too many open files" in line
    assert statuses == sorted(statuses, reverse=True)
    assert {statuses[0], statuses[-1]} == {0, 2}

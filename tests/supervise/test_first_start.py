"""The first start of a supervised program: a wrong configuration prevents that of smtpd."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from smtpd_filters import Answer, Filter, Session, main
from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.settings import UNDER_SUPERVISOR
from tests.supervise.supervised import ROOT, Supervised, chain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROGRAM = ROOT / "tests" / "supervise" / "misbehaving.py"
READY = b"register|ready\n"
#: Flags of each executable with an error that is found at the start, by `setup` where it has one
#: that only `setup` finds; and what the log has of it.
ERRORS = (
    ("auth --report-to memory:", "--report-to: memory: is lost"),
    ("clamav --quarantine-size 1M", "--quarantine-size requires --quarantine"),
    ("content --rules /etc/mail/none", "/etc/mail/none: No such file or directory"),
    ("correspondents --store sqlite:/nonexistent/x", "the directory /nonexistent is missing"),
    ("dkimsign", "-k or --keys is required"),
    ("dnsbl", "no list given"),
    ("dyndns --patterns /none", "/none: No such file or directory"),
    ("fcrdns --verify much", "much"),
    ("greylist --delay 3d", "--delay must be shorter than --window"),
    ("greylist --store sqlite:/nonexistent/x", "the directory /nonexistent is missing"),
    ("helo --own off --own-names x", "--own-names has no effect"),
    ("limit", "--limit is required"),
    ("mailfrom", "nothing to guard"),
    ("milter", "--milter is required"),
    ("policy", "--server is required"),
    ("rcpt --traps x --trapped off", "--traps has no effect"),
    ("rewrite --subject-prefix [ext]\t", "--subject-prefix: expected"),
    ("rspamd -url http://[", "-url: "),
    ("sender --bad-networks 192.0.2.0/24 --bad-mx off", "has no effect with --bad-mx off"),
    ("senderscore -junkBelow 200", "-junkBelow: must be at most 101"),
    ("spamd --tag-at 5", "--tag-at requires --tag"),
    ("tls --info x", "--info has no effect"),
    ("trace --record rel", "--record: expected an absolute path"),
)


def started(command: Sequence[str], *, seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
    """Start a filter as smtpd does, and end its input once it has registered or has ended."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # what can't be written isn't written again when it is closed
        cwd=ROOT,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # it has ended already
            process.stdin.write(SmtpdConnection().configure())
        out = b""
        while not out.endswith(READY) and (line := process.stdout.readline()):
            out += line
        process.stdin.close()
        errors = process.stderr.read()
        process.wait(seconds)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def filter_of(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"smtpd_filters.filters.{name}", *flags]


def supervise(*command: str) -> list[str]:
    return [sys.executable, "-m", "smtpd_filters.supervise.program", *command]


@pytest.mark.parametrize("form", ["short", "long"])
@pytest.mark.parametrize(("words", "text"), ERRORS, ids=[words for words, _ in ERRORS])
def test_a_wrong_configuration_prevents_the_start(words: str, text: str, form: str) -> None:
    command = filter_of(*words.split(" "))
    command = [*command, "--supervised"] if form == "short" else supervise(*command)
    done = started(command)
    assert READY not in done.stdout
    assert done.returncode in (2, 78)  # found before there is a supervisor, or by it
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if text in line], lines
    assert len(lines) <= 2, lines
    if form == "long":
        assert done.returncode == 78
        assert lines[1].startswith("supervise smtpd is not started reason=")


def test_a_chain_that_cannot_reach_its_threshold(tmp_path: Path) -> None:
    text = '[chain.all]\nfilters = ["fcrdns"]\njunk-at = 9\n[filter.fcrdns]\nscore = 2\n'
    command = chain(tmp_path, text)
    alone = started(command)
    assert alone.returncode == 2
    assert b"junk-at: 9 cannot be reached" in alone.stderr
    done = started([*command, "--supervised"])
    assert (done.returncode, done.stdout) == (78, b"")
    assert alone.stderr.strip() in done.stderr


@pytest.mark.parametrize("flags", [(), ("--register", "all"), ("--workers", "2")])
@pytest.mark.parametrize("status", [64, 78])
def test_a_foreign_program_refuses_its_configuration(status: int, flags: tuple[str, ...]) -> None:
    done = started(supervise(*flags, "sh", "-c", f"echo my flags are wrong >&2; exit {status}"))
    assert (done.returncode, done.stdout) == (status, b"")
    assert b"my flags are wrong\n" in done.stderr
    assert f"exited with status {status}: its flags".encode() in done.stderr


@pytest.mark.parametrize("status", [0, 1, 2, 70, 75, 127])
def test_any_other_failure_leaves_the_server_running(status: int) -> None:
    done = started(supervise("sh", "-c", f"exit {status}"))
    assert done.stdout.endswith(READY)
    assert done.returncode == 0


def test_a_later_refusal_leaves_the_server_running(tmp_path: Path) -> None:
    """After a crash, and at a reload."""
    broken = tmp_path / "broken"
    program = f"if [ -e {broken} ]; then exit 78; fi; exec {sys.executable} {PROGRAM}"
    with Supervised(command=["sh", "-c", program]) as smtpd:
        client = smtpd.connect()
        assert client.begin().verb == b"proceed"
        broken.touch()
        smtpd.reload()
        smtpd.logged("supervise reload failed", "exited with status 78")
        assert client.ask("rcpt-to", b"b@example.org").verb == b"proceed"
        pid, _ = smtpd.connect().who()
        os.kill(pid, signal.SIGKILL)
        smtpd.logged("supervise ended", "exited with status 78")
        broken.unlink()
        smtpd.until(lambda: sum("supervise ready" in line for line in smtpd.log) >= 2)
        assert smtpd.connect().begin().verb == b"proceed"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 78),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 78),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 78),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 75),
        (OSError(errno.EMFILE, "Too many open files"), 75),
        (MemoryError(), 75),
        (ValueError("x"), 70),
        (SystemExit(78), 70),
    ],
    ids=repr,
)
def test_the_status_says_whether_an_error_may_pass(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Filter):
        """Fails."""

        name = "failing"

        def setup(self) -> None:
            raise error

        def connect(self, session: Session) -> Answer:
            raise NotImplementedError

    for variable, expected in (("", 2), ("1", status)):
        monkeypatch.setenv(UNDER_SUPERVISOR, variable)
        with pytest.raises(SystemExit) as raised:
            main.run(Failing, [])
        assert raised.value.code == expected

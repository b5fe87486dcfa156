"""`--supervised`: each executable of ours runs under a supervisor that runs the same command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.supervise import short_form
from tests.supervise.supervised import Started, chain

HERE = Path(sys.executable).parent


def test_a_filter() -> None:
    command = [sys.executable, "-m", "smtpd_filters.filters.trace", "--detail", "all"]
    with Started([*command, "--supervised"]) as smtpd:
        client = smtpd.connect()
        assert client.ask("mail-from", b"a@example.org").verb == b"proceed"
        smtpd.logged("trace asked", "mail-from")
        # The supervisor has the process that was started; the filter is another one.
        line = smtpd.logged("supervise ready")
        pid = int(line.partition("pid=")[2].split()[0])
        assert pid != smtpd.process.pid
        words = Path(f"/proc/{pid}/cmdline").read_text("utf-8").split("\0")
        assert "--supervised" not in words
        assert words[-3:-1] == ["--detail", "all"]
        os.kill(pid, signal.SIGKILL)
        smtpd.logged("supervise ended", "killed by signal 9")
        assert client.ask("rcpt-to", b"b@example.org").verb == b"proceed"


def test_a_chain(tmp_path: Path) -> None:
    text = '[chain.all]\nfilters = ["trace"]\n[filter.trace]\ndetail = "all"\ndeadline = "90s"\n'
    with Started([*chain(tmp_path, text), "--supervised"]) as smtpd:
        assert smtpd.connect().ask("mail-from", b"a@example.org").verb == b"proceed"
        words = Path(f"/proc/{smtpd.process.pid}/cmdline").read_text("utf-8").split("\0")
        assert "--deadline=100s" in words
        assert "--on-error=proceed" in words


def test_wrong_flags_prevent_the_start() -> None:
    command = [sys.executable, "-m", "smtpd_filters.filters.trace", "--detail", "much"]
    done = subprocess.run(
        [*command, "--supervised"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith('filter-trace: --detail: invalid choice "much"')


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["python3", "-IS", "/x/filter-rspamd", "--supervised", "-url", "http://a b/"]
    monkeypatch.setattr(sys, "orig_argv", line)
    assert short_form.command_line(line[3:]) == [sys.executable, *line[1:3], *line[4:]]
    with pytest.raises(ConfigError, match="command line only"):
        short_form.command_line(["--supervised"])

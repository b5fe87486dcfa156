"""`smtpd-filters reload` finds supervisors, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import main, reload
from tests.supervise.supervised import PROGRAM, Started, Supervised

if TYPE_CHECKING:
    from pathlib import Path


#: Other tests may run programs on this machine at the same time.
OWN = f"of-test-{os.getpid()}"


def test_a_supervised_program(capsys: pytest.CaptureFixture[str]) -> None:
    with Supervised() as smtpd:
        pid = str(smtpd.process.pid)
        assert main(["reload", pid]) == 0
        assert f" {pid} reloads\n" in capsys.readouterr().out
        smtpd.logged("supervise reload", "result=ok")


def test_the_name_of_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / f"filter-{OWN}"
    program.write_text(f"#!/bin/sh\nexec {' '.join(PROGRAM)}\n", "utf-8")
    program.chmod(0o755)
    with Supervised(command=(str(program), "--flag")) as one, Supervised() as other:
        assert main(["reload", f"filter-{OWN}"]) == 0
        out = capsys.readouterr().out
        assert out == f"filter-{OWN}: {one.process.pid} reloads\n"
        one.logged("supervise reload", "result=ok")
        assert not any("supervise reload" in line for line in other.log)


@pytest.mark.parametrize("suffix", ["", ".py"])
def test_the_script_of_a_filter_of_ones_own(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / f"{OWN}.py"
    script.write_text(
        "from smtpd_filters import PROCEED, Answer, Filter, Session, run\n\n\n"
        "class Known(Filter):\n"
        '    """Knows."""\n\n'
        '    name = "known"\n\n'
        "    def connect(self, session: Session) -> Answer:\n        return PROCEED\n\n\n"
        "run(Known)\n",
        "utf-8",
    )
    with Started([sys.executable, "-B", str(script), "--supervised"]) as smtpd:
        smtpd.logged("supervise ready")
        assert main(["reload", f"{OWN}{suffix}"]) == 0
        assert capsys.readouterr().out == f"{OWN}.py: {smtpd.process.pid} reloads\n"
        smtpd.logged("supervise reload", "result=ok")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/bin/python3 -IS /x/known.py --domains x.py", "known.py"),
        ("python3.12 -m my.filters.known", "my.filters.known"),
        ("python3 -IS /x/filter-known -v", "filter-known"),
        ("/x/known --config /etc/y", "known"),
        ("python3 -i", "python3"),
    ],
)
def test_names(command: str, name: str) -> None:
    assert reload.Supervisor(7, tuple(command.split())).name == name


@pytest.mark.parametrize("name", ["rspamd", "filter-rspamd", "7"])
def test_the_names_of_an_executable(name: str) -> None:
    assert name in reload.Supervisor(7, ("/x/filter-rspamd", "-v")).names


@pytest.mark.parametrize(
    ("running", "there"),
    [
        ([], ""),
        (["filter-tls", "filter-chain", "filter-chain"], " (there is filter-chain, filter-tls)"),
        (["filter-\x1b[2J"], r" (there is filter-\x1b[2J)"),
    ],
)
def test_a_name_that_does_not_run(
    running: list[str],
    there: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [reload.Supervisor(7, (name,)) for name in running]
    monkeypatch.setattr(reload, "supervisors", lambda: found)
    assert main(["reload", "filter-nothing"]) == 1
    assert capsys.readouterr().err == (
        f"smtpd-filters reload: filter-nothing: not a supervised filter that runs{there}\n"
    )


def test_processes_that_only_look_like_one(capsys: pytest.CaptureFixture[str]) -> None:
    script = "import sys; print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, "filter-supervise", "filter-looks-like-one"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert main(["reload", "filter-looks-like-one"]) == 1
        assert main(["reload", str(process.pid)]) == 1
        assert process.poll() is None
        process.communicate()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (
            "python3 -IS /libexec/filter-supervise --workers 2 filter-a -x",
            "filter-a -x",
        ),
        ("/usr/bin/python3.11 -m smtpd_filters.supervise.program -- /x/filter-a", "/x/filter-a"),
        (
            "python3 -c import smtpd_filters.supervise.program; x -v -- python3 /x/filter-a -y",
            "python3 /x/filter-a -y",
        ),
        ("vim /usr/libexec/opensmtpd/filter-supervise", ""),
        ("python3 /usr/bin/other filter-supervise filter-a", ""),
        ("python3 filter-supervise", ""),
        ("python3 filter-supervise ", ""),
        ("python3 -m smtpd_filters.supervise.program --  ", ""),
        ("", ""),
    ],
)
def test_command_lines(line: str, command: str) -> None:
    words = line.split(" ")
    if "-c" in words:
        at, end = words.index("-c") + 1, words.index("-v")
        words = [*words[:at], " ".join(words[at:end]), *words[end:]]
    found = [" ".join(each.command) for each in reload._parse(7, words)]
    assert found == ([command] if command else [])
    if command:
        [each] = reload._parse(7, words)
        assert each.name == "filter-a"


def test_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_PROC", "/nonexistent")
    listed = [
        "    1 /sbin/init",
        " 4711 /usr/local/bin/python3.12 -IS /libexec/filter-supervise filter-a",
    ]
    monkeypatch.setattr(reload, "_ps", lambda: listed)
    assert [(each.pid, each.name) for each in reload.supervisors()] == [(4711, "filter-a")]

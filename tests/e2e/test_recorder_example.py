"""The recorder of the troubleshooting page, and a replay, as they are typed there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from smtpd_filters.recording import Recording
from smtpd_filters.testing.dns import host
from smtpd_filters.testing.server import LabError, Smtpd, filter_command
from smtpd_filters.testing.server.layout import BIN
from tests.e2e.sending import ZONE, attempt

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text("utf-8")
[INSTALL] = re.findall(r"^    (install .*)$", PAGE, re.MULTILINE)
[COMMAND] = re.findall(r'^filter recorder proc-exec "(.*)"$', PAGE, re.MULTILINE)
DIRECTORY = "/var/spool/sessions"


class Prepared(Smtpd):
    """A server on which the command of the page has been run."""

    def _furnish(self) -> None:
        super()._furnish()
        self.lab.run(*shlex.split(INSTALL))


def test_without_its_directory_the_log_has_the_command_that_makes_it(version: str) -> None:
    filters = {"recorder": f"{BIN}/{COMMAND}"}
    with pytest.raises(LabError) as raised, Smtpd(version, filters=filters):
        pass
    assert f"smtpd-filters record: {DIRECTORY}: Permission denied for user " in str(raised.value)
    assert f"; make it as root: {INSTALL}" in str(raised.value)


def test_with_it_sessions_are_recorded(version: str) -> None:
    with Prepared(version, zone=ZONE, filters={"recorder": f"{BIN}/{COMMAND}"}) as server:
        assert attempt(server).code == 250
        server.terminate()
        [file] = server.path(DIRECTORY).iterdir()
        assert len(Recording.read(file).sessions()) >= 1


def test_the_manual_shows_what_replay_prints(version: str, tmp_path: Path) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "man" / "smtpd-filters.8").read_text("utf-8")
    [(command, shown)] = re.findall(
        r"^# smtpd-filters (replay --diff .*?)\n(.*?)^\.Ed$", manual, re.MULTILINE | re.DOTALL
    )
    [(session, name, address)] = re.findall(r"(\w{16})  connect  ([\w.-]+)\|([\d.]+) ", shown)
    filters = {"recorder": f"{BIN}/{COMMAND}", "dyndns": filter_command("dyndns")}
    with Prepared(version, zone=host(name, address), filters=filters) as server:
        said = ["EHLO pc", "MAIL FROM:<a@example.net>", "RCPT TO:<x@other.example>", "QUIT"]
        server.dialogue(address, said)
        server.terminate()
        [file] = server.path(DIRECTORY).iterdir()
        (tmp_path / "a.session").write_bytes(file.read_bytes())
    tool = Path(sys.executable).parent / "smtpd-filters"
    words = shlex.split(command)
    at = words.index("--") + 1
    words[at] = str(tool.with_name(words[at]))
    done = subprocess.run(
        [str(tool), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert re.sub(r"\b[0-9a-f]{16}\b", session, done.stdout) == shown

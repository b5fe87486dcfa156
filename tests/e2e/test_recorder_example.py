"""The recorder of the troubleshooting page, as it is typed there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from smtpd_filters.recording import Recording
from smtpd_filters.testing.server import LabError, Smtpd
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

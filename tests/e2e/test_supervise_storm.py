"""Storms on real servers: programs of a supervised filter fail at random under load."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import filter_command
from tests.e2e.storm import ENDS, MISBEHAVES, STOPS, Storm
from tests.e2e.test_supervise import ECHO, FLAGS, supervised
from tests.needed import need

if TYPE_CHECKING:
    from tests.e2e.conftest import Start

LIBEXEC = "/usr/libexec/opensmtpd"


#: Where filters of Debian are inside, on any server.
INSIDE = "/srv/debian"


def storm(start: Start, marker: str, command: str, signals: tuple[int, ...], faults: int) -> None:
    server = start(filters={"stormy": command}, binds={INSIDE: Path(LIBEXEC)})
    storm = Storm(server, marker, signals)
    result = storm.blow(faults, clients=10, pause=0.5)
    storm.check()
    assert result.faults >= faults
    assert result.accepted


@pytest.mark.parametrize("whole", [False, True], ids=["lines", "messages"])
def test_a_storm_of_a_script(start: Start, whole: bool) -> None:  # noqa: FBT001
    words = (*ECHO, *(["--whole"] if whole else []))
    command = supervised(*words, flags=("--workers", "2", *FLAGS))
    storm(start, "misbehaving", command, MISBEHAVES, 12)


def test_a_storm_of_our_own_filter(start: Start) -> None:
    command = filter_command("trace", "--detail", "headers")
    storm(start, "filter-trace", supervised(*shlex.split(command)), STOPS, 8)


def test_a_storm_of_a_filter_in_go(start: Start) -> None:
    name = "filter-senderscore"
    if shutil.which(name, path=LIBEXEC) is None:
        need(f"{LIBEXEC}/{name}")
    storm(start, name, supervised(f"{INSIDE}/{name}"), ENDS, 8)

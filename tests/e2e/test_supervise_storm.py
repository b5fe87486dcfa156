"""Storms on real servers: programs of a supervised filter fail at random under load."""

from __future__ import annotations

import shlex
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.rspamd.stub import RspamdStub
from smtpd_filters.testing.server import filter_command
from tests.e2e.storm import ENDS, MISBEHAVES, STOPS, Storm
from tests.e2e.test_supervise import ECHO, FLAGS, supervised
from tests.needed import need

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.testing.server import Lab
    from tests.e2e.conftest import Start

LIBEXEC = "/usr/libexec/opensmtpd"


#: The port of Rspamd.
PORT = 11333
#: Where filters of Debian are inside, on any server.
INSIDE = "/srv/debian"
#: Filters of Debian, the second for the daemon of `daemon`.
SENDERSCORE = f"{INSIDE}/filter-senderscore"
RSPAMD = f"{INSIDE}/filter-rspamd -url http://127.0.0.1:{PORT}"
#: Ends a program that uses memory without end, well before the machine has none.
MEMORY = ("--memory-limit", "100M")


@contextmanager
def daemon(lab: Lab) -> Iterator[None]:
    """Run an Rspamd that lets everything pass, for a filter that asks it."""
    stub = RspamdStub(listen=f"127.0.0.1:{PORT}", keep=0)
    lab.call(stub.start)
    try:
        yield
    finally:
        stub.stop()


def storm(start: Start, marker: str, command: str, signals: tuple[int, ...], faults: int) -> None:
    server = start(filters={"stormy": command}, binds={INSIDE: Path(LIBEXEC)})
    with daemon(server.lab):
        storm = Storm(server, marker, signals)
        result = storm.blow(faults, clients=10, pause=0.5)
        storm.check()
    assert result.faults >= faults
    assert result.accepted


@pytest.mark.parametrize("whole", [False, True], ids=["lines", "messages"])
def test_a_storm_of_a_script(start: Start, whole: bool) -> None:  # noqa: FBT001
    words = (*ECHO, *(["--whole"] if whole else []))
    command = supervised(*words, flags=("--workers", "2", *MEMORY, *FLAGS))
    storm(start, "misbehaving", command, MISBEHAVES, 8)


def test_a_storm_of_our_own_filter(start: Start) -> None:
    command = filter_command("trace", "--detail", "headers")
    storm(start, "filter-trace", supervised(*shlex.split(command)), STOPS, 5)


@pytest.mark.parametrize("name", [SENDERSCORE, RSPAMD], ids=["senderscore", "rspamd"])
def test_a_storm_of_a_filter_in_go(start: Start, name: str) -> None:
    words = shlex.split(name)
    if shutil.which(Path(words[0]).name, path=LIBEXEC) is None:
        need(words[0])
    storm(start, Path(words[0]).name, supervised(*words), ENDS, 5)

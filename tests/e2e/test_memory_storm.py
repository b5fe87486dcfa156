"""Filters that remember, killed at random moments while smtpd delivers."""

from __future__ import annotations

import shlex
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from smtpd_filters.testing.server import filter_command, scratch_path
from tests.e2e.load import Load, Traffic
from tests.e2e.sending import ZONE
from tests.e2e.storm import Storm, Stormy

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.testing.server import Smtpd
    from tests.e2e.conftest import Start

#: Messages that the limit lets pass, kills, and clients.
LIMIT, KILLS, CLIENTS = 1000, 6, 5
#: Seconds for the limit to be reached; the machine may be busy.
PATIENCE = 300.0


def test_killed_filters_forget_nothing(start: Start, tmp_path: Path) -> None:
    """However often they are killed, the limit holds to the message."""
    words = {
        "greylist": ("--delay", "1", "--key", "network", "--exempt", "authenticated"),
        "limit": (f"--limit=all messages {LIMIT}/365d",),
    }
    server = start(
        zone=ZONE,
        filters={
            name: filter_command(
                "supervise",
                *shlex.split(
                    filter_command(
                        name,
                        *flags,
                        "--store",
                        f"sqlite:{scratch_path(name)}",
                        "--store-timeout",
                        "30",
                    )
                ),
            )
            for name, flags in words.items()
        },
    )
    storm = Storm(server, Stormy("", "filter-", Traffic()))
    with storm.clients(CLIENTS):
        storm.strike(KILLS, 0.5, [signal.SIGKILL])
        storm.wait(accepted=1)
    storm.check()
    rest = Load(server)
    with rest.clients(CLIENTS):
        server.wait_for("limit: [0-9a-f]{16} limit breach ", timeout=PATIENCE)
    assert not rest.result.wrong, rest.result.wrong
    accepted = len(storm.result.accepted) + len(rest.result.accepted)
    assert accepted <= LIMIT
    # Messages that greylisting refused have counted, and those that were in flight may have.
    lost = LIMIT - accepted
    assert lost <= storm.result.refused + storm.result.faults * CLIENTS
    for name in words:
        assert_sound(server, name, tmp_path)


def assert_sound(server: Smtpd, name: str, folder: Path) -> None:
    """Check a copy of a file: the filter still has the original open."""
    for suffix in ("", "-wal"):
        (folder / f"{name}{suffix}").write_bytes(server.scratch(f"{name}{suffix}"))
    with closing(sqlite3.connect(folder / name)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert file.execute("SELECT count(*) FROM entries").fetchone() != (0,)

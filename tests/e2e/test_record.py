"""Tests that filter-trace's recordings of a real server are what other filters receive."""

from __future__ import annotations

import base64
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.cli import main
from smtpd_filters.oracle import judge
from smtpd_filters.recording import Recording
from smtpd_filters.testing.server import filter_command, password, scratch_path
from tests.e2e.sending import GOOD, ZONE, attempt, crowd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Start


@pytest.mark.parametrize("flags", [(), ("--anonymise",)], ids=["plain", "anonymised"])
def test_what_is_recorded_replays(
    start: Start, flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = scratch_path("sessions")
    record = filter_command("trace", "--detail", "none", "--record", directory, *flags)
    server = start(zone=ZONE, filters={"record": record}, users=("alice", "bob"))
    assert {each.code for each in crowd(partial(attempt, server), [{}] * 10)} == {250}
    assert attempt(server, user="alice").code == 250
    server.terminate()
    files = [each.read_bytes() for each in server.path(directory).iterdir()]
    assert len(files) == 1
    secret = base64.b64encode(f"\0alice\0{password('alice')}".encode())
    path = tmp_path / "real.session"
    for content in files:
        path.write_bytes(content)
        recording = Recording.read(path)
        assert len(recording.sessions()) >= 11
        assert judge(recording.entries) == []
        command = [sys.executable, "-m", "smtpd_filters.filters.trace", "--detail=all"]
        assert main(["replay", str(path), "--diff", "--", *command]) == 0, capsys.readouterr().out
        assert secret not in content
        assert b"|auth|" in content
        assert (GOOD.encode() in content) == (not flags)

"""Each filter does under `--sandbox strict` what its recordings and scripts announce."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from smtpd_filters.cli.player import Process
from smtpd_filters.recording import Recording
from smtpd_filters.recording.replay import Replay
from smtpd_filters.testing import DNSServer
from tests.effort import some
from tests.sandbox.kernel import STRICT

FIXTURES = Path(__file__).parents[2] / "fixtures"
FILTERS = ("auth", "dnsbl", "dyndns", "fcrdns", "helo", "mailfrom", "rcpt", "sender", "senderscore")
SESSIONS = [
    pytest.param(name, path, id=f"{name}-{path.stem}")
    for name in FILTERS
    for path in sorted((FIXTURES / name).iterdir())
    if path.suffix in {".session", ".script"}
]
PROTOCOL = sorted((FIXTURES / "protocol").glob("*/*.session"))
CODES = re.compile(r"[45]\d\d [45]\.\d+\.\d+")


def played(recording: Recording, name: str, *flags: str) -> Replay:
    """Play a recording to a filter's process."""
    module = f"smtpd_filters.filters.{name}"
    process = Process([sys.executable, "-m", module, "--sandbox", "strict", *flags], 60)
    replay = Replay(recording)
    try:
        process.play(replay, lambda: None)
    finally:
        process.close()
    return replay


@STRICT
@pytest.mark.parametrize(("name", "path"), some(SESSIONS))
def test_the_verdict_is_the_one_announced(name: str, path: Path) -> None:
    recording = Recording.read(path)
    zone = path.with_name("zone.json")
    with DNSServer(json.loads(zone.read_text()) if zone.exists() else {}) as server:
        where = f"{server.address}:{server.port}"
        flags = shlex.split(recording.meta["flags"].replace("ZONE", where))
        if name == "dnsbl":
            flags += ["--nameserver", where, "--timeout", "2s"]
        replay = played(recording, name, *flags)
    said = []
    for step in replay.outcomes:
        verdict = step.verdict
        if verdict is not None and verdict.verb not in {"proceed", "unchanged"}:
            codes = CODES.match(verdict.reply)
            said.append(" ".join([step.phase, verdict.verb, *([codes[0]] if codes else [])]))
    assert (", ".join(said) or "nothing") == recording.meta["expect"]


@STRICT
@pytest.mark.parametrize(
    "path", PROTOCOL[:: max(1, len(PROTOCOL) // 12)], ids=lambda path: path.stem
)
def test_whatever_a_server_sends_is_recorded(path: Path, tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    replay = played(
        Recording.read(path), "trace", "--detail", "all", "--record", str(recorded), "--anonymise"
    )
    assert {step.verdict.verb for step in replay.outcomes if step.verdict} <= {
        "proceed", "unchanged",
    }  # fmt: skip
    [file] = recorded.iterdir()
    assert Recording.read(file).to_filter()

"""A chain's file, recordings of the last day, and a journal, for trials of other settings."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.recording.format import LOOKUP, REMARK, encode_entry
from smtpd_filters.startup import python
from tests.data import ROOT
from tests.web.visitor import written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Seven sessions: two of clients with dynamic names, which are refused by the `CHAIN`.
NEIGHBOURS = ROOT / "fixtures" / "demo" / "neighbours.session"
CHAIN = """\
junk-at = 2
reject-at = 3
[filter.dyndns]
score = 3
"""
COMMAND = python("smtpd_filters.cli.trial.program")
_TIME = re.compile(rb"(?m)^(< (?:report|filter)\|[\d.]+\|)(\d{9,}\.\d+)")


class Tried(NamedTuple):
    """Where everything is."""

    chain: Path
    recordings: Path
    journal: Path

    @property
    def request(self) -> dict[str, str]:
        """The part of a request that the operator chooses."""
        return {
            "file": str(self.chain),
            "name": "",
            "recordings": str(self.recordings),
            "journal": str(self.journal),
        }

    def ask(self, **more: Any) -> dict[str, Any]:
        """Return the last line that a process answers a request with."""
        done = subprocess.run(
            COMMAND,
            input=json.dumps({**self.request, **more}).encode(),
            capture_output=True,
            check=True,
            timeout=120,
        )
        assert done.stderr == b""
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert all("progress" in line for line in lines[:-1])
        last: dict[str, Any] = lines[-1]
        return last

    def attempt(self, table: str, session: str = "", **texts: str) -> dict[str, Any]:
        """Return the answer to a trial of texts for keys, which have _ for -."""
        kind, _, section = table.partition(".")
        values = {key.replace("_", "-"): text for key, text in texts.items()}
        return self.ask(do="try", kind=kind, section=section, values=values, session=session)

    def result(self, table: str, session: str = "", **texts: str) -> dict[str, Any]:
        """Return the result of a trial."""
        found: dict[str, Any] = self.attempt(table, session, **texts)["result"]
        return found

    def error(self, table: str, **texts: str) -> str:
        """Return why a trial is refused."""
        return str(self.attempt(table, **texts)["error"])


def shifted(source: Path, target: Path, before: float = 3600.0) -> None:
    """Copy a recording, so that it began so many seconds ago."""
    data = source.read_bytes()
    found = _TIME.search(data)
    assert found is not None
    by = time.time() - before - float(found[2])
    moved = _TIME.sub(lambda each: each[1] + b"%.6f" % (float(each[2]) + by), data)
    target.write_bytes(moved)


def looked_up(path: Path, outcomes: Mapping[str, Any]) -> None:
    """Add look-ups to a recording: records by question, such as `A name`."""
    lines = [
        encode_entry(REMARK, LOOKUP + json.dumps([*question.split(" "), record]).encode())
        for question, record in outcomes.items()
    ]
    path.write_bytes(path.read_bytes() + b"".join(lines))


def made(
    folder: Path,
    rules: str = CHAIN,
    filters: Sequence[str] = ("dyndns",),
    stories: Sequence[dict[str, Any]] = (),
) -> Tried:
    """Make everything: `rules` begin with those of the chain."""
    tried = Tried(folder / "chain.toml", folder / "recordings", folder / "journal")
    tried.chain.write_text(f"[chain.in]\nfilters = {json.dumps(list(filters))}\n{rules}")
    tried.recordings.mkdir()
    tried.journal.mkdir()
    shifted(NEIGHBOURS, tried.recordings / "a.session")
    if stories:
        written(tried.journal, stories, time.time())
    return tried

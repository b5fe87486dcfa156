"""Each scripted session of filter-dnsbl gets the verdict that its head announces."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from smtpd_filters.filters.dnsbl import Dnsbl
from smtpd_filters.recording import Recording
from smtpd_filters.testing import DNSServer, play
from tests.effort import some

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FIXTURES = Path(__file__).parents[3] / "fixtures" / "dnsbl"
SESSIONS = sorted(FIXTURES.glob("*.script"))
CODES = re.compile(r"[45]\d\d [45]\.\d+\.\d+")


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(json.loads((FIXTURES / "zone.json").read_text())) as running:
        yield running


@pytest.mark.parametrize("protocol", [(0, 5), (0, 6), (0, 7)], ids=["0.5", "0.6", "0.7"])
@pytest.mark.parametrize("path", some(SESSIONS), ids=lambda path: path.stem)
def test_the_verdict_is_the_one_announced(
    server: DNSServer, path: Path, protocol: tuple[int, int]
) -> None:
    recording = Recording.read(path)
    asked = ("--nameserver", f"{server.address}:{server.port}", "--timeout", "2s")
    flags = (*shlex.split(recording.meta["flags"]), *asked)
    said = []
    for step in play(recording, Dnsbl, *flags, protocol=protocol):
        if step.verdict is not None and step.verdict.verb not in {"proceed", "unchanged"}:
            codes = CODES.match(step.verdict.reply)
            words = [step.phase, step.verdict.verb, *([codes[0]] if codes else [])]
            said.append(" ".join(words))
    assert (", ".join(said) or "nothing") == recording.meta["expect"]


def test_the_readme_lists_the_sessions() -> None:
    readme = (FIXTURES / "README.md").read_text()
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", readme, re.MULTILINE)
    assert listed
    assert sorted(listed) == sorted(path.stem for path in SESSIONS)

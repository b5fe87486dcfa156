"""Each recorded or scripted session of a filter gets the verdict that its head announces.

`flags` are the filter's, where ZONE is a name server with the folder's `zone.json`; `expect` is
what it does other than proceed: phase, verb and codes.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from smtpd_filters.filters.auth import Auth
from smtpd_filters.filters.dyndns import Dyndns
from smtpd_filters.filters.fcrdns import Fcrdns
from smtpd_filters.filters.greylist import Greylist
from smtpd_filters.filters.helo import Helo
from smtpd_filters.filters.limit import Limit
from smtpd_filters.filters.mailfrom import Mailfrom
from smtpd_filters.filters.rcpt import Rcpt
from smtpd_filters.filters.sender import Sender
from smtpd_filters.filters.senderscore import Senderscore
from smtpd_filters.recording import Recording
from smtpd_filters.testing import Conversation, DNSServer, play

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.filter import Filter

FIXTURES = Path(__file__).parents[2] / "fixtures"


def sessions(name: str) -> list[Path]:
    """The recordings and the scripts of a filter."""
    return sorted(
        path for path in (FIXTURES / name).iterdir() if path.suffix in {".session", ".script"}
    )


FILTERS: tuple[type[Filter], ...] = (
    Auth,
    Dyndns,
    Fcrdns,
    Greylist,
    Helo,
    Limit,
    Mailfrom,
    Rcpt,
    Sender,
    Senderscore,
)
SESSIONS = [
    pytest.param(cls, path, id=f"{cls.name}-{path.stem}")
    for cls in FILTERS
    for path in sessions(cls.name)
]
FILES = {
    "domains": "example.org\n",
    "partners": "192.0.2.0/24\n",
    "senders": "anna anna@example.org, info@example.org\nbob bob@example.org, @sales.example.org\n",
}
CODES = re.compile(r"[45]\d\d [45]\.\d+\.\d+")


@pytest.mark.parametrize("protocol", [(0, 5), (0, 6), (0, 7)], ids=["0.5", "0.6", "0.7"])
@pytest.mark.parametrize(("cls", "path"), SESSIONS)
def test_the_verdict_is_the_one_announced(
    cls: type[Filter], path: Path, protocol: tuple[int, int]
) -> None:
    recording = Recording.read(path)
    zone = path.with_name("zone.json")
    said = []
    with DNSServer(json.loads(zone.read_text()) if zone.exists() else {}) as server:
        flags = recording.meta["flags"].replace("ZONE", f"{server.address}:{server.port}")
        for step in play(recording, cls, *shlex.split(flags), protocol=protocol):
            if step.verdict is not None and step.verdict.verb not in {"proceed", "unchanged"}:
                codes = CODES.match(step.verdict.reply)
                words = [step.phase, step.verdict.verb, *([codes[0]] if codes else [])]
                said.append(" ".join(words))
    assert (", ".join(said) or "nothing") == recording.meta["expect"]


@pytest.mark.parametrize("cls", FILTERS)
def test_each_filter_has_sessions_of_several_kinds(cls: type[Filter]) -> None:
    expected = {Recording.read(path).meta["expect"] for path in sessions(cls.name)}
    assert "nothing" in expected
    assert len(expected) > 2


@pytest.mark.parametrize(
    "name", ["auth", "fcrdns", "helo", "limit", "mailfrom", "rcpt", "sender", "senderscore"]
)
def test_the_readme_lists_the_sessions(name: str) -> None:
    files = {path.stem for path in sessions(name)}
    readme = (FIXTURES / name / "README.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", readme, re.MULTILINE)) == files


@pytest.mark.parametrize("suffix", [".session", ".script"])
def test_a_recording_is_of_a_server_and_a_script_of_none(suffix: str) -> None:
    servers = {Recording.read(path).meta["server"] for path in FIXTURES.rglob(f"*{suffix}")}
    assert servers
    real = {server for server in servers if re.fullmatch(r"OpenSMTPD \d\.\d\.\dp\d", server)}
    assert servers - real == (
        set() if suffix == ".session" else {"none, the test kit in the manner of OpenSMTPD 7.8.0p1"}
    )


@pytest.mark.parametrize("cls", [Auth, Fcrdns, Helo, Mailfrom, Sender, Senderscore])
def test_each_example_of_the_documentation_starts(cls: type[Filter], tmp_path: Path) -> None:
    docs = (FIXTURES.parent / "docs" / "man" / f"filter-{cls.name}.8").read_text()
    docs = docs.replace("\\e\n", "").replace("/var/lib/smtpd-filters", str(tmp_path))
    commands = re.findall(rf'proc-exec "filter-{cls.name}(.*)"$', docs, re.MULTILINE)
    assert len(commands) >= 3
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    for command in commands:
        # smtpd has sh(1) run it.
        with Conversation(cls, *shlex.split(command.replace("/etc/mail", str(tmp_path)))) as smtpd:
            assert smtpd.phases

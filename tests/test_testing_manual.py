"""smtpd_filters.testing(3) describes the test kit, all of it, and its examples are right."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smtpd_filters import testing
from smtpd_filters.filters.trace import Trace
from smtpd_filters.testing import Client, Conversation, Delivery, DNSServer, HTTPStub, Verdict
from smtpd_filters.testing.dns.zone import NUMBERS, SWITCHES, Zone
from smtpd_filters.testing.http import BEHAVIOURS
from smtpd_filters.testing.server import VERSIONS, system_version, unavailable
from tests.needed import need
from tests.test_tutorial import FILES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "man" / "smtpd_filters.testing.3").read_text("utf-8").replace("\\-", "-")
#: Members by which the kit itself works, and what only tests of the kit need.
APART: dict[type, set[str]] = {
    Client: {"begin"},
    Conversation: {
        *("admd", "ask", "drop_lines", "end_lines", "message_id", "oracle", "phases", "protocol"),
        *("report", "reports", "write_lines"),
    },
    HTTPStub: {"answer_to"},
    DNSServer: {"answers", "catch_up", "datagram", "endpoints", "negative_ttl"},
}


def public(cls: type) -> set[str]:
    """Return the names of the methods, properties and fields of a class."""
    found = {name for name, _ in inspect.getmembers(cls) if not name.startswith("_")}
    return found - APART.get(cls, set())


@pytest.mark.parametrize("cls", [Client, Conversation, Delivery, DNSServer, HTTPStub, Verdict])
def test_the_page_has_the_members_of(cls: type) -> None:
    missing = {name for name in public(cls) if not re.search(rf"\b{name}\b", PAGE)}
    assert missing == set()


@pytest.mark.parametrize("cls", [Conversation, DNSServer, HTTPStub])
def test_the_page_has_the_parameters_of(cls: type[Any]) -> None:
    [line] = re.findall(rf"^\.Fn {cls.__name__} (.*)$", PAGE, re.MULTILINE)
    named = [word.rstrip("=") for word in line.split()]
    assert named == list(inspect.signature(cls).parameters)


@pytest.mark.parametrize("name", testing.__all__)
def test_the_page_knows_every_public_name(name: str) -> None:
    assert re.search(rf"\b{name}\b", PAGE)


@pytest.mark.parametrize("name", sorted(NUMBERS | SWITCHES))
def test_the_page_has_each_behaviour(name: str) -> None:
    rows = re.findall(r"^\.It Cm (.*)$", PAGE, re.MULTILINE)
    assert name in {word for row in rows for word in row.split(" , ")}


def examples() -> list[str]:
    found: list[str] = re.findall(
        r"^\.Bd -literal -offset indent\n(.*?)^\.Ed$", PAGE, re.MULTILINE | re.DOTALL
    )
    return found


def test_the_zone_of_the_page_is_valid() -> None:
    zone = ast.literal_eval(examples()[0])
    assert len(Zone(zone)) == len(zone)


def test_the_test_of_the_page_passes(tmp_path: Path) -> None:
    (tmp_path / "known.py").write_text(FILES["known.py"], "utf-8")
    (tmp_path / "test_known.py").write_text(examples()[1], "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_known.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout


def test_the_recording_of_a_conversation_is_played(tmp_path: Path) -> None:
    recipe = examples()[2].replace("\\e", "\\").replace("/tmp/recorded", str(tmp_path))  # noqa: S108  # the page's
    exec(compile(recipe, "smtpd_filters.testing.3", "exec"), {})  # noqa: S102  # readers will run it as well
    [file] = tmp_path.iterdir()
    assert [step.phase for step in testing.play(file, Trace)][-2:] == ["data-line", "commit"]


@pytest.mark.e2e
def test_the_recording_of_the_page_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(unavailable(system_version() or VERSIONS[0]))
    monkeypatch.chdir(tmp_path)
    recipe = examples()[3].replace("\\e", "\\")
    exec(compile(recipe, "smtpd_filters.testing.3", "exec"), {})  # noqa: S102  # readers will run it as well
    steps = testing.play(tmp_path / "mail.session", Trace)
    assert [step.phase for step in steps][-2:] == ["commit", "quit"]


@pytest.mark.e2e
def test_the_chain_of_the_page_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(unavailable(system_version() or VERSIONS[0]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quota.py").write_text(FILES["quota.py"], "utf-8")
    exec(compile(examples()[4], "smtpd_filters.testing.3", "exec"), {})  # noqa: S102  # readers will run it as well


def test_the_page_has_each_failure_of_an_answer() -> None:
    rows = re.findall(r"^\.It Cm (.*)$", PAGE, re.MULTILINE)
    assert set(BEHAVIOURS) - {""} <= {word for row in rows for word in row.split(" , ")}

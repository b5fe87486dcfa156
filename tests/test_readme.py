"""The examples and claims of README.md are true."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.testing.server import Smtpd, script_command
from tests.demo.configuration import CONF
from tests.type_check import type_check

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
FILTER, TEST = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The filter that README.md shows, importable."""
    file = tmp_path / "known.py"
    file.write_text(FILTER, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield file
    sys.modules.pop("known", None)


@pytest.mark.usefixtures("known")
def test_the_filter_passes_the_test_beside_it() -> None:
    shown: dict[str, object] = {}
    exec(compile(TEST, "README.md", "exec"), shown)  # noqa: S102  # readers will run it as well
    test = shown["test_known"]
    assert callable(test)
    test()


def test_the_filter_is_a_program(known: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(known), "--help"], capture_output=True, text=True, check=True
    )
    assert "Refuse senders whose domain does not exist." in done.stdout
    assert "--nameserver" in done.stdout
    done = subprocess.run(
        [sys.executable, str(known), "--nameserver", "127.0.0.1"],
        input="config|smtpd-version|7.8.0p1\nconfig|protocol|0.7\nconfig|ready\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "register|filter|smtp-in|mail-from\n" in done.stdout
    assert done.stdout.endswith("register|ready\n")


def test_the_filter_is_type_checked(known: Path) -> None:
    (known.parent / "test_known.py").write_text(TEST, "utf-8")
    done = type_check(known.parent, known.name, "test_known.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.e2e
def test_the_filter_serves_a_real_smtpd(version: str) -> None:
    [line] = re.findall(r'^ {4}filter "known" proc-exec "\S+/(known.py .*)"$', README, re.MULTILINE)
    command = script_command(*shlex.split(line))
    zone: dict[str, dict[str, Any]] = {
        "example.net": {"NS": "ns.example.net"},
        "broken.example": {"servfail": True},
    }
    with Smtpd(
        version, filters={"known": command}, files={"known.py": FILTER}, zone=zone
    ) as server:
        *_, refused, tempfailed, accepted = server.dialogue(
            "192.0.2.1",
            [
                "EHLO mail.example.net",
                "MAIL FROM:<bob@missing.example>",
                "MAIL FROM:<bob@broken.example>",
                "MAIL FROM:<bob@example.net>",
            ],
        )
        *_, local = server.dialogue(
            "127.0.0.1", ["EHLO mail.example.net", "MAIL FROM:<bob@missing.example>"]
        )
    assert local.code == 250
    assert refused == (550, ["5.1.8 Your domain does not exist"])
    assert (tempfailed.code, tempfailed.lines[0][:5]) == (451, "4.4.3")
    assert accepted.code == 250


def test_the_filter_is_short() -> None:
    code = [line for line in FILTER.splitlines() if line.strip()]
    assert len(code) <= 20


def test_the_configuration_is_the_one_that_runs() -> None:
    assert f"```\n{CONF.read_text('utf-8')}```\n" in README


def test_every_executable_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"]
    for name in project["scripts"]:
        assert f"`{name}`" in README


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:smtpd_filters|docs|fixtures|packaging)/[\w/.]*)`", README)
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_command_of_make_exists() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    verbs = re.findall(r"(?:`| {4})make (\w+)", README)
    assert verbs
    assert set(verbs) <= set(targets)

"""What README.md shows is so."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.testing.server import Smtpd, script_command
from tests.demo.configuration import CONF

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
FILTER, TEST = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The filter that README.md shows, importable."""
    file = tmp_path / "impostor.py"
    file.write_text(FILTER, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield file
    sys.modules.pop("impostor", None)


@pytest.mark.usefixtures("impostor")
def test_the_filter_passes_the_test_beside_it() -> None:
    shown: dict[str, object] = {}
    exec(compile(TEST, "README.md", "exec"), shown)  # noqa: S102 - it is what readers will do
    test = shown["test_impostor"]
    assert callable(test)
    test()


def test_the_filter_is_a_program(impostor: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(impostor), "--help"], capture_output=True, text=True, check=True
    )
    assert "Refuse strangers who greet us with our own name." in done.stdout
    assert "--names" in done.stdout
    done = subprocess.run(
        [sys.executable, str(impostor), "--names", "mail.example.org"],
        input="config|smtpd-version|7.8.0p1\nconfig|protocol|0.7\nconfig|ready\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "register|filter|smtp-in|ehlo\n" in done.stdout
    assert done.stdout.endswith("register|ready\n")


@pytest.mark.e2e
def test_the_filter_serves_a_real_smtpd(version: str) -> None:
    [line] = re.findall(
        r'^ {4}filter "impostor" proc-exec "\S+/(impostor.py .*)"$', README, re.MULTILINE
    )
    command = script_command(*shlex.split(line))
    with Smtpd(version, filters={"impostor": command}, files={"impostor.py": FILTER}) as server:
        banner, refused, greeted = server.dialogue(
            "192.0.2.1", ["EHLO mail.example.org", "EHLO mail.example.net"]
        )
        _, local = server.dialogue("127.0.0.1", ["EHLO mail.example.org"])
    assert local.code == 250
    assert banner.code == 220
    assert refused == (550, ["5.7.1 That is my name"])
    assert greeted.code == 250


def test_the_filter_is_short() -> None:
    code = [line for line in FILTER.splitlines() if line.strip()]
    assert len(code) <= 20


def test_the_configuration_is_the_one_that_runs() -> None:
    assert f"```\n{CONF.read_text('utf-8')}```\n" in README


def test_every_executable_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for name in project["scripts"]:
        assert f"`{name}`" in README


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:smtpd_filters|docs|fixtures|packaging)/[\w/.]*)`", README)
    assert len(paths) > 5
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_command_of_make_exists() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for verb in re.findall(r"(?:`| {4})make (\w+)", README):
        assert verb in targets, verb

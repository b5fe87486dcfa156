"""The code of docs/writing-a-filter.md runs, and its tests pass."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "writing-a-filter.md").read_text("utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
TESTS = sorted(name for name in FILES if name.startswith("test_"))
FILTERS = sorted(FILES.keys() - set(TESTS))
SMTPD = "config|smtpd-version|7.6.0\nconfig|protocol|0.7\nconfig|admd|mx\nconfig|ready\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the page shows."""
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, "utf-8")
    return tmp_path


def run(folder: Path, *words: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_of_code_is_a_file() -> None:
    assert len(FILES) == PAGE.count("```python\n")
    assert len(FILTERS) == 4
    assert len(TESTS) == 2


@pytest.mark.parametrize("name", FILTERS)
def test_each_filter_serves(name: str, folder: Path) -> None:
    assert "usage: filter-" in run(folder, name, "--help")
    assert run(folder, name, stdin=SMTPD).endswith("register|ready\n")


def test_the_settings_are_those_that_the_page_names(folder: Path) -> None:
    shown = run(folder, "quiet2.py", "--help")
    assert "--until N" in shown
    assert "--allow TABLE" in shown


def test_its_tests_pass(folder: Path) -> None:
    shown = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS)
    assert f"{len(TESTS)} passed" in shown


def test_its_filters_are_type_checked(folder: Path) -> None:
    run(folder, "-m", "mypy", "--strict", "--no-incremental", *FILTERS)

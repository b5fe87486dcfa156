"""`make unit` and what it leaves out are together what `make test` runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests import effort, needed
from tests.effort import part

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
LEFT_OUT = {"e2e", "packaging"}


def recipe(target: str) -> str:
    [found] = re.findall(rf"(?ms)^{target}: .*?\n((?:\t.*?\n)+)", MAKEFILE)
    return str(found)


def test_it_is_chosen_by_markers_alone() -> None:
    unit = recipe("unit")
    [expression] = re.findall(r'-m "(.*?)"', unit)
    assert set(expression.split(" and ")) == {f"not {marker}" for marker in LEFT_OUT}
    assert not re.search(r"--ignore|--deselect| -k |\$\(TESTS\)|tests/", unit)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    markers = project["tool"]["pytest"]["ini_options"]["markers"]
    assert {marker.partition(":")[0] for marker in markers} >= LEFT_OUT


def test_nothing_is_left_out_of_the_whole() -> None:
    whole = recipe("test")
    assert "-m pytest" in whole
    assert not re.search(r'-m "|--ignore|--deselect| -k ', whole)


def test_what_needs_a_server_has_a_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "SHARE", 8)
    with pytest.raises(pytest.fail.Exception, match="mark it e2e"):
        needed.need(None)


def test_a_part_is_at_least_one() -> None:
    assert part(1) == 1
    assert part(8 * effort.SHARE) == 8

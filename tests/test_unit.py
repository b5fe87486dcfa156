"""The targets `unit` and `unit-all`: what they leave out, and the check of their reports."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest

from tests import effort, needed
from tests.effort import part
from tests.processes import reaches

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
LEFT_OUT = {"allocations", "e2e", "packaging"}
VARIABLES = dict(re.findall(r"(?m)^([A-Z_]+) = ((?:.*\\\n)*.*)$", MAKEFILE))


def recipe(target: str) -> str:
    [found] = re.findall(rf"(?ms)^{target}: .*?\n((?:\t.*?\n)+)", MAKEFILE)
    for name in ("UNIT", "WITHOUT_SERVERS"):
        found = found.replace(f"$({name})", VARIABLES[name])
    return str(found)


@pytest.mark.parametrize(
    ("target", "left_out"), [("unit-all", LEFT_OUT), ("unit", {*LEFT_OUT, "processes"})]
)
def test_it_is_chosen_by_markers_alone(target: str, left_out: set[str]) -> None:
    unit = recipe(target)
    [expression] = re.findall(r'-m "(.*?)"', unit)
    assert set(expression.split(" and ")) == {f"not {marker}" for marker in left_out}
    command = unit[unit.index("$(PYTEST)") :]
    assert not re.search(r"--ignore|--deselect| -k |\$\(TESTS\)|tests/", command)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    markers = project["tool"]["pytest"]["ini_options"]["markers"]
    assert {marker.partition(":")[0] for marker in markers} >= left_out


def test_integration_runs_the_tests_that_start_processes_too() -> None:
    steps = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "make unit-all && .venv/bin/python .ci/complete.py --unit" in steps
    assert "make unit &&" not in steps


def test_integration_runs_the_tests_with_the_libraries_of_debian() -> None:
    steps = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert "step make unit-debian" in steps
    reports = "build/libraries-servers.xml build/libraries.xml"
    assert f"step .venv/bin/python .ci/complete.py {reports}" in steps
    installed = (ROOT / "packaging" / "debian-deps").read_text("utf-8")
    [packages] = re.findall(r'^libraries\) packages="([^"]*)"', installed, re.MULTILINE)
    linked = (ROOT / "packaging" / "debian_libraries.py").read_text("utf-8")
    named = set(re.findall(r"\"(python3-[a-z0-9-]+)\"", linked))
    assert named
    assert named <= {*packages.split()}


def test_integration_has_all_steps_and_prepares_the_other_machine_before_them() -> None:
    steps = (ROOT / ".ci" / "run").read_text("utf-8")
    named = re.findall(r"(?m)^step (make \S+|other_machine)$", steps)
    makes = [f"make {each}" for each in ("check", "api-check", "test", "clock", "unit-debian")]
    assert named == ["make .venv/.installed", *makes, "other_machine"]
    # What it does by itself comes first, then what waits until the line is written.
    prepared, _, tests = steps.partition("read -r go <&3")
    assert "make demo && packaging/debian-deps test && tests/e2e/setup-roots" in prepared
    assert "make test TESTS=" in tests
    assert prepared.index("tests/fetch-data") < prepared.index("exec tests/fresh-debian")
    assert tests.index("step make unit-debian") < tests.index("other_machine() {")
    assert "echo go" in tests.partition("other_machine() {")[2].partition("\n}\n")[0]


def test_nothing_is_left_out_of_the_whole() -> None:
    whole = recipe("test")
    # The tests that cover the core run by themselves, and are left out of the other run alone.
    measured, _, others = whole.partition("--ignore=$$each")
    assert "for each in $(CORE_TESTS); do" in measured
    assert re.search(r"\$\(PYTEST\) .* \$\$measured .*\$\(CORE_TESTS\)", measured)
    assert "$(PYTEST)" in others
    assert not re.search(r'-m "|--ignore|--deselect| -k ', measured + others)
    assert "-m pytest" in MAKEFILE


def test_a_report_each_tells_that_both_runs_were_complete(tmp_path: Path) -> None:
    for name, test in (("core", "tests.test_message"), ("tests", "tests.e2e.test_helo")):
        (tmp_path / f"{name}.xml").write_text(f"<testsuite>{CASE.format(test, '')}</testsuite>")
    program = str(ROOT / ".ci" / "complete.py")
    for names, status in (("core tests", 0), ("core", 1), ("core other tests", 1)):
        reports = [str(tmp_path / f"{name}.xml") for name in names.split()]
        done = subprocess.run([sys.executable, program, *reports], capture_output=True, check=False)
        assert done.returncode == status


HANGS = """
import threading

def test_that_hangs():
    threading.Event().wait()

def test_after_it():
    pass
"""


def test_a_test_that_hangs_fails_and_the_others_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANGS)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml")]
    command += ["--noconftest", "-p", "no:cacheprovider", "--numprocesses", "1"]
    command += ["--override-ini", "faulthandler_timeout=3", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 1
    assert "in test_that_hangs" in done.stderr
    assert re.search("crashed while running '.*test_that_hangs'", done.stdout)
    assert "1 failed, 1 passed" in done.stdout


def test_what_needs_a_server_has_a_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "SHARE", 8)
    with pytest.raises(pytest.fail.Exception, match="mark it e2e"):
        needed.need(None)


def test_a_part_is_at_least_one() -> None:
    assert part(1) == 1
    assert part(8 * effort.SHARE) == 8


CASE = '<testcase classname="{}" name="test_it">{}</testcase>'


def complete(tmp_path: Path, *arguments: str, cases: str) -> list[str]:
    """Return what .ci/complete.py says of a run."""
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuite>{cases}</testsuite>")
    program = str(ROOT / ".ci" / "complete.py")
    command = [sys.executable, program, *arguments, str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == bool(done.stderr)
    return done.stderr.splitlines()


def test_a_complete_run(tmp_path: Path) -> None:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    many = CASE.format("tests.test_unit", "") * 20_000
    assert complete(tmp_path, "--unit", own, cases=many) == []
    assert complete(tmp_path, cases=CASE.format("tests.e2e.test_helo", "")) == []


def test_runs_that_are_not_complete(tmp_path: Path) -> None:
    many = CASE.format("tests.test_unit", "") * 20_000
    skipped = CASE.format("tests.test_unit", '<skipped message="no mandoc"/>')
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert complete(tmp_path, "--unit", own, cases=many + skipped) == [
        "incomplete: skipped: tests.test_unit::test_it: no mandoc"
    ]
    assert complete(tmp_path, "--unit", "3.1", cases=many) == [
        f"incomplete: ran on Python {own}, not 3.1"
    ]
    assert complete(tmp_path, "--unit", own, cases="") == ["incomplete: only 0 tests ran"]
    # As many as `make unit` runs.
    few = CASE.format("tests.test_unit", "") * 13_000
    assert complete(tmp_path, "--unit", own, cases=few) == ["incomplete: only 13000 tests ran"]
    assert complete(tmp_path, cases=many) == ["incomplete: no end-to-end test ran"]


def starts_it_itself() -> int:
    return subprocess.run([sys.executable, "-c", ""], check=True).returncode


COMMAND = [sys.executable, "-m", "smtpd_filters.filters.trace"]


class Tool:
    def run(self) -> int:
        return starts_it_itself()


@pytest.mark.parametrize(
    "test",
    [
        starts_it_itself,
        partial(starts_it_itself),
        lambda: [each for each in (1, 2) if starts_it_itself()],
        lambda: Tool().run(),
        lambda: len(COMMAND),
    ],
)
def test_code_that_starts_processes_is_recognised(test: object) -> None:
    assert reaches(test)


def test_other_code_starts_none() -> None:
    assert not reaches(recipe)
    assert not reaches(needed.need)
    assert not reaches(test_a_part_is_at_least_one)

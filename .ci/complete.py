"""The check that a test run was complete: no test skipped, and all required tests run.

usage: complete.py [--unit PYTHON] JUNIT-XML...

All reports are of one run. By default it must include tests on real servers; with --unit, many
tests on the given Python, such as "3.13".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Sequence

#: `make unit-all` runs some 14,800, `make unit` some 13,900.
MANY = 14_000


def complaints(reports: Sequence[Path], python: str | None = None) -> list[str]:
    """Return a line for each thing that is missing from the run in these JUnit files."""
    if missing := [report for report in reports if not report.exists()]:
        return [f"{report}: the tests wrote no report" for report in missing]
    parsed = [ET.parse(report) for report in reports]  # noqa: S314  # pytest's own output
    cases = [case for tree in parsed for case in tree.iter("testcase")]
    names = [f"{case.get('classname')}::{case.get('name')}" for case in cases]
    skipped = [
        f"skipped: {name}: {reason.get('message', '')}"
        for name, case in zip(names, cases, strict=True)
        for reason in case.findall("skipped")
    ]
    if python is not None:
        running = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if running != python:
            skipped.append(f"ran on Python {running}, not {python}")
        if len(cases) < MANY:
            skipped.append(f"only {len(cases)} tests ran")
    elif not any(name.startswith("tests.e2e.") for name in names):
        skipped.append("no end-to-end test ran")
    return skipped


def main() -> int:
    """Print what is missing; exit with 1 if anything is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--unit", metavar="PYTHON")
    parser.add_argument("reports", nargs="+", type=Path)
    options = parser.parse_args()
    found = complaints(options.reports, options.unit)
    for line in found:
        print(f"incomplete: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

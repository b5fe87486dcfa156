"""Say whether a test run was complete: no test skipped, and real servers among what ran.

usage: complete.py JUNIT-XML
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def complaints(report: Path) -> list[str]:
    """What was missing from the run that the JUnit file `report` tells of; empty if nothing."""
    if not report.exists():
        return [f"{report}: the tests wrote no report"]
    cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 - pytest's own output
    names = [f"{case.get('classname')}::{case.get('name')}" for case in cases]
    skipped = [
        f"skipped: {name}: {reason.get('message', '')}"
        for name, case in zip(names, cases, strict=True)
        for reason in case.findall("skipped")
    ]
    if not any(name.startswith("tests.e2e.") for name in names):
        skipped.append("no end-to-end test ran")
    return skipped


def main() -> int:
    """Print what is missing; the exit status says whether anything is."""
    found = complaints(Path(sys.argv[1]))
    for line in found:
        print(f"incomplete: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

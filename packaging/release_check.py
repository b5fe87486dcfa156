#!/usr/bin/env python3
"""The check that the version and the date of a release are the same everywhere.

`pyproject.toml` has the version and the first section of `CHANGELOG.md` the date. Both are
compared with `debian/changelog`, the manual pages, the ports, the installed package, and the
interface in `packaging/api.txt`.  Each mismatch is one line, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from datetime import date, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
NAME = "smtpd-filters"
#: The variable with a port's version, which `make_ports.py` and `make_pkg.py` set.
PORTS = {"freebsd": "DISTVERSION", "openbsd": "MODPY_DISTV"}


def project_version(root: Path) -> str:
    """Return the version in `pyproject.toml`."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["version"])


def versions(root: Path) -> Iterator[str]:
    """Yield every version that differs from that of `pyproject.toml`."""
    version = project_version(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"pyproject.toml: version {version}: expected three numbers"
    newest, _ = section(root)
    if newest != version:
        yield f"CHANGELOG.md: first section {newest}: expected {version}"
    top = re.match(r"\S+ \((\S+)-\S+\) (\S+);", debian(root))
    if not top or top[1] != version:
        yield f"debian/changelog: version {top[1] if top else 'missing'}: expected {version}"
    elif top[2] != "unstable":
        yield f"debian/changelog: distribution {top[2]}: expected unstable"
    for system, name in PORTS.items():
        makefile = (root / "packaging" / system / "Makefile").read_text("utf-8")
        found = re.findall(rf"(?m)^{name}\s*=\s*(.*)$", makefile)
        if found != ["@VERSION@"]:
            yield f"{system}/Makefile: {name} {' '.join(found)}: expected @VERSION@"


def dates(root: Path) -> Iterator[str]:
    """Yield every date that differs from that of the first section of `CHANGELOG.md`."""
    _, written = section(root)
    try:
        day = date.fromisoformat(written)
    except ValueError:
        yield f"CHANGELOG.md: date {written}: expected YEAR-MONTH-DAY"
        return
    found = re.search(r"(?m)^ -- .*  (.*)$", debian(root))
    stamp = found[1] if found else "missing"
    try:
        stamp = datetime.strptime(stamp, "%a, %d %b %Y %H:%M:%S %z").date().isoformat()
    except ValueError:
        pass  # the complaint shows it
    if stamp != day.isoformat():
        yield f"debian/changelog: date {stamp}: expected {day}"
    wanted = dated(day)
    for page in pages(root):
        first = page.read_text("utf-8").partition("\n")[0]
        if first != wanted:
            yield f"docs/man/{page.name}: date {first[4:]}: expected {wanted[4:]}"


def write_dates(root: Path) -> None:
    """Date the manual pages like the first section of `CHANGELOG.md`, if that has a date."""
    try:
        day = date.fromisoformat(section(root)[1])
    except ValueError:
        return
    for page in pages(root):
        _, newline, rest = page.read_text("utf-8").partition("\n")
        page.write_text(dated(day) + newline + rest, "utf-8")


def dated(day: date) -> str:
    """Return the first line of a manual page of this day (mdoc(7), Dd)."""
    return f".Dd $Mdocdate: {day:%B} {day.day} {day.year} $"


def pages(root: Path) -> list[Path]:
    """Return the manual pages."""
    return sorted((root / "docs" / "man").glob("*.[1-9]"))


def section(root: Path) -> tuple[str, str]:
    """Return the version and the date of the first section of `CHANGELOG.md`, or "missing"."""
    top = re.search(r"(?m)^## (\S+?)(?:,? (.*))?$", (root / "CHANGELOG.md").read_text("utf-8"))
    return (top[1], top[2] or "missing") if top else ("missing", "missing")


def debian(root: Path) -> str:
    """Return Debian's changelog."""
    return (root / "packaging" / "debian" / "changelog").read_text("utf-8")


def installed(root: Path) -> Iterator[str]:
    """Yield the version of the installed package, which `--version` prints, if it differs."""
    version = project_version(root)
    try:
        found = metadata.version(NAME)
    except metadata.PackageNotFoundError:
        found = "none"
    if found != version:
        yield f"installed package: version {found}: expected {version} (pip install -e .)"


def interface(root: Path) -> Iterator[str]:
    """Yield incompatible changes, and whether `packaging/api.txt` is out of date."""
    command = [sys.executable, str(HERE / "api_check.py"), "--root", str(root)]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # our own
    yield from (f"interface: {line}" for line in checked.stdout.splitlines() if checked.returncode)
    made = subprocess.run([*command, "--print"], check=True, capture_output=True, text=True)  # noqa: S603  # our own
    if made.stdout != (root / "packaging" / "api.txt").read_text("utf-8"):
        yield "packaging/api.txt: out of date: run packaging/api_check.py --write"


def main() -> int:
    """Print each mismatch; exit with 1 if there is one."""
    parser = argparse.ArgumentParser(description="Check that a release can be made.")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="the sources")
    parser.add_argument("--write", action="store_true", help="date the manual pages first")
    options = parser.parse_args()
    root = options.root
    if options.write:
        write_dates(root)
    found = [line for check in (versions, dates, installed, interface) for line in check(root)]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""The fixtures of all packaging tests: one copy of the sources, and machines of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.packaging.roots import SOURCE, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator


def copy_of(source: Path, target: Path) -> Path:
    """Copy what a package can be made of, without what tools have left in it."""
    target.mkdir()
    for name in ("smtpd_filters", "docs", "packaging"):
        shutil.copytree(
            source / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.swp")
        )
    for path in source.iterdir():
        if path.is_file() and not path.name.startswith(".coverage"):
            shutil.copy(path, target)
    return target


def another_day(source: Path) -> None:
    """Date the sources as if they had been written years ago."""
    for path in source.rglob("*"):
        os.utime(path, (1_500_000_000, 1_500_000_000))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, as they were when the first test asked."""
    return copy_of(SOURCE, tmp_path_factory.mktemp("source") / "smtpd-filters")


class Dist(NamedTuple):
    """What `make dist` makes."""

    source: Path
    wheel: Path
    sdist: Path


def make_dist(source: Path, output: Path, **environment: str) -> Dist:
    """Build wheel and sdist."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(output)]
    done = subprocess.run(
        command,
        cwd=source,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = output.glob("*.whl")
    [sdist] = output.glob("*.tar.gz")
    return Dist(source, wheel, sdist)


@pytest.fixture(scope="session")
def dist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Dist:
    """Wheel and sdist of the sources."""
    return make_dist(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture
def machine(prepared: Machine, tmp_path: Path) -> Iterator[Machine]:
    """A copy of the machine that the module has prepared."""
    copy = prepared.copy(tmp_path / "root")
    yield copy
    copy.remove()

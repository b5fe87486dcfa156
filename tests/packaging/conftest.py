"""What all packaging tests are made from: one copy of the sources."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.packaging.roots import SOURCE

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, as they were when the first test asked."""
    return copy_of(SOURCE, tmp_path_factory.mktemp("source") / "smtpd-filters")

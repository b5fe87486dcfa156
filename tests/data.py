"""Test data from elsewhere, which is not a part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: `make test` downloads what is missing to the last of these (`tests/fetch-data`).
FOLDERS = (*(each / "shared" / "data" for each in ROOT.parents), ROOT / "build" / "data")


def data_file(name: str) -> Path | None:
    """Return a file of the test data, such as `spf/rfc7208-tests.yml`; None if it is missing."""
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    return None


def need_data(path: Path | None, name: str) -> Path:
    """Return the path; skip the test if it is missing, or fail it where all tests have to run."""
    if path is None:
        reason = f"{name} is missing: tests/fetch-data downloads it"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return path

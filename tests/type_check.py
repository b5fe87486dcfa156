"""mypy, run on code that documentation shows, with a cache of its own for all such tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: Most of the time goes into the package, which is the same in each test.
CACHE = Path(__file__).parents[1] / "build" / "mypy"


def type_check(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    """Check these files of a folder as `mypy --strict` does; the output is in `stdout`."""
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(CACHE), *files],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
    )

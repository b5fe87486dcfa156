"""Programs in C of this directory."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import cast

from tests.bench.player import ROOT


def compiler() -> str | None:
    """The command of the C compiler, None without one."""
    return shutil.which(os.environ.get("CC", "cc"))


def program(name: str) -> str:
    """Build a program of this directory if need be; return its path."""
    source, built = ROOT / f"tests/bench/{name}.c", ROOT / f"build/{name}"
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        built.parent.mkdir(exist_ok=True)
        subprocess.run([cast("str", compiler()), "-O2", "-o", built, source], check=True)
    return str(built)

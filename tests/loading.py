"""The modules that an interpreter loads for some code, because smtpd waits for a filter's start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def loaded(code: str, *arguments: str, packages: bool = False) -> set[str]:
    """The modules that a new interpreter loads for this code, which finds `arguments` in sys.argv.

    Without `packages` it has none but the checkout's, so one that is imported all the same is an
    error.
    """
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, *(() if packages else ("-S",)), "-E", "-c", program, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.split())

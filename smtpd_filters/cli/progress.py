"""A line on the terminal that says how far a verb has come."""

from __future__ import annotations

import sys
from time import monotonic

#: Seconds between two signs of life.
PROGRESS = 0.2


class Progress:
    """A line on stderr, written over again and again; nothing where it is not `wanted`."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._shown = False
        self._next = monotonic() + PROGRESS

    def due(self) -> bool:
        """Whether it is time to show something."""
        return self._wanted and monotonic() >= self._next

    def show(self, where: str) -> None:
        """Say how far it has come, in one line."""
        self._next = monotonic() + PROGRESS
        self._shown = True
        sys.stderr.write(f"\r\033[K{where}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Make room for something else."""
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._shown = False

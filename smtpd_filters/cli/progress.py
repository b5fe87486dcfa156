"""The progress of a verb, in one line of the terminal."""

from __future__ import annotations

import sys
from time import monotonic

#: Seconds between two updates.
PROGRESS = 0.2


class Progress:
    """A line on stderr that is overwritten by each update; nothing unless `wanted`."""

    def __init__(self, *, wanted: bool, interval: float = PROGRESS) -> None:
        self._wanted = wanted
        self._interval = interval
        self._shown = False
        self._next = monotonic() + self._interval

    def due(self) -> bool:
        """Return whether it is time for the next update."""
        return self._wanted and monotonic() >= self._next

    def show(self, where: str) -> None:
        """Write the progress as one line."""
        self._next = monotonic() + self._interval
        self._shown = True
        sys.stderr.write(f"\r\033[K{where}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._shown = False

"""The line in the log when a store that failed works again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .damage import INTERVAL
from .operations import Get

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .operations import Operation


class Trouble:
    """Whether requests fail; `note` takes a text for the log, at most once in `INTERVAL`.

    A full disk or a read-only replica can still be read: a request that writes has failed until one
    that writes succeeds.
    """

    __slots__ = ("_clock", "_label", "_next", "_note", "_writing", "is_on")

    def __init__(
        self,
        label: str,
        note: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._note = note
        self._clock = clock
        self._next = float("-inf")
        self._writing = False
        #: Whether a request has failed and the log does not say yet that the store answers again.
        self.is_on = False

    def failed(self, operations: Sequence[Operation[Any]]) -> None:
        """Record a request that failed."""
        self.is_on = True
        self._writing = self._writing or _writes(operations)

    def succeeded(self, operations: Sequence[Operation[Any]]) -> None:
        """Record a request that succeeded while `is_on`."""
        now = self._clock()
        if now < self._next or (self._writing and not _writes(operations)):
            return
        self.is_on = self._writing = False
        self._next = now + INTERVAL
        self._note(f"{self._label}: answers again")


def _writes(operations: Sequence[Operation[Any]]) -> bool:
    return any(not isinstance(each, Get) for each in operations)

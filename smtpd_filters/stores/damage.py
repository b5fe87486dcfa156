"""Entries that nothing of this package can have written, and their lines in the log.

A disk, another program or an operator's hand may leave an entry with a value of another type, or
with times that are not possible. Such an entry counts as missing: a decision is made without it,
and the next write replaces it.

Invariants
----------
*One by one*: a damaged entry affects no other, nor the other requests of its transaction.
*One line*: damage is logged once per space and `INTERVAL`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .operations import MAX_TTL, MAX_VALUE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .operations import Row

#: Seconds between two lines about the entries of a space.
INTERVAL = 60.0
#: Seconds by which times of a row may differ for the rounding of floats.
ROUNDING = 1.0
#: Counters beyond it lose digits in Lua, whose numbers are floats.
MAX_COUNT = 1 << 53
#: The longest time from the writing of a row, or from now, to its expiry.
LONGEST = MAX_TTL + ROUNDING


def is_sound(row: Row, now: float) -> bool:
    """Return whether an operation can have written a row; `now` is the time of the request.

    The parts of a row may have any type.
    """
    value, written, expires = row
    if type(written) is not float or type(expires) is not float:
        return False
    # The comparisons are false for NaN.
    if not (0.0 <= expires - written <= LONGEST and expires - now <= LONGEST):
        return False
    kind = type(value)
    if kind is bytes:
        return len(value) <= MAX_VALUE  # type: ignore[arg-type]  # bytes
    if kind is int:
        return abs(value) <= MAX_COUNT  # type: ignore[arg-type]  # an int
    # A bucket expires when it is full.
    return kind is float and abs(value - expires) <= ROUNDING  # type: ignore[operator]  # a float


class Damage:
    """The lines about damaged entries of a store; `note` takes a text for the log."""

    def __init__(
        self,
        label: str,
        note: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._note = note
        self._clock = clock
        #: When the damage of a space was last noted.
        self._noted: dict[str, float] = {}

    def found(self, key: bytes) -> None:
        """Note that the entry of a key is damaged."""
        self.note(f"an entry of {key.partition(b':')[0].decode('ascii', 'replace')}")

    def note(self, what: str) -> None:
        """Note that something is damaged, unless it was noted a short time ago."""
        now = self._clock()
        if now - self._noted.get(what, -INTERVAL) >= INTERVAL:
            self._noted[what] = now
            self._note(f"{self._label}: {what} is damaged and counts as missing")

"""The effort of the tests: all examples and sizes, or a part of them in `make unit`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

#: `make unit` tries one in so many of what `make test` tries.
SHARE = 8 if os.environ.get("SMTPD_FILTERS_TESTS") == "quick" else 1


#: A machine is busy if this many processes want each core; the workers of `make unit` alone do so.
BUSY = 3


def part(number: int) -> int:
    """Return how many of this number are tried; at least one."""
    return max(1, number // SHARE)


def brief(seconds: float) -> float:
    """Return a time-out that a test lets pass: in `make unit` a third, but no less than 150 ms.

    What has to happen before it takes longer on a busy machine, and so does the time-out there,
    unless it is so short that nothing has to. Call this when the test runs: as a parameter of a
    test it would differ from worker to worker.
    """
    busy = min(_waiting() / BUSY, 5.0)
    if busy > 1 and seconds >= 0.1:
        return round(max(seconds, busy), 3)
    return seconds if SHARE == 1 else round(min(seconds, max(0.15, seconds / 3)), 3)


def _waiting() -> float:
    """Return how many processes want each core, now or in the last minute."""
    running = 0
    with suppress(OSError):  # only Linux has it
        running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    return max(os.getloadavg()[0], running) / (os.cpu_count() or 1)


def some(cases: Iterable[T]) -> list[T]:
    """Return the cases of a costly test that are tried: all, or one in `SHARE`."""
    return list(cases)[::SHARE]

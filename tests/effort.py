"""The effort of the tests: all examples and sizes, or a part of them in `make unit`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

#: `make unit` tries one in so many of what `make test` tries.
SHARE = 8 if os.environ.get("SMTPD_FILTERS_TESTS") == "quick" else 1


def part(number: int) -> int:
    """Return how many of this number are tried; at least one."""
    return max(1, number // SHARE)


def brief(seconds: float) -> float:
    """Return a time-out that a test lets pass: in `make unit` a third, but no less than 150 ms.

    What has to happen before it has all of the time in `make test`, on machines that are busy.
    """
    return seconds if SHARE == 1 else round(min(seconds, max(0.15, seconds / 3)), 3)


def some(cases: Iterable[T]) -> list[T]:
    """Return the cases of a costly test that are tried: all, or one in `SHARE`."""
    return list(cases)[::SHARE]

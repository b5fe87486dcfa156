"""The number of examples that a test tries: all of them, or a part in `make unit`."""

from __future__ import annotations

import os

#: `make unit` tries one in so many of what `make test` tries.
SHARE = 8 if os.environ.get("SMTPD_FILTERS_TESTS") == "quick" else 1


def part(number: int) -> int:
    """Return how many of this number are tried; at least one."""
    return max(1, number // SHARE)

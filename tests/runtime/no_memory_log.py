"""Lines of the log while no allocation succeeds: a program for a test.

Memory ends after each number of allocations, in turn for each kind of line, while the interpreter
has no tuples to use again: CPython 3.11 crashes if there is no memory for the pair of
`dict.items()`. Prints how often it was tried.
"""

# ruff: noqa: T201

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # CPython's own
import os
import sys

from smtpd_filters.runtime.log import FilterLog, Log
from smtpd_filters.supervise.link import Loss
from tests.effort import SHARE

#: More than a line makes; and how often each is tried.
ALLOCATIONS, TIMES = 60, 24
#: More pairs than the interpreter keeps of those that were freed.
PAIRS = 4000


def main() -> int:
    log = Log(fd=os.open(os.devnull, os.O_WRONLY))
    of_filter, loss = FilterLog(log, "name"), Loss()
    brief = {"result": "reject"}
    calls = (
        lambda: log.event("name", "event", "session", key="value", other="value"),
        lambda: log.failure("kind", "name", "event", "session", brief, cause="why", reply="451"),
        lambda: of_filter.event("event", key=3, other="value"),
        loss.values,
    )
    tried = 0
    used = [[(number, number) for number in range(PAIRS)]]
    for call in calls:
        for _ in range(TIMES // SHARE):
            for allocations in range(ALLOCATIONS):
                tried += 1
                used.append([(tried, number) for number in range(40)])
                _testcapi.set_nomemory(allocations)
                try:
                    call()
                except MemoryError:
                    pass
                finally:
                    _testcapi.remove_mem_hooks()
    print(f"{tried} tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A fleet's programs while single allocations fail: a program for a test.

`no_memory_fleet.py WIDTH`: two programs start, get ready, are replaced by a reload, and exit. Each
allocation in each of these steps is made to fail once, and the `WIDTH` - 1 after it as well; then
the step is repeated, as the loop does. In the end each place must have a program that takes
sessions, and no other program may run. Prints what went wrong, and how often something was tried.
"""

# ruff: noqa: T201

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # CPython's own
import sys

from smtpd_filters.supervise.fleet import LONGEST
from tests.effort import SHARE
from tests.supervise.test_fleet import Stage

#: Programs of the fleet, more than most steps allocate, and ticks within which all is well again.
SIZE, ALLOCATIONS, TICKS = 2, 80, 6


def exits(stage: Stage) -> None:
    stage.started[-1].status = 1


def gets_ready(stage: Stage) -> None:
    for worker in stage.fleet.workers:
        worker.link.ready = True


def reloads(stage: Stage) -> None:
    stage.fleet.reload()


def nothing(_: Stage) -> None:
    pass


STEPS = (nothing, gets_ready, reloads, gets_ready, nothing, exits, nothing, gets_ready)


def look(stage: Stage) -> None:
    """Do what the loop does at a tick."""
    stage.fleet.reap(stage.now)
    stage.fleet.tick(stage.now)


def play(step: int, start: int, stop: int) -> list[str]:
    """Return what went wrong when these allocations failed in that step."""
    stage = Stage(SIZE)
    for number, happens in enumerate(STEPS):
        happens(stage)
        stage.now += LONGEST / 2
        if number == step:
            _testcapi.set_nomemory(start, stop)
            try:
                look(stage)
            except MemoryError:
                pass
            finally:
                _testcapi.remove_mem_hooks()
        look(stage)
        stage.obey()
    for _ in range(TICKS):
        gets_ready(stage)
        stage.now += LONGEST
        look(stage)
        stage.obey()
    return wrong(stage)


def wrong(stage: Stage) -> list[str]:
    placed = [place.worker for place in stage.fleet.places]
    links = [worker.link for worker in placed if worker is not None]
    running = [each for each in stage.started if each.status is None]
    found = []
    if len(links) < SIZE:
        found.append("a place has no program")
    if len(running) != SIZE:
        found.append(f"{len(running)} programs run")
    if sorted(map(id, stage.fleet._engine.links)) != sorted(map(id, links)):
        found.append("sessions are given to others than the programs in places, once each")
    if stage.fleet.workers != placed and stage.fleet.workers != placed[::-1]:
        found.append("programs without a place are kept, or one with a place is not")
    return found


def main() -> int:
    width, tried = int(sys.argv[1]), 0
    for step in range(len(STEPS)):
        for start in range(0, ALLOCATIONS, SHARE):
            tried += 1
            for each in play(step, start, start + width):
                print(f"step {step}, allocation {start}: {each}")
    print(f"{tried} tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The stores under test, each with a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from smtpd_filters.stores.clock import Times
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from smtpd_filters.stores import Store

#: Seconds for a request: the machine may be busy, and no test waits for it.
PATIENCE = 60.0


class Clock:
    """The clocks of a machine, which a test moves."""

    def __init__(self) -> None:
        self.boot = "first"
        self.monotonic = 1_000.0
        self.wall = 1_700_000_000.0

    def advance(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def times(self) -> Times:
        return Times(self.boot, self.monotonic, self.wall)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What the store logs: nothing, unless the test has removed it."""
    noted: list[str] = []
    yield noted
    assert noted == []


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def store(kind: str, clock: Clock, tmp_path: Path, notes: list[str]) -> Store:
    if kind == "memory":
        return MemoryStore(clock=lambda: clock.monotonic)
    return open_sqlite(tmp_path, clock, notes)


def open_sqlite(folder: Path, clock: Clock, notes: list[str]) -> SQLiteStore:
    path = str(folder / "store.sqlite")
    return SQLiteStore(path, timeout=PATIENCE, note=notes.append, times=clock.times)

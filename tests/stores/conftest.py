"""The stores under test, each with a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.stores.address import parse
from smtpd_filters.stores.clock import Times
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.stores.redis_script import script
from smtpd_filters.stores.redis_store import RedisStore
from smtpd_filters.stores.sqlite import SQLiteStore
from tests.needed import need
from tests.stores.redis_server import RedisServer, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from smtpd_filters.stores import Store
    from smtpd_filters.stores.operations import Operation

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


class OnClock(RedisStore):
    """A store whose script has the time of a test's clock."""

    def __init__(self, server: RedisServer, clock: Clock) -> None:
        self._test_clock = clock
        super().__init__(parse(f"unix://{server.socket}"), timeout=PATIENCE)

    async def _apply(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        self._script = script(b"local now = %f" % self._test_clock.wall)
        return await super()._apply(operations)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What the store logs: nothing, unless the test has removed it, but the end of trouble."""
    noted: list[str] = []
    yield noted
    assert [each for each in noted if not each.endswith(": answers again")] == []


@pytest.fixture(
    scope="module", params=["memory", "sqlite", pytest.param("redis", marks=pytest.mark.e2e)]
)
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer | str]:
    """A kind of store: its name, or the server that it needs."""
    if request.param != "redis":
        yield request.param
        return
    need(unavailable())
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def store(kind: RedisServer | str, clock: Clock, tmp_path: Path, notes: list[str]) -> Store:
    """An empty store."""
    if kind == "memory":
        return MemoryStore(clock=lambda: clock.monotonic)
    if isinstance(kind, str):
        return open_sqlite(tmp_path, clock, notes)
    kind.command("FLUSHALL")
    return OnClock(kind, clock)


def open_sqlite(folder: Path, clock: Clock, notes: list[str]) -> SQLiteStore:
    path = str(folder / "store.sqlite")
    return SQLiteStore(path, timeout=PATIENCE, note=notes.append, times=clock.times)

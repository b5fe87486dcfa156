"""Measurements of remote tables: look-ups, cached and cold, lists, and what holds the loop."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.tables import DomainTable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Look-ups at once that are not in the cache.
COLD = 50
ROUNDS = 5
QUERY = "SELECT 1 FROM domains WHERE name = ?"
LIST = "SELECT name FROM domains"
PROGRAM = Path(__file__).parents[1] / "tables" / "remote" / "table_program.py"


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    entries: int = 100_000
    cached: int = 20_000


QUICK = Sizes(entries=10_000, cached=2_000)


@dataclass(frozen=True)
class Figure:
    """A figure with its limit."""

    name: str
    value: float
    sense: str
    limit: float


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Yield the figures, one by one."""
    with tempfile.TemporaryDirectory(prefix="tables") as name:
        folder = Path(name)
        database = folder / "domains.db"
        with sqlite3.connect(database) as connection:
            connection.execute("CREATE TABLE domains (name TEXT PRIMARY KEY)")
            names = ((f"d{number}.example",) for number in range(sizes.entries))
            connection.executemany("INSERT INTO domains VALUES (?)", names)
        connection.close()
        asking = f"sqlite:{database}?query={QUERY}"
        yield Figure("cached, look-ups/s", asyncio.run(_cached(asking, sizes)), ">=", 5000)
        yield _at_once("sqlite", asking)
        yield _at_once("proc", f"proc:{sys.executable} {PROGRAM}")
        yield from _directory(folder)
        listing = f"sqlite:{database}?list={LIST}"
        start = time.perf_counter()
        table = DomainTable.load(listing)
        yield Figure("list, s", time.perf_counter() - start, "<=", 10)
        yield Figure("list, longest step, ms", asyncio.run(_held(table)), "<=", 50)


async def _cached(spec: str, sizes: Sizes) -> float:
    """Return look-ups a second of keys in the cache."""
    table = DomainTable.load_by_key(spec)
    keys = [f"d{number}.example" for number in range(100)]
    await asyncio.gather(*map(table.look_up, keys))
    start = time.perf_counter()
    for number in range(sizes.cached):
        await table.look_up(keys[number % len(keys)])
    took = time.perf_counter() - start
    await _close(table)
    return sizes.cached / took


def _at_once(source: str, spec: str) -> Figure:
    milliseconds = statistics.median(asyncio.run(_cold(spec)) for _ in range(ROUNDS))
    return Figure(f"{COLD} at once, {source}, ms", milliseconds, "<=", 500)


async def _cold(spec: str) -> float:
    """Return the milliseconds for keys that are looked up at once, after a first one."""
    table = DomainTable.load_by_key(spec)
    await table.look_up("first.example")
    keys = [f"d{number}.example" for number in range(COLD)]
    start = time.perf_counter()
    await asyncio.gather(*map(table.look_up, keys))
    took = time.perf_counter() - start
    await _close(table)
    return took * 1000


async def _held(table: DomainTable) -> float:
    """Return the longest step of a refresh of a list that has changed, as ms of processor time."""
    longest, running = 0.0, True

    async def beside() -> None:
        nonlocal longest
        while running:
            begun = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - begun)

    remote = table.remote
    assert remote is not None
    remote._loaded = None  # as if the list had changed
    ticking = asyncio.get_running_loop().create_task(beside())
    await table.refresher().refresh()
    running = False
    await ticking
    await _close(table)
    return longest * 1000


async def _close(table: DomainTable) -> None:
    if table.remote is not None:
        await table.remote.aclose()


def _directory(folder: Path) -> Iterator[Figure]:
    """Yield the figure of a slapd, if there is one."""
    from tests.e2e.slapd import BASE, SLAPD, Slapd

    if SLAPD is None:
        return
    place = folder / "ldap"
    place.mkdir()
    with Slapd(place) as running:
        file = folder / "ldap.conf"
        file.write_text(f"url {running.url}\nbasedn {BASE}\nfilter (uid=%u)\n")
        yield _at_once("ldap", f"ldap:{file}")


def main() -> int:
    """Print the figures."""
    for figure in measure(Sizes()):
        print(f"{figure.name}: {figure.value:.1f} ({figure.sense} {figure.limit:g})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The store in memory: what a request costs, and how many items its heap has."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.stores import Delete, Get, Join, Leave, Put, join
from smtpd_filters.stores.memory import SWEEP, MemoryStore

#: Entries of the store under test.
ROWS = 4_000


class Counted(bytes):
    """A key that counts how often it is looked up."""

    looked_up = 0

    def __hash__(self) -> int:
        Counted.looked_up += 1
        return bytes.__hash__(self)


def items(store: MemoryStore) -> int:
    """Return the number of items that wait for their expiry."""
    return len(store._rows._heap) + len(store._rows._rest)


def test_no_request_looks_at_all_rows() -> None:
    now = 0.0
    store = MemoryStore(clock=lambda: now)
    keys = [Counted(join("test", b"%d" % number)) for number in range(ROWS)]
    most = longest = 0

    async def steps() -> None:
        nonlocal now, most, longest
        # The first to expire is never written again, so outdated items stay behind it.
        await store.ask(Put(keys[0], b"v", ttl=3600))
        for _ in range(9):
            for key in keys[1:]:
                now += 0.001
                before = Counted.looked_up
                await store.ask(Put(key, b"v", ttl=86400))
                most = max(most, Counted.looked_up - before)
                longest = max(longest, items(store))

    asyncio.run(steps())
    assert most < 8 * SWEEP
    assert longest < 4 * ROWS


def test_a_row_that_is_written_again_in_the_same_instant_has_one_item() -> None:
    store = MemoryStore(clock=lambda: 0.0)
    key = join("test", b"client")

    async def steps() -> None:
        for _ in range(ROWS):
            await store.ask(Put(key, b"v", ttl=10), Join(key, b"m", 5, ttl=10))

    asyncio.run(steps())
    assert items(store) == 2


KEYS = st.integers(0, 20)
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.sampled_from([5.0, 50.0, 500.0])),
    st.tuples(st.just("join"), KEYS, st.sampled_from([5.0, 50.0, 500.0])),
    st.tuples(st.just("delete"), KEYS, st.just(0.0)),
    st.tuples(st.just("leave"), KEYS, st.just(0.0)),
    st.tuples(st.just("wait"), KEYS, st.sampled_from([1.0, 20.0])),
)


@given(st.lists(STEPS, max_size=300))
def test_what_has_expired_is_deleted_and_nothing_else(
    steps: list[tuple[str, int, float]],
) -> None:
    now = 0.0
    store = MemoryStore(clock=lambda: now)
    rows: dict[tuple[str, bytes], float] = {}

    async def play() -> None:
        nonlocal now
        for kind, number, seconds in steps:
            key = join("test", b"%d" % number)
            match kind:
                case "put":
                    await store.ask(Put(key, b"v", ttl=seconds))
                    rows["row", key] = now + seconds
                case "join":
                    await store.ask(Join(key, b"m", 5, ttl=seconds))
                    rows["member", key] = now + seconds
                case "delete":
                    await store.ask(Delete(key))
                    rows.pop(("row", key), None)
                    rows.pop(("member", key), None)
                case "leave":
                    await store.ask(Leave(key, b"m"))
                    rows.pop(("member", key), None)
                case _:
                    now += seconds
        # Requests that only read sweep too.
        for _ in range(1 + len(steps) // SWEEP):
            await store.ask(Get(join("test", b"none")))

    asyncio.run(play())
    left = {each for each, expires in rows.items() if expires > now}
    kept = {("row", key) for key in store._rows.entries}
    kept |= {("member", key) for key in store._rows.groups}
    assert kept == left


def test_the_heap_is_bounded_while_rows_come_and_go() -> None:
    now = 0.0
    store = MemoryStore(max_entries=50, clock=lambda: now)

    async def steps() -> int:
        nonlocal now
        longest = 0
        for number in range(5_000):
            now += 0.001
            key = join("test", b"%d" % number)
            await store.ask(Put(key, b"v", ttl=600))
            if number % 2:
                await store.ask(Delete(key))
            assert len(store._rows.entries) <= 50
            longest = max(longest, items(store))
        return longest

    assert asyncio.run(steps()) < 500

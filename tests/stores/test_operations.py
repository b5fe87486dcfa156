"""The operations: every kind of store has to agree about each of them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import (
    Add,
    Count,
    Delete,
    Entry,
    Get,
    Join,
    Joined,
    Leave,
    Put,
    Replace,
    Take,
    join,
    split,
)
from smtpd_filters.stores.keys import shard_of
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.stores.operations import MAX_TTL, MAX_VALUE
from smtpd_filters.stores.redis_store import RedisStore
from smtpd_filters.stores.store import MAX_OPERATIONS
from tests.stores.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smtpd_filters.stores import Store
    from tests.stores.conftest import Clock

A = join("test", b"client", b"a")
B = join("test", b"client", b"b")
OTHER = join("test", b"other", b"a")


def run(store: Store, steps: Callable[[Store], Awaitable[Any]]) -> Any:
    """Return the result of steps with a store, which is closed after them."""

    async def to_the_end() -> Any:
        try:
            return await steps(store)
        finally:
            await store.aclose()

    return asyncio.run(to_the_end())


async def patiently(store: Store, operation: Any) -> Any:
    """Return the result of an operation that may fail on a busy machine: the timeout is short."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return await store.ask(operation)
        except UnavailableError:
            if time.monotonic() > until:
                raise
            if isinstance(store, RedisStore):
                store._servers.clear()  # none is passed over


def test_an_entry_is_returned_with_its_age_until_it_expires(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        assert await store.ask(Get(A)) is None
        await store.ask(Put(A, b"v", ttl=100))
        assert await store.ask(Get(A)) == (b"v", 0, 100)
        clock.advance(40)
        assert await store.ask(Get(A)) == (b"v", 40, 60)
        clock.advance(60)
        assert await store.ask(Get(A)) is None

    run(store, steps)


def test_add_writes_only_if_there_is_nothing(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        assert await store.ask(Add(A, b"first", ttl=100)) is None
        clock.advance(10)
        assert await store.ask(Add(A, b"second", ttl=100)) == Entry(b"first", 10, 90)
        clock.advance(90)
        assert await store.ask(Add(A, b"third", ttl=100)) is None
        assert await store.ask(Get(A)) == (b"third", 0, 100)

    run(store, steps)


def test_replace_writes_only_over_the_expected_value(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        assert not await store.ask(Replace(A, b"new", 100, expected=b"old"))
        await store.ask(Put(A, b"old", ttl=50))
        clock.advance(10)
        assert not await store.ask(Replace(A, b"new", 100, expected=b"other"))
        assert await store.ask(Get(A)) == (b"old", 10, 40)
        assert await store.ask(Replace(A, b"new", 100, expected=b"old"))
        assert not await store.ask(Replace(A, b"new", 100, expected=b"old"))
        assert await store.ask(Get(A)) == (b"new", 0, 100)

    run(store, steps)


def test_delete_says_whether_there_was_something(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        assert not await store.ask(Delete(A))
        await store.ask(Put(A, b"v", ttl=10))
        assert await store.ask(Delete(A))
        assert await store.ask(Get(A)) is None
        await store.ask(Join(A, b"m", 5, ttl=10))
        assert await store.ask(Delete(A))
        assert await store.ask(Join(A, b"m", 0, ttl=10)) == Joined(joined=False, members=0)
        await store.ask(Put(A, b"v", ttl=10))
        clock.advance(10)
        assert not await store.ask(Delete(A))

    run(store, steps)


def test_a_counter_expires_after_its_first_addition(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        assert await store.ask(Count(A, 60, by=0)) == 0
        clock.advance(1000)
        assert await store.ask(Count(A, 60)) == 1
        clock.advance(59)
        assert await store.ask(Count(A, 60, by=5)) == 6
        assert await store.ask(Count(A, 60, by=0)) == 6
        found = await store.ask(Get(A))
        assert found is not None
        assert found.value == b"6"
        assert await store.ask(Count(A, 60, by=-2)) == 4
        clock.advance(1)
        assert await store.ask(Count(A, 60, by=0)) == 0

    run(store, steps)


def test_a_bucket_has_its_burst_and_fills_at_its_rate(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        take = Take(A, rate=0.5, burst=3)
        assert [await store.ask(take) for _ in range(3)] == [0, 0, 0]
        assert await store.ask(take) == pytest.approx(2)
        clock.advance(1)
        assert await store.ask(take) == pytest.approx(1)
        clock.advance(1)
        assert await store.ask(Take(A, rate=0.5, burst=3, cost=0)) == 0
        assert await store.ask(take) == 0
        assert await store.ask(Take(A, rate=0.5, burst=3, cost=0)) == pytest.approx(2)
        assert await store.ask(Take(A, rate=0.5, burst=3, cost=3)) == pytest.approx(6)
        clock.advance(1000)
        assert await store.ask(Take(A, rate=0.5, burst=3, cost=3)) == 0

    run(store, steps)


def test_tokens_can_be_put_back(store: Store) -> None:
    async def steps(store: Store) -> None:
        assert await store.ask(Take(A, rate=1, burst=2, cost=2)) == 0
        assert await store.ask(Take(A, rate=1, burst=2, cost=-1)) == 0
        assert await store.ask(Take(A, rate=1, burst=2)) == 0
        assert await store.ask(Take(A, rate=1, burst=2)) == pytest.approx(1)
        # Never beyond the burst.
        assert await store.ask(Take(B, rate=1, burst=2, cost=-2)) == 0
        assert await store.ask(Take(B, rate=1, burst=2, cost=2)) == 0
        assert await store.ask(Take(B, rate=1, burst=2)) == pytest.approx(1)

    run(store, steps)


def test_a_group_has_a_limit_and_its_members_expire(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        assert await store.ask(Join(A, b"1", 2, ttl=10)) == (True, 1)
        clock.advance(2)
        assert await store.ask(Join(A, b"2", 2, ttl=10)) == (True, 2)
        assert await store.ask(Join(A, b"3", 2, ttl=10)) == (False, 2)
        clock.advance(3)
        assert await store.ask(Join(A, b"2", 2, ttl=10)) == (True, 2)  # renewed
        assert await store.ask(Join(A, b"2", 1, ttl=10)) == (True, 2)  # it stays
        clock.advance(4)
        assert await store.ask(Join(A, b"3", 2, ttl=10)) == (False, 2)
        clock.advance(1)
        assert await store.ask(Join(A, b"3", 2, ttl=10)) == (True, 2)
        assert await store.ask(Leave(A, b"2"))
        assert not await store.ask(Leave(A, b"2"))
        assert not await store.ask(Leave(A, b"1"))  # expired
        assert await store.ask(Join(A, b"x", 0, ttl=10)) == (False, 1)

    run(store, steps)


def test_groups_and_entries_of_one_key_are_separate(store: Store) -> None:
    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"v", ttl=10))
        assert await store.ask(Join(A, b"m", 5, ttl=10)) == (True, 1)
        found = await store.ask(Get(A))
        assert found is not None
        assert found.value == b"v"

    run(store, steps)


def test_another_kind_under_a_key_counts_as_nothing(store: Store) -> None:
    async def steps(store: Store) -> None:
        await store.ask(Put(A, b"text", ttl=10))
        assert await store.ask(Count(A, 60)) == 1
        await store.ask(Put(B, b"text", ttl=10))
        assert await store.ask(Take(B, rate=1, burst=1)) == 0
        assert await store.ask(Count(B, 60)) == 1

    run(store, steps)


def test_the_operations_of_a_request_are_applied_in_order(store: Store) -> None:
    async def steps(store: Store) -> None:
        assert await store.ask(
            Add(A, b"v", ttl=10), Count(B, 10), Get(A), Replace(A, b"w", 10, expected=b"v")
        ) == (None, 1, (b"v", 0, 10), True)

    run(store, steps)


def test_any_bytes_are_a_value_and_a_member(store: Store) -> None:
    async def steps(store: Store) -> None:
        every = bytes(range(256))
        await store.ask(Put(A, every, ttl=10))
        found = await store.ask(Get(A))
        assert found is not None
        assert found.value == every
        assert await store.ask(Join(A, every, 1, ttl=10)) == (True, 1)
        assert await store.ask(Join(A, b"", 1, ttl=10)) == (False, 1)
        assert await store.ask(Leave(A, every))
        assert await store.ask(Join(A, b"", 1, ttl=10)) == (True, 1)

    run(store, steps)


def test_a_scan_lists_the_entries_with_a_prefix(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        keys = [join("test", b"%d" % shard, b"x") for shard in range(700)]
        for at in range(0, len(keys), 100):
            await asyncio.gather(
                *(store.ask(Put(key, b"v", ttl=100)) for key in keys[at : at + 100])
            )
        await store.ask(Put(join("other", b"1"), b"v", ttl=100))
        await store.ask(Put(join("tes", b"1"), b"v", ttl=100))
        await store.ask(Put(join("test", b"expired"), b"v", ttl=1))
        await store.ask(Join(join("test", b"group"), b"m", 1, ttl=100))
        clock.advance(1)
        found = {key: entry async for key, entry in store.scan(b"test:")}
        assert set(found) == set(keys)
        assert set(found.values()) == {Entry(b"v", 1, 99)}
        assert [split(key) async for key, _ in store.scan(b"tes:")] == [(b"1",)]
        every = {key async for key, _ in store.scan(b"")}
        assert every == {*keys, join("other", b"1"), join("tes", b"1")}

    run(store, steps)


def test_groups_are_listed_with_the_numbers_of_their_members(store: Store, clock: Clock) -> None:
    async def steps(store: Store) -> None:
        keys = [join("test", b"%d" % shard, b"x") for shard in range(600)]
        await store.ask(Join(keys[1], b"expired", 9, ttl=100))
        await store.ask(Join(join("test", b"expired"), b"m", 9, ttl=100))
        clock.advance(1)
        for at in range(0, len(keys), 100):
            await asyncio.gather(
                *(store.ask(Join(key, b"m", 9, ttl=100)) for key in keys[at : at + 100])
            )
        await store.ask(Join(keys[0], b"n", 9, ttl=100))
        await store.ask(Join(join("other", b"1"), b"m", 9, ttl=100))
        await store.ask(Put(join("test", b"entry"), b"v", ttl=100))
        clock.advance(99)
        found = {key: members async for key, members in store.groups(b"test:")}
        assert found == {**dict.fromkeys(keys, 1), keys[0]: 2}
        assert [key async for key, _ in store.groups(b"nothing:")] == []

    run(store, steps)


def test_a_request_has_one_shard_and_a_bounded_number_of_operations(store: Store) -> None:
    async def steps(store: Store) -> None:
        with pytest.raises(ValueError, match="same shard"):
            await store.ask(Get(A), Get(OTHER))
        with pytest.raises(ValueError, match="33 operations"):
            await store.ask(*[Get(A)] * 33)
        with pytest.raises(ValueError, match="0 operations"):
            await store.ask()

    run(store, steps)


def test_requests_of_several_shards_may_be_made_together(store: Store) -> None:
    async def steps(store: Store) -> None:
        requests: list[list[Any]] = [
            [Count(A, 9), Count(B, 9)],
            [Put(OTHER, b"v", 9)],
            [Get(OTHER), Count(A, 9)],
        ]
        first, second, third = await store.ask_together(requests)
        assert [*first] == [1, 1]
        assert [*second] == [None]
        assert [third[0].value, third[1]] == [b"v", 2]
        many: list[list[Any]] = [
            [Count(join("test", b"%d" % number), 9)] for number in range(MAX_OPERATIONS + 1)
        ]
        assert [[*each] for each in await store.ask_together(many)] == [[1]] * len(many)
        await store.aclose()
        assert [type(each) for each in await store.ask_together(requests)] == [UnavailableError] * 3

    run(store, steps)


def test_a_closed_store_is_unavailable(store: Store) -> None:
    async def steps(store: Store) -> None:
        await store.aclose()
        with pytest.raises(UnavailableError, match="closed"):
            await store.ask(Get(A))
        with pytest.raises(UnavailableError, match="closed"):
            _ = [key async for key in store.scan(b"test:")]
        with pytest.raises(UnavailableError, match="closed"):
            _ = [key async for key in store.groups(b"test:")]

    run(store, steps)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Get(b"a"), "was not made by"),
        (lambda: Put(A, b"v", ttl=0), "ttl 0: must be positive"),
        (lambda: Put(A, b"v", ttl=float("nan")), "must be positive"),
        (lambda: Put(A, b"v", ttl=2 * MAX_TTL), "must be at most"),
        (lambda: Put(A, b"v" * (MAX_VALUE + 1), ttl=1), "must be bytes, at most"),
        (lambda: Put(A, "v", ttl=1), "must be bytes"),  # type: ignore[arg-type]
        (lambda: Count(A, -1), "window -1: must be positive"),
        (lambda: Count(A, 1, by=1 << 40), "must be an integer"),
        (lambda: Take(A, rate=0, burst=1), "rate 0: must be positive"),
        (lambda: Take(A, rate=1, burst=float("inf")), "burst inf: must be positive"),
        (lambda: Take(A, rate=1, burst=2, cost=3), "cost 3: must be at most the burst"),
        (lambda: Take(A, rate=1e-12, burst=2), "burst / rate"),
        (lambda: Join(A, b"m", -1, ttl=1), "limit -1"),
        (lambda: Join(A, b"m", 1, ttl=0), "ttl 0"),
        (lambda: Leave(A, b"m" * 5000), "must be bytes, at most"),
    ],
)
def test_a_mistake_is_an_error_when_the_operation_is_made(
    make: Callable[[], object], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        make()


@given(st.binary(max_size=300), st.lists(st.binary(max_size=300), max_size=4))
def test_a_key_keeps_its_parts_apart(shard: bytes, parts: list[bytes]) -> None:
    key = join("test", shard, *parts)
    assert key.isascii()
    assert not set(b" \r\n\0").intersection(key)
    assert key.count(b"{") == key.count(b"}") == 1
    if all(len(part) <= 256 for part in (shard, *parts)):
        assert split(key) == (shard, *parts)
    assert shard_of(key) == shard_of(join("test", shard))


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_different_parts_make_different_keys(one: list[bytes], other: list[bytes]) -> None:
    assert (join("test", b"s", *one) == join("test", b"s", *other)) == (one == other)


def test_a_space_is_a_word() -> None:
    with pytest.raises(ValueError, match="must be a word"):
        join("a:b", b"x")


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 4)), min_size=1, max_size=60))
def test_a_bucket_never_gives_more_than_its_burst_and_rate(
    steps: list[tuple[float, float]],
) -> None:
    """In any span of time at most the burst and what the rate has added."""
    now = 0.0
    store = MemoryStore(clock=lambda: now)
    taken: list[tuple[float, float]] = []

    async def take(cost: float) -> float:
        return await store.ask(Take(A, rate=0.7, burst=4, cost=cost))

    loop = asyncio.new_event_loop()
    try:
        for pause, cost in steps:
            now += pause
            wait = loop.run_until_complete(take(cost))
            if not wait:
                taken.append((now, cost))
            else:
                now += wait
                assert loop.run_until_complete(take(cost)) == 0
                taken.append((now, cost))
    finally:
        loop.close()
    assert len(taken) == len(steps)
    for first in range(len(taken)):
        total = 0.0
        for when, cost in taken[first:]:
            total += cost
            assert total <= 4 + 0.7 * (when - taken[first][0]) + 1e-4


@pytest.mark.parametrize("key", [("192.0.2.1",), (b"192.0.2.1", "x"), (None,)])
def test_a_part_of_a_key_that_is_not_bytes(key: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="a part of a key must be bytes, not "):
        join("test", *key)

"""A store on a cluster whose nodes are dead, hang, leave, and name others."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import Get, join
from smtpd_filters.stores.address import parse
from smtpd_filters.stores.redis_cluster import SLOTS, Cluster, parse_slots, slot_of
from smtpd_filters.stores.redis_store import RedisStore
from tests.stores.conftest import PATIENCE
from tests.stores.redis_nodes import NOTHING, Node, layout, nodes, saying, with_nonce

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.e2e
PREFIX = "smtpd-filters:"
#: The reply to a `Get`, but for the nonce.
ENTRY = b"*2\r\n*3\r\n$1\r\nx\r\n$1\r\n1\r\n$1\r\n2\r\n:0\r\n"


def key_of(number: int, count: int) -> bytes:
    """Return a key on one of some nodes with equal shares."""
    for each in range(10_000):
        key = join("test", b"%d" % each)
        if slot_of(PREFIX.encode() + key) * count // SLOTS == number:
            return key
    raise AssertionError


@asynccontextmanager
async def store_on(*some: Node, **more: Any) -> AsyncIterator[RedisStore]:
    address = ",".join(f"127.0.0.1:{node.port}" for node in some)
    store = RedisStore(parse(f"redis+cluster://{address}"), **({"timeout": PATIENCE} | more))
    try:
        yield store
    finally:
        await store.aclose()


async def cause(store: RedisStore, key: bytes) -> str:
    with pytest.raises(UnavailableError) as caught:
        await store.ask(Get(key))
    return str(caught.value).rpartition(": ")[2]


PASSED_OVER = "failed repeatedly, passed over for now"


@pytest.mark.parametrize("dead", range(3))
def test_a_node_that_is_dead_at_the_start_stops_no_other(dead: int) -> None:
    async def steps() -> None:
        async with nodes(3) as some, store_on(*some) as store:
            await some[dead].stop()
            for number in {0, 1, 2} - {dead}:
                assert await store.ask(Get(key_of(number, 3))) is None
            assert await cause(store, key_of(dead, 3)) == "connection refused"

    asyncio.run(steps())


def test_a_dead_node_is_passed_over_alone() -> None:
    async def steps() -> None:
        async with nodes(3) as some, store_on(*some, set_back=600) as store:
            keys = [key_of(number, 3) for number in range(3)]
            for key in keys:
                await store.ask(Get(key))
            await some[1].stop()
            causes = [await cause(store, keys[1]) for _ in range(6)]
            assert causes[-1] == PASSED_OVER
            for key in keys[::2] * 3:
                assert await store.ask(Get(key)) is None
            label = f"{store.label}: 127.0.0.1:{some[1].port}"
            assert [name for name, is_open in store.circuits() if is_open] == [label]

    asyncio.run(steps())


def test_a_node_that_hangs_keeps_no_request_for_another_waiting() -> None:
    async def steps() -> None:
        async with nodes(2) as some, store_on(*some, connections=2) as store:
            hanging, other = key_of(0, 2), key_of(1, 2)
            some[0].reply = saying(None)
            waiting = [asyncio.create_task(store.ask(Get(hanging))) for _ in range(10)]
            await eventually(
                lambda: bool(some[0].commands) and some[0].commands[-1][0] == b"EVALSHA"
            )
            assert await store.ask(Get(other)) is None
            assert not any(each.done() for each in waiting)
            await some[0].stop()
            await asyncio.wait(waiting)
            for each in waiting:
                assert isinstance(each.exception(), UnavailableError)

    asyncio.run(steps())


def test_a_node_that_takes_over_is_used_at_once() -> None:
    async def steps() -> None:
        async with nodes(3) as some, store_on(*some, set_back=600) as store:
            old, new, other = some
            key = key_of(0, 3)
            await store.ask(Get(key))
            await old.stop()
            causes = [await cause(store, key) for _ in range(6)]
            assert causes[-1] == PASSED_OVER
            for node in (new, other):
                node.slots = layout(new, new, other)
            await asked(store, key)
            assert sorted(store.circuits()) == circuits(store, new, other)

    asyncio.run(steps())


def test_a_cluster_that_was_down_is_used_at_once() -> None:
    async def steps() -> None:
        async with nodes(2) as some, store_on(*some, set_back=600) as store:
            for node in some:
                await node.stop()
            causes = [await cause(store, key_of(0, 2)) for _ in range(6)]
            assert causes == ["the cluster is unreachable"] * 3 + [PASSED_OVER] * 3
            assert list(store.circuits()) == [(store.label, True)]
            for node in some:
                await node.start()
            await asked(store, key_of(0, 2))
            assert sorted(store.circuits()) == circuits(store, *some)

    asyncio.run(steps())


def circuits(store: RedisStore, *some: Node) -> list[tuple[str, bool]]:
    """Return those of nodes that reply."""
    return sorted((f"{store.label}: 127.0.0.1:{node.port}", False) for node in some)


async def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        await asyncio.sleep(0)


async def asked(store: RedisStore, key: bytes) -> None:
    """Ask until it succeeds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            assert await store.ask(Get(key)) is None
        except UnavailableError:
            assert time.monotonic() < until
            await asyncio.sleep(0)
        else:
            return


def test_the_node_that_gave_outdated_slots_is_asked_last() -> None:
    """It may be cut off from the others."""

    async def steps() -> None:
        async with nodes(3) as some, store_on(some[0], some[1]) as store:
            _, new, dead = some
            await dead.stop()
            new.slots = layout(new, new, new)
            await asked(store, key_of(2, 3))

    asyncio.run(steps())


def test_nodes_that_hang_delay_the_look_up_little() -> None:
    async def steps() -> None:
        async with nodes(6) as some, store_on(*some, timeout=60) as store:
            for node in some[:5]:
                node.hangs = True
            some[5].slots = layout(some[5])
            before = time.monotonic()
            assert await store.ask(Get(key_of(0, 6))) is None
            assert time.monotonic() - before < 20  # a single timeout takes 30

    asyncio.run(steps())


def test_a_slot_that_moves_is_asked_for_on_one_connection() -> None:
    """A node takes a command for a slot that it doesn't have yet only right behind ASKING."""

    async def steps() -> None:
        async with nodes(2) as some, store_on(*some) as store:
            old, new = some
            key = key_of(0, 2)
            slot = slot_of(PREFIX.encode() + key)

            moved = b"-MOVED %d 127.0.0.1:%d\r\n" % (slot, old.port)
            old.reply = saying(b"-ASK %d 127.0.0.1:%d\r\n" % (slot, new.port))
            new.reply = lambda _, before: NOTHING if before == [b"ASKING"] else moved
            for _ in range(3):
                found = await asyncio.gather(*(store.ask(Get(key)) for _ in range(10)))
                assert found == [None] * 10
            asked = [command[0] for command in new.commands if command[0] != b"CLUSTER"]
            assert asked.count(b"ASKING") == asked.count(b"EVALSHA") == 30

    asyncio.run(steps())


@pytest.mark.parametrize("more", [b":7\r\n", ENTRY, with_nonce(ENTRY, b"\r\nnonce\r\n")])
def test_a_reply_too_many_of_a_node_is_no_reply_to_the_next_request(more: bytes) -> None:
    async def steps() -> None:
        async with nodes(2) as some, store_on(*some) as store:
            old, new = some
            key = key_of(0, 2)
            slot = slot_of(PREFIX.encode() + key)
            old.more = more
            for _ in range(3):
                assert await store.ask(Get(key)) is None
            new.more = more
            old.reply = saying(b"-ASK %d 127.0.0.1:%d\r\n" % (slot, new.port))
            for _ in range(3):
                assert await store.ask(Get(key)) is None

    asyncio.run(steps())


def test_a_slot_that_has_moved_is_asked_for_at_its_new_node() -> None:
    async def steps() -> None:
        async with nodes(2) as some, store_on(*some) as store:
            old, new = some
            key = key_of(0, 2)
            moved = b"-MOVED %d :%d\r\n" % (slot_of(PREFIX.encode() + key), new.port)
            old.reply = saying(moved)  # the host is the one that was asked
            assert await store.ask(Get(key)) is None
            old.slots = new.slots = layout(new)
            assert await store.ask(Get(key)) is None

    asyncio.run(steps())


def test_keys_on_two_nodes_are_asked_for_again() -> None:
    async def steps() -> None:
        async with nodes(1) as some, store_on(*some) as store:
            replies = [b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n"] * 3
            some[0].reply = lambda *_: replies.pop() if replies else NOTHING
            assert await store.ask(Get(key_of(0, 1))) is None

    asyncio.run(steps())


def test_a_slot_that_moves_for_long_is_named() -> None:
    async def steps() -> None:
        async with nodes(1) as some, store_on(*some) as store:
            some[0].reply = saying(b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n")
            expected = "the slot is moving to another node of the cluster"
            assert await cause(store, key_of(0, 1)) == expected

    asyncio.run(steps())


def test_nodes_that_name_each_other_cost_nobody_else_anything() -> None:
    async def steps() -> None:
        async with nodes(2) as some, store_on(*some) as store:
            key = key_of(0, 2)
            slot = slot_of(PREFIX.encode() + key)

            def replies(other: Node) -> Any:
                moved = b"-MOVED %d 127.0.0.1:%d\r\n" % (slot, other.port)
                return lambda command, _: moved if key in command[3] else NOTHING

            some[0].reply, some[1].reply = replies(some[1]), replies(some[0])
            for _ in range(6):
                assert (
                    await cause(store, key)
                    == "the nodes of the cluster name each other for the slot"
                )
            more = [join("test", b"%d" % number) for number in range(20)]
            for each in set(more) - {key}:
                assert await store.ask(Get(each)) is None

    asyncio.run(steps())


def test_a_slot_without_a_node_costs_no_other_anything() -> None:
    async def steps() -> None:
        async with nodes(1) as some, store_on(*some) as store:
            half = b"*3\r\n:0\r\n:8191\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % some[0].port
            some[0].slots = b"*1\r\n" + half
            for _ in range(6):
                assert await cause(store, key_of(1, 2)) in {
                    "no node of the cluster has the slot",
                    PASSED_OVER,
                }
                assert await store.ask(Get(key_of(0, 2))) is None

    asyncio.run(steps())


def test_connections_to_a_node_that_left_are_closed() -> None:
    async def steps() -> None:
        async with nodes(2) as some, store_on(some[0], set_back=600) as store:
            stays, leaves = some
            await store.ask(Get(key_of(1, 2)))
            assert leaves.connections == 1
            stays.slots = leaves.slots = layout(stays)
            leaves.reply = saying(b"-CLUSTERDOWN Hash slot not served\r\n")
            until = time.monotonic() + PATIENCE
            while leaves.connections:
                assert time.monotonic() < until
                with suppress(UnavailableError):
                    await store.ask(Get(key_of(1, 2)))
                await asyncio.sleep(0)

    asyncio.run(steps())


def test_nodes_that_only_others_have_named_are_forgotten() -> None:
    class Named:
        is_retired = False

        def retire(self) -> None:
            self.is_retired = True

    made: list[Any] = []

    def new(_: object) -> Any:
        made.append(Named())
        return made[-1]

    cluster = Cluster([("seed", 1)], new, most=5)
    for port in range(1, 100):
        cluster.pool(("seed", 1))
        cluster.pool(("named", port))
    assert not made[0].is_retired
    assert sum(not each.is_retired for each in made) <= 5


# -- without nodes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "same"),
    [
        (b"{user1000}.following", b"user1000"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
    ],
)
def test_keys_with_the_same_part_in_braces_have_one_slot(key: bytes, same: bytes) -> None:
    """The examples are those of the specification of clusters."""
    assert slot_of(key) == slot_of(same)


def test_a_slot_is_that_of_the_specification() -> None:
    assert slot_of(b"123456789") == 0x31C3
    assert slot_of(b"foo{}{bar}") != slot_of(b"bar")


HERE = [b"127.0.0.1", 7001, b"id"]


@pytest.mark.parametrize(
    "reply",
    [
        b"OK",
        5,
        None,
        [],
        [[0]],
        [[0, 16384, HERE]],
        [[-1, 5, HERE]],
        [[5, 4, HERE]],
        [[b"0", b"5", HERE]],
        [[0, 5]],
        [[0, 5, [b"h"]]],
        [[0, 5, [5, 5]]],
        [[0, 5, [b"h", 70_000]]],
        [[0, 5, [b"two words", 7001]]],
        [[0, 5, [b"\xff", 7001]]],
        [[0, 16383, HERE], [0, 0, HERE]],
    ],
)
def test_invalid_slots_are_rejected(reply: Any) -> None:
    with pytest.raises((AttributeError, TypeError, ValueError)):
        parse_slots(reply, ("asked", 1))


def test_a_node_without_a_host_is_reached_as_the_one_that_was_asked() -> None:
    reply = [[0, 1, [b"", 7001]], [2, 3, [None, 7002], HERE], [4, 5, [b"?", 7003]], [6, 7]]
    slots, found = parse_slots(reply, ("asked", 1))
    assert slots[:9] == [("asked", 7001)] * 2 + [("asked", 7002)] * 2 + [None] * 5
    assert found == {("asked", 7001), ("asked", 7002), ("127.0.0.1", 7001)}

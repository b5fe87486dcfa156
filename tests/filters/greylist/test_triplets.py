"""The memory of filter-greylist over every kind of store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.errors import UnavailableError
from smtpd_filters.filters.greylist.triplets import (
    ALLOWED,
    MAX_KNOWN,
    RENEW,
    Attempt,
    Standing,
    Terms,
    Triplets,
    client_key,
    triplet_key,
)
from smtpd_filters.runtime.counters import INVALID, TIMEOUT
from smtpd_filters.stores import Get, Put
from smtpd_filters.stores.store import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.stores import Store
    from tests.stores.conftest import Clock

TERMS = Terms(delay=300, window=7200, lifetime=864_000, known_after=3)
NET, ANNA, BERT, YOU = "192.0.2.0/24", "anna@example.org", "bert@example.org", "you@example.net"


class Memory:
    """Triplets on a store with a test's clock."""

    def __init__(self, store: Store, clock: Clock, terms: Terms = TERMS) -> None:
        self.store, self.clock = store, clock
        self.triplets = Triplets(store, terms)
        self.asked = 0
        apply = store._apply

        async def counted(operations: Sequence[Any]) -> Any:
            self.asked += 1
            return await apply(operations)

        store._apply = counted  # type: ignore[method-assign]  # it counts

    async def comes(self, sender: str = ANNA, *recipients: str, after: float = 0) -> str:
        """Return what becomes of a message after some seconds."""
        return (await self.standing(sender, *recipients, after=after)).state

    async def standing(self, sender: str = ANNA, *recipients: str, after: float = 0) -> Standing:
        self.clock.advance(after)
        self.asked = 0
        return await self.triplets.judge(
            Attempt(NET, sender, recipients or (YOU,), address="192.0.2.7")
        )

    async def close(self) -> None:
        await self.store.aclose()


def lived(body: Any, store: Store, clock: Clock, terms: Terms = TERMS) -> None:
    async def live() -> None:
        memory = Memory(store, clock, terms)
        try:
            await body(memory)
        finally:
            await memory.close()

    asyncio.run(live())


def test_a_triplet_waits_once(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        assert await memory.standing() == Standing("new", 300)
        assert memory.asked == 1
        early = await memory.standing(after=100)
        assert (early.state, early.wait) == ("waiting", 200)
        assert memory.asked == 1
        waited = await memory.standing(after=200)
        assert waited.state == "waited"
        assert waited.seconds == pytest.approx(300)
        assert await memory.comes(after=5) == "passed"
        assert memory.asked == 1
        assert await memory.comes(after=800_000) == "passed"
        assert await memory.comes(after=800_000) == "passed"  # renewed by use

    lived(body, store, clock, TERMS._replace(known_after=0))


def test_who_comes_back_too_late_waits_again(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        assert await memory.comes() == "new"
        assert await memory.comes(after=7201) == "new"
        assert await memory.comes(after=301) == "waited"
        assert await memory.comes(after=864_001) == "new"

    lived(body, store, clock, TERMS._replace(known_after=0))


def test_a_damaged_entry_of_a_triplet_begins_to_wait(
    store: Store, clock: Clock, notes: list[str]
) -> None:
    async def body(memory: Memory) -> None:
        await memory.store.ask(Put(triplet_key(NET, ANNA, YOU), b"damaged", 10_000))
        assert await memory.comes() == "new"
        assert await memory.comes(after=200) == "waiting"
        assert await memory.comes(after=101) == "waited"

    lived(body, store, clock)
    notes.clear()


def test_each_part_of_a_triplet_counts(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        await memory.comes()
        assert await memory.comes(after=301) == "waited"
        assert await memory.comes(BERT) == "new"
        assert await memory.comes(ANNA, "other@example.net") == "new"
        assert await memory.comes("") == "new"
        other = await memory.triplets.judge(Attempt("198.51.100.0/24", ANNA, [YOU]))
        assert other.state == "new"

    lived(body, store, clock)


def test_one_recipient_that_has_waited_is_enough(store: Store, clock: Clock) -> None:
    many = [f"user{number}@example.net" for number in range(70)]

    async def body(memory: Memory) -> None:
        assert await memory.comes(ANNA, many[5]) == "new"
        assert await memory.comes(ANNA, *many, after=301) == "waited"
        for one in (many[0], many[69]):
            assert await memory.comes(ANNA, one) == "passed"
        assert await memory.comes(BERT, *many) == "new"
        assert await memory.comes(BERT, *many[::-1], after=301) == "waited"

    lived(body, store, clock)


def test_the_rest_of_a_message_passes_with_it(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        standing = await memory.triplets.judge(Attempt(NET, ANNA, [YOU], retried=True))
        assert standing.state == "passed"
        assert await memory.comes() == "passed"

    lived(body, store, clock)


def test_a_client_is_known_after_some_messages(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        await memory.comes()
        assert await memory.comes(after=301) == "waited"
        for _ in range(5):  # in the same hour they count as one
            assert await memory.comes(after=10) == "passed"
        assert await memory.comes(after=RENEW) == "passed"
        assert await memory.comes(BERT) == "new"
        assert await memory.comes(after=RENEW) == "passed"
        assert await memory.comes(BERT) == "known"
        assert memory.asked == 1
        assert await memory.comes("carl@example.org", after=RENEW) == "known"
        assert memory.asked == 2  # renewed
        assert await memory.comes("carl@example.org", after=864_001) == "new"

    lived(body, store, clock)


def test_no_client_is_known_if_none_is_to_be(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        await memory.comes()
        for _ in range(8):
            assert await memory.comes(after=RENEW) in {"waited", "passed"}
        assert await memory.comes(BERT) == "new"

    lived(body, store, clock, TERMS._replace(known_after=0))


def test_a_client_may_be_known_at_once(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        await memory.comes()
        assert await memory.comes(after=301) == "waited"
        assert await memory.comes(BERT) == "known"

    lived(body, store, clock, TERMS._replace(known_after=1))


def test_the_operators_word_holds_for_its_time(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        await memory.store.ask(Put(client_key(NET), ALLOWED, 10_000))
        for _ in range(3):
            assert await memory.comes(after=3000) == "known"
        assert await memory.comes(after=3000) == "new"
        entry = await memory.store.ask(Get(triplet_key(NET, ANNA, YOU)))
        assert entry is not None
        assert entry.value == b"waiting 192.0.2.7"

    lived(body, store, clock)


def test_known_clients_fill_neither_the_store_nor_the_process(
    store: Store,
    clock: Clock,
) -> None:
    async def body(memory: Memory) -> None:
        await memory.store.ask(Put(client_key(NET), ALLOWED, 10_000))
        memory.triplets._known.update(dict.fromkeys(map(str, range(MAX_KNOWN))))
        await memory.comes()
        assert len(memory.triplets._known) == MAX_KNOWN
        assert await memory.comes(BERT) == "known"
        assert await memory.store.ask(Get(triplet_key(NET, BERT, YOU))) is None

    lived(body, store, clock)


def test_what_is_known_of_a_network_counts_for_its_domain(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        async def by_domain(*recipients: str) -> Standing:
            memory.asked = 0
            return await memory.triplets.judge(
                Attempt("example.org", ANNA, recipients, network=NET)
            )

        await memory.comes(ANNA, YOU)
        clock.advance(200)
        waiting = await by_domain(YOU, "other@example.net")
        assert (waiting.state, waiting.wait, memory.asked) == ("waiting", 100, 2)
        clock.advance(101)
        waited = await by_domain(YOU)
        assert (waited.state, round(waited.seconds)) == ("waited", 301)
        assert (await by_domain(YOU)).state == "passed"
        assert memory.asked == 1
        assert (await by_domain("new@example.net")).state == "new"
        await memory.store.ask(Put(client_key(NET), ALLOWED, 10_000))
        assert (await by_domain("new@example.net")).state == "known"

    lived(body, store, clock)


def test_a_domain_that_has_waited_for_longer_than_a_network(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        attempt = Attempt("example.org", ANNA, (YOU,), network=NET)
        await memory.triplets.judge(attempt)
        clock.advance(200)
        await memory.comes(ANNA, YOU)
        clock.advance(1)
        waiting = await memory.triplets.judge(attempt)
        assert (waiting.state, waiting.wait) == ("waiting", 99)

    lived(body, store, clock)


def test_one_of_two_exchangers_counts(store: Store, clock: Clock) -> None:
    async def body(memory: Memory) -> None:
        other = Triplets(memory.store, TERMS)
        await memory.comes()
        clock.advance(301)
        both = await asyncio.gather(
            *(
                each.judge(Attempt(NET, ANNA, [YOU]))
                for each in (memory.triplets, other)
                for _ in range(5)
            )
        )
        assert {each.state for each in both} <= {"waited", "passed"}
        entry = await memory.store.ask(Get(client_key(NET)))
        assert entry is not None
        assert entry.value == b"1"

    lived(body, store, clock)


def test_messages_at_the_same_time_find_that_a_client_is_no_longer_known(
    store: Store, clock: Clock
) -> None:
    async def body(memory: Memory) -> None:
        await memory.store.ask(Put(client_key(NET), ALLOWED, 1000))
        assert await memory.comes() == "known"
        clock.advance(1001)
        several = (memory.triplets.judge(Attempt(NET, BERT, [YOU])) for _ in range(3))
        assert {each.state for each in await asyncio.gather(*several)} <= {"new", "waiting"}

    lived(body, store, clock)


def test_odd_addresses_are_keys_like_others(store: Store, clock: Clock) -> None:
    odd = ["\udcff{}:%@example.net", "x" * 5000, "", "a b@[ipv6:::1]"]

    async def body(memory: Memory) -> None:
        for each in odd:
            assert await memory.comes(each, each) == "new"
        for each in odd:
            assert await memory.comes(each, each) == "waiting"

    lived(body, store, clock)


# -- a store that takes no writes ----------------------------------------------------------


class Refusing:
    """Makes a store refuse what may write, by a reply or, with TIMEOUT, by silence."""

    def __init__(self, store: Store, failure: str = INVALID) -> None:
        self.is_full = False
        self.requests = 0
        apply = store._apply

        async def refuse(operations: Sequence[Any]) -> Any:
            self.requests += 1
            if self.is_full and any(each.writes for each in operations):
                raise StoreUnavailableError("store: disk full", failure)
            return await apply(operations)

        store._apply = refuse  # type: ignore[method-assign]  # it refuses


async def judged(triplets: Triplets, network: str = "") -> str:
    attempt = Attempt("example.org", ANNA, [YOU], network=network)
    try:
        return (await triplets.judge(attempt)).state
    except UnavailableError as error:
        return str(error)


@pytest.mark.parametrize("client", ["example.org", NET])
@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"": ALLOWED}, "known"),
        ({"": b"known"}, "known"),
        ({YOU: b"passed"}, "passed"),
        ({YOU: b"waiting"}, "waited"),
        ({"": b"2"}, "store: disk full"),
        ({}, "store: disk full"),
    ],
)
def test_what_is_known_lets_in_though_nothing_can_be_written(
    client: str, known: dict[str, bytes], expected: str, store: Store, clock: Clock
) -> None:
    async def body() -> None:
        full, notes = Refusing(store), list[str]()
        for recipient, value in known.items():
            key = triplet_key(client, ANNA, recipient) if recipient else client_key(client)
            await store.ask(Put(key, value, 36_000))
        clock.advance(max(RENEW, TERMS.delay))
        full.is_full = True
        for _ in range(2):
            assert await judged(Triplets(store, TERMS, notes.append), NET) == expected
        assert bool(notes) is (expected != "store: disk full")
        await store.aclose()

    asyncio.run(body())


def test_a_known_client_is_let_in_though_its_entry_cannot_be_renewed(
    store: Store, clock: Clock
) -> None:
    async def body() -> None:
        full, notes = Refusing(store), list[str]()
        triplets = Triplets(store, TERMS, notes.append)
        await store.ask(Put(client_key("example.org"), b"known", 36_000))
        assert await judged(triplets) == "known"
        clock.advance(RENEW)
        full.is_full = True
        assert await judged(triplets) == "known"
        assert notes == ["store: disk full"]
        await store.aclose()

    asyncio.run(body())


def test_a_store_that_is_silent_is_not_asked_again(store: Store) -> None:
    async def body() -> None:
        silent = Refusing(store, TIMEOUT)
        await store.ask(Put(client_key("example.org"), b"known", 36_000))
        silent.is_full, silent.requests = True, 0
        assert await judged(Triplets(store, TERMS)) == "store: disk full"
        assert silent.requests == 1
        await store.aclose()

    asyncio.run(body())

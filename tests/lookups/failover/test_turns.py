"""Turns at a server: who gets the next one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.lookups.failover.turns import Turns
from tests.effort import part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


class Crowd:
    """Requests of clients, by the client and a number: `a0`, `a1`, `b0`."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        #: Those that have a turn, in the order in which they got it.
        self.have: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        for name in names:
            self._tasks[name] = asyncio.create_task(self._hold(name))
            await settled()

    async def _hold(self, name: str) -> None:
        client = name.rstrip("0123456789")
        await self.turns.acquire(client)
        self.have.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            self.have.remove(name)
            self.turns.release(client)

    async def end(self, *names: str) -> None:
        """End requests, or let them wait no longer."""
        for name in names:
            self._tasks.pop(name).cancel()
        await settled()

    async def close(self) -> None:
        await self.end(*self._tasks)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(number: int, test: Callable[[Crowd], Awaitable[None]]) -> None:
    """Run a test with so many turns, all of which are free again at the end."""

    async def main() -> None:
        crowd = Crowd(Turns(number))
        await test(crowd)
        await crowd.close()
        turns = crowd.turns
        assert (turns._free, turns._held, turns._waiting, turns._levels) == (number, {}, {}, {})

    asyncio.run(main())


def named(client: str, number: int) -> list[str]:
    return [f"{client}{each}" for each in range(number)]


def test_one_client_has_at_most_half_of_them() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask(*named("a", 20))
        assert crowd.have == named("a", 4)
        assert crowd.turns.locked("a")
        assert not crowd.turns.locked("b")
        await crowd.ask(*named("b", 20))
        assert crowd.have[4:] == named("b", 2)
        await crowd.ask("c0", "d0", "e0")
        assert crowd.have[6:] == ["c0", "d0"]

    run(8, test)


def test_nobody_in_particular_gets_all() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask(*named("", 4))
        assert crowd.have == named("", 3)

    run(3, test)


def test_a_single_turn_goes_to_one_client_after_the_other() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "a2", "b0", "b1", "c0")
        order = []
        for _ in range(6):
            [name] = crowd.have
            order.append(name)
            await crowd.end(name)
        assert order == ["a0", "b0", "c0", "a1", "b1", "a2"]

    run(1, test)


def test_a_turn_goes_to_the_client_that_has_the_fewest() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "b0", "c0", "a2", "a3", "b1", "d0")
        assert crowd.have == ["a0", "a1", "b0", "c0"]
        await crowd.end("c0")
        assert crowd.have == ["a0", "a1", "b0", "d0"]
        await crowd.end("d0")  # a client that has one gets none while none else is free
        assert crowd.have == ["a0", "a1", "b0"]
        await crowd.end("a0")
        assert crowd.have == ["a1", "b0", "b1"]

    run(4, test)


def test_a_further_turn_is_wanted_by_those_who_would_get_it() -> None:
    async def test(crowd: Crowd) -> None:
        wanted, short = [], []
        for name in ("a0", "a1", "a2", "b0", "c0", "d0"):
            await crowd.ask(name)
            wanted.append([crowd.turns.wanted(each) for each in "ad"])
            short.append([crowd.turns.one_short(each) for each in "ad"])
        assert wanted == [[False, False]] * 2 + [[True, True]] + [[True, False]] * 2 + [
            [True, True]
        ]
        assert short == [[True, True]] * 3 + [[False, True]] * 3

    run(4, test)


def test_a_turn_is_given_as_fast_in_a_crowd() -> None:
    """By the number of clients that are looked at."""

    class Counted(dict[int, dict[str, None]]):
        def __iter__(self) -> Iterator[int]:
            for each in super().__iter__():
                looks.append(each)
                yield each

    looks: list[int] = []

    async def test(crowd: Crowd) -> None:
        crowd.turns._levels = Counted()
        await crowd.ask("a0", *(f"{chr(0x4E00 + each)}0" for each in range(300)))
        looks.clear()
        await crowd.end("a0")
        assert len(crowd.have) == 1
        assert len(looks) <= 2

    run(1, test)


def test_who_waits_no_longer_is_passed_over() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "a2", "b0", "b1")
        await crowd.end("a1", "b0", "b1")
        await crowd.end("a0")
        assert crowd.have == ["a2"]

    run(1, test)


def test_a_turn_that_came_too_late_goes_on() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("a0", "b0", "c0")
        tasks = crowd._tasks
        tasks.pop("a0").cancel()
        tasks.pop("b0").cancel()  # it gets the turn, and is cancelled, at once
        await settled()
        assert crowd.have == ["c0"]
        await crowd.ask("d0", "e0")
        tasks.pop("d0").cancel()
        tasks.pop("c0").cancel()  # the turn is free before the other one has left
        await settled()
        assert crowd.have == ["e0"]

    run(1, test)


@settings(max_examples=part(200))
@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.sampled_from("abc "), st.booleans()), max_size=60),
)
def test_nobody_waits_who_may_have_a_turn(number: int, steps: list[tuple[str, bool]]) -> None:
    async def test(crowd: Crowd) -> None:
        asked: list[str] = []
        for at, (client, ends) in enumerate(steps):
            if ends and asked:
                await crowd.end(asked.pop(at % len(asked)))
            else:
                asked.append(f"{client.strip()}{at}")
                await crowd.ask(asked[-1])
            turns = crowd.turns
            waiting = sum(map(len, turns._waiting.values()))
            seen.append((turns._free + len(crowd.have), len(crowd.have) + waiting - len(asked)))
            unfair.update(each for each in turns._waiting if not turns.locked(each))

    seen: list[tuple[int, int]] = []
    unfair: set[str] = set()
    run(number, test)
    assert seen == [(number, 0)] * len(steps)
    assert not unfair

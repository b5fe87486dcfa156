"""Commands that wait for room under a limit with the action `delay`, many at a time."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.filters.limit.queues import Queues
from smtpd_filters.filters.limit.rules import LIMIT
from smtpd_filters.filters.limit.steps import Breach, Claim
from smtpd_filters.protocol.decisions import PROCEED
from smtpd_filters.stores.memory import MemoryStore
from tests.filters.limit.limiting import Clock, Server, serving

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

ALL, OTHER = "all messages 60/1m burst=1 action=delay", "user messages 30/1m burst=1 action=delay"
CLAIMS = [Claim(LIMIT.parse(ALL), "all"), Claim(LIMIT.parse(OTHER), "user=a")]


class Counting(MemoryStore):
    """A store that counts its requests."""

    requests = 0

    async def _apply(self, operations: Sequence[Any]) -> Sequence[Any]:
        self.requests += 1
        return await super()._apply(operations)


class Commands:
    """Commands that make claims at the same time, on a clock that moves when all of them wait."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self._server = server
        self._filter: Any = server.filter
        self._began = server.clock()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        monkeypatch.setattr("smtpd_filters.filter.monotonic", lambda: 1000.0)
        monkeypatch.setattr("smtpd_filters.filters.limit.policy.sleep", self._sleep)

    async def _sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._count += 1
        heappush(self._waiting, (self._server.clock() + seconds, self._count, future))
        await future

    async def asleep(self, number: int) -> None:
        """Let tasks run until so many commands wait."""
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(self._waiting) == number

    def wake(self) -> None:
        """Resume the command whose turn is next, at its time."""
        until, _, future = heappop(self._waiting)
        self._server.advance(max(until - self._server.clock(), 0.0))
        future.set_result(None)

    async def claim(self, claims: Sequence[Claim]) -> tuple[Any, Any]:
        """Make the claims of a command that is asked about."""
        decided: tuple[Any, Any] = await self._filter._claim(None, "mail_from", claims)
        return decided

    async def _make(self, claims: Sequence[Claim]) -> tuple[float, float]:
        """Return the time at which a command was decided, and the time to wait if it is refused."""
        result = await self._filter._delayed(await self._filter._ledger.take(claims))
        wait = max((each.wait for each in result.breaches), default=0.0)
        return round(self._server.clock() - self._began, 3), round(wait, 3)

    async def _all(self, works: Sequence[Coroutine[Any, Any, Any]]) -> list[tuple[float, float]]:
        tasks = [asyncio.ensure_future(work) for work in works]
        while pending := [task for task in tasks if not task.done()]:
            if len(self._waiting) < len(pending):
                await asyncio.sleep(0)
                continue
            self.wake()
            await asyncio.sleep(0)
        return [task.result() for task in tasks]

    def make(self, *commands: Sequence[Claim]) -> list[tuple[float, float]]:
        loop = self._server.smtpd._served._loop
        made = loop.run_until_complete(self._all([self._make(each) for each in commands]))
        assert self._filter._queues._waiting == {}
        return made


def test_each_waits_until_it_is_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    store = Counting(clock=clock)
    flags = ("--limit", ALL, "--max-delay", "20s")
    with serving(*flags, store=store, clock=clock) as server:
        made = Commands(server, monkeypatch).make(*[CLAIMS[:1]] * 100)
        assert made == [(float(second), 0.0) for second in range(21)] + [(0.0, 21.0)] * 79
        # Each asks at first, and again when it is its turn.
        assert store.requests == 100 + 20


def test_a_command_waits_in_the_queues_of_all_limits_that_it_exceeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ("--limit", ALL, "--limit", OTHER, "--max-delay", "20s")
    with serving(*flags) as server:
        made = Commands(server, monkeypatch).make(CLAIMS, CLAIMS, CLAIMS[:1], CLAIMS)
        assert [wait for _, wait in made] == [0.0] * 4
        assert [time for time, _ in made] == [0.0, 2.0, 3.0, 4.0]


def test_a_place_is_kept_while_others_take_the_room() -> None:
    breach, other = (Breach(claim, 0.5) for claim in CLAIMS)
    queues = Queues()
    first, second, third = (queues.place() for _ in range(3))
    for place in (first, second):
        place.enter([breach], 1.0)
    assert [each.behind(breach).wait for each in (first, second, third)] == [0.5, 1.5, 2.5]
    assert third.behind(Breach(CLAIMS[0]._replace(cost=0), 0.5)).wait == 0.5
    second.enter([breach, other], 2.0)
    assert third.behind(other).wait == 2.5
    first.leave()
    assert [each.behind(breach).wait for each in (second, third)] == [0.5, 1.5]
    second.enter([other], 3.0)
    assert third.behind(breach).wait == 0.5
    assert third.behind(other).wait == 2.5


def test_room_is_kept_for_the_command_whose_turn_it_is() -> None:
    breach = Breach(CLAIMS[0], 0.5)
    key = breach.claim.key
    queues = Queues()
    first, second = queues.place(), queues.place()
    assert not queues.keep_room(key, 99.0)
    first.enter([breach], 12.0)
    second.enter([breach], 10.0)
    assert [queues.keep_room(key, now) for now in (9.8, 9.95, 10.5)] == [False, True, True]
    second.enter([breach], 13.0)
    assert [queues.keep_room(key, now) for now in (10.5, 11.95)] == [False, True]
    first.leave()
    assert [queues.keep_room(key, now) for now in (11.95, 13.0)] == [False, True]
    second.leave()
    assert not queues.keep_room(key, 99.0)


def test_a_command_that_has_just_come_does_not_take_the_room_of_one_that_has_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving("--limit", ALL, "--max-delay", "20s") as server:
        commands = Commands(server, monkeypatch)
        monkeypatch.setattr("smtpd_filters.filter.monotonic", server.clock)
        passed: list[str] = []

        async def command(name: str) -> None:
            decision, _ = await commands.claim(CLAIMS[:1])
            assert decision is PROCEED
            passed.append(name)

        async def come() -> None:
            await command("first")
            waits = asyncio.ensure_future(command("waits"))
            await commands.asleep(1)
            server.advance(1.0)  # there is room, and its timer has not run yet
            late = asyncio.ensure_future(command("late"))
            await commands.asleep(2)
            assert passed == ["first"]
            commands.wake()
            await waits
            commands.wake()
            await late

        server.smtpd._served._loop.run_until_complete(come())
        assert passed == ["first", "waits", "late"]
        assert server.clock() == 1_000_002.0

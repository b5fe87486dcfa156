"""The work of look-ups in one turn of the event loop, in their units."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.runtime import pace as pacing
from smtpd_filters.runtime.pace import TURN, Pace
from tests.effort import part


class Turns:
    """Counts the work that is done between two polls of an event loop."""

    def __init__(self) -> None:
        self.work = [0]
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.work.append(0)
        if len(self.work) < 10_000:
            asyncio.get_running_loop().call_soon(self._next)

    def did(self, work: int) -> None:
        self.work[-1] += work


@given(st.lists(st.lists(st.integers(1, 15), max_size=30), max_size=8))
@settings(max_examples=part(30))
def test_no_turn_has_more_work_than_it_may(bursts: list[list[int]]) -> None:
    turn = 10

    async def main() -> None:
        turns, pace = Turns(), Pace(turn)

        async def do(work: int) -> None:
            await pace.admit(work)
            turns.did(work)

        tasks: list[asyncio.Task[None]] = []
        for burst in bursts:
            tasks += [asyncio.create_task(do(work)) for work in burst]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert max(turns.work) <= 2 * max(turn, *(work for burst in bursts for work in burst), 0)
        assert sum(turns.work) == sum(map(sum, bursts))

    asyncio.run(main())


def test_waiting_work_is_admitted_in_order() -> None:
    async def main() -> list[int]:
        pace, order = Pace(10), []

        async def do(number: int) -> None:
            await pace.admit(1 + number % 15)
            order.append(number)

        await asyncio.gather(*map(do, range(100)))
        return order

    assert asyncio.run(main()) == list(range(100))


def test_work_within_the_budget_does_not_wait() -> None:
    async def main() -> None:
        pace = Pace(10)
        for work in (4, 6):
            coroutine = pace.admit(work)
            try:
                coroutine.send(None)
            except StopIteration:
                continue
            raise AssertionError("it waits")
        assert pace.spent == 10
        await asyncio.sleep(0)
        assert pace.spent == 0

    asyncio.run(main())


def test_cancelled_work_is_skipped() -> None:
    async def main() -> None:
        pace = Pace(10)
        await pace.admit(10)
        waiting = [asyncio.create_task(pace.admit(10)) for _ in range(5)]
        await asyncio.sleep(0)
        for each in waiting[1:4]:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert [each.cancelled() for each in waiting] == [False, True, True, True, False]

    asyncio.run(main())


def test_all_look_ups_of_a_loop_have_one_pace() -> None:
    async def main() -> Pace:
        assert pacing.pace() is pacing.pace()
        assert pacing.pace()._turn == TURN
        return pacing.pace()

    first, second = asyncio.run(main()), asyncio.run(main())
    assert first is not second


def test_take_succeeds_only_while_there_is_budget() -> None:
    async def main() -> None:
        pace = Pace(10)
        assert [pace.take(4) for _ in range(4)] == [True, True, False, False]
        pieces = [asyncio.create_task(pace.admit(9)) for _ in range(2)]
        await asyncio.sleep(0)
        # Waiting work is not overtaken.
        assert not pace.take(1)
        await asyncio.gather(*pieces)
        assert pace.take(1)

    asyncio.run(main())

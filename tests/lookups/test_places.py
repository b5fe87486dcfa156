"""Places for queries: who gets the next one, and who has to give one back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from smtpd_filters.lookups.places import Place, Places


class Crowd:
    """Queries at the places, by name."""

    def __init__(self, limit: int, queue: int | None, patience: float) -> None:
        self.places = Places(limit, queue, patience=patience)
        self.events: list[str] = []
        self.held: dict[str, Place] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._end: dict[str, asyncio.Event] = {}

    async def ask(self, *names: str, again: bool = False) -> None:
        for name in names:
            self._end[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._query(name, again=again))
            await settled()

    async def _query(self, name: str, *, again: bool) -> None:
        place = await self.places.take(again=again)
        if place is None:
            self.events.append(f"{name} refused")
            return
        self.held[name] = place
        try:
            self.events.append(name)
            async with asyncio.timeout(None) as limit:
                place.wait(limit)
                await self._end[name].wait()
            place.arrived()
        except TimeoutError:
            self.events.append(f"{name} evicted")
        finally:
            del self.held[name]
            place.release()

    async def answer(self, *names: str) -> None:
        for name in names:
            self._end[name].set()
            await settled()

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(limit: int, test: Any, patience: float = 3600.0, *, queue: int | None = None) -> list[str]:
    """Return what happened at `limit` places."""

    async def main() -> list[str]:
        crowd = Crowd(limit, queue, patience)
        await test(crowd)
        events = list(crowd.events)
        await crowd.close()
        # All places are free again.
        assert crowd.places._free == limit
        assert crowd.places._exempt == limit // 4
        assert (crowd.places._waiting, crowd.places._leaving) == (0, 0)
        assert not crowd.places._loose
        return events

    return asyncio.run(main())


def test_the_next_place_goes_to_the_ends_of_the_queues_in_turn() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("a")
        await crowd.ask("b", "c", "d", "e", "f", "g")
        await crowd.ask("x", "y", again=True)
        for _ in range(8):
            await crowd.answer(*crowd.held)

    assert run(1, test) == ["a", "x", "g", "b", "f", "y", "e", "c", "d"]


def test_a_repeated_query_gets_a_place_if_no_other_waits() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("a")
        await crowd.ask("x", "y", "z", again=True)
        await crowd.answer("a", "x", "y")

    assert run(1, test) == ["a", "x", "y", "z"]


def test_the_oldest_query_is_evicted_for_a_first_one() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("kept", "a", "b", "c")
        await crowd.ask("x", again=True)  # evicts nobody
        await crowd.ask("d")
        await crowd.ask("e")

    assert run(4, test, 0.0) == [
        *("kept", "a", "b", "c"),
        *("a evicted", "x", "b evicted", "d"),
        *("c evicted", "e"),
    ]


def test_nobody_is_evicted_who_has_not_had_his_time() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("a", "b", "c")

    assert run(1, test) == ["a"]


def test_as_many_are_evicted_as_wait() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("kept", "a", "b", "c")
        await crowd.ask("d")

    assert run(4, test, 0.0) == ["kept", "a", "b", "c", "a evicted", "d"]


def test_an_answer_that_has_arrived_is_not_lost() -> None:
    async def main() -> str:
        places = Places(1, patience=0.0)
        place = await places.take(again=False)
        assert place is not None
        async with asyncio.timeout(None) as limit:
            place.wait(limit)
            await asyncio.sleep(0)
        place.arrived()
        waiting = asyncio.create_task(places.take(again=False))
        await settled()
        evicted = place.evicted
        place.release()
        assert await waiting is not None
        # Another wait of an evicted query, for a message that answers it, ends at once.
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                place.wait(limit)
                await asyncio.Event().wait()
        return f"evicted {evicted}"

    assert asyncio.run(asyncio.wait_for(main(), 60)) == "evicted True"


def test_beyond_the_queue_the_oldest_is_refused() -> None:
    async def test(crowd: Crowd) -> None:
        await crowd.ask("a", "b", "c", "d")
        crowd.tasks["c"].cancel()
        await settled()
        await crowd.ask("e", "f")

    assert run(1, test, queue=2) == ["a", "b refused", "d refused"]


@pytest.mark.parametrize("again", [False, True])
def test_a_place_granted_to_a_query_that_is_cancelled_goes_to_the_next(again: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        places = Places(1)
        place = await places.take(again=False)
        assert place is not None
        waiting = [asyncio.create_task(places.take(again=again)) for _ in range(2)]
        await settled()
        place.release()
        # The grant is on its way: to the oldest or the newest.
        granted, other = waiting if again else reversed(waiting)
        granted.cancel()
        await settled()
        assert granted.cancelled()
        assert isinstance(other.result(), Place)

    asyncio.run(main())


def test_without_memory_to_wait_no_place_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_places: Places) -> None:
        raise MemoryError

    async def main() -> None:
        places = Places(1)
        place = await places.take(again=False)
        assert place is not None
        with monkeypatch.context() as patch:
            patch.setattr(Places, "_watch", fails)
            with pytest.raises(MemoryError):
                await places.take(again=False)
        place.release()
        assert (places._free, places._waiting) == (1, 0)
        assert await places.take(again=False) is not None

    asyncio.run(main())

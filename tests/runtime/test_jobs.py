"""What drives the coroutines of policies: whatever fails, who waits is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.protocol.decisions import PROCEED, Decision
from smtpd_filters.runtime.jobs import CANCELLED_AT_ONCE, OVERDUE, Job, Wait, _cancel_some

if TYPE_CHECKING:
    from collections.abc import Coroutine


async def answer() -> object:
    return PROCEED


async def hang() -> object:
    await asyncio.Event().wait()
    return PROCEED


async def ask(work: Coroutine[Any, Any, object], seconds: float = 10.0) -> Decision:
    said: Any = await Wait(work, seconds)
    assert said is not OVERDUE
    return said  # type: ignore[no-any-return]  # what `work` returns


def drive(work: Coroutine[Any, Any, Decision]) -> object:
    """What is told of it: a decision, or what it raised."""

    async def driven() -> object:
        told: asyncio.Future[object] = loop.create_future()
        Job(loop, work, told.set_result, told.set_result)
        return await told

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(driven())
    finally:
        loop.close()


def test_it_comes_to_a_decision() -> None:
    assert drive(ask(answer())) is PROCEED


def test_what_is_overdue_is_not_waited_for() -> None:
    assert isinstance(drive(ask(hang(), 0.01)), AssertionError)


def test_a_task_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    make = asyncio.BaseEventLoop.create_task

    def fails(loop: Any, work: Any, **names: Any) -> Any:
        if work.__name__ == "answer":
            raise MemoryError
        return make(loop, work, **names)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_task", fails)
    assert isinstance(drive(ask(answer())), MemoryError)


@pytest.mark.parametrize("short_of_memory", [False, True])
def test_many_are_cancelled_some_in_each_turn(
    monkeypatch: pytest.MonkeyPatch, *, short_of_memory: bool
) -> None:
    ended: list[int] = []
    turn = 0

    async def wait() -> object:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(turn)
        return PROCEED

    async def main() -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()
        jobs = [Job(loop, ask(wait()), lambda _: None, lambda _: None) for _ in range(50)]
        await asyncio.sleep(0)
        for job in jobs:
            job.cancel()
        if short_of_memory:
            soon = asyncio.BaseEventLoop.call_soon

            def fails(loop: Any, callback: Any, *arguments: Any, **names: Any) -> Any:
                if callback is _cancel_some:
                    raise MemoryError
                return soon(loop, callback, *arguments, **names)

            monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon", fails)
        for _ in range(50):
            turn += 1
            await asyncio.sleep(0)

    asyncio.run(main())
    assert len(ended) == 50
    most = max(map(ended.count, ended))
    assert most == (50 if short_of_memory else CANCELLED_AT_ONCE)

"""What drives the coroutines of policies: whatever fails, who waits is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.protocol.decisions import PROCEED, Decision
from smtpd_filters.runtime.jobs import OVERDUE, Job, Wait

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

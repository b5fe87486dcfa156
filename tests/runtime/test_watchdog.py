"""The watchdog, which interrupts a policy that blocks and no other."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.runtime import asyncio_loop
from smtpd_filters.runtime.watchdog import IDLE, OverdueError, Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    before = signal.getsignal(signal.SIGALRM)
    made = Watchdog(0.02, tick=0.01)
    made.install()
    yield made
    made.disarm()
    signal.signal(signal.SIGALRM, before)


def loop() -> None:
    while True:
        pass


def read() -> None:
    ends = os.pipe()
    try:
        os.read(ends[0], 1)
    finally:
        for end in ends:
            os.close(end)


def regex() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def sleep() -> None:
    time.sleep(3600)


def interrupting(watchdog: Watchdog, times: int) -> list[OverdueError]:
    """Have it interrupt so often and no more: the test itself may be slow, too."""
    raised: list[OverdueError] = []

    def look(number: int, frame: FrameType | None) -> None:
        try:
            watchdog._check(number, frame)
        except OverdueError as error:
            raised.append(error)
            if len(raised) == times:
                watchdog.running = 0.0
            raise

    signal.signal(signal.SIGALRM, look)
    return raised


@pytest.mark.parametrize("work", [loop, read, regex, sleep], ids=lambda work: work.__name__)
def test_it_interrupts(work: Callable[[], None], watchdog: Watchdog) -> None:
    def handle() -> None:
        watchdog.running = time.monotonic()
        work()

    raised = interrupting(watchdog, 1)
    watchdog.arm()
    with pytest.raises(OverdueError, match=r"longer than 0\.02 s"):
        handle()
    assert len(raised) == 1


def test_it_interrupts_again_until_the_policy_gives_up(watchdog: Watchdog) -> None:
    raised = interrupting(watchdog, 3)

    def stubborn() -> None:
        while len(raised) < 3:
            with suppress(OverdueError):
                loop()

    watchdog.arm()
    with suppress(OverdueError):  # raised between two loops, on a machine that stalls
        watchdog.running = time.monotonic()
        stubborn()
    stubborn()
    assert len(raised) == 3


def test_an_exception_handler_of_a_policy_does_not_catch_it() -> None:
    assert not issubclass(OverdueError, Exception)


#: By how much a time differs from the limit, and whether that is too long.
BOUNDARY = [(-0.001, False), (0.0, False), (0.001, True)]


@pytest.mark.parametrize(("beyond", "overdue"), BOUNDARY)
def test_a_handler_at_the_limit(beyond: float, *, overdue: bool) -> None:
    watchdog = Watchdog(5.0, clock=lambda: 1005.0 + beyond)
    watchdog.running = 1000.0
    assert interrupted(watchdog) is overdue


@pytest.mark.parametrize(("beyond", "overdue"), BOUNDARY)
def test_a_coroutine_at_the_limit(beyond: float, *, overdue: bool) -> None:
    watchdog = Watchdog(5.0)
    watchdog.blocked = lambda: 5.0 + beyond
    assert interrupted(watchdog) is overdue


def interrupted(watchdog: Watchdog) -> bool:
    try:
        watchdog._check(signal.SIGALRM, None)
    except OverdueError:
        return True
    return False


def test_a_handler_in_time_is_not_interrupted(watchdog: Watchdog) -> None:
    watchdog.running = time.monotonic() + 100
    for _ in range(100):
        watchdog._check(signal.SIGALRM, None)


def test_it_stops_when_there_is_nothing_to_see(watchdog: Watchdog) -> None:
    watchdog.arm()
    for _ in range(IDLE + 1):
        assert watchdog.armed
        watchdog._check(signal.SIGALRM, None)
    assert [watchdog.armed] == [False]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    watchdog.arm()
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0


def test_the_timer_runs_while_there_is_something_to_watch(watchdog: Watchdog) -> None:
    watchdog.armed = True
    watchdog.needed = lambda: True
    for _ in range(10 * IDLE):
        watchdog._check(signal.SIGALRM, None)
    assert watchdog.armed


def test_the_timer_runs_while_handlers_run(watchdog: Watchdog) -> None:
    watchdog.armed = True
    for _ in range(10 * IDLE):
        watchdog.running = time.monotonic() + 100
        watchdog._check(signal.SIGALRM, None)
        watchdog.running = 0.0
        watchdog._check(signal.SIGALRM, None)
    assert watchdog.armed


def test_a_coroutine_that_holds_the_process_up(watchdog: Watchdog) -> None:
    blocked = [0.01, 0.03]
    watchdog.blocked = lambda: blocked.pop(0)
    watchdog._check(signal.SIGALRM, None)
    with pytest.raises(OverdueError, match="blocked the process"):
        watchdog._check(signal.SIGALRM, None)


def test_a_callback_that_is_called_again_and_again_does_not_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The handle of a descriptor's callback is one object for all calls."""
    now = 0.0
    handle = object()
    monkeypatch.setattr(asyncio_loop, "monotonic", lambda: now)
    monkeypatch.setattr(asyncio_loop, "_callback", lambda _frame: handle)
    event_loop = asyncio.new_event_loop()
    watched: Any = asyncio_loop._Loop.__new__(asyncio_loop._Loop)
    watched.loop, watched.watchdog = event_loop, Watchdog()
    watched.beating, watched.called, watched.called_in = False, None, 0
    try:
        assert watched.blocked() == 0.0
        now = 4.0
        assert watched.blocked() == 4.0
        watched.watchdog.rounds += 1
        now = 8.0
        assert watched.blocked() == 0.0
    finally:
        event_loop.close()

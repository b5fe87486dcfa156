"""The watchdog, which interrupts a policy that blocks and no other."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
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
            if len(raised) + 1 == times:
                watchdog.running = 0.0  # first: the next signal may come before the next line
            raised.append(error)
            raise

    watchdog._handler = look
    watchdog.install()
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
    watchdog.blocked = lambda _frame: 5.0 + beyond
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


def test_it_notices_a_call_during_which_it_checks(watchdog: Watchdog) -> None:
    watchdog._check(signal.SIGALRM, None)
    assert [watchdog.noticed] == [False]
    watchdog.running = time.monotonic() + 100
    watchdog._check(signal.SIGALRM, None)
    watchdog.running = 0.0
    assert watchdog.noticed
    watchdog.measured()
    assert [watchdog.noticed] == [False]


def test_without_a_timer_each_call_may_take_long() -> None:
    watchdog = Watchdog()
    assert watchdog.noticed
    watchdog.measured()
    assert watchdog.noticed


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
    watchdog.blocked = lambda _frame: blocked.pop(0)
    watchdog._check(signal.SIGALRM, None)
    with pytest.raises(OverdueError, match="blocked the process"):
        watchdog._check(signal.SIGALRM, None)


def test_a_callback_that_is_called_again_and_again_does_not_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The handle of a descriptor's callback is one object for all calls."""
    now = 0.0
    handle = object()
    monkeypatch.setattr(asyncio_loop, "_callback", lambda _frame: handle)
    event_loop = asyncio.new_event_loop()
    watched: Any = asyncio_loop._Loop.__new__(asyncio_loop._Loop)
    watched.loop, watched.watchdog = event_loop, Watchdog(clock=lambda: now)
    watched.beating = False
    try:
        assert watched.blocked(None) == 0.0
        now = 4.0
        assert watched.blocked(None) == 4.0
        watched.watchdog.rounds += 1
        now = 8.0
        assert watched.blocked(None) == 0.0
    finally:
        event_loop.close()


def test_only_code_of_a_policy_that_the_loop_has_called_is_interrupted() -> None:
    watchdog = Watchdog()
    watchdog.base = ours.__code__
    found = ours(watchdog)
    assert [each.f_code.co_name for each in found if each] == ["policys", "policys"]
    assert watchdog.policy(sys._getframe()) is None


def ours(watchdog: Watchdog) -> list[FrameType | None]:
    """Call code of several modules, as the function that runs the loop."""
    found: list[FrameType | None] = []
    for module in (
        "smtpd_filters.runtime.log",
        "asyncio.events",
        "policy",
        "smtpd_filters.filters.dyndns",
    ):
        names: dict[str, Any] = {"__name__": module, "frame": sys._getframe}
        exec("def policys(call): return call(frame())", names)  # noqa: S102  # for its module
        found.append(names["policys"](watchdog.policy))
    return found


@pytest.mark.parametrize(
    "stop",
    [
        lambda: signal.alarm(0),
        lambda: signal.setitimer(signal.ITIMER_REAL, 0),
    ],
    ids=["alarm", "setitimer"],
)
def test_a_timer_that_a_policy_stops_is_started_again(
    stop: Callable[[], object], watchdog: Watchdog
) -> None:
    now = 0.0
    told: list[str] = []
    watchdog._clock = lambda: now
    watchdog.tick = 100.0
    watchdog.restore = lambda: told.append("restored")
    watchdog.report = lambda: told.append("reported")
    watchdog.tend()
    now = 300.0
    watchdog.tend()  # the process was stopped, but the timer runs
    assert told == []
    stop()
    now = 400.0
    watchdog.tend()
    now = 600.0
    watchdog.tend()
    assert told == ["restored", "reported"]
    assert runs(watchdog)
    # From now on in each round.
    stop()
    watchdog.tend()
    assert told == ["restored", "reported"] * 2
    assert runs(watchdog)
    watchdog.tend()
    assert told == ["restored", "reported"] * 2


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=["ignored", "default"])
def test_a_signal_that_a_policy_takes_is_taken_back(
    handler: signal.Handlers, watchdog: Watchdog
) -> None:
    watchdog.arm()
    signal.signal(signal.SIGALRM, handler)
    watchdog.settle()
    assert runs(watchdog)
    watchdog.disarm()
    signal.signal(signal.SIGALRM, handler)
    watchdog.arm()
    assert runs(watchdog)


def runs(watchdog: Watchdog) -> bool:
    remains = signal.getitimer(signal.ITIMER_REAL)[0]
    return remains > 0 and signal.getsignal(signal.SIGALRM) == watchdog._check


def test_blocking_code_that_outlives_smtpd_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exits: list[int] = []
    times = [16.0, 16.1, 16.0, 16.1]
    watchdog = Watchdog(5.0, clock=lambda: times.pop(0))
    monkeypatch.setattr(os, "_exit", exits.append)
    watchdog.running = 1.0
    for hung_up in (False, True):
        watchdog.hung_up = lambda hung_up=hung_up: hung_up  # type: ignore[misc]
        assert exits == []
        for _ in range(2):
            assert interrupted(watchdog)
    assert exits == [0]


def test_the_earliest_time_to_exit_counts(
    watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[int] = []
    now = 1000.0
    watchdog._clock = lambda: now
    watchdog.tick = 100.0
    monkeypatch.setattr(os, "_exit", exits.append)
    for seconds in (16.0, 6.0, 16.0):
        watchdog.exit_within(seconds)
    now = 1006.0
    watchdog._check(signal.SIGALRM, None)
    assert exits == []
    now = 1006.1
    watchdog._check(signal.SIGALRM, None)
    assert exits == [0]

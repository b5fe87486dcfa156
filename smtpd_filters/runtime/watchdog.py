"""Watchdog that interrupts a handler which blocks the process.

A plain handler runs in the main loop, so one that loops or sleeps would block every session. A
timer signal checks periodically. If the same handler has run for longer than the limit,
`OverdueError` is raised in it, again at each tick until it ends. This interrupts Python code,
sleeps, blocking system calls and regular expressions, but not C code that neither returns nor
checks for signals.

The timer runs only while handlers run: an idle process is not woken.
"""

from __future__ import annotations

import os
import signal
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: Seconds between two checks.
TICK = 0.25
#: Idle checks in a row after which the timer stops.
IDLE = 4


class OverdueError(BaseException):
    """Raised in a policy's code that has run for too long.

    Not an Exception, so that `except Exception` in a policy doesn't catch it.
    """


class Watchdog:
    """Interrupts a handler or coroutine that has blocked the process for more than `limit` seconds.

    `tick` is the interval between two checks in seconds, `clock` a monotonic clock.

    The caller of a policy's code sets `running` to the time of the start, and back to 0.0
    afterwards.
    """

    def __init__(
        self,
        limit: float = 5.0,
        *,
        tick: float = TICK,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.limit, self.tick = limit, tick
        self._clock = clock
        self.running = 0.0
        self.armed = False
        #: The rounds of the event loop so far; counted by the loop.
        self.rounds = 0
        #: Returns how many seconds the running coroutine has blocked the process; set by a loop.
        self.blocked: Callable[[], float] = _not_blocked
        #: Returns whether there are coroutines to watch.
        self.needed: Callable[[], bool] = _nothing_to_watch
        #: The time at which the process exits, whatever runs then, or 0.0.
        self._exit_at = 0.0
        self._seen = 0.0
        self._idle = 0

    def install(self) -> None:
        """Install the handler of the timer signal.  Only in the main thread."""
        signal.signal(signal.SIGALRM, self._check)

    def arm(self) -> None:
        """Start the timer; to be called if `armed` is false and a policy is about to run."""
        self.armed = True
        self._idle = 0
        signal.setitimer(signal.ITIMER_REAL, self.tick, self.tick)

    def exit_within(self, seconds: float) -> None:
        """Exit after this time at the latest, even from code that ignores every interruption."""
        self._exit_at = self._clock() + seconds
        if not self.armed:
            self.arm()

    def disarm(self) -> None:
        """Stop the timer."""
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _check(self, _signal: int, _frame: FrameType | None) -> None:
        if self._exit_at and self._clock() > self._exit_at:
            os._exit(0)
        started = self.running
        if started:
            if self._clock() - started > self.limit:
                raise OverdueError(f"took longer than {self.limit:g} s")
        elif self.blocked() > self.limit:
            raise OverdueError(f"blocked the process for longer than {self.limit:g} s")
        if started or started != self._seen or self._exit_at or self.needed():
            self._idle = 0
        else:
            self._idle += 1
        self._seen = started
        if self._idle > IDLE:
            self.disarm()


def _not_blocked() -> float:
    return 0.0


def _nothing_to_watch() -> bool:
    return False

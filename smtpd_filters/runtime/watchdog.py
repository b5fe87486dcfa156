"""A policy that does not come back is interrupted.

Plain handlers run in the turn in which smtpd asks, so one that loops or sleeps would hold up
every session.  A timer signal looks now and then; when the same handler has been running for
longer than it may, `OverdueError` is raised within it, again and again until it gives up.
Python code, sleeps, blocking system calls and regular expressions can be interrupted so; C code
that neither returns nor looks for signals can not.

The timer runs only while handlers do: an idle process is not woken.
"""

from __future__ import annotations

import signal
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: Seconds between two looks.
TICK = 0.25
#: Looks without anything to see after which the timer stops.
IDLE = 4


class OverdueError(BaseException):
    """Raised within a policy that has taken too long.

    Not an Exception, so that ``except Exception`` in a policy does not keep it running.
    """


class Watchdog:
    """Interrupts the handler that runs now once it has run for more than `limit` seconds.

    `tick` is the interval between two looks in seconds, `clock` a monotonic clock.

    Around a policy's code the caller sets `running` to the time at which it started, and to
    0.0 when it is back.
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
        #: For how long a coroutine that runs now has held the process up; set by its loop.
        self.blocked: Callable[[], float] = _never
        #: Whether there are coroutines to watch.
        self.needed: Callable[[], bool] = _nobody
        self._seen = 0.0
        self._idle = 0

    def install(self) -> None:
        """Take over the timer signal.  Only in the main thread."""
        signal.signal(signal.SIGALRM, self._look)

    def arm(self) -> None:
        """Start looking; to be called when `armed` is false and a policy is about to run."""
        self.armed = True
        self._idle = 0
        signal.setitimer(signal.ITIMER_REAL, self.tick, self.tick)

    def disarm(self) -> None:
        """Stop looking."""
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _look(self, _signal: int, _frame: FrameType | None) -> None:
        started = self.running
        if started:
            if self._clock() - started > self.limit:
                raise OverdueError(f"took longer than {self.limit:g} s")
        elif self.blocked() > self.limit:
            raise OverdueError(f"held the process up for longer than {self.limit:g} s")
        if started or started != self._seen or self.needed():
            self._idle = 0
        else:
            self._idle += 1
        self._seen = started
        if self._idle > IDLE:
            self.disarm()


def _never() -> float:
    return 0.0


def _nobody() -> bool:
    return False

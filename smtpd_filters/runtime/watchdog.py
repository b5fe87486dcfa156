"""Watchdog that interrupts a handler which blocks the process.

A plain handler runs in the main loop, so one that loops or sleeps would block every session. A
timer signal checks periodically. If the same handler has run for longer than the limit,
`OverdueError` is raised in it, again at each tick until it ends. This interrupts Python code,
sleeps, blocking system calls and regular expressions, but not C code that neither returns nor
checks for signals.

Other code of a policy that the framework calls, such as `__str__` of an exception that is logged or
`__del__` of an object that is released, is found on the stack and interrupted in the same way.

The timer runs only while handlers run: an idle process is not woken. If a policy or a library takes
the signal, or stops the timer, the loop restores both between two rounds.
"""

from __future__ import annotations

import os
import signal
import sys

# `signal.getsignal` takes a microsecond to look for a name of the handler.
from _signal import getsignal  # type: ignore[import-not-found]
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

#: Seconds between two checks.
TICK = 0.25
#: Idle checks in a row after which the timer stops.
IDLE = 4
#: Ticks without a check after which the timer may have been stopped.
LATE = 2
#: Times the limit after which blocking code that ignores its interruption ends the process, if
#: smtpd has ended.
ABANDONED = 3
_PACKAGE = __name__.partition(".")[0]
#: The policies in the package.
_POLICIES = f"{_PACKAGE}.filters."


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
        #: Whether a call may have taken longer than a `tick`: set by a check in which one runs, and
        #: reset by `measured`. Always true without a timer.
        self.noticed = True
        self._installed = False
        self.armed = False
        #: The rounds of the event loop so far; counted by the loop.
        self.rounds = 0
        #: Returns how many seconds the policy's code that was interrupted in this frame, outside of
        #: a handler, has blocked the process; an event loop sets its own.
        self.blocked: Callable[[FrameType | None], float] = self._blocked
        #: Returns whether there are coroutines to watch.
        self.needed: Callable[[], bool] = _no
        #: Returns whether smtpd has ended.
        self.hung_up: Callable[[], bool] = _no
        #: Restores the other signal handlers of the process.
        self.restore: Callable[[], object] = _no
        #: Logs that a policy has stopped the timer.
        self.report: Callable[[], object] = _no
        #: The function that runs the loop: policies run above it on the stack.
        self.base: CodeType | None = None
        #: The code of a policy at the last check, in which round, and since when.
        self._code: object = None
        self._code_round = 0
        self._code_since = 0.0
        #: The time at which the process exits, whatever runs then, or 0.0.
        self._exit_at = 0.0
        self._seen = 0.0
        self._idle = 0
        #: The time of the last check, or of the last start of the timer.
        self._ticked = 0.0
        #: Whether a policy has stopped the timer before, and may do so in each round.
        self._contested = False
        self._handler: Callable[[int, FrameType | None], object] = self._check

    def install(self) -> None:
        """Install the handler of the timer signal.  Only in the main thread."""
        signal.signal(signal.SIGALRM, self._handler)
        if not self._installed:
            self._installed = True
            self.noticed = False

    def arm(self) -> None:
        """Start the timer; to be called if `armed` is false and a policy is about to run."""
        self.settle()
        self.armed = True
        self._idle = 0
        self._ticked = self._clock()
        signal.setitimer(signal.ITIMER_REAL, self.tick, self.tick)

    def settle(self) -> None:
        """Take the signal back from a policy.  To be called in each round before the loop waits.

        The default action of the signal ends the process.
        """
        if getsignal(signal.SIGALRM) is not self._handler:
            self.install()

    def tend(self) -> None:
        """Start the timer unless it runs.  To be called in each round before a policy runs."""
        if not self.armed:
            self.arm()
        elif self._contested or self._clock() - self._ticked > LATE * self.tick:
            self._repair()

    def _repair(self) -> None:
        """Start a timer that a policy has stopped, and restore the signal handlers."""
        if signal.getitimer(signal.ITIMER_REAL)[0] > 0:
            if not self._contested:
                self._ticked = self._clock()  # the process was stopped, say
            return
        self._contested = True
        self.install()
        self.arm()
        self.restore()
        self.report()

    def measured(self) -> None:
        """Reset `noticed`, after the caller has measured how long the last call took."""
        self.noticed = not self._installed

    def exit_within(self, seconds: float) -> None:
        """Exit after this time at the latest, even from code that ignores every interruption."""
        exit_at = self._clock() + seconds
        self._exit_at = min(self._exit_at, exit_at) if self._exit_at else exit_at
        if not self.armed:
            self.arm()

    def disarm(self) -> None:
        """Stop the timer."""
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def held(self, code: object) -> float:
        """Return for how long this has been the running code at each check; None is no code."""
        if code is None or code is not self._code or self.rounds != self._code_round:
            self._code, self._code_round, self._code_since = code, self.rounds, self._clock()
            return 0.0
        return self._clock() - self._code_since

    def _blocked(self, frame: FrameType | None) -> float:
        return self.held(self.policy(frame))

    def policy(self, frame: FrameType | None) -> FrameType | None:
        """Return the frame in which the loop's own code has called a policy's, or None."""
        found = None
        while frame is not None:
            if frame.f_code is self.base:
                return found
            if _is_policy(frame.f_globals.get("__name__")):
                found = frame
            frame = frame.f_back
        return None

    def _check(self, _signal: int, frame: FrameType | None) -> None:
        now = self._ticked = self._clock()
        if self._exit_at and now > self._exit_at:
            os._exit(0)
        started = self.running
        if started:
            self.noticed = True
            if now - started > self.limit:
                self._interrupt(now - started, f"took longer than {self.limit:g} s")
        else:
            if (blocked := self.blocked(frame)) > self.limit:
                self._interrupt(blocked, f"blocked the process for longer than {self.limit:g} s")
            self.restore()
        watching = self._code is not None or self.needed()
        if started or started != self._seen or self._exit_at or watching:
            self._idle = 0
        else:
            self._idle += 1
        self._seen = started
        if self._idle > IDLE:
            self.disarm()

    def _interrupt(self, seconds: float, why: str) -> None:
        if seconds > ABANDONED * self.limit and self.hung_up():
            os._exit(0)
        raise OverdueError(why)


def _is_policy(module: object) -> bool:
    """Return whether code of a module is a policy's: neither the framework's nor Python's."""
    if not isinstance(module, str):
        return True
    top = module.partition(".")[0]
    if top == _PACKAGE:
        return module.startswith(_POLICIES)
    return top not in sys.stdlib_module_names


def _no() -> bool:
    return False

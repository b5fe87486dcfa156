"""Coroutines of policies after their first step, and the framework's work that awaits them.

Every filter's process loads this module; `first_step` and `jobs` drive these types on asyncio.

A `Pending` is work of the framework (`guard`, `chain`) that awaits a policy. It awaits nothing but
a `Wait`, so it needs no task: a `jobs.Job` drives it by hand, and resumes it after the policy's own
task has ended. An `Early` is the coroutine of a filter whose turn in the chain has not come yet; it
runs meanwhile in a job of its own.
"""

from __future__ import annotations

from contextvars import ContextVar
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision

    from .first_step import StandIn
    from .interfaces import Task

#: Results of a `Wait` without a result: the deadline has passed; the coroutine was cancelled.
OVERDUE = object()
CANCELLED = object()


class Suspended:
    """A coroutine that has taken its first step and awaits `waiting`."""

    __slots__ = ("context", "stand_in", "waiting", "work")

    def __init__(
        self,
        work: Coroutine[Any, Any, object],
        waiting: object,
        context: Context,
        stand_in: StandIn,
    ) -> None:
        self.work, self.waiting = work, waiting
        self.context, self.stand_in = context, stand_in


class Raised:
    """An exception of a coroutine, as a value: asyncio ends its loop on SystemExit."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Wait:
    """Awaited by the work of a `Pending` for the result of a coroutine.

    The result may be `Raised`, OVERDUE or CANCELLED. `seconds` is the time left until the deadline;
    an `Early` has its own. `beside` are coroutines that begin to run now as well.
    """

    __slots__ = ("beside", "seconds", "suspended")

    def __init__(self, suspended: Suspended | Early, seconds: float) -> None:
        self.suspended, self.seconds = suspended, seconds
        self.beside: tuple[Early, ...] = ()

    def __await__(self) -> Generator[Wait, object, object]:
        return (yield self)


class Pending:
    """Work that awaits its next `Wait`; awaiting it runs it to its decision."""

    __slots__ = ("wait", "work")

    def __init__(self, work: Coroutine[Any, Any, Decision], wait: Wait) -> None:
        self.work, self.wait = work, wait

    def __await__(self) -> Generator[Wait, object, Decision]:
        wait = self.wait
        try:
            while True:
                result = yield wait
                wait = self.work.send(result)
        except StopIteration as end:
            decision: Decision = end.value
            return decision
        finally:
            self.work.close()


class Turn:
    """The turn of a handler that is called before it: to read a message, but not to edit it yet."""

    __slots__ = ("_waiter", "has_come", "over")

    def __init__(self) -> None:
        self.has_come = False
        #: Whether the handler has been answered for: its turn is over, or will not come.
        self.over = False
        self._waiter: Future[None] | None = None

    def begin(self) -> None:
        """Begin the turn: resume the handler if it waits for it."""
        self.has_come = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Wait until it begins. Raises CancelledError if it is over."""
        if self.over:
            # The handler goes on after its deadline, or the end of its session: it ignored that.
            from asyncio import CancelledError  # as below

            raise CancelledError
        if not self.has_come:
            from asyncio import get_running_loop  # there already where there are coroutines

            self._waiter = get_running_loop().create_future()
            await self._waiter


#: The turn of the running handler, None if it was called in turn.
_TURN: ContextVar[Turn | None] = ContextVar("turn", default=None)


async def my_turn() -> bool:
    """Wait for the turn of the running handler, before it edits anything.

    Only `message` of a filter with `scans` needs it: in a chain, the filters ahead of it may still
    edit the message.

    Returns whether it had been called before its turn, so that others may have edited the message.
    Raises CancelledError if the handler has been answered for: it ignored that it was cancelled.
    """
    turn = _TURN.get()
    if turn is None:
        return False
    await turn.wait()
    return True


def is_before_turn() -> bool:
    """Return whether the running handler has been called before its turn, which has not come."""
    turn = _TURN.get()
    return turn is not None and not turn.has_come


class Early:
    """A coroutine that is called before its turn: it runs, and its result is kept.

    The first step has been taken; `result` is what a `Wait` for it would return. `took` is the time
    in seconds from the call to the result, `seconds` the time until its deadline.
    """

    __slots__ = (
        "_seconds", "_started", "_suspended", "ended", "job", "result", "took", "turn", "waiter",
    )  # fmt: skip

    def __init__(self, result: object, started: float, seconds: float) -> None:
        self._started, self._seconds = started, seconds
        self._suspended = result if type(result) is Suspended else None
        #: Whether there is a result.
        self.ended = self._suspended is None
        self.result = result
        self.took = monotonic() - started
        #: The job that runs the rest of the coroutine; None before it runs.
        self.job: Task | None = None
        #: The callback for the result, of the work that awaits it.
        self.waiter: Callable[[object], None] | None = None
        #: The turn that it may wait for.
        self.turn: Turn | None = None

    @classmethod
    def before(cls, turn: Turn, ahead: float, call: Callable[[], Early]) -> Early:
        """Return the coroutine that `call` calls, which waits for its turn when it has to.

        `ahead` is how long that may take in seconds: its deadline is so much later.
        """
        token = _TURN.set(turn)
        try:
            early = call()
        finally:
            _TURN.reset(token)
        early.turn = turn
        early._seconds += ahead  # noqa: SLF001  # same class
        return early

    async def rest(self) -> Any:
        """Return the coroutine's result: the work of its job."""
        assert self._suspended is not None  # noqa: S101  # it has not ended
        return await Wait(self._suspended, self._seconds)

    async def collect(self) -> object:
        """Return the result when there is one."""
        return self.result if self.ended else await Wait(self, 0.0)

    def finish(self, result: object) -> None:
        """Keep the result, and resume the work that awaits it."""
        self.took = monotonic() - self._started
        self.ended, self.result, self.job = True, result, None
        self._end_turn()
        if (waiter := self.waiter) is not None:
            self.waiter = None
            waiter(result)

    def fail(self, error: BaseException) -> None:
        """Keep an error in place of a result."""
        try:
            result: object = Raised(error)
        except MemoryError:
            result = CANCELLED
        self.finish(result)

    def drop(self) -> None:
        """Cancel the coroutine: its result is not needed."""
        self.waiter = None
        if self.ended or self._suspended is None:
            return
        self.ended, self.result = True, CANCELLED
        self._end_turn()
        job, self.job = self.job, None
        if job is not None:
            job.cancel()
        else:
            self._suspended.work.close()

    def _end_turn(self) -> None:
        if self.turn is not None:
            self.turn.over = True


def begin(work: Coroutine[Any, Any, Decision]) -> Decision | Pending:
    """Run work of the framework up to its first `Wait`; return its decision if it has none."""
    try:
        wait: Wait = work.send(None)
    except StopIteration as end:
        decision: Decision = end.value
        return decision
    return Pending(work, wait)


def decide_at_once(pending: Pending) -> Decision:
    """Return the decision of pending work, with CANCELLED as the result of all that it awaits.

    The work itself closes the coroutine of a `Wait`.
    """
    while True:
        try:
            pending.work.send(CANCELLED)
        except StopIteration as end:
            decision: Decision = end.value
            return decision

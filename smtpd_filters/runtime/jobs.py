"""Jobs that run the coroutines of policies on asyncio, after their first step, with a deadline.

Invariants
----------
*Answered*: the engine gets a decision by the deadline, whatever a coroutine does: an overdue one is
cancelled without waiting for its end, since it may ignore the cancellation, and what it awaits may
raise on it.
*Cancelled when begun*: a task is not cancelled before its first step, except by foreign code; the
coroutine in it is closed even then.
*Few cancelled at once*: however many sessions end together, few coroutines are cancelled in one
turn of the loop, and for a short time, since each may have dozens of look-ups to cancel.
*Few steps at once*: however many coroutines of messages are ready, few of them run in one turn of
the loop, since each step may iterate over a header of 16,000 lines. `Messages` declares the price
of a step for a message. Each step of the policy's task, and each step of the framework after it, is
charged to a `Pace` first.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from time import monotonic
from types import coroutine
from weakref import WeakKeyDictionary

from .coroutines import CANCELLED, OVERDUE, Early, Pending, Raised, begin

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision

    from .coroutines import Suspended, Wait
    from .pace import Pace

#: Coroutines cancelled in one turn of the loop at most, and the seconds for that: cancelling one
#: that waits for 50 look-ups takes half a millisecond, any other 5 us, and its end 20 us.
CANCELLED_AT_ONCE = 32
CANCELLING = 0.002


async def _rest(suspended: Suspended, pace: Pace | None, price: int) -> object:
    """Take the remaining steps of a coroutine; return its result, or `Raised`.

    With a `pace` each step waits until it is admitted; an exception that is thrown in meanwhile,
    such as the cancellation of the task, is thrown at once. `Job` takes the first step of this
    coroutine by hand, so that its task may be cancelled even before it begins.
    """
    try:
        return await _steps(suspended, pace, price)
    except BaseException as error:  # noqa: BLE001  # CancelledError may be its own
        if type(error) is MemoryError:
            # The coroutine's frames hold the memory that is needed elsewhere.
            error.__traceback__ = error.__context__ = None
        return Raised(error)
    finally:
        suspended.work.close()


@coroutine
def _steps(suspended: Suspended, pace: Pace | None, price: int) -> Generator[Any, Any, object]:
    send, throw = _steppers(suspended)
    step: Callable[[Any], Any] = send
    result: Any = None
    try:
        try:
            yield
        except BaseException as error:  # noqa: BLE001  # for the coroutine
            result = error
        waiting = _awaited(suspended, result)
        while True:
            try:
                step, result = send, (yield waiting)
            except BaseException as error:  # noqa: BLE001  # for the coroutine
                step, result = throw, error
            if (
                pace is not None
                and not pace.take(price)
                and (thrown := (yield from _queued(pace, price))) is not None
            ):
                step, result = throw, thrown
            waiting = step(result)
    except StopIteration as end:
        return end.value


def _steppers(suspended: Suspended) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what takes a step of a coroutine, with a value and with an exception."""
    work, stand_in = suspended.work, suspended.stand_in
    if stand_in.kept:
        return partial(stand_in.take, work.send), partial(stand_in.take, work.throw)
    return work.send, work.throw


def _queued(pace: Pace, price: int) -> Generator[Any, Any, BaseException | None]:
    """Wait until a step is admitted; return what is thrown in meanwhile, for the coroutine."""
    try:
        yield from pace.queue(price)
    except BaseException as error:  # noqa: BLE001  # for the coroutine
        return error
    return None


def _awaited(suspended: Suspended, error: BaseException | None) -> object:
    """Return what a coroutine awaits when its task begins; `error`: it was cancelled before."""
    waiting: Any = suspended.waiting
    if error is not None:
        # As in a task: cancel what it awaits, and only if that is impossible, the coroutine.
        cancel = getattr(waiting, "cancel", None)
        if type(error) is GeneratorExit or cancel is None or not cancel():
            return suspended.work.throw(error)
    if hasattr(waiting, "_asyncio_future_blocking"):
        # As `await` had set it in the first step; the task checks and clears it.
        waiting._asyncio_future_blocking = True  # noqa: SLF001  # as documented
    return waiting


class Job:
    """A driver of pending work for the engine; calls `done` with its decision.

    If the work raises, which is a bug of ours, it calls `failed` with the exception. With a `pace`
    each step is charged `price`.
    """

    __slots__ = (
        "_done",
        "_failed",
        "_loop",
        "_made",
        "_pace",
        "_price",
        "_task",
        "_timer",
        "_work",
    )

    def __init__(  # noqa: PLR0913  # everything meets here
        self,
        loop: asyncio.AbstractEventLoop,
        pending: Pending,
        done: Callable[[Decision], None],
        failed: Callable[[BaseException], None],
        pace: Pace | None = None,
        price: int = 0,
    ) -> None:
        self._loop, self._work = loop, pending.work
        self._done, self._failed = done, failed
        self._pace, self._price = pace, price
        #: The policy's task, or the future that admits the next step.
        self._task: asyncio.Future[Any] | None = None
        #: The timer of the deadline, or the callback of `_not_awaited`.
        self._timer: asyncio.Handle | None = None
        self._made = False
        self._wait(pending.wait)
        self._made = True

    def cancel(self) -> None:
        """Drop the work without a decision."""
        self._work.close()
        if (task := self._release()) is not None:
            _cancel_soon(self._loop, task)

    def _resume(self, result: object) -> None:
        """Resume the work with the result of what it awaited, until it awaits again."""
        try:
            wait: Wait = self._work.send(result)
        except StopIteration as end:
            done = self._done
            del self._done, self._failed  # they refer to this job and would keep it alive
            done(end.value)
        except BaseException as error:  # noqa: BLE001  # a request is pending
            self._failed(error)
        else:
            self._wait(wait)

    def _wait(self, wait: Wait) -> None:
        """Run the remaining steps of the policy's coroutine in a task."""
        for early in wait.beside:
            self._run_beside(early)
        suspended = wait.suspended
        try:
            if isinstance(suspended, Early):
                suspended.waiter = self._resume
            else:
                self._begin(suspended, wait.seconds)
        except BaseException as error:  # noqa: BLE001  # a policy's task factory; no memory
            self._release()
            self._not_awaited(Raised(error))

    def _begin(self, suspended: Suspended, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._overdue)
        rest = _rest(suspended, self._pace, self._price)
        rest.send(None)
        self._task = task = self._loop.create_task(rest, context=suspended.context)
        suspended.stand_in.replace(task)
        task.add_done_callback(self._ended)

    def _run_beside(self, early: Early) -> None:
        """Run a coroutine whose turn has not come yet, in a job of its own.  Never raise."""
        try:
            pending = begin(early.rest())
            assert type(pending) is Pending  # noqa: S101  # it awaits the coroutine first
            early.job = Job(self._loop, pending, early.finish, early.fail, self._pace, self._price)
        except BaseException as error:  # noqa: BLE001  # it counts when its turn comes
            early.fail(error)

    def _not_awaited(self, raised: Raised) -> None:
        """Resume the work with the error that prevented a task for its `Wait`."""
        try:
            # The engine must have this job before the callback runs.
            self._timer = self._loop.call_soon(self._resume, raised)
        except MemoryError:
            if not self._made:
                raise  # for the engine
            self._resume(raised)

    def _ended(self, task: asyncio.Task[object]) -> None:
        if task is self._task:
            self._release()
            if task.cancelled():
                self._resume_admitted(CANCELLED)
            elif (error := task.exception()) is None:
                self._resume_admitted(task.result())
            else:  # no memory for its first step, say; a request is pending
                self._work.close()
                self._failed(error)

    def _overdue(self) -> None:
        if (task := self._release()) is not None:
            self._resume_admitted(OVERDUE, task)

    def _resume_admitted(self, result: object, overdue: asyncio.Future[Any] | None = None) -> None:
        """Resume the work when there is budget for it, and cancel what is `overdue` then."""
        pace = self._pace
        try:
            if pace is not None and not pace.take(self._price):
                self._task = admitted = pace.queue(self._price)
                admitted.add_done_callback(
                    lambda admitted: self._admitted(admitted, result, overdue)
                )
                return
        except MemoryError:
            pass  # resume it without admission
        self._task = None
        if overdue is not None:
            _cancel(self._loop, overdue)
        self._resume(result)

    def _admitted(
        self, admitted: asyncio.Future[None], result: object, overdue: asyncio.Future[Any] | None
    ) -> None:
        if overdue is not None:
            _cancel(self._loop, overdue)
        if admitted is self._task:  # the work has not been dropped
            self._task = None
            self._resume(result)

    def _release(self) -> asyncio.Future[Any] | None:
        """Detach the task and the timer."""
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return task


#: By loop: the tasks to cancel.
_cancelling: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Future[Any]]] = (
    WeakKeyDictionary()
)


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Future[Any]) -> None:
    """Cancel a task in one of the next turns of its loop."""
    queue = _cancelling.setdefault(loop, deque())
    if not queue:
        loop.call_soon(_cancel_some, loop, queue, 1)  # *Cancelled when begun*
    queue.append(task)


def _cancel_some(
    loop: asyncio.AbstractEventLoop, queue: deque[asyncio.Future[Any]], begun: int
) -> None:
    """Cancel some of the first `begun` tasks in the queue, and schedule the rest."""
    until = monotonic() + CANCELLING
    for _ in range(min(begun, CANCELLED_AT_ONCE)):
        _cancel(loop, queue.popleft())
        if monotonic() >= until:
            break  # *Few cancelled at once*
    if queue:
        try:
            # By then all tasks that are in the queue now have begun.
            loop.call_soon(_cancel_some, loop, queue, len(queue))
        except MemoryError:
            while queue:  # all of them now
                _cancel(loop, queue.popleft())


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Future[Any]) -> None:
    """Cancel a task.  Never raises: `cancel` of what it awaits may be a policy's own method."""
    try:
        task.cancel()
    except BaseException as error:  # noqa: BLE001  # a request is pending
        try:
            loop.call_exception_handler({"message": "not cancelled", "exception": error})
        except BaseException:  # noqa: BLE001, S110  # no memory for it
            pass

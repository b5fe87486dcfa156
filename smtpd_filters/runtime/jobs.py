"""Runs the coroutines of policies on asyncio: all steps after the first, in a task with a deadline.

Invariants
----------
*Answered*: an engine gets a decision by the deadline, whatever a coroutine does: an overdue one is
cancelled and not waited for, since it may ignore that.
*Cancelled when begun*: a task is not cancelled before its first step, except by others; the
coroutine in it is closed all the same.
*Few cancelled at once*: however many sessions end together, few coroutines are cancelled in one
turn of the loop: each may have dozens of look-ups to cancel.
*Few steps at once*: however many coroutines of messages are ready, few of them run in one turn of
the loop: each step may walk over a header of 16,000 lines. `Messages` declares the price of a step
for a message; each step of the policy's task, and each one that follows it by hand, is charged to a
`Pace` first.
"""

from __future__ import annotations

from collections import deque
from types import coroutine
from weakref import WeakKeyDictionary

from .coroutines import CANCELLED, OVERDUE, Raised

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision

    from .coroutines import Pending, Suspended, Wait
    from .pace import Pace

#: Coroutines that are cancelled in one turn of the loop.  One that waits for 50 look-ups takes half
#: a millisecond for it.
CANCELLED_AT_ONCE = 4


async def _rest(suspended: Suspended, pace: Pace | None, price: int) -> object:
    """Take the steps of a coroutine that are left: its result, or `Raised`.

    With a `pace` each of them waits until it is admitted, except that an exception which is thrown
    in meanwhile, as by a task that is cancelled, is thrown at once. The first step of this is taken
    by hand: from then on a task may be cancelled, even before it begins.
    """
    return await _steps(suspended, pace, price)


@coroutine
def _steps(suspended: Suspended, pace: Pace | None, price: int) -> Generator[Any, Any, object]:
    work, stand_in = suspended.work, suspended.stand_in
    step: Callable[[Any], Any] = work.send
    result: Any = None
    try:
        try:
            yield
        except BaseException as error:  # noqa: BLE001  # it is the coroutine's
            result = error
        waiting = _awaited(suspended, result)
        while True:
            try:
                step, result = work.send, (yield waiting)
            except BaseException as error:  # noqa: BLE001  # it is the coroutine's
                step, result = work.throw, error
            if pace is not None and not pace.take(price):
                try:
                    yield from pace.queue(price)
                except BaseException as error:  # noqa: BLE001  # it is the coroutine's
                    step, result = work.throw, error
            waiting = stand_in.take(step, result) if stand_in.kept else step(result)
    except StopIteration as end:
        return end.value
    except BaseException as error:  # noqa: BLE001  # CancelledError may be its own
        if type(error) is MemoryError:
            # The coroutine's frames hold the memory that everything else lacks.
            error.__traceback__ = error.__context__ = None
        return Raised(error)
    finally:
        work.close()


def _awaited(suspended: Suspended, error: BaseException | None) -> object:
    """Return what a coroutine awaits when its task begins, or is cancelled before that."""
    waiting: Any = suspended.waiting
    if error is not None:
        # As in a task: what it awaits is cancelled, and only if that can't be, it itself.
        cancel = getattr(waiting, "cancel", None)
        if type(error) is GeneratorExit or cancel is None or not cancel():
            return suspended.work.throw(error)
    if hasattr(waiting, "_asyncio_future_blocking"):
        # As `await` has set it in the first step; the task checks and clears it.
        waiting._asyncio_future_blocking = True  # noqa: SLF001  # as documented
    return waiting


class Job:
    """Drives pending work for an engine: `done` is called with its decision.

    `failed` is called with an exception, which would be a bug of ours. With a `pace` each step
    costs `price` of it.
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
        #: The deadline, or the callback of what could not be awaited.
        self._timer: asyncio.Handle | None = None
        self._made = False
        self._wait(pending.wait)
        self._made = True

    def cancel(self) -> None:
        """Drop the work: its decision is of no use any more."""
        self._work.close()
        if (task := self._release()) is not None:
            _cancel_soon(self._loop, task)

    def _go_on(self, result: object) -> None:
        """Resume the work with the result of what it awaited, until it awaits again."""
        try:
            wait: Wait = self._work.send(result)
        except StopIteration as end:
            done = self._done
            del self._done, self._failed  # they refer to this job, and would keep it
            done(end.value)
        except BaseException as error:  # noqa: BLE001  # a request is pending
            self._failed(error)
        else:
            self._wait(wait)

    def _wait(self, wait: Wait) -> None:
        """Run the rest of the policy's coroutine in a task."""
        suspended = wait.suspended
        try:
            self._timer = self._loop.call_later(wait.seconds, self._overdue)
            rest = _rest(suspended, self._pace, self._price)
            rest.send(None)
            self._task = task = self._loop.create_task(rest, context=suspended.context)
            suspended.stand_in.replace(task)
            task.add_done_callback(self._ended)
        except Exception as error:  # noqa: BLE001  # no memory, say; a request is pending
            self._release()
            self._not_awaited(Raised(error))

    def _not_awaited(self, raised: Raised) -> None:
        """Resume the work with what kept its `Wait` from being awaited."""
        try:
            # The engine is to have this job before the callback.
            self._timer = self._loop.call_soon(self._go_on, raised)
        except MemoryError:
            if not self._made:
                raise  # it is the engine's
            self._go_on(raised)

    def _ended(self, task: asyncio.Task[object]) -> None:
        if task is self._task:
            self._release()
            if task.cancelled():
                self._go_on_admitted(CANCELLED)
            elif (error := task.exception()) is None:
                self._go_on_admitted(task.result())
            else:  # no memory for its first step, say; a request is pending
                self._work.close()
                self._failed(error)

    def _overdue(self) -> None:
        if (task := self._release()) is not None:
            self._go_on_admitted(OVERDUE, task)

    def _go_on_admitted(self, result: object, overdue: asyncio.Future[Any] | None = None) -> None:
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
            pass  # it costs what it costs
        self._task = None
        if overdue is not None:
            overdue.cancel()
        self._go_on(result)

    def _admitted(
        self, admitted: asyncio.Future[None], result: object, overdue: asyncio.Future[Any] | None
    ) -> None:
        if overdue is not None:
            overdue.cancel()
        if admitted is self._task:  # the work has not been dropped
            self._task = None
            self._go_on(result)

    def _release(self) -> asyncio.Future[Any] | None:
        """Detach the task and the timer."""
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return task


#: The tasks of each loop that will be cancelled.
_leaving: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Future[Any]]] = (
    WeakKeyDictionary()
)


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Future[Any]) -> None:
    """Cancel a task in one of the next turns of its loop."""
    queue = _leaving.setdefault(loop, deque())
    if not queue:
        loop.call_soon(_cancel_some, loop, queue, 1)  # cancelled when begun
    queue.append(task)


def _cancel_some(
    loop: asyncio.AbstractEventLoop, queue: deque[asyncio.Future[Any]], begun: int
) -> None:
    """Cancel some of the first tasks in the queue, so many of which have begun, and then others."""
    count = min(begun, CANCELLED_AT_ONCE)
    left = len(queue) - count
    if left:
        try:
            # By then those that are in the queue now have begun.
            loop.call_soon(_cancel_some, loop, queue, left)  # few cancelled at once
        except MemoryError:
            count += left  # all of them now
    for _ in range(count):
        queue.popleft().cancel()

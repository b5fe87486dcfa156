"""What policies' coroutines run in: a task of its own for each, and a time by which it is done.

Law
---
1. What an engine waits for comes to a decision by its deadline, whatever a coroutine does: one that
   is overdue is cancelled and not waited for, since it may not heed.
2. A coroutine is not cancelled before it has begun: it would warn that it never was.
3. However many sessions end at once, few coroutines are cancelled in one turn of the loop: each may
   have dozens of look-ups to let go of.
4. However many coroutines of messages can go on at once, few of them do in one turn of the loop:
   each step may walk over a header of 16,000 lines.

How it works
------------
Who asks a policy is a coroutine as well, but all it ever waits for is a `Wait`.  So it needs no
task: a `Job` drives it by hand, and goes on with it when the policy's own task has ended.

`Messages` declares what the steps for a message cost.  Each step of the policy's task (`paced`)
and each one that follows it by hand is charged to a `Pace` before it is made.
"""

from __future__ import annotations

from collections import deque
from types import coroutine
from weakref import WeakKeyDictionary

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision

    from .interfaces import Later
    from .pace import Pace

#: Coroutines that are cancelled in one turn of the loop.  One that waits for 50 look-ups takes half
#: a millisecond for it.
CANCELLED_AT_ONCE = 4
#: What is waited for in vain: it was not done in its time; it was cancelled before it began.
OVERDUE = object()
CANCELLED = object()


class Wait:
    """To be awaited by who is driven by a `Job`: what `work` returns, or OVERDUE, or CANCELLED.

    ``work`` raises nothing; it has so many ``seconds``.
    """

    __slots__ = ("seconds", "work")

    def __init__(self, work: Coroutine[Any, Any, object], seconds: float) -> None:
        self.work, self.seconds = work, seconds

    def __await__(self) -> Generator[Wait, object, object]:
        return (yield self)


def decide_at_once(work: Later) -> Decision:
    """Return what a coroutine comes to if all it waits for is cancelled before it begins."""
    said: object = None
    while True:
        try:
            wait: Wait = work.send(said)
        except StopIteration as end:
            decision: Decision = end.value
            return decision
        wait.work.close()
        said = CANCELLED


async def paced(work: Coroutine[Any, Any, object], pace: Pace, price: int) -> object:
    """Await a coroutine, each of whose steps waits until it is admitted.

    ``price``: what a step costs, in units of the ``pace``.  An exception that is thrown in while a
    step waits, as by a task that is cancelled, makes it at once.
    """
    return await _steps(work, pace, price)


@coroutine
def _steps(
    work: Coroutine[Any, Any, object], pace: Pace, price: int
) -> Generator[Any, Any, object]:
    step: Callable[[Any], Any] = work.send
    said: Any = None
    try:
        while True:
            if not pace.take(price):
                try:
                    yield from pace.queue(price)
                except BaseException as error:  # noqa: BLE001  # it is the coroutine's
                    step, said = work.throw, error
            try:
                waiting = step(said)
            except StopIteration as end:
                return end.value
            try:
                step, said = work.send, (yield waiting)
            except BaseException as error:  # noqa: BLE001  # it is the coroutine's
                step, said = work.throw, error
    finally:
        work.close()


class Job:
    """A coroutine that an engine waits for: ``done`` is told what it comes to.

    ``failed`` is told what it raises, which would be a bug of ours.  With a ``pace`` each step
    costs ``price`` of it.
    """

    __slots__ = ("_done", "_failed", "_loop", "_pace", "_price", "_task", "_timer", "_work")

    def __init__(  # noqa: PLR0913  # everything meets here
        self,
        loop: asyncio.AbstractEventLoop,
        work: Later,
        done: Callable[[Decision], None],
        failed: Callable[[BaseException], None],
        pace: Pace | None = None,
        price: int = 0,
    ) -> None:
        self._loop, self._work = loop, work
        self._done, self._failed = done, failed
        self._pace, self._price = pace, price
        #: What is waited for: the policy's task, or to be admitted.
        self._task: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._go_on(None)

    def cancel(self) -> None:
        """Give it up: nobody waits for it."""
        self._work.close()
        if (task := self._let_go()) is not None:
            _cancel_soon(self._loop, task)

    def _go_on(self, said: object) -> None:
        """Tell who asks what a policy said, until it has the next one to wait for."""
        try:
            wait: Wait = self._work.send(said)
        except StopIteration as end:
            done = self._done
            del self._done, self._failed  # they know of this job, and would keep it
            done(end.value)
        except BaseException as error:  # noqa: BLE001  # the client waits
            # Who has made this job is to have it before it is told.
            self._loop.call_soon(self._failed, error)
        else:
            try:
                self._timer = self._loop.call_later(wait.seconds, self._overdue)
                work = wait.work
                if self._pace is not None:
                    work = paced(work, self._pace, self._price)
                self._task = task = self._loop.create_task(work)
                task.add_done_callback(self._ended)
            except Exception as error:  # noqa: BLE001  # no memory, say; the client waits
                self._let_go()
                self._loop.call_soon(self._failed, error)
                wait.work.close()

    def _ended(self, task: asyncio.Task[object]) -> None:
        if task is self._task:
            self._let_go()
            if task.cancelled():
                self._go_on_admitted(CANCELLED)
            elif (error := task.exception()) is None:
                self._go_on_admitted(task.result())
            else:  # no memory for its first step, say; the client waits
                self._work.close()
                self._failed(error)

    def _overdue(self) -> None:
        if (task := self._let_go()) is not None:
            self._go_on_admitted(OVERDUE, task)

    def _go_on_admitted(self, said: object, overdue: asyncio.Future[Any] | None = None) -> None:
        """Go on when there is budget for it, and cancel what is ``overdue`` then."""
        pace = self._pace
        if pace is not None and not pace.take(self._price):
            try:
                self._task = admitted = pace.queue(self._price)
                admitted.add_done_callback(lambda admitted: self._admitted(admitted, said, overdue))
            except MemoryError:
                pass  # it costs what it costs
            else:
                return
        self._task = None
        if overdue is not None:
            overdue.cancel()
        self._go_on(said)

    def _admitted(
        self, admitted: asyncio.Future[None], said: object, overdue: asyncio.Future[Any] | None
    ) -> None:
        if overdue is not None:
            overdue.cancel()
        if admitted is self._task:  # it has not been given up
            self._task = None
            self._go_on(said)

    def _let_go(self) -> asyncio.Future[Any] | None:
        """Wait for the task no longer."""
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return task


#: The tasks of a loop that are to be cancelled.
_leaving: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Future[Any]]] = (
    WeakKeyDictionary()
)


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Future[Any]) -> None:
    """Cancel a task in one of the next turns of its loop."""
    queue = _leaving.setdefault(loop, deque())
    if not queue:
        loop.call_soon(_cancel_some, loop, queue, 1)  # law 2
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
            loop.call_soon(_cancel_some, loop, queue, left)  # law 3
        except MemoryError:
            count += left  # all of them now
    for _ in range(count):
        queue.popleft().cancel()

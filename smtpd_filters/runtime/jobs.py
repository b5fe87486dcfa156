"""What policies' coroutines run in: a task of its own for each, and a time by which it is done.

Law
---
1. What an engine waits for comes to a decision by its deadline, whatever a coroutine does: one that
   is overdue is cancelled and not waited for, since it may not heed.
2. A coroutine is not cancelled before it has begun: it would warn that it never was.
3. However many sessions end at once, few coroutines are cancelled in one turn of the loop: each may
   have dozens of look-ups to let go of.

How it works
------------
Who asks a policy is a coroutine as well, but all it ever waits for is a `Wait`.  So it needs no
task: a `Job` drives it by hand, and goes on with it when the policy's own task has ended.
"""

from __future__ import annotations

from collections import deque
from weakref import WeakKeyDictionary

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision

    from .policy import Later

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


class Job:
    """A coroutine that an engine waits for: ``done`` is told what it comes to.

    ``failed`` is told what it raises, which would be a bug of ours.
    """

    __slots__ = ("_done", "_failed", "_loop", "_task", "_timer", "_work")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Later,
        done: Callable[[Decision], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._loop, self._work = loop, work
        self._done, self._failed = done, failed
        self._task: asyncio.Task[object] | None = None
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
                self._task = task = self._loop.create_task(wait.work)
                task.add_done_callback(self._ended)
            except Exception as error:  # noqa: BLE001  # no memory, say; the client waits
                self._let_go()
                self._loop.call_soon(self._failed, error)
                wait.work.close()

    def _ended(self, task: asyncio.Task[object]) -> None:
        if task is self._task:
            self._let_go()
            self._go_on(CANCELLED if task.cancelled() else task.result())

    def _overdue(self) -> None:
        if (task := self._let_go()) is not None:
            task.cancel()
            self._go_on(OVERDUE)

    def _let_go(self) -> asyncio.Task[object] | None:
        """Wait for the task no longer."""
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return task


#: The tasks of a loop that are to be cancelled.
_leaving: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Task[object]]] = (
    WeakKeyDictionary()
)


def _cancel_soon(loop: asyncio.AbstractEventLoop, task: asyncio.Task[object]) -> None:
    """Cancel a task in one of the next turns of its loop."""
    queue = _leaving.setdefault(loop, deque())
    if not queue:
        loop.call_soon(_cancel_some, loop, queue)  # law 2
    queue.append(task)


def _cancel_some(loop: asyncio.AbstractEventLoop, queue: deque[asyncio.Task[object]]) -> None:
    count = len(queue)
    if count > CANCELLED_AT_ONCE:
        try:
            loop.call_soon(_cancel_some, loop, queue)  # law 3
            count = CANCELLED_AT_ONCE
        except MemoryError:
            pass  # all of them now
    for _ in range(count):
        queue.popleft().cancel()

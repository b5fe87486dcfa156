"""Driver for the first step of a coroutine, so that a coroutine which never waits needs no task.

Code in that step may ask for the current task (`asyncio.timeout` does, to cancel it later). It gets
a `StandIn`, which forwards everything to the task once there is one. If the code keeps the
stand-in, that is the current task of all later steps, too: some libraries compare the two (anyio's
cancel scopes). asyncio documents `_enter_task` and `_leave_task` for code that runs coroutines in
its own way ("Extending").
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from sys import getrefcount

from .coroutines import Suspended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

#: References to a `StandIn` that no code has kept: a local variable, and an argument.
UNSHARED = 2


def first_step(work: Coroutine[Any, Any, object]) -> object:
    """Return the result of a coroutine, or `Suspended` if it waits.  Raise what it raises.

    To be called in a running event loop. The current task, if any, is restored afterwards.
    """
    loop = asyncio.get_running_loop()
    outer = asyncio.current_task(loop)
    stand_in: Any = StandIn()
    context = copy_context()
    # The watchdog may interrupt at any point here: whatever has been entered is left.
    try:
        if outer is not None:
            asyncio._leave_task(loop, outer)  # noqa: SLF001  # as documented
        asyncio._enter_task(loop, stand_in)  # noqa: SLF001  # as documented
        waiting = context.run(work.send, None)
    except StopIteration as end:
        return end.value
    finally:
        try:
            asyncio._leave_task(loop, stand_in)  # noqa: SLF001  # as documented
        except RuntimeError:  # it was not entered
            pass
        finally:
            if outer is not None:
                asyncio._enter_task(loop, outer)  # noqa: SLF001  # as documented
    stand_in.kept = getrefcount(stand_in) > UNSHARED
    if getattr(waiting, "_asyncio_future_blocking", False):
        # `await` sets it and a task clears it at once: while set, nothing else can await this.
        waiting._asyncio_future_blocking = False  # noqa: SLF001
    return Suspended(work, waiting, context, stand_in)


class StandIn:
    """The current task of a first step; records requests to cancel, and needs a task for others."""

    __slots__ = ("__weakref__", "_cancelled", "_task", "kept")

    def __init__(self) -> None:
        #: Whether code of the first step has kept it.
        self.kept = False
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = 0

    def replace(self, task: asyncio.Task[Any]) -> None:
        """Forward everything to the task that takes the remaining steps."""
        self._task = task
        for _ in range(self._cancelled):
            task.cancel()

    def take(self, step: Callable[[Any], object], argument: object) -> object:
        """Take a step of its task as the current task."""
        stand_in: Any = self
        task: Any = self._task
        loop = task.get_loop()
        try:
            asyncio._leave_task(loop, task)  # noqa: SLF001  # as documented
            asyncio._enter_task(loop, stand_in)  # noqa: SLF001  # as documented
            return step(argument)
        finally:
            try:
                asyncio._leave_task(loop, stand_in)  # noqa: SLF001  # as documented
            except RuntimeError:  # it was not entered
                pass
            finally:
                asyncio._enter_task(loop, task)  # noqa: SLF001  # as documented

    def cancel(self, msg: object = None) -> bool:
        """Cancel the task, as soon as there is one."""
        if self._task is not None:
            return self._task.cancel(msg)
        self._cancelled += 1
        return True

    def cancelling(self) -> int:
        """Return the number of pending requests to cancel."""
        return self._cancelled if self._task is None else self._task.cancelling()

    def uncancel(self) -> int:
        """Withdraw a request to cancel; return how many remain."""
        if self._task is not None:
            return self._task.uncancel()
        self._cancelled = max(self._cancelled - 1, 0)
        return self._cancelled

    def done(self) -> bool:
        """Return whether the coroutine has finished."""
        return self._task is not None and self._task.done()

    def cancelled(self) -> bool:
        """Return whether the coroutine was cancelled."""
        return self._task is not None and self._task.cancelled()

    def get_name(self) -> str:
        """Return the name of the task."""
        return "first step" if self._task is None else self._task.get_name()

    def __getattr__(self, name: str) -> Any:
        if self._task is None:
            raise AttributeError(f"{name}: this coroutine has not waited yet, so it has no task")
        return getattr(self._task, name)

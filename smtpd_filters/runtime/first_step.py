"""Driver for the first step of a coroutine, so that a coroutine which never waits needs no task.

Code in that step may ask for the current task (`asyncio.timeout` does, to cancel it later). It gets
a `StandIn`, which passes for a task: it is an instance of `asyncio.Task` for `isinstance`, does
what a task can do before its first step, and forwards everything to the task once there is one.
What it lacks raises AttributeError with the line to write. If the code keeps the
stand-in, that is the current task of all later steps, too: some libraries compare the two (anyio's
cancel scopes). asyncio documents `_enter_task` and `_leave_task` for code that runs coroutines in
its own way ("Extending").
"""

from __future__ import annotations

import asyncio
from asyncio import current_task, get_running_loop
from contextvars import Context, copy_context
from sys import getrefcount

from .coroutines import Raised, Suspended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from typing import Any

#: References to a `StandIn` that no code has kept: a local variable, and an argument.
UNSHARED = 2


def first_step(work: Coroutine[Any, Any, object]) -> object:
    """Return the result of a coroutine, or `Suspended` if it waits.  Raise what it raises.

    To be called in a running event loop. The current task, if any, is restored afterwards.
    """
    loop = get_running_loop()
    outer = current_task(loop)
    stand_in: Any = StandIn(work)
    context = copy_context()
    # The watchdog may interrupt at any point here: whatever has been entered is left.
    try:
        _replace(loop, outer, stand_in)
        waiting = context.run(work.send, None)
    except StopIteration as end:
        return _finished(stand_in, end.value)
    except BaseException as error:
        _failed(stand_in, error)
        raise
    finally:
        _restore(loop, stand_in, outer)
    stand_in.kept = getrefcount(stand_in) > UNSHARED
    _unblock(waiting)
    return Suspended(work, waiting, context, stand_in)


def _finished(stand_in: Any, result: object) -> object:
    if stand_in.watched is not None:
        stand_in.finish(result)
    return result


def _failed(stand_in: Any, error: BaseException) -> None:
    if stand_in.watched is not None:
        stand_in.finish(Raised(error))


def _replace(
    loop: asyncio.AbstractEventLoop, outer: asyncio.Task[Any] | None, stand_in: Any
) -> None:
    """Make a stand-in the current task."""
    if outer is not None:
        asyncio._leave_task(loop, outer)  # noqa: SLF001  # as documented
    asyncio._enter_task(loop, stand_in)  # noqa: SLF001  # as documented


def _unblock(waiting: Any) -> None:
    if getattr(waiting, "_asyncio_future_blocking", False):
        # `await` sets it and a task clears it at once: while set, nothing else can await this.
        waiting._asyncio_future_blocking = False  # noqa: SLF001


def _restore(
    loop: asyncio.AbstractEventLoop, stand_in: Any, outer: asyncio.Task[Any] | None
) -> None:
    """Make `outer` the current task again."""
    try:
        asyncio._leave_task(loop, stand_in)  # noqa: SLF001  # as documented
    except RuntimeError:  # it was not entered
        pass
    finally:
        if outer is not None:
            asyncio._enter_task(loop, outer)  # noqa: SLF001  # as documented


class _Watched:
    """What code has asked of a stand-in before there is a task."""

    __slots__ = ("callbacks", "name", "outcome")

    def __init__(self) -> None:
        self.name = ""
        self.callbacks: list[tuple[Callable[[Any], object], Context | None]] = []
        #: The result of a coroutine that has finished in its first step, in a tuple.
        self.outcome: tuple[object] | None = None


class _Told:
    """A callback of a stand-in, for its task; equal to others of the same callback."""

    def __init__(self, stand_in: StandIn, callback: Callable[[Any], object]) -> None:
        self._stand_in, self._callback = stand_in, callback

    def __call__(self, _task: object) -> None:
        self._callback(self._stand_in)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Told) and self._callback == other._callback

    def __hash__(self) -> int:
        return hash(self._callback)


class StandIn:
    """The current task of a first step; records requests for its task."""

    __slots__ = ("__weakref__", "_cancelled", "_task", "_work", "kept", "watched")

    #: As of a task, for `asyncio.isfuture`.
    _asyncio_future_blocking = False

    def __init__(self, work: Coroutine[Any, Any, object]) -> None:
        #: Whether code of the first step has kept it.
        self.kept = False
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = 0
        self.watched: _Watched | None = None

    # Some libraries require an instance.
    __class__ = property(lambda _: asyncio.Task)

    def replace(self, task: asyncio.Task[Any]) -> None:
        """Forward everything to the task that takes the remaining steps."""
        self._task = task
        for _ in range(self._cancelled):
            task.cancel()
        if (watched := self.watched) is not None:
            self.watched = None
            if watched.name:
                task.set_name(watched.name)
            for callback, context in watched.callbacks:
                self.add_done_callback(callback, context=context)

    def finish(self, result: object) -> None:
        """Note that the coroutine has finished in its first step; `Raised` if it has raised."""
        watched = self._watch()
        watched.outcome = (result,)
        for callback, context in watched.callbacks:
            asyncio.get_running_loop().call_soon(callback, self, context=context)

    def take(self, step: Callable[[Any], object], argument: object) -> object:
        """Take a step of its task as the current task."""
        stand_in: Any = self
        task: Any = self._task
        loop = task.get_loop()
        if current_task(loop) is not task:
            # The garbage collector closes the coroutine, in any step or in none: asyncio runs no
            # other task after this one has been entered.
            return step(argument)
        try:
            _replace(loop, task, stand_in)
            return step(argument)
        finally:
            _restore(loop, stand_in, task)

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
        if self._task is not None:
            return self._task.done()
        return self.watched is not None and self.watched.outcome is not None

    def cancelled(self) -> bool:
        """Return whether the coroutine was cancelled."""
        return self._task is not None and self._task.cancelled()

    def result(self) -> object:
        """Return the result of the coroutine.  Raise what it raised, or InvalidStateError."""
        result: object
        if self._task is not None:
            result = self._task.result()
        elif self.watched is not None and self.watched.outcome is not None:
            (result,) = self.watched.outcome
        else:
            raise asyncio.InvalidStateError("Result is not set.")
        if type(result) is Raised:
            raise result.error
        return result

    def exception(self) -> BaseException | None:
        """Return what the coroutine raised, or None.  Raise InvalidStateError or CancelledError."""
        if not self.done():
            raise asyncio.InvalidStateError("Exception is not set.")
        try:
            self.result()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # it is the result
            return error
        return None

    def add_done_callback(
        self, callback: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """Have `callback` called with this object when the coroutine has finished."""
        if self._task is not None:
            self._task.add_done_callback(_Told(self, callback), context=context)
        elif self.done():
            asyncio.get_running_loop().call_soon(callback, self, context=context)
        else:
            self._watch().callbacks.append((callback, context or copy_context()))

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        """Remove a callback; return how often it was there."""
        if self._task is not None:
            return self._task.remove_done_callback(_Told(self, callback))
        if self.watched is None:
            return 0
        every = self.watched.callbacks
        self.watched.callbacks = left = [each for each in every if each[0] != callback]
        return len(every) - len(left)

    def __await__(self) -> Generator[Any, Any, object]:
        finished = asyncio.get_running_loop().create_future()

        def finish(_: object) -> None:
            if not finished.done():  # cancelled
                finished.set_result(None)

        self.add_done_callback(finish)
        yield from finished
        return self.result()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        return asyncio.get_running_loop()

    def get_coro(self) -> Coroutine[Any, Any, object]:
        """Return the coroutine."""
        return self._work

    def get_name(self) -> str:
        """Return the name of the task."""
        if self._task is not None:
            return self._task.get_name()
        return (self.watched.name if self.watched is not None else "") or "first step"

    def set_name(self, name: object) -> None:
        """Set the name of the task."""
        if self._task is None:
            self._watch().name = str(name)
        else:
            self._task.set_name(name)

    def _watch(self) -> _Watched:
        if self.watched is None:
            self.watched = _Watched()
        return self.watched

    def __getattr__(self, name: str) -> Any:
        if self._task is None:
            raise AttributeError(
                f"{name}: this coroutine has not waited yet, so it has no task; "
                'write "await asyncio.sleep(0)" before'
            )
        return getattr(self._task, name)

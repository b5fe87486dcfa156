"""Coroutines of policies after their first step, and the work that awaits them.

Every filter's process loads this; what drives it on asyncio is in `first_step` and `jobs`.

A `Pending` is work of the framework (`guard`, `chain`) that waits for a policy. It awaits nothing
but a `Wait`, so it needs no task: a `jobs.Job` drives it by hand, and resumes it when the policy's
own task has ended.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from contextvars import Context
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision

    from .first_step import StandIn

#: In place of a result: the deadline has passed; the coroutine was cancelled.
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
    """Awaited by the work of a `Pending`: the result of a coroutine, or Raised, OVERDUE, CANCELLED.

    The coroutine has so many `seconds` left.
    """

    __slots__ = ("seconds", "suspended")

    def __init__(self, suspended: Suspended, seconds: float) -> None:
        self.suspended, self.seconds = suspended, seconds

    def __await__(self) -> Generator[Wait, object, object]:
        return (yield self)


class Pending:
    """Work that awaits its next `Wait`; awaited itself, it goes on to its decision."""

    __slots__ = ("wait", "work")

    def __init__(self, work: Coroutine[Any, Any, Decision], wait: Wait) -> None:
        self.work, self.wait = work, wait

    def __await__(self) -> Generator[Wait, object, Decision]:
        result: object = yield self.wait
        while True:
            try:
                wait: Wait = self.work.send(result)
            except StopIteration as end:
                decision: Decision = end.value
                return decision
            result = yield wait


def begin(work: Coroutine[Any, Any, Decision]) -> Decision | Pending:
    """Run work of the framework until it waits: its decision if it doesn't."""
    try:
        wait: Wait = work.send(None)
    except StopIteration as end:
        decision: Decision = end.value
        return decision
    return Pending(work, wait)


def decide_at_once(pending: Pending) -> Decision:
    """Return the decision of pending work when everything that it awaits is cancelled.

    The work itself closes the coroutine of a `Wait`.
    """
    while True:
        try:
            pending.work.send(CANCELLED)
        except StopIteration as end:
            decision: Decision = end.value
            return decision

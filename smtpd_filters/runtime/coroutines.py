"""Coroutines of policies after their first step, and the framework's work that awaits them.

Every filter's process loads this module; `first_step` and `jobs` drive these types on asyncio.

A `Pending` is work of the framework (`guard`, `chain`) that awaits a policy. It awaits nothing but
a `Wait`, so it needs no task: a `jobs.Job` drives it by hand, and resumes it after the policy's own
task has ended.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from contextvars import Context
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision

    from .first_step import StandIn

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

    The result may be `Raised`, OVERDUE or CANCELLED. `seconds` is the time left until the deadline.
    """

    __slots__ = ("seconds", "suspended")

    def __init__(self, suspended: Suspended, seconds: float) -> None:
        self.suspended, self.seconds = suspended, seconds

    def __await__(self) -> Generator[Wait, object, object]:
        return (yield self)


class Pending:
    """Work that awaits its next `Wait`; awaiting it runs it to its decision."""

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

"""Coroutines of policies are driven to a decision, whatever fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from smtpd_filters.protocol.decisions import PROCEED, Decision
from smtpd_filters.runtime import jobs
from smtpd_filters.runtime.coroutines import (
    CANCELLED,
    OVERDUE,
    Pending,
    Raised,
    Suspended,
    Wait,
    begin,
    decide_at_once,
)
from smtpd_filters.runtime.first_step import first_step
from smtpd_filters.runtime.jobs import CANCELLED_AT_ONCE, CANCELLING, Job, _cancel_some
from smtpd_filters.runtime.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Coroutine


async def answer() -> object:
    await asyncio.sleep(0)
    return PROCEED


async def hang() -> object:
    await asyncio.Event().wait()
    return PROCEED


def suspended(work: Coroutine[Any, Any, object]) -> Suspended:
    result = first_step(work)
    assert isinstance(result, Suspended)
    return result


def pending(work: Coroutine[Any, Any, Decision]) -> Pending:
    result = begin(work)
    assert isinstance(result, Pending)
    return result


async def ask(work: Coroutine[Any, Any, object], seconds: float = 10.0) -> Decision:
    result: Any = await Wait(suspended(work), seconds)
    assert result is not OVERDUE
    return result  # type: ignore[no-any-return]  # what `work` returns


def drive(work: Coroutine[Any, Any, Decision]) -> object:
    """Return the result of a job: a decision, or what was raised."""

    async def driven() -> object:
        told: asyncio.Future[object] = loop.create_future()
        Job(loop, pending(work), told.set_result, told.set_result)
        return await told

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(driven())
    finally:
        loop.close()


def test_it_makes_a_decision() -> None:
    assert drive(ask(answer())) is PROCEED


def test_an_overdue_coroutine_is_not_waited_for() -> None:
    assert isinstance(drive(ask(hang(), 0.01)), AssertionError)


def fail_to_make_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    make = asyncio.BaseEventLoop.create_task

    def fails(loop: Any, work: Any, **names: Any) -> Any:
        if work.__name__ == "_rest":
            raise MemoryError
        return make(loop, work, **names)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_task", fails)


def test_a_failure_to_make_a_task_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_make_tasks(monkeypatch)
    raised = drive(ask(answer()))
    assert type(raised) is Raised
    assert isinstance(raised.error, MemoryError)


def test_a_task_that_cannot_be_made_may_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_make_tasks(monkeypatch)
    told: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        Job(loop, pending(ask(answer())), told.append, told.append).cancel()
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert told == []


@pytest.mark.parametrize("second", [False, True])
def test_without_memory_for_a_callback_either(
    monkeypatch: pytest.MonkeyPatch, *, second: bool
) -> None:
    """The first time it is the engine's, which has no job yet; then the work is resumed at once."""
    told: list[object] = []

    async def twice() -> Any:
        await Wait(suspended(answer()), 10.0)
        fail()
        return await Wait(suspended(answer()), 10.0)

    def fail() -> None:
        fail_to_make_tasks(monkeypatch)
        soon = asyncio.BaseEventLoop.call_soon

        def fails(loop: Any, callback: Any, *arguments: Any, **names: Any) -> Any:
            if getattr(callback, "__name__", "") == "_resume":
                raise MemoryError
            return soon(loop, callback, *arguments, **names)

        monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon", fails)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        if second:
            Job(loop, pending(twice()), told.append, told.append)
            for _ in range(5):
                await asyncio.sleep(0)
            [raised] = told
            assert type(raised) is Raised
        else:
            fail()
            with pytest.raises(MemoryError):
                Job(loop, pending(ask(answer())), told.append, told.append)
            assert told == []

    asyncio.run(main())


def test_work_decided_at_once_is_cancelled_at_every_wait() -> None:
    async def twice() -> Decision:
        for _ in range(2):
            hanging = suspended(hang())
            assert await Wait(hanging, 10.0) is CANCELLED
            hanging.work.close()
        return PROCEED

    async def main() -> None:
        assert decide_at_once(pending(twice())) is PROCEED

    asyncio.run(main())


def test_pending_work_is_closed_with_what_awaits_it() -> None:
    ended: list[str] = []

    async def inner() -> Decision:
        try:
            return await ask(hang())
        finally:
            ended.append("inner")

    async def main() -> None:
        # The traceback of an error, say, may refer to it after the end.
        awaited = pending(inner())

        async def outer() -> Decision:
            return await awaited

        told: list[object] = []
        Job(asyncio.get_running_loop(), pending(outer()), told.append, told.append).cancel()
        assert ended == ["inner"]
        assert told == []

    asyncio.run(main())


def test_pending_work_may_be_awaited_by_other_work() -> None:
    async def inner() -> Decision:
        for _ in range(2):
            await Wait(suspended(answer()), 10.0)
        return PROCEED

    async def outer() -> Decision:
        return await pending(inner())

    assert drive(outer()) is PROCEED


@pytest.mark.parametrize("short_of_memory", [False, True])
@pytest.mark.parametrize(
    ("seconds", "at_once"), [(CANCELLING / 4, 4), (10.0, 1), (0.0, CANCELLED_AT_ONCE)]
)
def test_many_are_cancelled_for_a_short_time_in_each_turn(
    monkeypatch: pytest.MonkeyPatch, seconds: float, at_once: int, *, short_of_memory: bool
) -> None:
    """`seconds` is how long one of them takes."""
    ended: list[int] = []
    turn = 0
    now = 0.0

    def cancel(*arguments: Any) -> None:
        nonlocal now
        now += seconds
        cancelled(*arguments)

    cancelled = jobs._cancel
    monkeypatch.setattr(jobs, "_cancel", cancel)
    monkeypatch.setattr(jobs, "monotonic", lambda: now)

    async def wait() -> object:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(turn)
        return PROCEED

    async def main() -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()
        many = [Job(loop, pending(ask(wait())), lambda _: None, lambda _: None) for _ in range(50)]
        await asyncio.sleep(0)
        for job in many:
            job.cancel()
        if short_of_memory:
            soon = asyncio.BaseEventLoop.call_soon

            def fails(loop: Any, callback: Any, *arguments: Any, **names: Any) -> Any:
                if callback is _cancel_some:
                    raise MemoryError
                return soon(loop, callback, *arguments, **names)

            monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon", fails)
        for _ in range(50):
            turn += 1
            await asyncio.sleep(0)

    asyncio.run(main())
    assert len(ended) == 50
    most = max(map(ended.count, ended))
    # The first one may end in the same turn as those after it.
    assert most in ({50} if short_of_memory else {at_once, at_once + 1})


#: The price of a step, and the budget of a turn.
PRICE, TURN, STEPS = 10, 40, 4


class Paced:
    """Jobs that share a pace, and what they do in each turn of the loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pace = Pace(TURN)
        self.told: list[object] = []
        #: How many steps of tasks, and by hand, were made in each turn.
        self.tasks = [0]
        self.hands = [0]
        self._handle = self.loop.call_soon(self._next)

    def _next(self) -> None:
        self.tasks.append(0)
        self.hands.append(0)
        self._handle = self.loop.call_soon(self._next)

    def close(self) -> None:
        self._handle.cancel()

    def start(self, work: Coroutine[Any, Any, object], seconds: float = 10.0) -> Job:
        return Job(
            self.loop,
            pending(self._ask(work, seconds)),
            self.told.append,
            self.told.append,
            self.pace,
            PRICE,
        )

    async def _ask(self, work: Coroutine[Any, Any, object], seconds: float) -> Any:
        said = await Wait(suspended(work), seconds)
        self.hands[-1] += 1
        return said

    async def until(self, count: int) -> None:
        for _ in range(10_000):
            if len(self.told) >= count:
                return
            await asyncio.sleep(0)
        raise AssertionError(self.told)


def test_few_coroutines_of_messages_go_on_in_one_turn() -> None:
    async def main() -> None:
        paced, event = Paced(), asyncio.Event()

        async def work(number: int) -> object:
            paced.tasks[-1] += 1
            await event.wait()
            paced.tasks[-1] += 1
            await asyncio.sleep(0)
            paced.tasks[-1] += 1
            return number

        for number in range(100):
            paced.start(work(number))
        for _ in range(60):
            await asyncio.sleep(0)
        assert sum(paced.tasks) == 100
        event.set()
        await paced.until(100)
        paced.close()
        assert sum(paced.tasks) == 300
        assert paced.told == list(range(100))
        # What is admitted in a turn may be done in that turn or the next.
        # Their first steps are those of the turn that has begun them (`Messages.work`).
        assert max(paced.tasks[1:]) <= 2 * STEPS
        assert max(paced.hands) <= 2 * STEPS

    asyncio.run(main())


def test_a_coroutine_overdue_while_a_step_waits_is_cancelled() -> None:
    ended: list[str] = []

    async def main() -> None:
        paced = Paced()

        async def work() -> object:
            try:
                await asyncio.sleep(0)
                ended.append("edited")
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            return PROCEED

        paced.start(work(), 0.0)
        # Other work uses up the budget of each turn.
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(paced.pace.admit(TURN)) for _ in range(10)]
        await paced.until(1)
        await asyncio.gather(*others)
        for _ in range(5):
            await asyncio.sleep(0)
        paced.close()
        assert paced.told == [OVERDUE]

    asyncio.run(main())
    assert ended == ["cancelled"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("turns", range(12))
def test_a_message_may_be_given_up_at_any_time(turns: int) -> None:
    async def main() -> None:
        paced = Paced()

        async def work() -> object:
            await asyncio.sleep(0)
            return PROCEED

        paced.pace.take(TURN)
        others = [paced.pace.queue(TURN) for _ in range(2)]
        job = paced.start(work())
        others += [paced.pace.queue(TURN) for _ in range(2)]
        for _ in range(turns):
            await asyncio.sleep(0)
        told = list(paced.told)
        if not told:
            job.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        paced.close()
        assert all(other.done() for other in others)
        assert paced.told == told
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_no_task_is_cancelled_before_it_has_begun() -> None:
    """Not even one that is given up in the round in which it was made, behind another one."""
    begun = []

    async def policy(name: str) -> object:
        begun.append(name)
        await asyncio.Event().wait()
        raise AssertionError

    async def asked(name: str) -> Decision:
        await Wait(suspended(policy(name)), 10)
        raise AssertionError

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for name in ("one", "two", "three"):
            job = Job(loop, pending(asked(name)), begun.append, begun.append)  # type: ignore[arg-type]
            job.cancel()
        for _ in range(8):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert begun == ["one", "two", "three"]


def test_a_task_cancelled_by_foreign_code_is_reported() -> None:
    async def main() -> None:
        paced = Paced()
        before = asyncio.all_tasks()
        paced.start(hang())
        [task] = asyncio.all_tasks() - before
        await asyncio.sleep(0)
        task.cancel()
        await paced.until(1)
        paced.close()
        [raised] = paced.told
        assert type(raised) is Raised
        assert isinstance(raised.error, asyncio.CancelledError)

    asyncio.run(main())


@pytest.mark.parametrize("error", [asyncio.CancelledError, ValueError, SystemExit])
def test_a_failure_at_the_end_is_reported(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """There is no memory for its step, and its own clean-up raises."""

    async def main() -> None:
        paced = Paced()

        async def work() -> object:
            try:
                await asyncio.Event().wait()
            finally:
                raise error

        def fails(_work: int) -> Any:
            raise MemoryError

        paced.start(work())
        await asyncio.sleep(0)
        [task] = asyncio.all_tasks() - {asyncio.current_task()}
        monkeypatch.setattr(paced.pace, "take", fails)
        task.cancel()
        await asyncio.wait([task])
        monkeypatch.undo()
        await paced.until(1)
        paced.close()
        [told] = paced.told
        assert told is CANCELLED if error is asyncio.CancelledError else type(told) is error

    try:
        asyncio.run(main())
    except SystemExit:  # it ends a loop; `aio` goes on
        assert error is SystemExit


def test_an_error_of_an_awaited_future_raises_in_the_coroutine() -> None:
    async def main() -> None:
        paced = Paced()

        async def work() -> object:
            try:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            except TimeoutError:
                return "late"
            return PROCEED

        paced.start(work())
        await paced.until(1)
        paced.close()
        assert paced.told == ["late"]

    asyncio.run(main())


def test_without_memory_for_a_wait_it_resumes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        paced, event = Paced(), asyncio.Event()

        async def work() -> object:
            try:
                await event.wait()
            except MemoryError as error:
                return type(error)
            return PROCEED

        paced.start(work())
        await asyncio.sleep(0)

        def fails(_work: int) -> Any:
            raise MemoryError

        monkeypatch.setattr(paced.pace, "take", lambda _work: not event.is_set())
        monkeypatch.setattr(paced.pace, "queue", fails)
        event.set()
        await paced.until(1)
        paced.close()
        # It is raised where the coroutine waits for its step.
        assert paced.told == [MemoryError]

    asyncio.run(main())


def test_an_error_of_the_work_is_reported() -> None:
    async def work() -> object:
        await asyncio.sleep(0)
        raise MemoryError

    raised = drive(ask(work()))
    assert type(raised) is Raised
    assert isinstance(raised.error, MemoryError)


def test_an_overdue_coroutine_is_cancelled_even_if_its_job_is_dropped() -> None:
    async def main() -> None:
        paced = Paced()
        job = paced.start(hang())
        await asyncio.sleep(0)
        # The turn is used up when the deadline passes.
        while paced.pace.take(PRICE):
            pass
        job._overdue()
        job._overdue()
        job.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        paced.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert paced.told == []

    asyncio.run(main())


def test_overdue_work_resumes_when_there_is_budget() -> None:
    async def main() -> None:
        paced = Paced()
        job = paced.start(hang())
        await asyncio.sleep(0)
        while paced.pace.take(PRICE):
            pass
        job._overdue()
        assert paced.told == []
        await paced.until(1)
        paced.close()
        assert paced.told == [OVERDUE]

    asyncio.run(main())


@pytest.mark.parametrize("late", [False, True])
def test_without_memory_for_the_queue_it_resumes_at_once(
    monkeypatch: pytest.MonkeyPatch, *, late: bool
) -> None:
    async def main() -> None:
        paced = Paced()
        job = paced.start(hang() if late else answer())

        def fails(_work: int) -> Any:
            raise MemoryError

        for _ in range(2):  # it has had its steps
            await asyncio.sleep(0)
        monkeypatch.setattr(paced.pace, "take", lambda _work: False)
        monkeypatch.setattr(paced.pace, "queue", fails)
        if late:
            job._overdue()
        await paced.until(1)
        paced.close()
        assert paced.told == [OVERDUE if late else PROCEED]

    asyncio.run(main())


class Uncancellable(asyncio.Future[None]):
    """A future of a policy whose own `cancel` raises."""

    error: BaseException
    made: ClassVar[list[Uncancellable]] = []

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002  # of the base class
        raise self.error


RAISES = pytest.mark.parametrize("error", [ValueError(), SystemExit(3), KeyboardInterrupt()])


def uncancellable(error: BaseException) -> Uncancellable:
    future = Uncancellable()
    future.error = error
    future.made.append(future)
    return future


async def resolve() -> None:
    """Let the coroutines end that await such futures."""
    while Uncancellable.made:
        Uncancellable.made.pop().set_result(None)
    for _ in range(5):
        await asyncio.sleep(0)


@RAISES
@pytest.mark.parametrize("paced", [False, True])
def test_overdue_work_resumes_if_what_it_awaits_cannot_be_cancelled(
    error: BaseException, *, paced: bool
) -> None:
    logged: list[dict[str, Any]] = []

    async def main() -> None:
        pace = Paced()
        pace.loop.set_exception_handler(lambda _loop, context: logged.append(context))

        async def work() -> object:
            await uncancellable(error)
            return PROCEED

        job = pace.start(work())
        await asyncio.sleep(0)
        while paced and pace.pace.take(PRICE):
            pass
        job._overdue()
        await pace.until(1)
        pace.close()
        await resolve()
        assert pace.told == [OVERDUE]

    asyncio.run(main())
    assert logged[0]["exception"] is error


@RAISES
def test_a_failure_to_cancel_ends_no_other_cancelling(error: BaseException) -> None:
    ended: list[int] = []
    cancelled: set[int] = set()
    logged: list[dict[str, Any]] = []

    async def main() -> None:
        pace = Paced()
        pace.loop.set_exception_handler(lambda _loop, context: logged.append(context))

        async def work(number: int) -> object:
            try:
                await (asyncio.sleep(3600) if number % 4 else uncancellable(error))
            finally:
                ended.append(number)
            return PROCEED

        for first in (0, 20):  # the second time the queue was empty between
            jobs = [pace.start(work(number)) for number in range(first, first + 20)]
            for _ in range(20):
                await asyncio.sleep(0)
            for job in jobs:
                job.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
        pace.close()
        cancelled.update(ended)
        await resolve()

    asyncio.run(main())
    assert cancelled == {number for number in range(40) if number % 4}
    assert [context["exception"] for context in logged[:10]] == [error] * 10


@RAISES
def test_whatever_a_task_factory_raises_is_reported(error: BaseException) -> None:
    async def main() -> None:
        paced = Paced()

        def fails(_loop: Any, _work: Any, **_names: Any) -> Any:
            raise error

        paced.loop.set_task_factory(fails)
        paced.start(answer())
        paced.loop.set_task_factory(None)
        await paced.until(1)
        paced.close()
        [raised] = paced.told
        assert type(raised) is Raised
        assert raised.error is error

    asyncio.run(main())

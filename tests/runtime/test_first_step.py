"""The first step of a coroutine by hand, and the others in a task: with no visible difference."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.protocol.decisions import PROCEED, Decision
from smtpd_filters.runtime.coroutines import CANCELLED, Pending, Raised, Suspended, Wait, begin
from smtpd_filters.runtime.first_step import StandIn, first_step
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.watchdog import OverdueError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = pytest.mark.filterwarnings("error")


async def waited(suspended: Suspended) -> Decision:
    result: Any = await Wait(suspended, 10.0)
    return result  # type: ignore[no-any-return]  # what the coroutine returns


def in_loop(call: Callable[[], object]) -> Any:
    """Return the result of a function that is called as the engine is: in a loop, outside a task.

    If it is a coroutine that suspends, return the result of its job.
    """

    async def main() -> object:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[object] = loop.create_future()

        def callback() -> None:
            try:
                returned = call()
            except BaseException as error:  # noqa: BLE001  # it is what a test looks at
                result.set_result(Raised(error))
                return
            if isinstance(returned, Suspended):
                pending = begin(waited(returned))
                assert isinstance(pending, Pending)
                Job(loop, pending, result.set_result, result.set_result)
            else:
                result.set_result(returned)

        loop.call_soon(callback)
        returned = await result
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        return returned

    return asyncio.run(main())


def run(work: Callable[[], Coroutine[Any, Any, object]]) -> Any:
    """Return what comes of a coroutine; `Raised` if it raises."""
    return in_loop(lambda: first_step(work()))


def test_a_coroutine_that_never_waits_costs_no_task() -> None:
    tasks: list[object] = []

    async def policy() -> object:
        return PROCEED

    def call() -> object:
        before = asyncio.all_tasks()
        result = first_step(policy())
        tasks.extend(asyncio.all_tasks() - before)
        assert asyncio.current_task() is None
        return result

    assert in_loop(call) is PROCEED
    assert tasks == []


@pytest.mark.parametrize("seconds", [0, 0.001])
def test_a_time_out_that_is_entered_in_the_first_step(seconds: float) -> None:
    async def policy() -> object:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            task = asyncio.current_task()
            assert task is not None
            return "late", task.cancelling()
        return PROCEED

    assert run(policy) == ("late", 0)


def test_a_time_out_that_does_not_pass() -> None:
    async def policy() -> object:
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        async with asyncio.timeout(10):  # noqa: ASYNC100  # that is the point
            pass
        return "done"

    assert run(policy) == "done"


def test_a_time_out_without_a_wait() -> None:
    async def policy() -> object:
        async with asyncio.timeout(10):  # noqa: ASYNC100  # that is the point
            pass
        return "done"

    assert run(policy) == "done"


@pytest.mark.parametrize("seconds", [0.001, 10])
def test_wait_for_in_the_first_step(seconds: float) -> None:
    async def hang() -> str:
        if seconds < 1:
            await asyncio.Event().wait()
        return "done"

    async def policy() -> object:
        try:
            return await asyncio.wait_for(hang(), seconds)
        except TimeoutError:
            return "late"

    assert run(policy) == ("late" if seconds < 1 else "done")


@pytest.mark.parametrize("fails", [False, True])
def test_a_task_group_that_is_entered_in_the_first_step(*, fails: bool) -> None:
    async def part(number: int) -> int:
        await asyncio.sleep(0)
        if fails and number:
            raise ValueError
        return number

    async def policy() -> object:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part(number)) for number in range(3)]
                if fails:
                    await asyncio.Event().wait()
        except* ValueError as errors:
            return_value = len(errors.exceptions)
        else:
            return_value = sum(task.result() for task in tasks)
        return return_value

    assert run(policy) == (2 if fails else 3)


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancellation_in_the_first_step(times: int) -> None:
    async def policy() -> object:
        task: Any = asyncio.current_task()
        for _ in range(times):
            assert task.cancel()
        assert task.cancelling() == times
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert task.cancelling() == times
            return "cancelled"
        return PROCEED

    assert run(policy) == "cancelled"


def test_a_withdrawn_cancellation() -> None:
    async def policy() -> object:
        task: Any = asyncio.current_task()
        task.cancel()
        assert task.uncancel() == 0
        assert task.uncancel() == 0
        await asyncio.sleep(0)
        return task.uncancel()

    assert run(policy) == 0


def test_a_cancellation_reaches_the_awaited_future() -> None:
    """As in a task: the awaited future is cancelled, and the coroutine gets its result."""

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "heard"
        return ""

    async def policy() -> object:
        inner = asyncio.ensure_future(stubborn())
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
        return await inner

    assert run(policy) == "heard"


def test_a_cancellation_after_the_awaited_future_is_done() -> None:
    async def policy() -> object:
        future = asyncio.get_running_loop().create_future()
        task: Any = asyncio.current_task()
        asyncio.get_running_loop().call_soon(future.set_result, "result")
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            return await future
        except asyncio.CancelledError:
            return "cancelled"

    assert run(policy) == "cancelled"


def test_a_cancellation_before_the_task_begins_at_a_bare_yield() -> None:
    async def policy() -> object:
        task: Any = asyncio.current_task()
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            return "cancelled"
        return PROCEED

    assert run(policy) == "cancelled"


def test_the_context_is_one() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="outside")

    async def policy() -> object:
        assert variable.get() == "outside"
        variable.set("inside")
        await asyncio.sleep(0)
        return variable.get()

    assert run(policy) == "inside"
    assert variable.get() == "outside"


def test_the_context_of_a_first_step_is_its_own() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="outside")

    async def policy() -> object:
        variable.set("inside")
        return variable.get()

    def call() -> object:
        return first_step(policy()), variable.get()

    assert in_loop(call) == ("inside", "outside")


ERRORS = [ValueError, SystemExit, KeyboardInterrupt, MemoryError, asyncio.CancelledError]


@pytest.mark.parametrize("error", [*ERRORS, GeneratorExit])
def test_an_exception_of_the_first_step_is_raised(error: type[BaseException]) -> None:
    async def policy() -> object:
        raise error

    def call() -> object:
        try:
            return first_step(policy())
        finally:
            assert asyncio.current_task() is None

    raised = in_loop(call)
    assert type(raised) is Raised
    assert type(raised.error) is error


@pytest.mark.parametrize("error", ERRORS)
def test_an_exception_of_a_later_step_is_a_value(error: type[BaseException]) -> None:
    async def policy() -> object:
        await asyncio.sleep(0)
        raise error

    raised = run(policy)
    assert type(raised) is Raised
    assert type(raised.error) is error


def test_a_coroutine_has_a_current_task() -> None:
    async def policy() -> object:
        first: Any = asyncio.current_task()
        assert isinstance(first, StandIn)
        assert first.get_name() == "first step"
        assert not first.done()
        assert not first.cancelled()
        with pytest.raises(AttributeError, match="get_stack: this coroutine has not waited yet"):
            first.get_stack()
        await asyncio.sleep(0)
        task: Any = asyncio.current_task()
        assert task is not None
        assert first.get_name() == task.get_name()
        assert first.get_stack() == task.get_stack()
        assert not first.done()
        assert not first.cancelled()
        return PROCEED

    assert run(policy) is PROCEED


def test_it_passes_for_a_task() -> None:
    seen: list[object] = []

    async def policy() -> object:
        task: Any = asyncio.current_task()
        assert isinstance(task, asyncio.Task)
        assert asyncio.isfuture(task)
        assert task.get_loop() is asyncio.get_running_loop()
        assert task.get_coro() is work[0]
        task.set_name("a name")
        assert task.get_name() == "a name"
        task.add_done_callback(seen.append)
        assert task.remove_done_callback(print) == 0
        task.add_done_callback(print)
        task.add_done_callback(print)
        assert task.remove_done_callback(print) == 2
        for ask in (task.result, task.exception):
            with pytest.raises(asyncio.InvalidStateError):
                ask()
        await asyncio.sleep(0)
        assert task.get_name() == "a name"
        task.set_name("another")
        assert task.get_name() == "another"
        task.add_done_callback(seen.append)
        task.add_done_callback(print)
        assert task.remove_done_callback(print) == 1
        with pytest.raises(asyncio.InvalidStateError):
            task.exception()
        seen.append(task)
        return PROCEED

    work: list[Coroutine[Any, Any, object]] = []

    def begun() -> Coroutine[Any, Any, object]:
        work.append(policy())
        return work[0]

    assert run(begun) is PROCEED
    first, *told = seen
    assert told == [first, first]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_another_task_may_wait_for_it(*, waits: bool, fails: bool) -> None:
    found: list[object] = []

    async def wait_for(task: Any) -> None:
        await asyncio.wait({task})
        assert task.done()
        assert not task.cancelled()
        found.append(task.exception())
        try:
            found.append(await task)
        except ValueError as error:
            found.append(error)

    async def policy() -> object:
        other = asyncio.create_task(wait_for(asyncio.current_task()))
        others.append(other)
        current: Any = asyncio.current_task()
        current.add_done_callback(lambda _: found.append("done"))
        if waits:
            await asyncio.sleep(0)
        if fails:
            raise failure
        return PROCEED

    failure = ValueError()
    others: list[object] = []
    result = run(policy)
    assert (result.error if fails else result) is (failure if fails else PROCEED)
    assert found == ["done", failure if fails else None, failure if fails else PROCEED]


def test_the_current_task_stays_the_same_for_code_that_keeps_it() -> None:
    """As anyio compares them, at the beginning and the end of a cancel scope."""

    async def keeps() -> object:
        first = asyncio.current_task()
        await asyncio.sleep(0)
        second = asyncio.current_task()
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        return first is second is asyncio.current_task()

    async def looks() -> object:
        assert isinstance(asyncio.current_task(), StandIn)
        await asyncio.sleep(0)
        return isinstance(asyncio.current_task(), asyncio.Task)

    assert run(keeps) is True
    assert run(looks) is True


def test_a_future_that_is_finished_is_not_waited_for() -> None:
    async def policy() -> object:
        future = asyncio.get_running_loop().create_future()
        future.set_result("ready")
        return await future

    def call() -> object:
        result = first_step(policy())
        assert result == "ready"
        return result

    assert in_loop(call) == "ready"


def test_a_future_that_finishes_before_the_task_begins() -> None:
    async def policy() -> object:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, "result")
        return await future

    assert run(policy) == "result"


def test_a_future_that_several_first_steps_await() -> None:
    """Look-ups are shared: two sessions may await the same one in one turn of the loop."""

    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        shared: asyncio.Future[str] = loop.create_future()
        results: list[object] = []

        async def policy() -> object:
            return await shared

        def callback() -> None:
            for _ in range(3):
                suspended = first_step(policy())
                assert isinstance(suspended, Suspended)
                pending = begin(waited(suspended))
                assert isinstance(pending, Pending)
                Job(loop, pending, results.append, results.append)

        loop.call_soon(callback)
        for _ in range(3):
            await asyncio.sleep(0)
        shared.set_result("shared")
        for _ in range(5):
            await asyncio.sleep(0)
        return results

    assert asyncio.run(main()) == ["shared"] * 3


def test_an_invalid_await_raises_in_the_coroutine() -> None:
    class Odd:
        def __await__(self) -> Any:
            yield 42

    async def policy() -> object:
        try:
            await Odd()
        except RuntimeError as error:
            return str(error)
        return PROCEED

    assert "42" in run(policy)


def test_a_coroutine_that_is_cancelled_before_its_task_begins_is_closed() -> None:
    ended: list[str] = []

    async def policy() -> object:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("closed")
        return PROCEED

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[object] = []

        def callback() -> None:
            before = asyncio.all_tasks()
            suspended = first_step(policy())
            assert isinstance(suspended, Suspended)
            pending = begin(waited(suspended))
            assert isinstance(pending, Pending)
            Job(loop, pending, told.append, told.append)
            [task] = asyncio.all_tasks() - before
            task.cancel()

        loop.call_soon(callback)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [type(each) for each in told] == [Raised] or told == [CANCELLED]

    asyncio.run(main())
    assert ended == ["closed"]


def test_a_suspended_coroutine_that_is_dropped_does_not_warn() -> None:
    ended: list[str] = []

    async def policy() -> object:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("closed")
        return PROCEED

    def call() -> object:
        suspended = first_step(policy())
        assert isinstance(suspended, Suspended)
        del suspended
        gc.collect()
        return list(ended)

    assert in_loop(call) == ["closed"]


def test_a_task_that_the_garbage_collector_ends_is_not_the_current_one_afterwards() -> None:
    """Asyncio would refuse to run any other task."""
    current: list[object] = []
    ended: list[bool] = []

    async def policy() -> object:
        async with asyncio.timeout(None):  # keeps the current task
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(100)
            try:
                await asyncio.get_running_loop().create_future()  # to which nothing else refers
            finally:
                ended.append(True)
        return PROCEED

    def begin_and_cancel() -> None:
        suspended = first_step(policy())
        assert isinstance(suspended, Suspended)
        pending = begin(waited(suspended))
        assert isinstance(pending, Pending)
        Job(asyncio.get_running_loop(), pending, current.append, current.append).cancel()

    def collect(done: asyncio.Future[None]) -> None:
        gc.collect()
        task: Any = asyncio.current_task()
        current.append(task)
        if task is not None:
            asyncio._leave_task(asyncio.get_running_loop(), task)
        done.set_result(None)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)  # a task was destroyed that is pending
        done = loop.create_future()
        loop.call_soon(begin_and_cancel)
        for _ in range(5):
            await asyncio.sleep(0)
        loop.call_soon(collect, done)
        await done

    asyncio.run(main())
    assert ended
    assert current == [None]


def test_within_a_task() -> None:
    """At the end of the input a task of the loop itself hands messages to be judged."""

    async def policy() -> object:
        await asyncio.sleep(0)
        return PROCEED

    async def at_once() -> object:
        return asyncio.current_task()

    async def main() -> None:
        outer = asyncio.current_task()
        suspended = first_step(policy())
        assert isinstance(suspended, Suspended)
        assert asyncio.current_task() is outer
        assert isinstance(first_step(at_once()), StandIn)
        assert asyncio.current_task() is outer
        with pytest.raises(ZeroDivisionError):
            first_step(fails())
        assert asyncio.current_task() is outer
        await asyncio.sleep(0)
        suspended.work.close()

    async def fails() -> object:
        raise ZeroDivisionError

    asyncio.run(main())


def test_an_interruption_while_a_step_begins_leaves_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enter = asyncio._enter_task

    def interrupted(loop: Any, task: Any) -> None:
        enter(loop, task)
        raise OverdueError

    async def policy() -> object:
        return PROCEED

    def call() -> object:
        work = policy()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(asyncio, "_enter_task", interrupted)
                first_step(work)
        finally:
            work.close()
            assert asyncio.current_task() is None
        return None

    raised = in_loop(call)
    assert type(raised) is Raised
    assert type(raised.error) is OverdueError


def test_without_memory_to_begin_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_loop: Any, _task: Any) -> None:
        raise MemoryError

    async def policy() -> object:
        return PROCEED

    def call() -> object:
        work = policy()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(asyncio, "_enter_task", fails)
                first_step(work)
        finally:
            work.close()
            assert asyncio.current_task() is None
        return None

    raised = in_loop(call)
    assert type(raised) is Raised
    assert type(raised.error) is MemoryError

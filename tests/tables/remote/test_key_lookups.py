from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.errors import UnavailableError
from smtpd_filters.tables.remote.backend import (
    VALUE_MAX,
    AnswerError,
    Backend,
    BackendError,
    value_of,
)
from smtpd_filters.tables.remote.key_lookups import FAILURES, REST, KeyLookups, askable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any


class Scripted(Backend):
    """Answers from a dict, and fails or waits on request."""

    label = "scripted:"

    def __init__(self, **values: str) -> None:
        self.values = values
        self.asked: list[str] = []
        self.fails = ""
        self.gate: asyncio.Event | None = None

    async def look_up(self, key: str) -> str | None:
        self.asked.append(key)
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            raise BackendError(self.fails)
        return self.values.get(key)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def table(backend: Backend, clock: Clock, stale: float = 0.0) -> KeyLookups:
    return KeyLookups(backend, ttl=60, missing=10, stale=stale, clock=clock)


def test_answers_are_cached_each_for_its_time() -> None:
    async def main() -> None:
        backend, clock = Scripted(a="1", b=""), Clock()
        lookups = table(backend, clock)
        assert [await lookups.look_up(key) for key in "abcabc"] == ["1", "", None] * 2
        assert backend.asked == ["a", "b", "c"]
        clock.now += 11
        assert [await lookups.look_up(key) for key in "abc"] == ["1", "", None]
        assert backend.asked == ["a", "b", "c", "c"]
        clock.now += 50
        assert (await lookups.ask("a")).origin == "source"
        assert (await lookups.ask("a")).origin == "cache"

    run(main())


def test_a_key_is_asked_once_at_a_time_and_survives_a_caller() -> None:
    async def main() -> None:
        backend = Scripted(a="1")
        backend.gate = asyncio.Event()
        lookups = table(backend, Clock())
        callers = [asyncio.ensure_future(lookups.look_up("a")) for _ in range(20)]
        await asyncio.sleep(0)
        callers[0].cancel()
        await asyncio.sleep(0)
        backend.gate.set()
        assert await asyncio.gather(*callers[1:]) == ["1"] * 19
        assert backend.asked == ["a"]
        await lookups.aclose()

    run(main())


def test_a_failure_is_never_an_absence() -> None:
    async def main() -> None:
        backend = Scripted()
        backend.fails = "connection refused"
        lookups = table(backend, Clock())
        with pytest.raises(UnavailableError, match=r"^scripted:: connection refused$"):
            await lookups.look_up("a")
        backend.fails = ""
        assert await lookups.look_up("a") is None

    run(main())


def test_a_source_that_fails_is_left_in_peace_and_logged_once() -> None:
    async def main() -> None:
        backend, clock = Scripted(a="1"), Clock()
        lookups = table(backend, clock)
        said: list[str] = []
        lookups.note = said.append
        backend.fails = "down"
        for _ in range(20):
            assert (await lookups.ask("a")).cause == "scripted:: down"
        assert len(backend.asked) == FAILURES
        clock.now += REST
        assert (await lookups.ask("a")).cause
        assert (await lookups.ask("b")).cause
        assert len(backend.asked) == FAILURES + 1
        backend.fails = ""
        clock.now += REST
        assert await lookups.look_up("a") == "1"
        assert await lookups.look_up("b") is None
        assert said == ["scripted:: unavailable: down", "scripted:: answers again"]

    run(main())


def test_one_look_up_tries_again_while_the_others_fail() -> None:
    async def main() -> None:
        backend, clock = Scripted(), Clock()
        lookups = table(backend, clock)
        backend.fails = "down"
        for _ in range(FAILURES):
            await lookups.ask("a")
        backend.fails, backend.gate = "", asyncio.Event()
        backend.asked.clear()
        clock.now += REST
        first = asyncio.ensure_future(lookups.ask("a"))
        while not backend.asked:  # noqa: ASYNC110  # the first one is asked for
            await asyncio.sleep(0)
        assert (await lookups.ask("b")).cause == "scripted:: down"
        backend.gate.set()
        assert (await first).cause == ""
        assert (await lookups.ask("b")).cause == ""
        assert backend.asked == ["a", "b"]

    run(main())


def test_any_exception_is_a_failure() -> None:
    class Strange(Scripted):
        async def look_up(self, key: str) -> str | None:
            raise IndexError(key)

    async def work() -> None:
        answer = await table(Strange(), Clock()).ask("a")
        assert answer.cause == "scripted:: IndexError: a"

    run(work())


def test_errors_for_a_key_are_not_failures_of_the_source() -> None:
    class Choosy(Scripted):
        async def look_up(self, key: str) -> str | None:
            if key == "twins":
                raise AnswerError("several entries for one key")
            return await super().look_up(key)

    async def main() -> None:
        backend = Choosy(a="1")
        lookups = table(backend, Clock())
        said: list[str] = []
        lookups.note = said.append
        for _ in range(FAILURES + 5):
            assert "several entries" in (await lookups.ask("twins")).cause
        assert await lookups.look_up("a") == "1"
        assert said == []

    run(main())


def test_a_stale_answer_is_used_for_its_time_if_it_is_configured() -> None:
    async def main() -> None:
        for stale in (0.0, 300.0):
            backend, clock = Scripted(a="1"), Clock()
            lookups = table(backend, clock, stale)
            await lookups.look_up("a")
            clock.now += 61
            backend.fails = "down"
            answer = await lookups.ask("a")
            assert (answer.value, answer.origin) == (("1", "stale") if stale else (None, "source"))
            clock.now += 300
            assert (await lookups.ask("a")).cause

    run(main())


def test_a_slow_source_misses_its_deadline() -> None:
    async def main() -> None:
        backend = Scripted()
        backend.timeout = 0.01
        backend.gate = asyncio.Event()
        lookups = table(backend, Clock())
        assert "no answer within 0.01 s" in (await lookups.ask("a")).cause

    run(main())


def test_pending_look_ups_are_bounded() -> None:
    async def main() -> None:
        backend = Scripted()
        backend.gate = asyncio.Event()
        lookups = table(backend, Clock())
        lookups.max_pending = 5
        lookups.start(str(number) for number in range(50))
        await asyncio.sleep(0)
        assert len(backend.asked) == 5
        assert "too many look-ups" in (await lookups.ask("x")).cause
        await lookups.aclose()

    run(main())


def test_a_change_of_the_source_empties_the_cache() -> None:
    async def main() -> None:
        backend = Scripted(a="1", b="2")
        lookups = table(backend, Clock())
        await lookups.look_up("a")
        backend.values = {"a": "3"}
        backend.version += 1
        assert await lookups.look_up("b") is None
        assert await lookups.look_up("a") == "3"

    run(main())


@given(st.text())
def test_keys_that_no_table_has_are_not_asked(key: str) -> None:
    fits = 0 < len(key.encode("utf-8", "surrogatepass")) <= 1023
    assert not askable(key) or (key.isprintable() and fits)


@pytest.mark.parametrize("key", ["", "a\nb", "a\0", "a\r", "x" * 1024, "ü" * 600, "\udcff"])
def test_keys_from_hostile_clients_are_absent(key: str) -> None:
    async def main() -> None:
        backend = Scripted()
        assert await table(backend, Clock()).look_up(key) is None
        assert backend.asked == []

    run(main())


def test_values() -> None:
    assert value_of([], joined=True) is None
    assert value_of(["a", "b"], joined=True) == "a, b"
    assert value_of(["a", "b"], joined=False) == "a"
    for wrong in ("x" * (VALUE_MAX + 1), "a\nb", "a\0"):
        with pytest.raises(BackendError):
            value_of([wrong], joined=False)

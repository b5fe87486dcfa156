"""Look-ups of real clients are counted, by kind and cause, and their circuits shown."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.errors import UnavailableError
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.retry import SILENCES
from smtpd_filters.lookups.stream import Address, Client
from smtpd_filters.runtime.counters import (
    BUCKETS,
    COUNTERS,
    FAILURES,
    INVALID,
    LOCAL,
    MAX_LABEL,
    PASSED_OVER,
    TIMEOUT,
    UNREACHABLE,
    LookUps,
)
from smtpd_filters.stores import Get, join
from smtpd_filters.stores.address import parse
from smtpd_filters.stores.redis_store import RedisStore
from smtpd_filters.stores.sqlite import SQLiteStore
from smtpd_filters.tables.remote.backend import AnswerError, Backend, BackendError
from smtpd_filters.tables.remote.key_lookups import FAILURES as TABLE_FAILURES
from smtpd_filters.tables.remote.key_lookups import KeyLookups
from smtpd_filters.testing.dns import DNSServer
from tests.lookups.stream.peer import echo, flood, hang, served
from tests.lookups.stream.test_client import line

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lookups.stream.peer import Script

KEY = join("counted", b"key")
#: The system assigns this port to no socket.
NOWHERE = Address("127.0.0.1", 1)


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """No circuits of earlier tests, which are shown until they are freed."""
    monkeypatch.setattr(COUNTERS, "_watched", [])


class Gained:
    """What a kind of look-ups has gained."""

    def __init__(self, kind: str) -> None:
        self._counts = COUNTERS.of(kind)
        self._count = sum(self._counts.buckets)
        self._failures = dict(self._counts.failures)

    @property
    def count(self) -> int:
        return sum(self._counts.buckets) - self._count

    @property
    def failures(self) -> dict[str, int]:
        return {
            cause: n - self._failures.get(cause, 0)
            for cause, n in self._counts.failures.items()
            if n != self._failures.get(cause, 0)
        }


def test_a_time_is_counted_in_its_bucket() -> None:
    lookups = LookUps()
    for seconds in (0.0, BUCKETS[0], BUCKETS[0] * 1.01, BUCKETS[-1], BUCKETS[-1] + 1):
        lookups.ended(seconds)
    assert (lookups.buckets[0], lookups.buckets[1], *lookups.buckets[-2:]) == (2, 1, 1, 1)
    assert lookups.failures == {}


def asked(script: Script | None, times: int = 1, kind: str = "policy", **more: Any) -> Gained:
    """Ask a server with this script."""
    gained = Gained("policy")
    timeout = 0.2 if script is hang else 60.0

    async def ask(address: Address) -> None:
        client = Client([address], timeout=timeout, deadline=2.5 * timeout, kind=kind, **more)
        for _ in range(times):
            await client.ask(line)
        if times == SILENCES:
            assert ("policy", address.label, True) in COUNTERS.circuits()
        await client.aclose()
        await client.ask(line)  # closed: a failure of its own

    async def main() -> None:
        if script is None:
            await ask(NOWHERE)
        else:
            async with served(script) as peer:
                await ask(peer.address)

    asyncio.run(main())
    return gained


@pytest.mark.parametrize(
    ("script", "cause"), [(echo, ""), (hang, TIMEOUT), (flood, INVALID), (None, UNREACHABLE)]
)
def test_an_exchange_is_counted(script: Script | None, cause: str) -> None:
    gained = asked(script)
    assert gained.count == 2
    assert gained.failures == ({cause: 1} if cause else {}) | {LOCAL: 1}


def test_a_server_that_fails_repeatedly_is_shown() -> None:
    assert asked(hang, SILENCES).failures == {TIMEOUT: SILENCES, LOCAL: 1}


def test_a_probe_is_not_counted() -> None:
    assert asked(echo, kind="").count == 0


def test_names_are_counted_once_each() -> None:
    zone: dict[str, Any] = {"a.example": {"A": "192.0.2.1"}, "bad.example": {"servfail": ["A"]}}
    gained = Gained("dns")

    async def main(servers: list[tuple[str, int]]) -> None:
        async with Resolver(servers, timeout=5) as resolver:
            for name in ("a.example", "a.example", "none.example", "bad.example", "not valid"):
                await resolver.query(name, "A")
            labels = {label for kind, label, _ in COUNTERS.circuits() if kind == "dns"}
            assert any(str(servers[0][1]) in label for label in labels)

    with DNSServer(zone) as server:
        asyncio.run(main(server.endpoints))
    assert gained.count == 3
    assert gained.failures == {INVALID: 1}


def test_a_silent_name_server() -> None:
    gained = Gained("dns")

    async def main(servers: list[tuple[str, int]]) -> None:
        async with Resolver(servers, timeout=0.05, deadline=0.1) as resolver:
            await resolver.query("drop.example", "A")

    with DNSServer({"drop.example": {"drop": True}}) as server:
        asyncio.run(main(server.endpoints))
    assert gained.failures == {TIMEOUT: 1}


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    gained = Gained("redis")

    async def main() -> None:
        store = RedisStore(parse(f"unix://{tmp_path}/none"), timeout=5)
        for _ in range(SILENCES + 2):
            with pytest.raises(UnavailableError):
                await store.ask(Get(KEY))
        assert ("redis", store.label[-MAX_LABEL:], True) in COUNTERS.circuits()
        await store.aclose()

    asyncio.run(main())
    assert gained.failures == {UNREACHABLE: SILENCES, PASSED_OVER: 2}
    assert gained.count == SILENCES + 2


def test_a_store_in_a_file(tmp_path: Path) -> None:
    gained = Gained("sqlite")

    async def main() -> None:
        store = SQLiteStore(str(tmp_path / "store"), timeout=20, note=lambda _: None)
        await store.ask(Get(KEY))
        await store.aclose()

    asyncio.run(main())
    assert (gained.count, gained.failures) == (1, {})


class Failing(Backend):
    """Raises what it is given."""

    timeout = 0.05

    def __init__(self, error: Exception | None) -> None:
        self.label = f"failing: {error!r}"
        self.error = error

    async def look_up(self, _key: str) -> str | None:
        if self.error is None:
            await asyncio.Event().wait()
            return None
        raise self.error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (BackendError("x"), UNREACHABLE), (AnswerError("x"), INVALID), (ValueError("x"), INVALID),
        (None, TIMEOUT),
    ],
)  # fmt: skip
def test_a_table_that_fails(error: Exception | None, cause: str) -> None:
    gained = Gained("table")
    is_passed_over = cause != INVALID or not isinstance(error, AnswerError)

    async def main() -> None:
        asked = KeyLookups(Failing(error))
        for number in range(TABLE_FAILURES + 1):
            await asked.ask(str(number))
        assert ("table", asked.backend.label, is_passed_over) in COUNTERS.circuits()
        await asked.aclose()

    asyncio.run(main())
    times = TABLE_FAILURES if is_passed_over else TABLE_FAILURES + 1
    assert gained.failures == {cause: times} | ({PASSED_OVER: 1} if is_passed_over else {})
    assert gained.failures.keys() <= set(FAILURES)

"""Entries that something else has written into a store, or damaged: they count as missing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from math import isnan
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smtpd_filters.authentication.dmarc.reports import Published
from smtpd_filters.authentication.dmarc.reports import Row as Result
from smtpd_filters.checks.correspondents import Correspondents
from smtpd_filters.cli import main
from smtpd_filters.errors import UnavailableError
from smtpd_filters.filters.auth.reporting import count
from smtpd_filters.filters.greylist.records import records
from smtpd_filters.filters.greylist.triplets import (
    Attempt,
    Terms,
    Triplets,
    client_key,
    triplet_key,
)
from smtpd_filters.filters.limit.ledger import Ledger
from smtpd_filters.filters.limit.rules import parse_rule
from smtpd_filters.filters.limit.steps import Claim
from smtpd_filters.filters.limit.subjects import BLOCK, key
from smtpd_filters.filters.limit.uses import forget, key_prefix, uses_of
from smtpd_filters.stores import Add, Count, Delete, Get, Join, Leave, Put, Replace, Take, join
from smtpd_filters.stores.address import parse
from smtpd_filters.stores.damage import INTERVAL, Damage, is_sound
from smtpd_filters.stores.operations import MAX_TTL, MAX_VALUE, Row
from smtpd_filters.stores.redis_store import RedisStore
from smtpd_filters.stores.sqlite import SQLiteStore
from tests.effort import part
from tests.filters.auth.recorded import rows_on
from tests.needed import need
from tests.stores.conftest import PATIENCE
from tests.stores.redis_server import RedisServer, unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from smtpd_filters.stores import Store

TERMS = Terms(delay=300, window=7200, lifetime=864_000, known_after=3)
NET, ANNA, YOU = "192.0.2.0/24", "anna@example.org", "you@example.net"
USER = "user=anna"
RULES = [
    parse_rule(text)
    for text in (
        "user messages 3/1h",
        "user connections 5",
        "user networks 2/1d",
        "user messages 3x floor=1",
    )
]
DAY = "2026-11-30"
PUBLISHED = Published("example.org", p="reject", rua=("mailto:dmarc@example.org",))
RESULT = Result("192.0.2.1", "example.org", "example.org", "none", dkim=True, spf=False)


class File:
    """A store in a file, and a program that writes into it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "store.sqlite"
        self.address = f"sqlite:{self.path}"
        self.notes: list[str] = []

    def open(self) -> Store:
        return SQLiteStore(str(self.path), timeout=PATIENCE, note=self.notes.append)

    def damage(self, value: Any, times: Any) -> None:
        """Give all entries and members a value and an expiry; None leaves what there is."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            if value is not None:
                connection.execute("UPDATE entries SET value = ?", (value,))
            if times is not None:
                connection.execute("UPDATE entries SET written = ?, expires = ?", (times, times))
                connection.execute("UPDATE members SET expires = ?", (times,))

    def clear(self) -> None:
        self.notes.clear()
        if self.path.exists():
            with closing(sqlite3.connect(self.path)) as connection, connection:
                connection.execute("DELETE FROM entries")
                connection.execute("DELETE FROM members")


class Server:
    """A store on a server, and a program that writes into it."""

    PREFIX = "smtpd-filters:"

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.address = f"unix://{server.socket}"
        self.notes: list[str] = []

    def open(self) -> Store:
        return RedisStore(parse(self.address), timeout=PATIENCE, note=self.notes.append)

    def damage(self, value: Any, times: Any) -> None:
        """Damage all entries, and give the members a score that no expiry has."""

        async def steps() -> None:
            from redis import asyncio as redis

            client: Any
            async with redis.Redis(unix_socket_path=str(self.server.socket)) as client:
                for name in await client.keys("*"):
                    if await client.type(name) == b"zset":
                        if times is not None:
                            for member in await client.zrange(name, 0, -1):
                                await client.zadd(name, {member: float("inf")})
                    elif isinstance(value, list):
                        await client.delete(name)
                        await client.rpush(name, *value)
                    elif isinstance(value, bytes):
                        await client.set(name, value)
                    else:
                        stored = await client.get(name)
                        head, _, rest = stored[1:].partition(b":")
                        end, _, payload = rest.partition(b":")
                        new = payload if value is None else str(value).encode("utf-8", "replace")
                        if times is not None:
                            head = end = str(times).encode("utf-8", "replace")
                        await client.set(name, b"%c%b:%b:%b" % (stored[0], head, end, new))

        asyncio.run(steps())

    def clear(self) -> None:
        self.notes.clear()
        self.server.command("FLUSHALL")


@pytest.fixture(scope="module", params=["sqlite", pytest.param("redis", marks=pytest.mark.e2e)])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[File | Server]:
    if request.param == "sqlite":
        yield File(tmp_path_factory.mktemp("file"))
        return
    need(unavailable())
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield Server(server)
    server.stop()


def run(place: File | Server, steps: Callable[[Store], Awaitable[Any]]) -> Any:
    async def to_the_end() -> Any:
        store = place.open()
        try:
            return await steps(store)
        finally:
            await store.aclose()

    return asyncio.run(to_the_end())


async def everything(store: Store) -> None:
    """Do what the filters and the verbs do with a store: each kind of entry is read and written."""
    triplets = Triplets(store, TERMS)
    for network in ("", "198.51.100.0/24"):
        attempt = Attempt(NET, ANNA, [YOU], network=network, address="192.0.2.7")
        standing = await triplets.judge(attempt)
        assert standing.state in {"new", "waiting", "waited", "passed", "known"}
        assert 0 <= standing.seconds <= MAX_TTL
    await triplets.judge(attempt._replace(retried=True))
    noted: list[str] = []
    ledger = Ledger(store, noted.append)
    claims = [Claim(rule, USER, member="192.0.2.0/24") for rule in RULES]
    result = await ledger.take(claims, [USER])
    assert all(0 <= breach.wait <= MAX_TTL for breach in result.breaches)
    await ledger.first(claims[0])
    await ledger.first(claims[0], reason="test")
    await ledger.renew()
    ledger.put_back(result.counted)
    await ledger.close()
    assert noted == []
    known = Correspondents(store)
    await known.knows(YOU, ANNA)
    await known.learn(YOU, [ANNA], 1000)
    await count(store, DAY, PUBLISHED, RESULT)
    for published, rows in (await rows_on(store, DAY)).values():
        assert published == PUBLISHED
        assert all(number > 0 for _, number in rows)
    every = [record async for record in records(store)]
    json.dumps([record.shown for record in every])
    assert all(record.operation for record in every)
    assert all([use.share >= 0 async for use in uses_of(store, key_prefix(""))])
    await forget(store, USER)


SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["abc", "", "NaN", "1e400", "0x10", "1.2.3", "-1"]),
)
BYTES = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [
            b"",
            b"E",
            b"E1.0:2.0",
            b"C1.0:99999999999.0:x",
            b"B1..:2..:3",
            b"waiting \xff",
            b"waiting " + b"1" * 80,
            b"9" * 18,
            b"[" * 4000,
            b'{"domain":5}',
            b"[1]",
            b"x" * (MAX_VALUE + 1),
        ]
    ),
)


@settings(
    max_examples=part(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    value=st.one_of(st.none(), SCALARS, BYTES, st.lists(st.just("a"), min_size=1, max_size=2)),
    times=st.one_of(st.none(), SCALARS),
)
def test_whatever_a_store_has_the_filters_and_verbs_go_on(
    place: File | Server, value: Any, times: Any
) -> None:
    if isinstance(place, File) and isinstance(value, list):
        value = None  # a column has no lists
    if isinstance(times, float) and isnan(times):
        times = "NaN"  # a column can't have it
    place.clear()
    run(place, everything)
    assert place.notes == []
    place.damage(value, times)
    run(place, everything)
    assert len(place.notes) == len(set(place.notes))
    assert all("is damaged and counts as missing" in note for note in place.notes)
    # What was damaged has been replaced, or expires.
    place.notes.clear()
    run(place, everything)


@pytest.mark.parametrize("action", ["list", "stats", "export"])
def test_the_greylist_verb_leaves_damage_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str
) -> None:
    file = File(tmp_path)
    sound, damaged = triplet_key(NET, ANNA, YOU), client_key(NET)
    run(file, lambda store: store.ask(Put(sound, b"waiting", 100), Put(damaged, b"5", 100)))
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("UPDATE entries SET written = 'abc' WHERE key = ?", (damaged,))
        connection.execute("INSERT INTO entries VALUES (?, 1, 2, 'x')", (b"greylist:{\xff",))
    assert main(["greylist", action, "--store", file.address]) == 0
    shown = capsys.readouterr()
    assert "anna@example.org" in shown.out or "triplets waiting               1" in shown.out
    text = "an entry of greylist is damaged and counts as missing"
    assert shown.err == f"smtpd-filters: {file.address}: {text}\n"


@pytest.mark.parametrize(
    ("action", "status", "result"),
    [
        ("top", 0, "blocked for"),
        ("show", 0, "blocked for"),
        ("reset anna", 1, "nothing is counted"),
        ("release anna", 0, "released"),
    ],
)
def test_the_limit_verb_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, status: int, result: str
) -> None:
    file = File(tmp_path)
    bucket = key(USER, RULES[0].text.encode())

    async def steps(store: Store) -> None:
        await store.ask(Take(bucket, rate=1, burst=3), Put(key(USER, BLOCK), b"why", 100))
        await store.ask(Put(key(USER, b"past", b"messages", b"x"), b"1", 100))

    run(file, steps)
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("UPDATE entries SET value = 'abc' WHERE key = ?", (bucket,))
        connection.execute("INSERT INTO entries VALUES (?, 1, 2, 'x')", (b"limit:x",))
        connection.execute("INSERT INTO members VALUES (?, 1, 'x')", (b"limit:x",))
    assert main(["limit", *action.split(), "--store", file.address]) == status
    shown = capsys.readouterr()
    assert "is damaged and counts as missing\n" in shown.err
    assert f"user=anna: {result}" in shown.out + shown.err


def test_a_damaged_entry_is_noted_once_a_minute() -> None:
    now = 0.0
    notes: list[str] = []
    damage = Damage("sqlite:/x", notes.append, clock=lambda: now)
    for key_ in (b"greylist:{a}", b"greylist:{b}", b"limit:{a}"):
        damage.found(key_)
    assert notes == [
        "sqlite:/x: an entry of greylist is damaged and counts as missing",
        "sqlite:/x: an entry of limit is damaged and counts as missing",
    ]
    now = INTERVAL
    damage.found(b"greylist:{a}")
    assert len(notes) == 3


def test_other_requests_of_a_transaction_are_not_affected(place: File | Server) -> None:
    place.clear()
    one, other = join("t", b"s", b"1"), join("t", b"s", b"2")
    run(place, lambda store: store.ask(Count(one, 100)))
    place.damage("abc" if isinstance(place, File) else b"C1.0:2.0:x", None)

    async def steps(store: Store) -> None:
        counts = await asyncio.gather(store.ask(Count(one, 100)), store.ask(Count(other, 100)))
        assert [*counts] == [1, 1]
        assert await store.ask(Get(one)) is not None

    run(place, steps)
    assert len(place.notes) == 1


def test_a_member_without_an_expiry_is_no_lease(place: File | Server) -> None:
    place.clear()
    group = join("t", b"s")
    run(place, lambda store: store.ask(Join(group, b"old", 2, ttl=100)))
    place.damage(None, "abc" if isinstance(place, File) else 0)

    async def steps(store: Store) -> None:
        assert await store.ask(Join(group, b"new", 1, ttl=100)) == (True, 1)
        assert not await store.ask(Leave(group, b"old"))
        assert [each async for each in store.groups(b"t:")] == [(group, 1)]

    run(place, steps)
    assert len(place.notes) == 1


@example((b"x", 1e12, 1e12))
@given(
    st.tuples(
        st.one_of(SCALARS, BYTES, st.none()),
        st.one_of(SCALARS, st.none()),
        st.one_of(SCALARS, st.none()),
    )
)
def test_any_row_is_sound_or_not(columns: tuple[Any, Any, Any]) -> None:
    row: Any = Row(*columns)
    sound = is_sound(row, 1000.0)
    possible = isinstance(row.written, float) and isinstance(row.expires, float)
    assert possible or not sound
    assert not sound or 0 <= row.expires - row.written <= MAX_TTL + 1
    assert not sound or row.expires - 1000.0 <= MAX_TTL + 1


@settings(max_examples=40)
@given(st.floats(1e-3, MAX_TTL), st.floats(0.01, 1000), st.floats(1, 1e6))
def test_what_operations_write_is_sound(ttl: float, rate: float, burst: float) -> None:
    class Rows:
        now = 1.7e9

        def __init__(self) -> None:
            self.rows: dict[bytes, Row] = {}

        def get(self, key: bytes) -> Row | None:
            return self.rows.get(key)

        def put(self, key: bytes, row: Row) -> None:
            self.rows[key] = row

    rows: Any = Rows()
    names = [join("t", b"s", b"%d" % number) for number in range(4)]
    Put(names[0], b"v", ttl).apply(rows)
    Add(names[1], b"", ttl).apply(rows)
    Count(names[2], ttl, by=1 << 31).apply(rows)
    if burst / rate <= MAX_TTL:
        Take(names[3], rate, burst, burst).apply(rows)
    assert rows.rows
    assert all(is_sound(row, rows.now) for row in rows.rows.values())


def test_tables_that_were_changed_are_damage(tmp_path: Path) -> None:
    file = File(tmp_path)
    one = join("t", b"s")
    run(file, lambda store: store.ask(Put(one, b"v", 100)))
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("DROP TABLE members")

    async def steps(store: Store) -> None:
        assert await store.ask(Join(one, b"m", 1, ttl=100)) == (True, 1)

    run(file, steps)
    damaged = f"{file.path} is damaged (its tables are not those of a store)"
    assert file.notes == [f"{damaged}: renamed to {file.path}.damaged-1, and a new one begun"]


def test_tables_that_are_changed_in_use_cost_a_request(tmp_path: Path) -> None:
    file = File(tmp_path)
    one = join("t", b"s")

    async def steps(store: Store) -> None:
        await store.ask(Put(one, b"v", 100))
        with closing(sqlite3.connect(file.path)) as connection, connection:
            connection.execute("DROP TABLE entries")
        with pytest.raises(UnavailableError, match="no such table"):
            await store.ask(Get(one))
        await store.ask(Put(one, b"w", 100))
        assert await store.ask(Replace(one, b"x", 100, b"w"))
        assert await store.ask(Delete(one))

    run(file, steps)
    assert len(file.notes) == 2
    assert file.notes[1] == f"sqlite:{file.path}: answers again"

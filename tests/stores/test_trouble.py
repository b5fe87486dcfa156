"""The end of a store's trouble: logged once, and not while the trouble goes on."""

from __future__ import annotations

import asyncio

import pytest

from smtpd_filters.errors import UnavailableError
from smtpd_filters.stores import Get, Put, join
from smtpd_filters.stores.address import parse
from smtpd_filters.stores.damage import INTERVAL
from smtpd_filters.stores.redis_store import RedisStore
from smtpd_filters.stores.trouble import Trouble

KEY = join("t", b"x")
READ, WRITE = (Get(KEY),), (Put(KEY, b"v", ttl=9),)
AGAIN = "sqlite:/x: answers again"


class Watched(Trouble):
    """With the notes, and a clock that stands."""

    def __init__(self) -> None:
        self.now = 0.0
        self.notes: list[str] = []
        super().__init__("sqlite:/x", self.notes.append, lambda: self.now)


def test_the_end_is_noted_once() -> None:
    trouble = Watched()
    assert not trouble.is_on
    trouble.failed(READ)
    trouble.failed(READ)
    trouble.succeeded(READ)
    assert (trouble.notes, trouble.is_on) == ([AGAIN], False)


def test_what_can_only_be_read_is_still_in_trouble() -> None:
    trouble = Watched()
    trouble.failed(WRITE)
    trouble.failed(READ)
    trouble.succeeded(READ)
    assert (trouble.notes, trouble.is_on) == ([], True)
    trouble.succeeded((*READ, *WRITE))
    assert (trouble.notes, trouble.is_on) == ([AGAIN], False)
    # The next trouble is one of its own.
    trouble.now = INTERVAL
    trouble.failed(READ)
    trouble.succeeded(READ)
    assert trouble.notes == [AGAIN] * 2


def test_a_store_that_fails_now_and_then_has_a_line_a_minute() -> None:
    trouble = Watched()
    for _ in range(120):
        trouble.failed(WRITE)
        trouble.succeeded(WRITE)
        trouble.now += 1.0
    assert trouble.notes == [AGAIN] * 2
    # The last one comes late, but it comes.
    trouble.now = 2 * INTERVAL
    trouble.succeeded(WRITE)
    assert (len(trouble.notes), trouble.is_on) == (3, False)


def test_nodes_of_a_cluster_fail_alone() -> None:
    async def steps() -> None:
        notes: list[str] = []
        address = parse("redis+cluster://127.0.0.1:1")
        store = RedisStore(address, timeout=0.5, note=notes.append)
        with pytest.raises(UnavailableError):
            await store.ask(*READ)
        assert store._trouble is None
        await store.aclose()

    asyncio.run(steps())

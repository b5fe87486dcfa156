"""Queries of the page that take long: those of clients that have left, and of a page that ends."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientSession, web

from smtpd_filters.journal.query import Journal, TooSlowError
from smtpd_filters.journal.records import Search
from smtpd_filters.web.application import application
from smtpd_filters.web.guard import Access
from smtpd_filters.web.page import AT_ONCE
from tests.journal.made import NOON, stored

from .visitor import written

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.journal.stories import Story

#: Seconds after which a test fails.
LONG = 60
SEARCH = b"GET /search HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Slow:
    """Makes journals whose searches end when they may."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self.begun = 0
        self.stopped = False
        self._begins = threading.Semaphore(0)
        self._may_end = threading.Event()

    def __call__(self) -> Journal:
        slow = self

        class Waiting(Journal):
            def search(self, wanted: Search) -> list[Story]:
                slow.begun += 1
                slow._begins.release()
                assert slow._may_end.wait(LONG)
                return super().search(wanted)

            def stop(self) -> None:
                super().stop()
                slow.stopped = True
                slow.end()

        return Waiting(self.directory)

    async def begins(self) -> None:
        """Wait until one more search has begun."""
        assert await asyncio.to_thread(self._begins.acquire, timeout=LONG)

    def end(self) -> None:
        """Let searches end."""
        self._may_end.set()


async def serving(slow: Slow) -> tuple[web.AppRunner, int]:
    runner = web.AppRunner(application(slow, Access()))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, runner.addresses[0][1]


async def connected(port: int) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(SEARCH)
    return writer


async def until_connected(runner: web.AppRunner, number: int) -> None:
    assert runner.server is not None
    for _ in range(1_000_000):
        if sum(each.transport is not None for each in runner.server.connections) == number:
            return
        await asyncio.sleep(0)
    raise AssertionError("other connections")


def test_nothing_is_read_for_clients_that_have_left(tmp_path: Path) -> None:
    slow = Slow(tmp_path)

    async def run() -> None:
        runner, port = await serving(slow)
        try:
            staying = [await connected(port) for _ in range(AT_ONCE)]
            for _ in staying:
                await slow.begins()
            leaving = [await connected(port) for _ in range(20)]
            await until_connected(runner, len(staying) + len(leaving))
            for each in leaving:
                each.close()
            await until_connected(runner, len(staying))
            slow.end()
            address = f"http://127.0.0.1:{port}/search"
            async with ClientSession() as session, session.get(address) as response:
                assert response.status == 200
            for each in staying:
                each.close()
        finally:
            await runner.cleanup()

    asyncio.run(run())
    assert slow.begun == AT_ONCE + 1


def test_the_service_does_not_wait_for_queries_at_its_end(tmp_path: Path) -> None:
    slow = Slow(tmp_path)

    async def run() -> None:
        runner, port = await serving(slow)
        writers = [await connected(port) for _ in range(AT_ONCE + 3)]
        for _ in range(AT_ONCE):
            await slow.begins()
        await runner.cleanup()
        for each in writers:
            each.close()

    asyncio.run(run())
    assert (slow.begun, slow.stopped) == (AT_ONCE, True)


def test_a_query_that_is_stopped(tmp_path: Path) -> None:
    written(tmp_path, [stored()], NOON)
    journal = Journal(str(tmp_path))
    journal.stop()
    with pytest.raises(TooSlowError):
        journal.search(Search())

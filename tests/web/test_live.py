"""The live feed, read as a browser does."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.web import live
from smtpd_filters.web.bounds import Bounds
from smtpd_filters.web.guard import Guard
from smtpd_filters.web.logins import Login
from tests.journal.made import refused, stored

from .visitor import Document, Visitor, visit, written

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import ClientResponse


AT_ONCE = Bounds(follow=0.01)
RESTLESS = AT_ONCE._replace(beat=0.01)


async def event(response: ClientResponse) -> str:
    """The data of the next event."""
    async with asyncio.timeout(20):
        while True:
            line = (await response.content.readline()).decode()
            if line.startswith("data: "):
                return line.removeprefix("data: ")
            assert line, "the feed has ended"


def test_new_messages_arrive(tmp_path: Path) -> None:
    now = time.time()
    at: dict[str, Any] = {"t": int(now * 1000)}
    written(tmp_path, [stored(1, **at)], now)

    async def visiting(visitor: Visitor) -> None:
        page = await visitor.get("/live")
        assert "alice@example.org" in page.text
        async with visitor.session.get(f"{visitor.base}/live/events") as response:
            assert response.content_type == "text/event-stream"
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
            written(tmp_path, [refused(2, f="<b>\u202e@example.com", **at)], now)
            row = await event(response)
            assert Document(row).active == []
            assert "<b>\\u202e@example.com" in Document(row).text
            assert "listed in zen.example" in row

    visit(tmp_path, visiting, bounds=AT_ONCE)


def test_only_so_many_listen(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        address = f"{visitor.base}/live/events"
        async with visitor.session.get(address) as first:
            assert first.status == 200
            async with visitor.session.get(address) as second:
                assert second.status == 503
        status = 0
        async with asyncio.timeout(20):
            while status != 200:  # until the server notices that the first one has left
                async with visitor.session.get(address) as third:
                    status = third.status

    visit(tmp_path, visiting, bounds=RESTLESS._replace(listeners=1))


def test_a_connection_without_news_is_kept_alive(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        async with visitor.session.get(f"{visitor.base}/live/events") as response:
            assert (await response.content.readline()) == b":\n"

    visit(tmp_path, visiting, bounds=RESTLESS)


def test_the_first_message_of_all_arrives(tmp_path: Path) -> None:
    now = time.time()

    async def visiting(visitor: Visitor) -> None:
        async with visitor.session.get(f"{visitor.base}/live/events") as response:
            written(tmp_path, [stored(1, t=int(now * 1000))], now)
            assert "alice@example.org" in await event(response)

    visit(tmp_path, visiting, bounds=AT_ONCE)


def test_a_head_of_the_feed_ends(tmp_path: Path) -> None:
    async def visiting(visitor: Visitor) -> None:
        async with visitor.session.head(f"{visitor.base}/live/events") as response:
            assert response.status == 405

    visit(tmp_path, visiting, bounds=AT_ONCE)


class Connection:
    """A request whose connection takes nothing."""

    def __init__(self) -> None:
        self.transport = self
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    async def write(self, _event: bytes) -> None:
        await asyncio.Event().wait()


def test_a_listener_that_never_reads_loses_its_connection() -> None:
    bounds = RESTLESS._replace(unread=0.01)

    async def begin() -> None:
        return

    async def none() -> list[object]:
        return []

    async def run() -> None:
        feed = live.Live(begin, none, lambda _story: "x", bounds)  # type: ignore[arg-type]
        connection: Any = Connection()
        await feed._serve(connection, connection, lambda: True)
        assert connection.aborted
        assert not feed._listeners
        await feed.aclose()

    asyncio.run(run())


def test_the_feed_ends_with_the_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = ["ann"]
    monkeypatch.setattr(Guard, "login", lambda *_: Login(users[0], "", 0.0) if users else None)

    async def visiting(visitor: Visitor) -> None:
        async with visitor.session.get(f"{visitor.base}/live/events") as response:
            assert (await response.content.readline()) == b":\n"
            users.clear()
            async with asyncio.timeout(20):
                await response.content.read()

    visit(tmp_path, visiting, bounds=RESTLESS)


def test_a_slow_listener_is_dropped() -> None:
    async def begin() -> None:
        return

    async def none() -> list[object]:
        return []

    async def run() -> None:
        feed = live.Live(begin, none, lambda _story: "x")  # type: ignore[arg-type]
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(2)
        feed._listeners.add(queue)

        class Story:
            id = "1"

        feed._send([Story()] * 3)  # type: ignore[list-item]
        assert queue.get_nowait() is None
        assert not feed._listeners

    asyncio.run(run())

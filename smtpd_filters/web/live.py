"""The live feed: new stories as server-sent events, to a limited number of readers.

Invariants
----------
*Read when needed*: the journal is read only while somebody listens, once a second for all of them.
*Bounded*: there are at most `listeners` (`Bounds`); one that reads slower than `events` is dropped,
and its connection ends after `unread` seconds without reading.
*Allowed*: a listener whose log-in has ended gets nothing more.
*Kept alive*: a comment every `beat` seconds shows proxies that the connection lives.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from .bounds import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smtpd_filters.journal.stories import Story

    from .bounds import Bounds

#: Stories that a look finds at most; there may be more then.
FULL = 100
HEADERS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


class Live:
    """The feed; after `begin`, `new` returns the stories since its last call.

    `show` returns the HTML of one.
    """

    def __init__(
        self,
        begin: Callable[[], Awaitable[None]],
        new: Callable[[], Awaitable[list[Story]]],
        show: Callable[[Story], str],
        bounds: Bounds = DEFAULT,
    ) -> None:
        self._begin, self._new = begin, new
        self._show = show
        self._bounds = bounds
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._open = 0
        self._task: asyncio.Task[None] | None = None

    async def events(
        self, request: web.Request, headers: dict[str, str], may_read: Callable[[], bool]
    ) -> web.StreamResponse:
        """Send events until the reader leaves, or may not read any more.

        `headers` are added to the response.
        """
        if self._open >= self._bounds.listeners:
            raise web.HTTPServiceUnavailable(text="Too many readers of the live feed.\n")
        self._open += 1
        try:
            if self._task is None:
                await self._begin()
            response = web.StreamResponse(headers={**HEADERS, **headers})
            await response.prepare(request)
            await self._serve(request, response, may_read)
        finally:
            self._open -= 1
        return response

    async def _serve(
        self, request: web.Request, response: web.StreamResponse, may_read: Callable[[], bool]
    ) -> None:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(self._bounds.events)
        self._listeners.add(queue)
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        try:
            while True:
                try:
                    async with asyncio.timeout(self._bounds.beat):
                        event = await queue.get()
                except TimeoutError:
                    event = b":\n\n"
                if event is None or not may_read():
                    break
                async with asyncio.timeout(self._bounds.unread):
                    await response.write(event)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._listeners.discard(queue)

    async def _follow(self) -> None:
        """Read the journal and distribute what is new, until nobody listens."""
        try:
            while self._listeners:
                stories = await self._new()
                if stories:
                    self._send(stories)
                if len(stories) < FULL:
                    await asyncio.sleep(self._bounds.follow)
        except web.HTTPException:
            self._end()
        finally:
            self._task = None

    def _send(self, stories: list[Story]) -> None:
        for story in stories:
            text = " ".join(self._show(story).split())
            event = f"id: {story.id}\ndata: {text}\n\n".encode("utf-8", "replace")
            for queue in list(self._listeners):
                if queue.full():
                    self._drop(queue)
                else:
                    queue.put_nowait(event)

    def _drop(self, queue: asyncio.Queue[bytes | None]) -> None:
        """End a listener's feed; its browser connects again."""
        self._listeners.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    def _end(self) -> None:
        for queue in list(self._listeners):
            self._drop(queue)

    async def aclose(self) -> None:
        """End all feeds."""
        self._end()
        if self._task is not None:
            self._task.cancel()

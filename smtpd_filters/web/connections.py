"""The connections of the page: which ones wait for nothing, and are ended.

aiohttp waits for the header of a request, and for a client that doesn't read, as long as it takes.

Invariants
----------
*Bounded*: a connection without a request in progress ends after `IDLE` seconds, and those that have
been without one for longest end earlier if there are more than `MOST`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

#: Seconds without a request in progress, and connections at a time.
IDLE, MOST = 30.0, 256
#: Seconds between two looks.
EVERY = 1.0


class Connections:
    """What the connections of a server do."""

    def __init__(self) -> None:
        #: The number of requests in progress.
        self._busy: Counter[Any] = Counter()
        #: Since when each connection has none.
        self._since: dict[Any, float] = {}

    @property
    def middleware(self) -> Any:
        """The middleware of an application, which has to be its first."""

        @web.middleware
        async def counted(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            connection = request.protocol
            self._busy[connection] += 1
            try:
                return await handler(request)
            finally:
                self._since[connection] = time.monotonic()
                self._busy[connection] -= 1
                if not self._busy[connection]:
                    del self._busy[connection]

        return counted

    def useless(self, connections: Iterable[Any], now: float) -> list[Any]:
        """Return those of all connections that are to be ended."""
        known, busy = self._since, self._busy
        self._since = {each: now if each in busy else known.get(each, now) for each in connections}
        waiting = sorted(
            (each for each in self._since if each not in busy), key=self._since.__getitem__
        )
        surplus = max(len(self._since) - MOST, 0)
        return [
            each
            for at, each in enumerate(waiting)
            if at < surplus or now - self._since[each] > IDLE
        ]

    async def watch(self, server: web.Server) -> None:
        """End useless connections of a server, until it is cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            for each in self.useless(server.connections, time.monotonic()):
                if each.transport is not None:
                    each.transport.abort()

"""The limit on the sockets of look-ups, and the queue for descriptors when they run out.

A DNS query or HTTP request that cannot get a descriptor waits until another socket is closed, or
its deadline has passed. The rest of the process uses descriptors too and does not report when it
closes one; so the first in the queue also tries again every `pause` seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque

from .places import QUEUE, Places

#: Seconds between two tries while no socket is closed.
PAUSE = 0.1
# Each connection holds up to 64 KiB.
PER_STREAM = 8


class Shortage:
    """A FIFO queue for descriptors, used while this machine has none left.

    The first in the queue tries again every `pause` seconds.
    """

    def __init__(self, *, pause: float = PAUSE) -> None:
        self._pause = pause
        self._short: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def freed(self) -> None:
        """Wait until a descriptor may be available; call it without holding a place."""
        loop = asyncio.get_running_loop()
        again = loop.create_future()
        self._short.append(again)
        if self._timer is None:
            self._timer = loop.call_later(self._pause, self._tick)
        await again

    def closed(self) -> None:
        """Resume the first in the queue, since a socket was closed."""
        while self._short:
            again = self._short.popleft()
            if not again.done():  # cancelled
                again.set_result(None)
                return

    def _tick(self) -> None:
        self._timer = None
        self.closed()
        if self._short:
            self._timer = asyncio.get_running_loop().call_later(self._pause, self._tick)


class Sockets(Shortage):
    """Places for `limit` datagram sockets, and for one connection per `PER_STREAM` of them."""

    def __init__(self, limit: int, *, pause: float = PAUSE) -> None:
        super().__init__(pause=pause)
        self._datagrams = Places(limit)
        # As many look-ups may continue over TCP as over UDP.
        self._streams = Places(max(1, limit // PER_STREAM), QUEUE * limit)

    def places(self, *, tcp: bool) -> Places:
        """Return the places of which one is to be held while a socket is open."""
        return self._streams if tcp else self._datagrams

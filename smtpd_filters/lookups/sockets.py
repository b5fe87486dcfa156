"""How many sockets look-ups hold: a limit, and less while the system gives less.

A question, or an HTTP request, that gets no descriptor because others have them all waits for one
to be closed, until its deadline.  Descriptors belong to the whole process, and whatever else holds
them doesn't report back; so one of those that wait also tries again every `PAUSE` seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque

PAUSE = 0.1
# Each connection holds up to 64 KiB.
PER_STREAM = 8


class Shortage:
    """Those that wait because this machine is short of descriptors, first come, first served."""

    def __init__(self) -> None:
        self._short: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def freed(self) -> None:
        """Wait, without a place, until it is worth while to try to get a descriptor again."""
        loop = asyncio.get_running_loop()
        again = loop.create_future()
        self._short.append(again)
        if self._timer is None:
            self._timer = loop.call_later(PAUSE, self._tick)
        await again

    def closed(self) -> None:
        """Let the next one try: a socket was closed."""
        while self._short:
            again = self._short.popleft()
            if not again.done():  # cancelled
                again.set_result(None)
                return

    def _tick(self) -> None:
        self._timer = None
        self.closed()
        if self._short:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self._tick)


class Sockets(Shortage):
    """Places for `limit` sockets, and for one connection in `PER_STREAM` of these."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._datagrams = asyncio.Semaphore(limit)
        self._streams = asyncio.Semaphore(max(1, limit // PER_STREAM))

    def place(self, *, tcp: bool) -> asyncio.Semaphore:
        """Return the context in which a socket may be held, first come, first served."""
        return self._streams if tcp else self._datagrams

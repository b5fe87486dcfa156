"""Turns at a server, shared fairly by the clients of the mail server.

A client can make requests that take a server long, as many at a time as it has sessions, and each
holds a turn until its time-out.

Invariants
----------
*Shared*: a client gets a further turn only while more are free than it has. One client alone has at
most half of them, two have three quarters.
*Fair*: a turn that becomes free goes to the client that has the fewest, of several to the one that
has waited for longest. So a client waits for the end of one request, however many another one has
in the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """So many turns. A client is any text; "" has no limit, and gets each turn that is free."""

    __slots__ = ("_free", "_held", "_waiting")

    def __init__(self, number: int) -> None:
        self._free = number
        #: How many turns each client has, except for "".
        self._held: dict[str, int] = {}
        #: The requests that wait, by client; a client that has got a turn goes to the end.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def locked(self, client: str = "") -> bool:
        """Return whether a request of a client has to wait."""
        return self._held.get(client, 0) >= self._free

    @property
    def wanted(self) -> bool:
        """Whether a client waits that would get a further turn."""
        return any(self._held.get(each, 0) <= self._free for each in self._waiting)

    async def acquire(self, client: str = "") -> None:
        """Wait for a turn, which ends with `release`."""
        if not self.locked(client):
            self._take(client)
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(granted)
        try:
            await granted
        except BaseException:  # cancelled
            if granted.done() and not granted.cancelled():
                self.release(client)
            else:
                self._drop(client, granted)
            raise

    def release(self, client: str = "") -> None:
        """End a turn of a client."""
        self._free += 1
        if client:
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]
        while self._waiting:
            held, chosen = min(
                ((self._held.get(each, 0), each) for each in self._waiting), key=_first
            )
            if held >= self._free:
                break
            queue = self._waiting[chosen]
            granted = queue.popleft()
            del self._waiting[chosen]
            if queue:
                self._waiting[chosen] = queue
            if not granted.done():  # cancelled, and about to leave
                self._take(chosen)
                granted.set_result(None)

    def _take(self, client: str) -> None:
        self._free -= 1
        if client:
            self._held[client] = self._held.get(client, 0) + 1

    def _drop(self, client: str, granted: asyncio.Future[None]) -> None:
        """Remove a request that waits no longer."""
        queue = self._waiting.get(client)
        if queue is not None and granted in queue:
            queue.remove(granted)
            if not queue:
                del self._waiting[client]


def _first(each: tuple[int, str]) -> int:
    return each[0]

"""Turns at a server, shared fairly by the clients of the mail server.

A client can make requests that take a server long, as many at a time as it has sessions, and each
holds a turn until its time-out.

Invariants
----------
*Shared*: a client gets a further turn only while more are free than it has. One client alone has at
most half of them, two have three quarters.
*Fair*: a turn that becomes free goes to the client that has the fewest, of several to one after the
other. So a client waits for the end of one request, however many another one has in the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """So many turns. A client is any text; "" has no limit, and gets each turn that is free."""

    __slots__ = ("_free", "_held", "_levels", "_waiting")

    def __init__(self, number: int) -> None:
        self._free = number
        #: How many turns each client has, except for "".
        self._held: dict[str, int] = {}
        #: The requests that wait, by client.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        #: The clients that wait by how many turns they have, the next one of each first.
        self._levels: dict[int, dict[str, None]] = {}

    def locked(self, client: str = "") -> bool:
        """Return whether a request of a client has to wait."""
        return self._held.get(client, 0) >= self._free

    def one_short(self, client: str) -> bool:
        """Return whether a client would get a turn if one more were free."""
        return self._held.get(client, 0) <= self._free

    def wanted(self, client: str) -> bool:
        """Return whether a client waits that would get a turn of `client`'s, or `client` itself."""
        if client in self._waiting:
            return True
        return bool(self._levels) and min(self._levels) <= self._free

    async def acquire(self, client: str = "") -> None:
        """Wait for a turn, which ends with `release`."""
        if not self.locked(client):
            self._change(client, 1)
            return
        granted = asyncio.get_running_loop().create_future()
        queue = self._waiting.get(client)
        if queue is None:
            queue = self._waiting[client] = deque()
            self._enter(client)
        queue.append(granted)
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
        if client in self._waiting:
            self._leave(client)
            self._change(client, -1)
            self._enter(client)
        else:
            self._change(client, -1)
        while self._levels and (held := min(self._levels)) < self._free:
            chosen = next(iter(self._levels[held]))
            queue = self._waiting[chosen]
            granted = queue.popleft()
            self._leave(chosen)
            if not granted.done():  # cancelled, and about to leave
                self._change(chosen, 1)
                granted.set_result(None)
            if queue:
                self._enter(chosen)
            else:
                del self._waiting[chosen]

    def _change(self, client: str, turns: int) -> None:
        """Give a client turns; negative to take them back."""
        self._free -= turns
        if client:
            held = self._held[client] = self._held.get(client, 0) + turns
            if not held:
                del self._held[client]

    def _enter(self, client: str) -> None:
        """Note that a client waits, as the last of those with as many turns."""
        self._levels.setdefault(self._held.get(client, 0), {})[client] = None

    def _leave(self, client: str) -> None:
        held = self._held.get(client, 0)
        level = self._levels[held]
        del level[client]
        if not level:
            del self._levels[held]

    def _drop(self, client: str, granted: asyncio.Future[None]) -> None:
        """Remove a request that waits no longer."""
        queue = self._waiting.get(client)
        if queue is not None and granted in queue:
            queue.remove(granted)
            if not queue:
                self._leave(client)
                del self._waiting[client]

"""The servers of a stream client with their connections, and the attempts of one exchange.

Importing this module imports asyncio.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from smtpd_filters.lookups.failover.attempts import Attempts as Base
from smtpd_filters.lookups.failover.failures import (
    CLOSED,
    BadReplyError,
    Trouble,
    connect_trouble,
    reason,
)
from smtpd_filters.lookups.failover.turns import Turns
from smtpd_filters.lookups.retry import Failure

from .connection import LostError, UnconnectedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from .client import Client, Server
    from .connection import Connection

T = TypeVar("T")
_RESTS = "closed the connection; not asked again for now"


class Host:
    """A server and its connections: those in use, and those that are kept for the next use."""

    def __init__(self, server: Server, connections: int, *, idle: float, lifetime: float) -> None:
        self._server = server
        self._idle_for, self._lifetime = idle, lifetime
        self.turns = Turns(min(connections, server.most or connections))
        self._used: set[Connection] = set()
        #: Kept connections with the time until which they are kept; the last was used last.
        self._kept: list[tuple[float, Connection]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        #: When the next connection may be made, None without a limit. *Rests*.
        self._next: float | None = None

    async def acquire(self, *, new: bool = False) -> Connection:
        """Return a kept connection, or a new one.

        Raises UnconnectedError, and BadReplyError if the client is closed.
        """
        self._check()
        connection = None
        while self._kept and not new and connection is None:
            _, kept = self._kept.pop()
            if kept.fresh and kept.opened + self._lifetime > asyncio.get_running_loop().time():
                connection = kept
            else:
                kept.abort()
        if connection is None:
            self._admit()
            connection = await self._server.connect()
            try:
                self._check()
            except BadReplyError:
                connection.abort()
                raise
        connection.begin()
        self._used.add(connection)
        return connection

    def _check(self) -> None:
        if self._closed:
            raise BadReplyError(CLOSED)

    def _admit(self) -> None:
        """Raise UnconnectedError if no connection may be made now."""
        if self._next is None:
            return
        now = asyncio.get_running_loop().time()
        if now < self._next:
            raise UnconnectedError(OSError(0, _RESTS))
        self._next = now + self._server.rest

    def unanswered(self) -> None:
        """Record a ping whose connection ended without a reply."""
        if self._server.rest:
            self._next = asyncio.get_running_loop().time() + self._server.rest

    def release(self, connection: Connection) -> None:
        """End an exchange: keep its connection if possible, or abort it."""
        self._used.discard(connection)
        if connection.replied:
            self._next = None
        if self._closed or not self._idle_for or not connection.fresh:
            connection.abort()
            return
        connection.rest()
        self._kept.append((asyncio.get_running_loop().time() + self._idle_for, connection))
        self._watch()

    def _watch(self) -> None:
        if self._timer is None and self._kept:
            self._timer = asyncio.get_running_loop().call_at(self._kept[0][0], self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._kept and self._kept[0][0] <= now:
            self._kept.pop(0)[1].abort()
        self._watch()

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for connection in (*self._used, *(kept for _, kept in self._kept)):
            connection.abort()
        self._kept = []


class Attempts(Base[T]):
    """The attempts of one exchange at the servers."""

    __slots__ = ("_asked", "_connection", "_exchange", "_server")

    broken = (UnconnectedError, LostError)

    def __init__(
        self,
        asked: Client,
        exchange: Callable[[Connection], Awaitable[T]],
        *,
        client: str = "",
    ) -> None:
        super().__init__(asked, client)
        self._asked = asked
        self._exchange = exchange
        #: The connection of the last try, None if it has none; and the server.
        self._connection: Connection | None = None
        self._server = -1

    async def exchange(self, server: int) -> T:
        """Return the result of the exchange with a server, over a new connection if repeated."""
        host = self._asked.hosts[server]
        repeated = self._connection is not None and self._server == server
        self._connection, self._server = None, server
        connection = self._connection = await host.acquire(new=repeated)
        try:
            return await self._exchange(connection)
        finally:
            host.release(connection)

    def translate(self, error: Exception) -> Trouble:
        """Return why the exchange failed."""
        if isinstance(error, UnconnectedError):
            return connect_trouble(error.cause)
        if isinstance(error, LostError):
            unreachable = Failure.UNREACHABLE
            if self._connection is not None and self._connection.replied:
                return Trouble(unreachable, "reply cut short")
            # Which of these it is depends on which side was faster: use one text.
            if error.cause is None or isinstance(error.cause, ConnectionError):
                return Trouble(unreachable, "closed the connection")
            return Trouble(unreachable, reason(error.cause, "connection lost"))
        return Trouble(Failure.BROKEN, f"{type(error).__name__}: {error}"[:200])

    def is_unanswered(self, error: Exception) -> bool:
        """Return whether the server was reached, but sent no part of a reply."""
        connection = self._connection
        return isinstance(error, LostError) and connection is not None and not connection.replied

    async def is_healthy(self, server: int) -> bool:
        """Return whether a server answers a ping."""
        ping: Callable[[Connection], Awaitable[Any]] | None = self._asked.ping
        if ping is None:
            return False
        host = self._asked.hosts[server]
        try:
            connection = await host.acquire(new=True)
            try:
                await ping(connection)
            except LostError:
                if not connection.replied:
                    host.unanswered()
                raise
            finally:
                host.release(connection)
        except Exception:  # noqa: BLE001  # any failure means no
            return False
        return True

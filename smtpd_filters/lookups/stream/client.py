"""A client for one of several equivalent servers of a protocol over TCP or a unix socket.

An exchange is a coroutine that gets a connection, sends its request and returns the result of the
reply. It is called for one server after another as `smtpd_filters.lookups.failover.group` says,
which has the invariants; so it must be safe to repeat. The module is cheap to import.

Invariants
----------
*Always closed*: a connection is aborted when its exchange has ended in any way, unless the client
keeps connections (`idle`) and the exchange called `keep`.
*One at a time*: a connection has one exchange at a time.
*Rests*: after a ping that ended without a reply, a server that is costly to connect to, such as a
program that is started, gets one connection in `Server.rest` seconds until it replies. A request
that it rejects by ending the connection doesn't cause this, or a client could keep others from it.
*Kept within bounds*: at most as many connections are kept as exchanges may be pending, each for
`idle` seconds without use, and for `lifetime` seconds in all.
"""

from __future__ import annotations

import time

from smtpd_filters.lookups.failover.group import CONNECTIONS, PING, Group
from smtpd_filters.settings.shared import PoolCloses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Any, Protocol, TypeVar

    from smtpd_filters.lookups.failover.breaker import Note
    from smtpd_filters.lookups.outcome import Unavailable

    from .connection import Connection

    T = TypeVar("T")

    class Server(Protocol):
        """What a client connects to: an `Address`, or what stands for one."""

        @property
        def label(self) -> str:
            """Its name in logs."""

        @property
        def most(self) -> int:
            """The most connections that it allows, 0 for any number."""

        @property
        def rest(self) -> float:
            """Seconds between two connections after one that ended without a reply to a ping."""

        async def connect(self) -> Connection:
            """Return a new connection. Raises UnconnectedError."""


#: Seconds for which a connection is used, as Postfix's smtpd_policy_service_max_ttl.
LIFETIME = 1000.0


class Client(Group):
    """A client for the servers at `addresses`.

    Times are in seconds: `timeout` for the exchange with one server, `deadline` for all of them.
    `connections` is how many exchanges may be pending at one server; further ones wait. `idle` is
    for how long an unused connection is kept, 0 for not at all. `ping` is an exchange that every
    healthy server completes within `ping_time`, 0 for the usual one: if it succeeds after the
    server broke off twice without a reply, the server rejects this request, and its circuit stays
    closed. Exchanges of a `kind` are counted (`runtime.counters`). `clock` is any monotonic clock.
    `note` logs that no server answers, and that one does again.
    """

    def __init__(  # noqa: PLR0913  # one for each limit
        self,
        addresses: Sequence[Server],
        *,
        timeout: float,
        deadline: float,
        connections: int = CONNECTIONS,
        idle: float = 0.0,
        lifetime: float = LIFETIME,
        ping: Callable[[Connection], Awaitable[Any]] | None = None,
        ping_time: float = 0.0,
        kind: str = "",
        clock: Callable[[], float] = time.monotonic,
        note: Note | None = None,
    ) -> None:
        from .attempts import Host  # imports asyncio, at start

        self.hosts = [
            Host(address, connections, idle=idle, lifetime=lifetime) for address in addresses
        ]
        self.ping = ping
        labels = [address.label for address in addresses]
        super().__init__(
            self.hosts,
            labels,
            timeout=timeout,
            deadline=deadline,
            kind=kind,
            clock=clock,
            note=note,
            pings=(ping_time or PING) if ping is not None else 0.0,
        )

    async def ask(
        self,
        exchange: Callable[[Connection], Awaitable[T]],
        *,
        trouble: list[str] | None = None,
        client: str = "",
    ) -> T | Unavailable:
        """Return the result of an exchange with one of the servers, or Unavailable.

        `client` is the client of the mail server for which they are asked (`failover.turns`).
        The exchange raises BadReplyError for an invalid reply, after which the next server is
        asked, and NotKeptError if no server is to be asked. `trouble` gets the cause of failure of
        the servers asked before the one that replied.
        """
        from .attempts import Attempts  # loaded by `__init__`

        attempts = Attempts(self, exchange, client=client)
        result = await self.run(attempts)
        if trouble is not None and attempts.trouble:
            trouble.append(attempts.trouble)
        return result


class SharedClient(PoolCloses, Client):
    """The client of filters, which only the pool closes (`settings.shared`)."""

    resource = "client"

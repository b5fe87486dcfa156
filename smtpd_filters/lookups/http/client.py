"""An HTTP client for one of several equivalent servers, over kept-alive connections.

A request is a POST (a GET without a body). The module is cheap to import; creating a `Client`
imports aiohttp, at start rather than at the first mail. A request is sent to one server after
another as `smtpd_filters.lookups.failover.group` says, which has the invariants.
"""

from __future__ import annotations

import time

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.failover.group import CONNECTIONS, PING, Group
from smtpd_filters.settings.shared import PoolCloses

from .messages import Endpoint
from .trust import without_certificates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeVar

    from smtpd_filters.lookups.failover.breaker import Note
    from smtpd_filters.lookups.outcome import Unavailable

    from .messages import Request, Response

    T = TypeVar("T")


class Client(Group):
    """A client for the servers at `urls`, which are as for `Endpoint`.

    Times are in seconds: `timeout` for the reply of one server, `deadline` for the whole request.
    `connections` is how many requests may be pending at one server; further ones wait. Requests of
    a `kind` are counted (`runtime.counters`). `clock` is any monotonic clock. `note` logs that no
    server answers, and that one does again; `watch` logs the same of each of several servers.

    Raises ConfigError for an invalid URL.
    """

    def __init__(  # noqa: PLR0913  # one for each limit
        self,
        urls: Sequence[str],
        *,
        timeout: float,
        deadline: float,
        connections: int = CONNECTIONS,
        kind: str = "",
        clock: Callable[[], float] = time.monotonic,
        note: Note | None = None,
        watch: Note | None = None,
    ) -> None:
        try:
            endpoints = [Endpoint(url) for url in urls]
        except ValueError as error:
            raise ConfigError(str(error)) from None
        try:
            with without_certificates():
                from .attempts import Attempts
            from .connection import Host
        except ImportError as error:
            label = endpoints[0].label
            raise ConfigError(f"aiohttp is needed to ask {label}: {error}") from None
        self._attempts = Attempts
        self.hosts = [Host(endpoint, connections) for endpoint in endpoints]
        labels = [endpoint.label for endpoint in endpoints]
        super().__init__(
            self.hosts,
            labels,
            timeout=timeout,
            deadline=deadline,
            kind=kind,
            clock=clock,
            note=note,
            watch=watch,
            pings=PING,
        )

    async def ask(
        self,
        request: Request,
        read: Callable[[Response], Awaitable[T]],
        *,
        client: str = "",
    ) -> T | Unavailable:
        """Send a request; return the result of `read` for the reply, or Unavailable.

        `read` reads the content, within the server's timeout. It raises BadReplyError for an
        invalid reply, after which the next server is asked, and NotKeptError if the reply can't be
        stored here, which ends the request. `client` is the client of the mail server for which
        they are asked (`failover.turns`).
        """
        attempts = self._attempts(self, request, read, client=client)
        result = await self.run(attempts)
        request.trouble = attempts.trouble
        return result


class SharedClient(PoolCloses, Client):
    """The client of filters, which only the pool closes (`settings.shared`)."""

    resource = "HTTP client"

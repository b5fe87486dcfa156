"""The attempts of one HTTP request at the servers.

`connection` sends the request and reads the reply. Importing this module imports aiohttp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from smtpd_filters.lookups.failover.attempts import Attempts as Base
from smtpd_filters.lookups.failover.failures import Trouble
from smtpd_filters.lookups.retry import Failure

from .connection import BROKEN, UNCONNECTED, Exchange, trouble
from .messages import Request, Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .client import Client

T = TypeVar("T")

#: A request that every healthy server answers in some way; Rspamd replies "pong".
PING = Request("/ping", (), None)


class Attempts(Base[T]):
    """The attempts of one request at the servers."""

    __slots__ = ("_exchange", "_hosts", "_read", "_request")

    broken = BROKEN

    def __init__(
        self,
        asked: Client,
        request: Request,
        read: Callable[[Response], Awaitable[T]],
        *,
        client: str = "",
    ) -> None:
        super().__init__(asked, client)
        self._hosts = asked.hosts
        self._request = request
        self._read = read
        #: The current exchange.
        self._exchange: Exchange

    def exchange(self, server: int) -> Awaitable[T]:
        """Send the request to a server; return the result of `read` for its reply."""
        self._exchange = Exchange(self._hosts[server], self._request)
        return self._exchange.run(self._read)

    def translate(self, error: Exception) -> Trouble:
        """Return why the exchange failed."""
        exchange = self._exchange
        if exchange.source_failed:
            return Trouble(Failure.LOCAL, exchange.source_failed, final=True)
        return trouble(error, replied=exchange.replied)

    def is_unanswered(self, error: Exception) -> bool:
        """Return whether the server was reached, but sent no part of a reply."""
        exchange = self._exchange
        reached = not isinstance(error, UNCONNECTED)
        return reached and not exchange.replied and not exchange.source_failed

    async def is_healthy(self, server: int) -> bool:
        """Return whether a server answers a ping."""
        try:
            await Exchange(self._hosts[server], PING).run(Response.read)
        except Exception:  # noqa: BLE001  # any failure means no
            return False
        return True

"""The attempts of one request at the servers: turns, timeouts, and the repeated request.

The invariants named in comments are those of `client`; `connection` sends the request and reads the
reply. Importing this module imports aiohttp.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from smtpd_filters.lookups.retry import Failure

from .connection import BROKEN, UNCONNECTED, Exchange, trouble
from .messages import BadReplyError, NotKeptError, Request, Response, Trouble

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smtpd_filters.lookups.retry import Ask

    from .client import Client
    from .connection import Host

T = TypeVar("T")

#: A request that every healthy server answers in some way; Rspamd replies "pong".
PING = Request("/ping", (), None)


class Attempts(Generic[T]):
    """The attempts of one request at the servers, until a deadline."""

    __slots__ = (
        "_client", "_exchange", "_excluded", "_passed_over", "_read", "_request", "_sent_to",
        "_until",
    )  # fmt: skip

    def __init__(
        self,
        client: Client,
        request: Request,
        read: Callable[[Response], Awaitable[T]],
        until: float,
    ) -> None:
        self._client = client
        self._request = request
        self._read = read
        self._until = until
        #: Servers that are not asked again, with the cause; and servers passed over once.
        self._excluded: dict[int, str] = {}
        self._passed_over: set[int] = set()
        #: Servers that the request was sent to. *Repeated once*.
        self._sent_to: set[int] = set()
        #: The current exchange.
        self._exchange: Exchange

    async def ask(self, step: Ask) -> T | Trouble:
        """Send the request to the server of a step, unless the server is excluded."""
        server = step.server
        if server in self._excluded:
            return Trouble(Failure.LOCAL, self._excluded[server])
        client = self._client
        if step.pause:
            await asyncio.sleep(step.pause)
        host = client.hosts[server]
        has_waited = host.turns.locked()
        if has_waited:
            try:
                async with asyncio.timeout(step.timeout):
                    await host.turns.acquire()
            except TimeoutError:
                return Trouble(Failure.LOCAL, "too many pending requests")
            if server not in self._passed_over and client.may_pass(server):
                # Requests before this one found the server dead.
                host.turns.release()
                self._passed_over.add(server)
                return Trouble(Failure.LOCAL, "passed over")
        else:
            await host.turns.acquire()
        left = client.left(self._until)
        try:
            result = await self._try(server, min(client.timeout, left))
        finally:
            host.turns.release()
        if not isinstance(result, Trouble) or result.failure is not Failure.SHORT:
            client.shortage.closed()
        if isinstance(result, Trouble) and result.failure is Failure.SILENT:
            if has_waited and left < client.timeout:
                return Trouble(Failure.LOCAL, result.cause)  # Bounded
            self._excluded[server] = result.cause
        return result

    async def _try(self, server: int, seconds: float) -> T | Trouble:
        """Ask a server, with a timeout in seconds; return the result or why it failed."""
        try:
            async with asyncio.timeout(seconds):
                return await self._ask_twice(server)
        except TimeoutError:
            return Trouble(Failure.SILENT, "timeout")
        except BadReplyError as error:
            return Trouble(Failure.BROKEN, str(error))
        except NotKeptError as error:
            return Trouble(Failure.LOCAL, str(error), final=True)
        except Exception as error:  # noqa: BLE001  # Never raises
            exchange = self._exchange
            if exchange.source_failed:
                return Trouble(Failure.LOCAL, exchange.source_failed, final=True)
            return trouble(error, replied=exchange.replied)

    async def _ask_twice(self, server: int) -> T:
        """Return the result of a reply, perhaps of a second try (*Repeated once*)."""
        host = self._client.hosts[server]
        is_new = server not in self._sent_to
        self._sent_to.add(server)
        try:
            return await self._exchange_with(host)
        except BROKEN as error:
            if not is_new or not self._is_unanswered(error):
                raise
        try:
            return await self._exchange_with(host)
        except BROKEN as error:
            if not self._is_unanswered(error) or not await _is_healthy(host):
                raise
        # The system's error depends on which side was faster: use one text.
        raise BadReplyError("closed the connection, but answers a ping")

    async def _exchange_with(self, host: Host) -> T:
        self._exchange = Exchange(host, self._request)
        return await self._exchange.run(self._read)

    def _is_unanswered(self, error: Exception) -> bool:
        """Return whether the server was reached, but sent no part of a reply."""
        exchange = self._exchange
        reached = not isinstance(error, UNCONNECTED)
        return reached and not exchange.replied and not exchange.source_failed


async def _is_healthy(host: Host) -> bool:
    """Return whether a server answers a ping."""
    try:
        await Exchange(host, PING).run(Response.read)
    except Exception:  # noqa: BLE001  # any failure means no
        return False
    return True

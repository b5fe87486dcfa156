"""The attempts of one request at the servers: turns, timeouts, and the second try.

The rules are `Client`'s; what one try sends and reads is in `connection`.  Importing it imports
aiohttp.
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

#: What any server that is well answers in some way; rspamd says "pong".
PING = Request("/ping", (), None)


class Attempts(Generic[T]):
    """One request and the servers it is sent to, until a point in time."""

    __slots__ = (
        "_asked", "_client", "_exchange", "_over", "_passed", "_read", "_request", "_until",
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
        #: Servers that are not asked again, and what they did; and those that were not asked.
        self._over: dict[int, str] = {}
        self._passed: set[int] = set()
        #: Servers that it was sent to; to each once more if there is no reply at all: law 4.
        self._asked: set[int] = set()
        #: What is under way.
        self._exchange: Exchange

    async def ask(self, step: Ask) -> T | Trouble:
        """Ask one server, if it is to be asked."""
        server = step.server
        if server in self._over:
            return Trouble(Failure.LOCAL, self._over[server])
        client = self._client
        if step.pause:
            await asyncio.sleep(step.pause)
        host = client.hosts[server]
        waited = host.turns.locked()
        if waited:
            try:
                async with asyncio.timeout(step.timeout):
                    await host.turns.acquire()
            except TimeoutError:
                return Trouble(Failure.LOCAL, "too many requests under way")
            if server not in self._passed and client.may_pass(server):
                # It was found dead by those whose turn it was.
                host.turns.release()
                self._passed.add(server)
                return Trouble(Failure.LOCAL, "passed over")
        else:
            await host.turns.acquire()
        left = client.left(self._until)
        try:
            said = await self._try(server, min(client.timeout, left))
        finally:
            host.turns.release()
        if not isinstance(said, Trouble) or said.failure is not Failure.SHORT:
            client.shortage.closed()
        if isinstance(said, Trouble) and said.failure is Failure.SILENT:
            if waited and left < client.timeout:
                return Trouble(Failure.LOCAL, said.cause)  # law 5
            self._over[server] = said.cause
        return said

    async def _try(self, server: int, seconds: float) -> T | Trouble:
        """Ask a server, for so long."""
        try:
            async with asyncio.timeout(seconds):
                return await self._answer(server)
        except TimeoutError:
            return Trouble(Failure.SILENT, "timeout")
        except BadReplyError as error:
            return Trouble(Failure.BROKEN, str(error))
        except NotKeptError as error:
            return Trouble(Failure.LOCAL, str(error), final=True)
        except Exception as error:  # noqa: BLE001  # law 1
            exchange = self._exchange
            if exchange.source_failed:
                return Trouble(Failure.LOCAL, exchange.source_failed, final=True)
            return trouble(error, replied=exchange.replied)

    async def _answer(self, server: int) -> T:
        """What a server's reply comes to, if need be that to the second try: law 4."""
        host = self._client.hosts[server]
        is_new = server not in self._asked
        self._asked.add(server)
        try:
            return await self._exchanged(host)
        except BROKEN as error:
            if not is_new or not self._is_unanswered(error):
                raise
        try:
            return await self._exchanged(host)
        except BROKEN as error:
            if not self._is_unanswered(error) or not await _is_well(host):
                raise
        # How the system called it depends on who was faster.
        raise BadReplyError("closed the connection, but answers a ping")

    async def _exchanged(self, host: Host) -> T:
        self._exchange = Exchange(host, self._request)
        return await self._exchange.run(self._read)

    def _is_unanswered(self, error: Exception) -> bool:
        """Whether the server was reached, and the request got no reply at all."""
        exchange = self._exchange
        reached = not isinstance(error, UNCONNECTED)
        return reached and not exchange.replied and not exchange.source_failed


async def _is_well(host: Host) -> bool:
    """Whether a server answers at all."""
    try:
        await Exchange(host, PING).run(Response.read)
    except Exception:  # noqa: BLE001  # whatever it is
        return False
    return True

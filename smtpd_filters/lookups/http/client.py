"""Requests to one of several HTTP servers that do the same, over connections that are kept alive.

1. What is asked comes to the reply, or to `Unavailable` with its cause, within its deadline;
   nothing is raised but cancellation.
2. Servers are asked in the order in which they are given, save those whose circuit is open
   (`breaker`). One that refuses the connection, breaks it or doesn't answer in its time gives way
   to the next, as does one whose reply isn't a good one; when all have failed, those that broke
   off are asked once more after a pause (`retry`).
3. A time-out is not repeated: what took too long once would again, and load is the usual reason.
4. A connection that was kept alive may be closed by the server at the moment of its next use, and
   a restart looks the same: a request that gets no reply at all is sent once more, at once,
   before that counts as a failure. So a request must be one that does no harm when it comes
   twice. A server that breaks off both times and answers a ping then is well: what it doesn't take
   is this request, such as a message above its own limit, and others need not go elsewhere for it.
5. Memory is bounded: a body is sent as it is read, a reply is read as it comes and ends at its
   limit, and so is the number of requests under way at one server. Waiting for a turn counts
   against the deadline, not against the server.
6. A request that gets no connection because this machine is short of descriptors waits for one of
   another request, or for a descriptor, until the deadline (`sockets`).

A request is a POST. The module is cheap to import; making a `Client` imports aiohttp, so that the
first mail doesn't. Causes are for the log, and hold nothing that changes from one request to the
next: they are logged once in an interval.
"""

from __future__ import annotations

import time

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import Failure, Plan

from .breaker import Breaker
from .connection import (
    CLOSED,
    BadReplyError,
    Endpoint,
    Exchange,
    Host,
    NotKeptError,
    Request,
    Response,
    Trouble,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Generic, TypeVar

    from smtpd_filters.lookups.retry import Ask

    T = TypeVar("T")
else:
    T = None
    Generic = {None: object}

__all__ = [
    "CLOSED",
    "BadReplyError",
    "Client",
    "Endpoint",
    "NotKeptError",
    "Request",
    "Response",
]

#: Requests under way at one server, each of which takes a connection; more have to wait.
CONNECTIONS = 64
#: How often each server is asked.
ROUNDS = 2
#: What any server that is well answers in some way; rspamd says "pong".
PING = Request("/ping", (), None)


class Client:
    """Asks servers. `urls` are as `Endpoint` takes them.

    Times are in seconds: `timeout` for one server to reply, `deadline` for it all. `connections` is
    how many requests may be under way at one server; the others wait. `clock` is any steady clock.

    Raises ConfigError for a url that is none.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float,
        deadline: float,
        connections: int = CONNECTIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            endpoints = [Endpoint(url) for url in urls]
        except ValueError as error:
            raise ConfigError(str(error)) from None
        import asyncio

        from smtpd_filters.lookups.sockets import Shortage

        self.asyncio = asyncio
        #: Requests that wait because this machine is short of descriptors.
        self.shortage = Shortage()
        self.hosts = [Host(endpoint, connections) for endpoint in endpoints]
        self._breaker = Breaker([endpoint.label for endpoint in endpoints])
        self.timeout = timeout
        self._deadline = deadline
        self._clock = clock
        self._closed = False

    async def ask(
        self, request: Request, read: Callable[[Response], Awaitable[T]]
    ) -> T | Unavailable:
        """Send a request, and return what `read` makes of the reply, or Unavailable.

        `read` reads the content, within the time of the server. It raises BadReplyError for an
        invalid reply; then the next server is asked. NotKeptError ends it: there is no place here
        for a reply.
        """
        if self._closed:
            return Unavailable(CLOSED)
        now = self._clock()
        plan = Plan(
            self._breaker,
            now,
            attempts=ROUNDS,
            timeout=self.timeout,
            deadline=now + self._deadline,
        )
        course = _Course(self, request, read, now + self._deadline)
        while True:
            step = plan.next(self._clock())
            if isinstance(step, Unavailable):
                return step
            said = await course.ask(step)
            if not isinstance(said, Trouble):
                plan.answered()
                request.trouble = plan.cause("")
                return said
            if said.final:
                return Unavailable(said.cause)
            plan.failed(said.failure, said.cause, self._clock())
            if said.failure is Failure.SHORT:
                await self._freed(now + self._deadline)

    async def _freed(self, until: float) -> None:
        """Wait for a connection to be free, or a descriptor, but not beyond a point in time."""
        try:
            async with self.asyncio.timeout(max(self.left(until), 0)):
                await self.shortage.freed()
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Close the connections; whoever still waits is told Unavailable."""
        self._closed = True
        for host in self.hosts:
            await host.close()

    def left(self, until: float) -> float:
        """The seconds until a point in time."""
        return until - self._clock()

    def may_pass(self, server: int) -> bool:
        """Whether a server failed, and there is another one that didn't."""
        states = [self._breaker.is_open(each) for each in range(len(self.hosts))]
        return states[server] and not all(states)


class _Course(Generic[T]):
    """One request on its course past the servers, until a point in time."""

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
            await client.asyncio.sleep(step.pause)
        host = client.hosts[server]
        waited = host.turns.locked()
        if waited:
            try:
                async with client.asyncio.timeout(step.timeout):
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
        host = self._client.hosts[server]
        try:
            async with self._client.asyncio.timeout(seconds):
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
            return host.trouble(error, replied=exchange.replied)

    async def _answer(self, server: int) -> T:
        """What a server's reply comes to, if need be that to the second try: law 4."""
        host = self._client.hosts[server]
        is_new = server not in self._asked
        self._asked.add(server)
        try:
            return await self._exchanged(host)
        except host.broken as error:
            if not is_new or not self._is_unanswered(host, error):
                raise
        try:
            return await self._exchanged(host)
        except host.broken as error:
            if not self._is_unanswered(host, error) or not await _is_well(host):
                raise
        # How the system called it depends on who was faster.
        raise BadReplyError("closed the connection, but answers a ping")

    async def _exchanged(self, host: Host) -> T:
        self._exchange = Exchange(host, self._request)
        return await self._exchange.run(self._read)

    def _is_unanswered(self, host: Host, error: Exception) -> bool:
        """Whether the server was reached, and the request got no reply at all."""
        exchange = self._exchange
        reached = not isinstance(error, host.unconnected)
        return reached and not exchange.replied and not exchange.source_failed


async def _is_well(host: Host) -> bool:
    """Whether a server answers at all."""
    try:
        await Exchange(host, PING).run(Response.read)
    except Exception:  # noqa: BLE001  # whatever it is
        return False
    return True

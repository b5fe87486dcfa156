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
   twice.
5. Memory is bounded: a body is sent as it is read, a reply ends at its limit, and the requests
   under way at one server are. Waiting for a turn counts against the deadline, not against the
   server.

A request is a POST. The module is cheap to import; making a `Client` imports aiohttp, so that the
first mail doesn't. Causes are for the log, and hold nothing that changes from one request to the
next: they are logged once in an interval.
"""

from __future__ import annotations

import time

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.breaker import Breaker
from smtpd_filters.lookups.exchange import (
    CLOSED,
    BadReplyError,
    Endpoint,
    Exchange,
    Host,
    Request,
    Response,
    Trouble,
)
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import Failure, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Generic, TypeVar

    from smtpd_filters.lookups.retry import Ask

    T = TypeVar("T")
else:
    T = None
    Generic = {None: object}

__all__ = ["CLOSED", "BadReplyError", "Client", "Endpoint", "Request", "Response"]

#: Requests under way at one server, each of which takes a connection; more have to wait.
CONNECTIONS = 64
#: How often each server is asked.
ROUNDS = 2


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

        self.asyncio = asyncio
        self.hosts = [Host(endpoint, connections) for endpoint in endpoints]
        self._breaker = Breaker([endpoint.label for endpoint in endpoints])
        self._timeout = timeout
        self._deadline = deadline
        self._clock = clock
        self._closed = False

    async def ask(self, request: Request, read: Callable[[Response], T]) -> T | Unavailable:
        """Send a request, and return what `read` makes of the reply, or Unavailable.

        `read` raises BadReplyError for a reply that is none; then the next server is asked.
        """
        if self._closed:
            return Unavailable(CLOSED)
        now = self._clock()
        plan = Plan(
            self._breaker,
            now,
            attempts=ROUNDS,
            timeout=self._timeout,
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
                return said
            if said.final:
                return Unavailable(said.cause)
            plan.failed(said.failure, said.cause, self._clock())

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

    __slots__ = ("_client", "_over", "_passed", "_read", "_request", "_resend", "_until")

    def __init__(
        self, client: Client, request: Request, read: Callable[[Response], T], until: float
    ) -> None:
        self._client = client
        self._request = request
        self._read = read
        self._until = until
        #: Servers that are not asked again, and what they did; and those that were not asked.
        self._over: dict[int, str] = {}
        self._passed: set[int] = set()
        #: Whether a request that got no reply at all may be sent again; law 4.
        self._resend = True

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
            said = await self._try(host, min(step.timeout, left))
        finally:
            host.turns.release()
        if isinstance(said, Trouble) and said.failure is Failure.SILENT:
            if waited and left < step.timeout:
                return Trouble(Failure.LOCAL, said.cause)  # law 5
            self._over[server] = said.cause
        return said

    async def _try(self, host: Host, seconds: float) -> T | Trouble:
        """Ask, twice if the connection breaks without a reply."""
        exchange = Exchange(host, self._request)
        try:
            async with self._client.asyncio.timeout(seconds):
                try:
                    response = await exchange.run()
                except host.broken as error:
                    if isinstance(error, host.unconnected) or not self._may_resend(exchange):
                        raise
                    exchange = Exchange(host, self._request)
                    response = await exchange.run()
            return self._read(response)
        except TimeoutError:
            return Trouble(Failure.SILENT, "timeout")
        except BadReplyError as error:
            return Trouble(Failure.BROKEN, str(error))
        except Exception as error:  # noqa: BLE001  # law 1
            if exchange.source_failed:
                return Trouble(Failure.LOCAL, exchange.source_failed, final=True)
            return host.trouble(error, replied=exchange.replied)

    def _may_resend(self, exchange: Exchange) -> bool:
        """Whether what failed may be tried again at once: the first time that this is asked."""
        resend, self._resend = self._resend, False
        return resend and not (exchange.replied or exchange.source_failed)

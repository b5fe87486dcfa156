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
from .messages import CLOSED, Endpoint, Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeVar

    from .messages import Request, Response

    T = TypeVar("T")

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
        try:
            from . import attempts  # noqa: F401  # not at the first request
            from .connection import Host
        except ImportError as error:
            label = endpoints[0].label
            raise ConfigError(f"aiohttp is needed to ask {label}: {error}") from None
        from smtpd_filters.lookups.sockets import Shortage

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
        from .attempts import Attempts  # which `__init__` has loaded

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
        attempts = Attempts(self, request, read, now + self._deadline)
        while True:
            step = plan.next(self._clock())
            if isinstance(step, Unavailable):
                return step
            said = await attempts.ask(step)
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
        import asyncio

        try:
            async with asyncio.timeout(max(self.left(until), 0)):
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

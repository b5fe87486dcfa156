"""An HTTP client for one of several equivalent servers, over kept-alive connections.

A request is a POST (a GET without a body). The module is cheap to import; creating a `Client`
imports aiohttp, at start rather than at the first mail. Causes are texts for the log without
details that differ between requests, since the log suppresses repeated lines.

Invariants
----------
*Never raises*: the result of a request is the reply, or `Unavailable` with the cause, within its
deadline; only cancellation is raised.
*Fail-over*: servers are asked in the given order, except those with an open circuit (`breaker`).
After a refused or broken connection, a timeout or an invalid reply, the next server is asked; when
all have failed, those that broke the connection are asked again after a pause (`retry`).
*Timeouts aren't repeated*: a request that timed out would probably do so again, usually because
of load.
*Repeated once*: a request without any reply is sent again at once before it counts as a failure,
since a server may close a kept-alive connection just as it is used, or restart. So a request must
be safe to repeat. A server that breaks off twice but answers a ping then is healthy and rejects
this request, such as a message above its own limit; other requests still go to it.
*Bounded*: a body is sent as it is read, a reply is read as it arrives, up to its limit, and the
number of pending requests at one server is limited. Waiting for a turn counts against the
deadline, not against the server.
*Short of descriptors*: a request without a connection because this machine is short of descriptors
waits for another request's connection, or for a descriptor, until the deadline (`sockets`).
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

#: Pending requests at one server, with a connection each; further requests wait.
CONNECTIONS = 64
#: How often each server is asked at most.
ROUNDS = 2


class Client:
    """A client for the servers at `urls`, which are as for `Endpoint`.

    Times are in seconds: `timeout` for the reply of one server, `deadline` for the whole request.
    `connections` is how many requests may be pending at one server; further ones wait. `clock` is
    any monotonic clock.

    Raises ConfigError for an invalid URL.
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
            from . import attempts  # noqa: F401  # at start, not at the first request
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
        """Send a request; return the result of `read` for the reply, or Unavailable.

        `read` reads the content, within the server's timeout. It raises BadReplyError for an
        invalid reply, after which the next server is asked, and NotKeptError if the reply can't be
        stored here, which ends the request.
        """
        from .attempts import Attempts  # loaded by `__init__`

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
            result = await attempts.ask(step)
            if not isinstance(result, Trouble):
                plan.answered()
                request.trouble = plan.cause("")
                return result
            if result.final:
                return Unavailable(result.cause)
            plan.failed(result.failure, result.cause, self._clock())
            if result.failure is Failure.SHORT:
                await self._wait_for_resources(now + self._deadline)

    async def _wait_for_resources(self, until: float) -> None:
        """Wait until a connection or a descriptor is free, or until the deadline."""
        import asyncio

        try:
            async with asyncio.timeout(max(self.left(until), 0)):
                await self.shortage.freed()
        except TimeoutError:
            pass

    async def aclose(self) -> None:
        """Close the connections; the result of pending requests is Unavailable."""
        self._closed = True
        for host in self.hosts:
            await host.close()

    def left(self, until: float) -> float:
        """Return the seconds until a deadline."""
        return until - self._clock()

    def may_pass(self, server: int) -> bool:
        """Return whether a server's circuit is open and another's is not."""
        states = [self._breaker.is_open(each) for each in range(len(self.hosts))]
        return states[server] and not all(states)


class SharedClient(Client):
    """The client of filters, which only the pool closes (`settings.shared`)."""

    async def aclose(self) -> None:
        """Raise RuntimeError: other filters may use it."""
        raise RuntimeError("a filter can't close its HTTP client: the framework does")

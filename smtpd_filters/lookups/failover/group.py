"""Equivalent servers, of which a request asks one after another until one answers.

The module is cheap to import: asyncio is loaded when a group is made.

Invariants
----------
*Never raises*: the result of a request is that of a server's reply, or `Unavailable` with the
cause, within its deadline; only cancellation is raised.
*Fail-over*: servers are asked in the given order, except those with an open circuit (`breaker`).
After a refused or broken connection, a timeout or an invalid reply, the next server is asked; when
all have failed, those that broke the connection are asked again after a pause (`retry`).
*Timeouts aren't repeated*: a request that timed out would probably do so again, usually because
of load.
*Repeated once*: a request without any reply is sent again at once before it counts as a failure,
since a server may close a kept-alive connection just as it is used, or restart. So a request must
be safe to repeat. A server that breaks off twice but answers a ping then is healthy and rejects
this request, such as a message above its own limit; other requests still go to it.
*Bounded*: the number of pending requests at one server is limited. Waiting for a turn counts
against the deadline, not against the server.
*Short of descriptors*: a request without a connection because this machine is short of descriptors
waits for another request's connection, or for a descriptor, until the deadline (`sockets`).
"""

from __future__ import annotations

import time

from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import Failure, Plan

from .breaker import Breaker
from .failures import CLOSED, Trouble

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from typing import Protocol, TypeVar

    from .attempts import Attempts

    T = TypeVar("T")

    class Host(Protocol):
        """A server and the connections to it."""

        #: A turn for each pending request.
        turns: asyncio.Semaphore

        async def close(self) -> None:
            """Close the connections."""


#: Pending requests at one server, with a connection each; further requests wait.
CONNECTIONS = 64
#: How often each server is asked at most.
ROUNDS = 2


class Group:
    """The servers of a client, by their labels for the log.

    Times are in seconds: `timeout` for the reply of one server, `deadline` for the whole request.
    `clock` is any monotonic clock.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        labels: Sequence[str],
        *,
        timeout: float,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from smtpd_filters.lookups.sockets import Shortage

        #: Requests that wait because this machine is short of descriptors.
        self.shortage = Shortage()
        self._servers = tuple(hosts)
        self._breaker = Breaker(labels)
        self.timeout = timeout
        self._deadline = deadline
        self._clock = clock
        self._closed = False

    async def run(self, attempts: Attempts[T]) -> T | Unavailable:
        """Ask the servers; return the result of the first reply, or Unavailable.

        After a reply, `attempts.trouble` is the cause of failure of the servers asked before.
        """
        if self._closed:
            return Unavailable(CLOSED)
        now = self._clock()
        until = attempts.until = now + self._deadline
        plan = Plan(self._breaker, now, attempts=ROUNDS, timeout=self.timeout, deadline=until)
        while True:
            step = plan.next(self._clock())
            if isinstance(step, Unavailable):
                return step
            result = await attempts.ask(step)
            if not isinstance(result, Trouble):
                plan.answered()
                attempts.trouble = plan.cause("")
                return result
            if result.final:
                return Unavailable(result.cause)
            plan.failed(result.failure, result.cause, self._clock())
            if result.failure is Failure.SHORT:
                await self._wait_for_resources(until)

    async def _wait_for_resources(self, until: float) -> None:
        """Wait until a connection or a descriptor is free, or until the deadline."""
        import asyncio

        try:
            async with asyncio.timeout(max(self.left(until), 0)):
                await self.shortage.freed()
        except TimeoutError:
            pass

    def turns(self, server: int) -> asyncio.Semaphore:
        """Return the turns of a server."""
        return self._servers[server].turns

    async def aclose(self) -> None:
        """Close the connections; the result of pending requests is Unavailable."""
        self._closed = True
        for host in self._servers:
            await host.close()

    def left(self, until: float) -> float:
        """Return the seconds until a deadline."""
        return until - self._clock()

    def may_pass(self, server: int) -> bool:
        """Return whether a server's circuit is open and another's is not."""
        states = [self._breaker.is_open(each) for each in range(len(self._servers))]
        return states[server] and not all(states)

"""Equivalent servers, of which a request asks one after another until one answers.

The module is cheap to import: asyncio is loaded when a group is made.

Invariants
----------
*Never raises*: the result of a request is that of a server's reply, or `Unavailable` with the
cause, within its deadline; only cancellation is raised.
*Fail-over*: servers are asked in the given order, except those with an open circuit (`breaker`).
After a refused or broken connection, a timeout or an invalid reply, the next server is asked; when
all have failed, those that broke the connection are asked again after a pause (`retry`).
*Not waited for*: when requests have timed out at all servers, none of which answered another one
meanwhile or a ping if there is one, requests fail at once, except for one from time to time
(`breaker.Circuit`). Requests that take a healthy server too long, as a client can make some, don't
keep others from being served.
*Timeouts aren't repeated*: a request that timed out would probably do so again, usually because
of load.
*Repeated once*: a request without any reply is sent again at once before it counts as a failure,
since a server may close a kept-alive connection just as it is used, or restart. So a request must
be safe to repeat. A server that breaks off twice but answers a ping then is healthy and rejects
this request, such as a message above its own limit; other requests still go to it.
*Bounded*: the number of pending requests at one server is limited, and shared by the clients of
the mail server for which it is asked (`turns`). Waiting for a turn counts against the deadline, not
against the server.
*Short of descriptors*: a request without a connection because this machine is short of descriptors
waits for another request's connection, or for a descriptor, until the deadline (`sockets`).
"""

from __future__ import annotations

import time
from functools import partial

from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import COUNTED, Failure, Plan
from smtpd_filters.runtime.counters import COUNTERS, LOCAL, PASSED_OVER, TIMEOUT, UNREACHABLE

from .breaker import Breaker, Circuit
from .failures import CLOSED, Trouble
from .outages import Outages
from .pings import Pings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol, TypeVar

    from .attempts import Attempts
    from .breaker import Note
    from .pings import Ping
    from .turns import Turns

    T = TypeVar("T")

    class Host(Protocol):
        """A server and the connections to it."""

        #: A turn for each pending request.
        turns: Turns

        async def close(self) -> None:
            """Close the connections."""


#: Pending requests at one server, with a connection each; further requests wait.
CONNECTIONS = 64
#: How often each server is asked at most.
ROUNDS = 2
#: Seconds for the answer to a ping that no server has to work for.
PING = 2.0
#: The part of a filter's `--deadline` for the servers' replies; the rest is for its own work.
SHARE = 0.95


class Group:
    """The servers of a client, by their labels for the log.

    Times are in seconds: `timeout` for the reply of one server, `deadline` for the whole request.
    `clock` is any monotonic clock. `note` logs that no server answers, and that one does again;
    `watch` logs the same of each of several servers (`outages`).
    `pings` are the seconds for the answer to a ping, 0 if the servers can't be pinged. Requests of
    a `kind` are counted (`runtime.counters`).
    """

    def __init__(  # noqa: PLR0913  # one for each limit
        self,
        hosts: Sequence[Host],
        labels: Sequence[str],
        *,
        timeout: float,
        deadline: float,
        kind: str = "",
        clock: Callable[[], float] = time.monotonic,
        note: Note | None = None,
        watch: Note | None = None,
        pings: float = 0.0,
    ) -> None:
        from smtpd_filters.lookups.sockets import Shortage

        #: Requests that wait because this machine is short of descriptors.
        self.shortage = Shortage()
        self._servers = tuple(hosts)
        self._breaker = Breaker(labels)
        #: The circuit of all servers together.
        self.circuit = Circuit(", ".join(labels), note)
        self._outages = Outages(labels, watch) if watch is not None and len(labels) > 1 else None
        #: Seconds for the answer to a ping, 0 if there is none.
        self.ping_time = pings
        self._pings = Pings(self.circuit, clock)
        self._counts = COUNTERS.of(kind) if kind else None
        if kind:
            COUNTERS.watch(kind, self)
        self.timeout = timeout
        self._deadline = deadline
        self._clock = clock
        self._closed = False

    async def run(self, attempts: Attempts[T]) -> T | Unavailable:
        """Ask the servers; return the result of the first reply, or Unavailable.

        After a reply, `attempts.trouble` is the cause of failure of the servers asked before.
        """
        began = self._clock()
        if self._closed or self.circuit.is_open:
            result = await self._ask_on_trial(attempts, began)
        else:
            result = await self._ask(attempts, began)
        if isinstance(result, Unavailable) and attempts.failure == UNREACHABLE:
            self.circuit.unreached(self._clock())
        if self._counts is not None:
            failed = isinstance(result, Unavailable)
            self._counts.ended(self._clock() - began, attempts.failure if failed else "")
        return result

    async def _ask_on_trial(self, attempts: Attempts[T], now: float) -> T | Unavailable:
        """Ask the servers, none of which has answered lately, or fail at once."""
        if self._closed:
            attempts.failure = LOCAL
            return Unavailable(CLOSED)
        circuit = self.circuit
        if not circuit.admits(now):
            attempts.failure = PASSED_OVER
            return Unavailable(circuit.cause)
        attempts.is_trial = True
        try:
            ping = self._ping(attempts)
            if ping is not None and not await self._pings.begin_trial(ping):
                attempts.failure = TIMEOUT
                return Unavailable(circuit.cause)
            return await self._ask(attempts, now)
        finally:
            circuit.release()

    async def _ask(self, attempts: Attempts[T], now: float) -> T | Unavailable:
        """Ask the servers, in turn."""
        until = attempts.until = now + self._deadline
        silent, answers = False, self.circuit.answers
        plan = Plan(self._breaker, now, attempts=ROUNDS, timeout=self.timeout, deadline=until)
        while True:
            step = plan.next(self._clock())
            if isinstance(step, Unavailable):
                if silent and self.circuit.answers == answers:
                    ping = self._ping(attempts)
                    await self._pings.silent(step.cause, ping, self.left(until))
                attempts.failure = plan.failure or TIMEOUT  # the deadline has passed
                return step
            result = await attempts.ask(step)
            if not isinstance(result, Trouble):
                plan.answered()
                self.circuit.answered()
                if self._outages is not None:
                    self._outages.answered(step.server)
                attempts.trouble = plan.cause("")
                return result
            if result.final:
                attempts.failure = COUNTED[result.failure]
                return Unavailable(result.cause)
            plan.failed(result.failure, result.cause, self._clock())
            if self._outages is not None:
                self._outages.failed(step.server, result.failure, result.cause, self._clock())
            if result.failure is Failure.BROKEN:
                self.circuit.answered()
            silent = silent or result.failure is Failure.SILENT
            if result.failure is Failure.SHORT:
                await self._wait_for_resources(until)

    def _ping(self, attempts: Attempts[T]) -> Ping | None:
        """Return the ping of the servers, if there is one."""
        return partial(self._is_alive, attempts) if self.ping_time else None

    async def _is_alive(self, attempts: Attempts[T]) -> bool:
        """Return whether any server answers a ping."""
        import asyncio

        async def ping(server: int) -> bool:
            try:
                async with asyncio.timeout(min(self.ping_time, self.timeout)):
                    return await attempts.is_healthy(server)
            except TimeoutError:
                return False

        return any(await asyncio.gather(*map(ping, range(len(self._servers)))))

    async def _wait_for_resources(self, until: float) -> None:
        """Wait until a connection or a descriptor is free, or until the deadline."""
        import asyncio

        try:
            async with asyncio.timeout(max(self.left(until), 0)):
                await self.shortage.freed()
        except TimeoutError:
            pass

    def circuits(self) -> Iterator[tuple[str, bool]]:
        """Yield each server's label, and whether it is passed over."""
        for label, is_open in self._breaker.circuits():
            yield label, is_open or self.circuit.is_open

    def turns(self, server: int) -> Turns:
        """Return the turns of a server."""
        return self._servers[server].turns

    async def aclose(self) -> None:
        """Close the connections; the result of pending requests is Unavailable."""
        self._closed = True
        await self._pings.aclose()
        for host in self._servers:
            await host.close()

    def left(self, until: float) -> float:
        """Return the seconds until a deadline."""
        return until - self._clock()

    def may_pass(self, server: int) -> bool:
        """Return whether a server's circuit is open and another's is not."""
        states = [self._breaker.is_open(each) for each in range(len(self._servers))]
        return states[server] and not all(states)

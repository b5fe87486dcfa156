"""The retry rules of a DNS look-up, without I/O: the next name server, transport and timeout.

Servers are queried in the operator's order, those that have been silent lately last. A server that
timed out is queried again in the next round. One that answered with a failure is not queried again
in this look-up, since its answer would be the same.

Each round has twice the timeout of the one before (as in the C library: res_send(3) shifts
RES_TIMEOUT by the try). If a round failed without a timeout, a pause precedes the next, to spare a
server that is being restarted.

Invariants
----------
*Deadline*: no query is sent, and none is pending, beyond the deadline.
*TCP on truncation*: an answer that UDP cannot deliver (truncated, or hidden among forged ones) is
requested from the same server over TCP.
*Shortage is local*: if this machine lacks a resource (a descriptor, say), the same query is
repeated once it may be available. It does not count against the server or as an attempt.

Times are passed in, in seconds of any steady clock.
"""

from __future__ import annotations

import enum

from smtpd_filters.runtime.counters import INVALID, LOCAL, TIMEOUT, UNREACHABLE

from .outcome import Unavailable, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# After this many timeouts in a row, a server is queried last for `SET_BACK` seconds.
SILENCES = 3
SET_BACK = 30.0
# The pause before the second round in seconds, as in dnspython; it doubles with each round.
PAUSE = 0.1


class Failure(enum.Enum):
    """The ways in which a query to one server fails."""

    SILENT = "timeout"  # no answer within the timeout
    UNREACHABLE = "unreachable"  # an ICMP error, or the connection was refused or lost
    BROKEN = "broken"  # an unusable answer: SERVFAIL, REFUSED, malformed, a CNAME loop
    USE_TCP = "use TCP"  # UDP cannot deliver the answer; TCP may
    LOCAL = "local"  # this machine forbids the query: a firewall rule
    SHORT = "short"  # this machine lacks a resource for now: out of descriptors


#: How each of them is counted.
COUNTED = {
    Failure.SILENT: TIMEOUT,
    Failure.UNREACHABLE: UNREACHABLE,
    Failure.BROKEN: INVALID,
    Failure.USE_TCP: INVALID,
    Failure.LOCAL: LOCAL,
    Failure.SHORT: LOCAL,
}


class Ask(Value):
    """The next query: the server (an index), TCP or UDP, `pause` before it, `timeout`; seconds."""

    __match_args__ = ("server", "tcp", "pause", "timeout")
    __slots__ = __match_args__

    def __init__(self, server: int, *, tcp: bool, pause: float, timeout: float) -> None:
        self.server = server
        self.tcp = tcp
        self.pause = pause
        self.timeout = timeout


class Servers:
    """The name servers by their labels, with their recent timeouts."""

    __slots__ = ("__weakref__", "_back_until", "_silences", "labels")

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._silences = [0] * len(self.labels)
        self._back_until = [0.0] * len(self.labels)

    def order(self, now: float) -> list[int]:
        """Return the servers (indexes) in the order in which to query them."""
        if not any(self._silences):  # the usual case
            return list(range(len(self._silences)))
        # sorted() is stable: it keeps the operator's order among equals.
        return sorted(range(len(self.labels)), key=lambda server: self._is_back(server, now))

    def _is_back(self, server: int, now: float) -> bool:
        return self.is_open(server) and now < self._back_until[server]

    def is_open(self, server: int) -> bool:
        """Return whether the server has failed too often since its last answer."""
        return self._silences[server] >= SILENCES

    def circuits(self) -> Iterator[tuple[str, bool]]:
        """Yield each server's label, and whether it has failed too often."""
        for server, label in enumerate(self.labels):
            yield label, self.is_open(server)

    def answered(self, server: int) -> None:
        """Record an answer of the server, of whatever content."""
        self._silences[server] = 0

    def silent(self, server: int, now: float) -> None:
        """Record a timeout of the server."""
        self._silences[server] += 1
        self._back_until[server] = now + SET_BACK


class Plan:
    """The state of one look-up: `next` returns the next step, `failed` records its failure."""

    __slots__ = (
        "_attempts", "_causes", "_deadline", "_pause", "_queue", "_round", "_servers",
        "_standing", "_tcp", "_timeout", "failure",
    )  # fmt: skip

    def __init__(
        self, servers: Servers, now: float, *, attempts: int, timeout: float, deadline: float
    ) -> None:
        """Plan at most `attempts` rounds over `servers`, until `deadline` (a point in time).

        `timeout` is that of a query in the first round, in seconds.
        """
        self._standing = servers
        self._servers = servers.order(now)
        self._attempts = attempts
        self._timeout = timeout
        self._deadline = deadline
        self._round = 0
        self._queue = list(self._servers)
        self._tcp = False
        self._pause = 0.0
        self._causes: dict[int, str] = {}
        #: How the last failure is counted: one of a server, if there was one.
        self.failure = ""

    def next(self, now: float) -> Ask | Unavailable:
        """Return the next query, or Unavailable if there is nothing left to try."""
        if not self._queue and not self._next_round():
            return Unavailable(self.cause())
        left = self._deadline - now - self._pause
        if left <= 0:
            return Unavailable(self.cause("deadline passed"))
        timeout = min(self._timeout * 2**self._round, left)
        return Ask(self._queue[0], tcp=self._tcp, pause=self._pause, timeout=timeout)

    def _next_round(self) -> bool:
        self._round += 1
        if self._round >= self._attempts or not self._servers:
            return False
        self._queue = list(self._servers)
        return True

    def failed(self, failure: Failure, cause: str, now: float) -> None:
        """Record the failure of the query that `next` returned; `cause` is for the log."""
        server = self._queue[0]
        if failure is not Failure.LOCAL or not self.failure:
            self.failure = COUNTED[failure]
        self._pause = 0.0
        if failure is Failure.SHORT:
            self._causes[server] = cause
            return
        if failure is Failure.USE_TCP and not self._tcp:
            self._tcp = True
            return
        self._tcp = False
        self._queue.pop(0)
        self._causes[server] = cause
        if failure in (Failure.BROKEN, Failure.USE_TCP):
            self._standing.answered(server)
            self._servers.remove(server)
            return
        if failure is not Failure.LOCAL:
            self._standing.silent(server, now)
        if failure is not Failure.SILENT and not self._queue:
            self._pause = PAUSE * 2**self._round

    def answered(self) -> None:
        """Record that the last server queried has answered."""
        self._standing.answered(self._queue[0])

    def cause(self, otherwise: str = "no name server left to ask") -> str:
        """Return the failure of each server, in the operator's order."""
        if not self._causes:
            return otherwise
        # Not in the order of the queries, which varies: a cause is logged once.
        causes = self._causes
        shown = [f"{self._standing.labels[server]} {causes[server]}" for server in sorted(causes)]
        return ", ".join(shown) or otherwise

"""Which name server is asked next, how, and for how long: rules without I/O.

1. Servers are asked in the order they are given, those that were found silent last.
2. A server that didn't answer is asked again in the next round; one that answered with a failure
   isn't, in this look-up: it has said what it has to say.
3. What UDP can't bring (a truncated answer, one among many forged) is asked for again over TCP,
   from the same server.
4. Each round waits twice as long as the one before (the C library does the same: res_send(3)'s
   RES_TIMEOUT shifted by the try). Before a round there is a pause if the last one was over at
   once, so that a server that is being restarted is not hammered.
5. Nothing is asked, and nothing waited for, beyond the deadline.
6. Where this machine is short of something (descriptors, say), the same question is due again as
   soon as it may have it: that says nothing of the server, and uses up no attempt.

Time comes in from outside, in seconds of any steady clock.
"""

from __future__ import annotations

import enum

from smtpd_filters.lookups.outcome import Unavailable, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# A server that was silent this often in a row goes to the back for so many seconds.
SILENCES = 3
SET_BACK = 30.0
# The pause before the second round; each further one is twice as long (dnspython's: 0.1 s).
PAUSE = 0.1


class Failure(enum.Enum):
    """Why a question to one server brought no answer."""

    SILENT = "timeout"  # nothing, in the time given
    UNREACHABLE = "unreachable"  # the network said so, or the connection broke
    BROKEN = "broken"  # an answer that is none: SERVFAIL, REFUSED, malformed, a loop
    USE_TCP = "use TCP"  # UDP can't bring the answer, TCP may
    LOCAL = "local"  # this machine does not let us ask: a rule of its firewall
    SHORT = "short"  # this machine could not ask for the moment: out of descriptors


class Ask(Value):
    """Ask this server (an index), over TCP or UDP, after a pause, and wait so many seconds."""

    __match_args__ = ("server", "tcp", "pause", "timeout")
    __slots__ = __match_args__

    def __init__(self, server: int, *, tcp: bool, pause: float, timeout: float) -> None:
        self.server = server
        self.tcp = tcp
        self.pause = pause
        self.timeout = timeout


class Servers:
    """The name servers by their labels, and which of them have been silent lately."""

    __slots__ = ("_back_until", "_silences", "labels")

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._silences = [0] * len(self.labels)
        self._back_until = [0.0] * len(self.labels)

    def order(self, now: float) -> list[int]:
        """Return the servers in the order in which they should be asked."""
        # sorted() is stable: among equals the operator's order holds.
        return sorted(range(len(self.labels)), key=lambda server: self._is_back(server, now))

    def _is_back(self, server: int, now: float) -> bool:
        return self._silences[server] >= SILENCES and now < self._back_until[server]

    def answered(self, server: int) -> None:
        """Note that the server is alive, whatever it said."""
        self._silences[server] = 0

    def silent(self, server: int, now: float) -> None:
        """Note that the server did not answer."""
        self._silences[server] += 1
        self._back_until[server] = now + SET_BACK


class Plan:
    """One look-up: asks of `next` what to do, and is told by `failed` what came of it."""

    __slots__ = (
        "_attempts", "_causes", "_deadline", "_pause", "_queue", "_round", "_servers",
        "_standing", "_tcp", "_timeout",
    )  # fmt: skip

    def __init__(
        self, servers: Servers, now: float, *, attempts: int, timeout: float, deadline: float
    ) -> None:
        """Plan for at most `attempts` rounds over `servers`, until `deadline` (a point in time).

        `timeout` is what one question of the first round may take, in seconds.
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

    def next(self, now: float) -> Ask | Unavailable:
        """Return what to do next; Unavailable when there is nothing left to try."""
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
        """Take note of how the question that `next` gave came out.

        `cause` says it for the log. An answer needs no note: the look-up is over.
        """
        server = self._queue[0]
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
        """Take note that the server asked last has answered."""
        self._standing.answered(self._queue[0])

    def cause(self, otherwise: str = "no name server left to ask") -> str:
        """Return what went wrong, server by server, in the operator's order."""
        # That in which they were asked changes, and a cause is logged once.
        causes = sorted(self._causes.items())
        shown = [f"{self._standing.labels[server]} {why}" for server, why in causes]
        return ", ".join(shown) or otherwise

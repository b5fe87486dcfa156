"""A circuit breaker: failed servers are passed over, and tried again one request at a time.

The state of each server's circuit is one of three:

- Closed: the server is asked in its turn. `SILENCES` failures in a row open its circuit.
- Open: for `SET_BACK` seconds the server is asked only when all others have failed, so that a dead
  server delays a few requests by its timeout, not all of them.
- Half open: after that, one request asks the server in its turn, while all others still pass it
  over. An answer closes the circuit; without one it stays open for another `SET_BACK` seconds.

An error reply is an answer: the server is alive. A single server is always in its turn.

`Circuit` is that of all servers together. It opens when none of them answers any more, so that not
every request waits for a timeout: while it is open, one request every `rest` seconds is a trial,
and all others fail at once. A trial doesn't wait for the one before, which may be a request that
takes a healthy server too long. Only failures that cost time count; a server that refuses
connections is asked each time, so that it is used as soon as it is back.

Time is passed in, in seconds of any monotonic clock.
"""

from __future__ import annotations

from smtpd_filters.lookups.retry import SET_BACK, SILENCES, Servers

from .outages import EVERY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    #: Logs an event with values, as `FilterLog.event`.
    Note: TypeAlias = Callable[..., None]

#: Seconds between the beginnings of two trials; a server that is back is noticed after them.
REST = 5.0


class Breaker(Servers):
    """The servers by their labels; call `order` once for each request."""

    __slots__ = ()

    def order(self, now: float) -> list[int]:
        """Return the servers in the order for one request."""
        order = super().order(now)
        if order and self.is_open(order[0]):
            # This request tries the server; other requests pass it over until then.
            self._back_until[order[0]] = now + SET_BACK
        return order


class Circuit:
    """The circuit of servers that are asked for the same; `label` is for the log.

    `note` logs that it has opened and that it has closed, or that a server is reached again; `rest`
    is the seconds between two trials.
    """

    __slots__ = (
        "_before", "_cause", "_next", "_note", "_rest", "_silences", "_unreached", "_until",
        "answers", "is_open", "label",
    )  # fmt: skip

    def __init__(self, label: str, note: Note | None = None, *, rest: float = REST) -> None:
        self.label = label
        self._note = note
        self._rest = rest
        self.is_open = False
        #: How many answers there were. A request that fails after others were answered meanwhile
        #: says nothing about the servers, and is no failure here.
        self.answers = 0
        #: Failures in a row, now and when the last trial began; and when the next one may begin.
        self._silences = self._before = 0
        self._until = 0.0
        self._cause = ""
        #: Whether a request has failed since the last answer because no server was reached; and
        #: when the next such time may be noted.
        self._unreached, self._next = False, float("-inf")

    @property
    def cause(self) -> str:
        """The cause of failure of a request that isn't admitted."""
        return f"{self._cause}; not asked again for now"

    @property
    def is_due(self) -> bool:
        """Whether there were enough failures to open it."""
        return self._silences >= SILENCES and not self.is_open

    def admits(self, now: float) -> bool:
        """Return whether to ask; while it is open that is a trial, which ends with `release`."""
        if not self.is_open:
            return True
        if now < self._until:
            return False
        self._before, self._until = self._silences, now + self._rest
        return True

    def release(self) -> None:
        """End a trial; if it had no result, as one that was cancelled, the next may begin."""
        if self._silences == self._before:
            self._until = 0.0

    def answered(self) -> None:
        """Record an answer: close it."""
        self.answers += 1
        self._silences = 0
        if self.is_open or self._unreached:
            self.is_open = self._unreached = False
            if self._note is not None:
                self._note("answers again", server=self.label)

    def unreached(self, now: float) -> None:
        """Record a request that failed at once, since no server was reached."""
        if now >= self._next:
            self._unreached, self._next = True, now + EVERY

    def silent(self, cause: str, now: float) -> None:
        """Record a failure that has cost time; `open` is a separate step."""
        self._silences += 1
        self._cause = cause
        if not self.is_open:
            self._until = now + self._rest

    def open(self) -> None:
        """Open it."""
        self.is_open = True
        if self._note is not None:
            self._note("no longer waited for", server=self.label, cause=self._cause)

"""Counters of a process for metrics: look-ups by kind, and the circuits of the servers it asks.

They are counted whether or not a journal is configured, since a count costs less than a microsecond
and a look-up hundreds; `smtpd_filters.journal` sends them.

Invariants
----------
*Bounded*: kinds are given by our own code, `FAILURES` are all failures, and of the servers at most
`MAX_SERVERS` are shown.
*Cheap*: counting is a few additions, without a lock: only the main thread counts.
"""

from __future__ import annotations

from _weakref import ref
from bisect import bisect_left
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Circuits(Protocol):
        """The servers of a client, with their circuits."""

        def circuits(self) -> Iterator[tuple[str, bool]]:
            """Yield each server's label, and whether it is passed over for its failures."""


#: Upper limits, in seconds, of the buckets of look-ups' times; the last has none. From an answer
#: of a resolver on this machine to the scan of a large message.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: Why look-ups fail: no answer in time; no connection, or a broken one; an error or an invalid
#: answer; the server is passed over for earlier failures; this machine lacks something, or too many
#: look-ups are pending.
FAILURES = TIMEOUT, UNREACHABLE, INVALID, PASSED_OVER, LOCAL = (
    "timeout", "unreachable", "invalid", "passed_over", "local",
)  # fmt: skip
#: The kinds of look-ups.
KINDS = ("clamd", "dns", "milter", "policy", "redis", "rspamd", "spamd", "sqlite", "table")
#: Servers whose circuits are shown, and characters of their labels, the last ones.
MAX_SERVERS, MAX_LABEL = 16, 80


class LookUps:
    """The look-ups of one kind."""

    __slots__ = ("buckets", "failures", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.failures: dict[str, int] = {}

    def ended(self, seconds: float, failure: str = "") -> None:
        """Count a look-up that took so long; `failure` is one of `FAILURES` if it failed."""
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        if failure:
            self.failures[failure] = self.failures.get(failure, 0) + 1

    def ended_since(self, began: float, failure: str = "") -> None:
        """Count a look-up that began at a time of `time.monotonic`."""
        self.ended(monotonic() - began, failure)


class Counters:
    """The counters of a process."""

    def __init__(self) -> None:
        self.lookups: dict[str, LookUps] = {}
        self._watched: list[tuple[str, ref[Circuits]]] = []

    def of(self, kind: str) -> LookUps:
        """Return the look-ups of a kind."""
        found = self.lookups.get(kind)
        if found is None:
            found = self.lookups[kind] = LookUps()
        return found

    def watch(self, kind: str, circuits: Circuits) -> None:
        """Show the circuits of a client's servers for as long as the client exists."""
        self._watched = [each for each in self._watched if each[1]() is not None]
        self._watched.append((kind, ref(circuits)))

    def circuits(self) -> list[tuple[str, str, bool]]:
        """Return the kind and the label of each server, and whether it is passed over.

        One that several clients ask is passed over if one of them does.
        """
        found: dict[tuple[str, str], bool] = {}
        for kind, watched in self._watched:
            circuits = watched()
            for label, is_open in () if circuits is None else circuits.circuits():
                key = kind, label[-MAX_LABEL:]
                if key in found or len(found) < MAX_SERVERS:
                    found[key] = found.get(key, False) or is_open
        return [(kind, label, found[kind, label]) for kind, label in found]


#: Those of this process.
COUNTERS = Counters()

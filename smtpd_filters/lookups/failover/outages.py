"""The log of the servers that fail while others answer: one line each, and one when it is over."""

from __future__ import annotations

from smtpd_filters.lookups.retry import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .breaker import Note

#: Seconds between two lines about failures of one server, as between repeated lines of a log.
EVERY = 60.0
#: The failures of a server; the others are this machine's.
_OF_SERVERS = frozenset({Failure.SILENT, Failure.UNREACHABLE, Failure.BROKEN})


class Outages:
    """The servers that have failed since their last answer; `note` logs that, and its end."""

    __slots__ = ("_failing", "_labels", "_next", "_note")

    def __init__(self, labels: Sequence[str], note: Note) -> None:
        self._labels = tuple(labels)
        self._note = note
        #: The servers whose failure is logged; and when another one may be.
        self._failing: set[int] = set()
        self._next: dict[int, float] = {}

    def failed(self, server: int, failure: Failure, cause: str, now: float) -> None:
        """Record a failure; `now` is in seconds of any steady clock."""
        if failure not in _OF_SERVERS or server in self._failing:
            return
        if now < self._next.get(server, now):
            return
        self._failing.add(server)
        self._next[server] = now + EVERY
        self._note("server failed", server=self._labels[server], cause=cause)

    def answered(self, server: int) -> None:
        """Record a usable answer."""
        if server in self._failing:
            self._failing.discard(server)
            self._note("answers again", server=self._labels[server])

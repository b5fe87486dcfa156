"""The commands of a process that wait for room under a limit with the action `delay`.

Invariants
----------
*In turn*: a command is tried again when those ahead of it have had room. If each were tried
whenever there is room for one, the work would grow with the square of their number.
*Kept room*: there is room a little earlier than the command asks whose turn it is. Until then no
command that has just come takes it. Otherwise a flood would take most of the room, and the commands
that have waited for it would be refused.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .steps import Breach

#: Seconds before a turn from which room is kept for it: more than a request to the store takes.
KEPT = 0.1


class _Queue:
    """The commands that wait under one limit."""

    __slots__ = ("places", "turns")

    def __init__(self) -> None:
        #: The turn of each, in the order in which they came.
        self.places: dict[Place, float] = {}
        #: The turns, sorted.
        self.turns: list[float] = []

    def put(self, place: Place, turn: float) -> None:
        if place in self.places:
            self._forget(self.places[place])
        self.places[place] = turn
        insort(self.turns, turn)

    def remove(self, place: Place) -> None:
        self._forget(self.places.pop(place))

    def _forget(self, turn: float) -> None:
        del self.turns[bisect_left(self.turns, turn)]


class Queues:
    """The commands that wait, by the keys of limits, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, _Queue] = {}

    def place(self) -> Place:
        """Return the place of a command, which waits in no queue yet."""
        return Place(self._waiting)

    def keep_room(self, key: bytes, now: float) -> bool:
        """Return whether a limit's room is kept for a command that waits (*Kept room*)."""
        queue = self._waiting.get(key)
        return queue is not None and queue.turns[0] <= now + KEPT


class Place:
    """The place of a command in the queues of the limits that it exceeds."""

    __slots__ = ("_keys", "_waiting")

    def __init__(self, waiting: dict[bytes, _Queue]) -> None:
        self._waiting = waiting
        self._keys: set[bytes] = set()

    def behind(self, breach: Breach) -> Breach:
        """Return a breach with the time until the commands ahead and this one have had room."""
        claim = breach.claim
        queue = self._waiting.get(claim.key)
        places = {} if queue is None else queue.places
        ahead = [*places].index(self) if self in places else len(places)
        return breach._replace(wait=breach.wait + ahead * claim.cost / claim.rule.amount.rate)

    def enter(self, breaches: Iterable[Breach], turn: float) -> None:
        """Wait in the queues of these limits, and in no other, until it is this command's turn."""
        keys = {breach.claim.key for breach in breaches}
        for key in keys:
            self._waiting.setdefault(key, _Queue()).put(self, turn)
        for key in self._keys - keys:
            queue = self._waiting[key]
            queue.remove(self)
            if not queue.places:
                del self._waiting[key]
        self._keys = keys

    def leave(self) -> None:
        """Wait no longer."""
        self.enter((), 0.0)

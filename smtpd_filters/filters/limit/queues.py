"""The commands of a process that wait for room under a limit with the action `delay`.

Without an order all of them would try again whenever there is room for one: work that grows with
the square of their number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .ledger import Breach


class Queues:
    """The commands that wait, by the keys of limits, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, dict[Place, None]] = {}

    def place(self) -> Place:
        """Return the place of a command, which waits in no queue yet."""
        return Place(self._waiting)


class Place:
    """The place of a command in the queues of the limits that it exceeds."""

    __slots__ = ("_keys", "_waiting")

    def __init__(self, waiting: dict[bytes, dict[Place, None]]) -> None:
        self._waiting = waiting
        self._keys: set[bytes] = set()

    def behind(self, breach: Breach) -> Breach:
        """Return a breach with the time until the commands ahead and this one have had room."""
        claim = breach.claim
        queue = self._waiting.get(claim.key, {})
        ahead = [*queue].index(self) if self in queue else len(queue)
        return breach._replace(wait=breach.wait + ahead * claim.cost / claim.rule.amount.rate)

    def enter(self, breaches: Iterable[Breach]) -> None:
        """Wait in the queues of these limits, and in no other."""
        keys = {breach.claim.key for breach in breaches}
        for key in keys - self._keys:
            self._waiting.setdefault(key, {})[self] = None
        for key in self._keys - keys:
            del self._waiting[key][self]
            if not self._waiting[key]:
                del self._waiting[key]
        self._keys = keys

    def leave(self) -> None:
        """Wait no longer."""
        self.enter(())

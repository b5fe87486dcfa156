"""Places for queries in flight, granted so that slow look-ups don't delay fast ones.

A client can have any number of names looked up whose servers never answer, and each such query
would hold a place for seconds. While no place is free:

Invariants
----------
*Evicted*: a query that has been in flight for `patience` gives its place to a look-up that has not
sent its first query yet. It is sent again later. A quarter of the places are exempt, so that a slow
server may have its whole timeout. (unbound does the same after `jostle-timeout`, 0.2 s.)
*Newest first*: half of the places go to the newest in the queue, since the oldest are near their
deadline, and often those of clients that have gone; a quarter to the oldest, since a thousand may
arrive after them, and a quarter to the oldest of the repeated queries.
*Bounded*: beyond a number of waiting first queries the oldest is refused.
"""

from __future__ import annotations

import asyncio
from collections import deque

#: The cause of a failure for lack of a place.
CROWDED = "too many look-ups"
#: Seconds in flight after which a query may be evicted. Nearly all answers of a resolver that has
#: to ask other servers first arrive within it.
PATIENCE = 0.5
#: Waiting first queries for each place, by default.
QUEUE = 8


class Place:
    """A place that is held by one query."""

    __slots__ = ("_limit", "_places", "_started", "evicted", "kept", "since")

    def __init__(self, places: Places) -> None:
        self._places = places
        #: Whether it is exempt from eviction; else since when its query has been in flight.
        self.kept = False
        self.since = 0.0
        self.evicted = self._started = False
        self._limit: asyncio.Timeout | None = None

    def wait(self, limit: asyncio.Timeout) -> None:
        """Have `limit` end the wait for an answer when the query is evicted."""
        self._limit = limit
        if self.evicted:
            limit.reschedule(self.since)
        elif not self._started:
            self._started = True
            self._places.started(self)

    def arrived(self) -> None:
        """Note that an answer has arrived: `limit` has ended."""
        self._limit = None

    @property
    def is_waiting(self) -> bool:
        """Whether the query waits for its answer, and was not evicted."""
        return self._limit is not None and not self.evicted

    def evict(self) -> None:
        """End the wait for an answer."""
        self.evicted = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(self.since)

    def release(self) -> None:
        """Give the place back."""
        self._places.released(self)


class Places:
    """At most `limit` places, and `queue` waiting first queries.  For use within one loop.

    `patience` is the seconds in flight after which a query may be evicted.
    """

    def __init__(self, limit: int, queue: int | None = None, *, patience: float = PATIENCE) -> None:
        self._free = limit
        self._room = QUEUE * limit if queue is None else queue
        self._patience = patience
        #: How many further places may be exempt from eviction.
        self._exempt = limit // 4
        #: The places of queries that may be evicted, in the order in which they were sent.
        self._loose: dict[Place, None] = {}
        #: Evicted places that have not been released yet, and first queries that wait.
        self._leaving = self._waiting = 0
        self._first: deque[asyncio.Future[bool]] = deque()
        self._again: deque[asyncio.Future[bool]] = deque()
        #: The ends of the queues that get a place in turn.
        self._turns = deque(
            (
                (deque.pop, self._first),
                (deque.popleft, self._first),
                (deque.pop, self._first),
                (deque.popleft, self._again),
            )
        )
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, *, again: bool) -> Place | None:
        """Wait for a place; None if too many wait.  `again`: it is for a repeated query."""
        place = Place(self)
        if self._free:
            self._free -= 1
            return place
        granted = asyncio.get_running_loop().create_future()
        self._waiting += not again
        try:
            (self._again if again else self._first).append(granted)
            if len(self._first) > self._room:
                self._refuse()
            if not again:
                self._watch()
            return place if await granted else None
        except BaseException:  # cancelled; or no memory
            if granted.done() and not granted.cancelled():
                if granted.result():
                    self._grant()
            else:
                granted.cancel()
                self._waiting -= not again
            raise

    def _refuse(self) -> None:
        """Refuse a place to the oldest first query."""
        oldest = self._first.popleft()
        if not oldest.done():  # cancelled
            oldest.set_result(False)
            self._waiting -= 1

    def started(self, place: Place) -> None:
        """Note that a query is in flight from now on."""
        if self._exempt:
            self._exempt -= 1
            place.kept = True
        else:
            place.since = asyncio.get_running_loop().time()
            self._loose[place] = None
            self._watch()

    def released(self, place: Place) -> None:
        """Grant a place that is released to the next in the queue."""
        if place.kept:
            self._exempt += 1
        elif place.evicted:
            self._leaving -= 1
        else:
            self._loose.pop(place, None)
        self._grant()

    def _grant(self) -> None:
        self._turns.rotate()
        for next_of, queue in self._turns:
            while queue:
                granted = next_of(queue)
                if not granted.done():  # cancelled
                    granted.set_result(True)
                    self._waiting -= queue is self._first
                    return
        self._free += 1

    def _watch(self) -> None:
        """Schedule the next eviction, if a first query waits."""
        if self._timer is None and self._loose and self._waiting > self._leaving:
            due = next(iter(self._loose)).since + self._patience
            # Even if it is due now: the loop calls timers after it has read the answers.
            self._timer = asyncio.get_running_loop().call_at(due, self._evict)

    def _evict(self) -> None:
        """Evict as many queries as first queries wait, of those that have had their time."""
        self._timer = None
        due = asyncio.get_running_loop().time() - self._patience
        while self._loose and self._waiting > self._leaving:
            place = next(iter(self._loose))
            if place.since > due:
                break
            del self._loose[place]
            self._leaving += 1
            place.evict()
        self._watch()

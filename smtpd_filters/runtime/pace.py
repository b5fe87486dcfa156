"""A budget for the work in one turn of the event loop, shared by all look-ups of a process.

However much work arrives at once (the queries of 200 sessions, 500 responses of 64 KiB), sessions
without look-ups must be served in between. The coroutines of messages have a `Pace` of their own,
so that look-ups don't wait for them. A unit of work is about a microsecond, as in
`smtpd_filters.lookups.dns.response`. The price of a piece of work is an estimate, declared before
the work is done.

Invariants
----------
*Bounded*: the work admitted between two polls for input and output is at most twice `TURN`, or one
larger piece.
*In order*: pieces that have to wait are admitted in the order of their requests.
*Progress*: the first piece in the queue is admitted in each turn, however large it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")

#: Units per turn. They delay sessions by 5 to 10 ms, a tenth to a fifth of the limit.
TURN = 5000


class Pace:
    """The budget of one event loop; `spent` is the work of this turn.

    It may cover several turns as long as it is less than half of the budget, since renewing it
    costs more than a small piece of work.
    """

    def __init__(self, turn: int = TURN) -> None:
        self._turn = turn
        self.spent = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()
        self._renewing = False

    async def admit(self, work: int) -> None:
        """Wait until there is budget for a piece of this much work, and charge it."""
        if not self.take(work):
            await self.queue(work)

    def take(self, work: int) -> bool:
        """Charge a piece of this much work if there is budget now; return whether there was."""
        spent = self.spent
        if self._queue or (spent and spent + work > self._turn):
            return False
        self.spent = spent = spent + work
        if spent > self._turn >> 1 and not self._renewing:
            self._schedule()
        return True

    def queue(self, work: int) -> asyncio.Future[None]:
        """Return a future that is done when a piece of this much work has been charged."""
        admitted = asyncio.get_running_loop().create_future()
        self._queue.append((admitted, work))
        self._schedule()
        return admitted

    def _fits(self, work: int) -> bool:
        return not self.spent or self.spent + work <= self._turn

    def _charge(self, work: int) -> None:
        self.spent += work
        self._schedule()

    def _schedule(self) -> None:
        if not self._renewing:
            asyncio.get_running_loop().call_soon(self.renew)
            self._renewing = True  # only after it: a MemoryError must not prevent another attempt

    def renew(self) -> None:
        """Begin a turn: renew the budget and admit from the queue.  Called if a turn needs it."""
        self._renewing = False
        self.spent = 0
        while self._queue and (self._queue[0][0].done() or self._fits(self._queue[0][1])):
            admitted, work = self._queue.popleft()
            if not admitted.done():  # cancelled
                admitted.set_result(None)
                self._charge(work)


_paces: WeakKeyDictionary[asyncio.AbstractEventLoop, Pace] = WeakKeyDictionary()


def pace() -> Pace:
    """Return the pace of the running event loop."""
    loop = asyncio.get_running_loop()
    if (found := _paces.get(loop)) is None:
        found = _paces[loop] = Pace()
    return found


async def paced(work: Generator[int, None, T]) -> T:
    """Run a generator that yields units of work before it does them; return its result."""
    admit = pace().admit
    try:
        while True:
            await admit(next(work))
    except StopIteration as end:
        result: T = end.value
        return result

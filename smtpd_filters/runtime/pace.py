"""How much is done in one turn of the event loop: a budget that all look-ups of a process share.

Whatever comes at once (the questions of 200 sessions, 500 answers of 64 KiB), sessions that ask
nothing must be served in between.  The coroutines of messages have a `Pace` of their own, so that
look-ups don't wait behind them.

Invariants
----------
*Bounded*: the work admitted between two polls for input and output is at most twice `TURN`, or one
piece that is larger.
*In order*: pieces that have to wait are admitted in the order in which they were asked for.
*Progress*: the first piece in the queue is admitted in each turn, however large it is.

A unit of work is about a microsecond, as in `smtpd_filters.lookups.dns.response`.  The price of a
piece is an estimate, declared before it is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

#: Units per turn. Sessions wait for 5 to 10 ms behind it, a tenth to a fifth of what they may.
TURN = 5000


class Pace:
    """The budget of one event loop; `spent` is what this turn has used.

    It may be what several turns have used, as long as that is less than half of what one may: to
    begin a turn costs more than a small piece.
    """

    def __init__(self, turn: int = TURN) -> None:
        self._turn = turn
        self.spent = 0
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()
        self._renewing = False

    async def admit(self, work: int) -> None:
        """Return when there is budget for a piece of so much work, and charge it."""
        if not self.take(work):
            await self.queue(work)

    def take(self, work: int) -> bool:
        """Charge a piece of so much work if there is budget for it now; whether there is."""
        spent = self.spent
        if self._queue or (spent and spent + work > self._turn):
            return False
        self.spent = spent = spent + work
        if spent > self._turn >> 1 and not self._renewing:
            self._schedule()
        return True

    def queue(self, work: int) -> asyncio.Future[None]:
        """Return a future that is done when a piece of so much work has been charged."""
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
            self._renewing = True  # behind it: out of memory, it is tried again

    def renew(self) -> None:
        """Begin a turn with those that have waited longest; called in each turn that needs it."""
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

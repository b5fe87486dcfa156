"""A store in the memory of one process, lost when it ends: for tests, and for caches.

Invariants
----------
*Bounded*: it has at most `max_entries` rows, members of groups included. Beyond that, the rows that
expire first are dropped. Keys and values are bounded, so its memory is as well.
*Few at once*: a request looks at no more than some `SWEEP` rows besides its own, however many there
are, so that no other session waits for it.
"""

from __future__ import annotations

import time
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, TypeAlias

from smtpd_filters.errors import UnavailableError

from .damage import Damage
from .operations import entry_of
from .store import CLOSED, Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from .operations import Entry, Operation, Row

MAX_ENTRIES = 100_000
#: Rows that one request deletes, and items that it moves to a new heap.
SWEEP = 32
#: Items of the heap, for each row and besides, above which a new heap is begun.
ITEMS, FEW = 2, 64
#: Entries that `scan` returns between two visits to the event loop.
STEP = 256

#: The expiry of a row, its key and, if it is a member of a group, "+" and the member, else "".
_Item: TypeAlias = tuple[float, bytes, bytes]


class MemoryStore(Store):
    """A store in memory; `clock` is any steady clock, in seconds.

    `note` takes a text for the log.
    """

    label = "memory:"
    one_place = True

    def __init__(
        self,
        *,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[str], object] = str,
    ) -> None:
        self._damage = Damage(self.label, note)
        self._rows = _Rows(max_entries)
        self._clock = clock
        self._closed = False

    async def _apply(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        """Apply operations at once."""
        if self._closed:
            raise UnavailableError(CLOSED)
        rows = self._rows
        rows.now = self._clock()
        results = [operation.apply(rows) for operation in operations]
        rows.sweep()
        return results

    async def scan(self, prefix: bytes) -> AsyncIterator[tuple[bytes, Entry]]:
        """Iterate over entries."""
        import asyncio

        if self._closed:
            raise UnavailableError(CLOSED)
        keys = deque(key for key in self._rows.entries if key.startswith(prefix))
        step = 0
        while keys:
            self._rows.now = now = self._clock()
            key = keys.popleft()
            if (row := self._rows.get(key)) is not None:
                yield key, entry_of(row, now)
            step += 1
            if step % STEP == 0:
                await asyncio.sleep(0)

    async def _group_keys(self, prefix: bytes) -> AsyncIterator[bytes]:
        if self._closed:
            raise UnavailableError(CLOSED)
        for key in [key for key in self._rows.groups if key.startswith(prefix)]:
            yield key

    async def aclose(self) -> None:
        """Forget everything."""
        self._closed = True
        self._rows = _Rows(0)


class _Rows:
    """The rows, and a heap of them by their expiry."""

    def __init__(self, max_entries: int) -> None:
        self.now = 0.0
        self.entries: dict[bytes, Row] = {}
        self.groups: dict[bytes, dict[bytes, float]] = {}
        self._members = 0
        self._max = max_entries
        #: The rows by their expiry. One that is written again leaves an outdated item.
        self._heap: list[_Item] = []
        #: The heap before, while the items that aren't outdated are moved out of it.
        self._rest: list[_Item] = []

    def get(self, key: bytes) -> Row | None:
        row = self.entries.get(key)
        return row if row is not None and row.expires > self.now else None

    def put(self, key: bytes, row: Row) -> None:
        before = self.entries.get(key)
        self.entries[key] = row
        if before is None or before.expires != row.expires:
            heappush(self._heap, (row.expires, key, b""))

    def delete(self, key: bytes) -> bool:
        row = self.entries.pop(key, None)
        group = self.groups.pop(key, None)
        if group:
            self._members -= len(group)
        here = group is not None and any(expires > self.now for expires in group.values())
        return here or (row is not None and row.expires > self.now)

    def members(self, key: bytes, at_most: int) -> int:
        if (group := self.groups.get(key)) is None:
            return 0
        for member in [member for member in group if group[member] <= self.now]:
            self._drop(key, member)
        return min(len(group), at_most)

    def is_member(self, key: bytes, member: bytes) -> bool:
        return self.groups.get(key, {}).get(member, 0.0) > self.now

    def join(self, key: bytes, member: bytes, expires: float) -> None:
        group = self.groups.setdefault(key, {})
        before = group.get(member)
        self._members += before is None
        group[member] = expires
        if before != expires:
            heappush(self._heap, (expires, key, b"+" + member))

    def leave(self, key: bytes, member: bytes) -> bool:
        here = self.is_member(key, member)
        self._drop(key, member)
        return here

    def _drop(self, key: bytes, member: bytes) -> None:
        group = self.groups.get(key, {})
        if group.pop(member, None) is not None:
            self._members -= 1
            if not group:
                del self.groups[key]

    def _expiry(self, key: bytes, member: bytes) -> float | None:
        if member:
            return self.groups.get(key, {}).get(member[1:])
        row = self.entries.get(key)
        return None if row is None else row.expires

    def sweep(self) -> None:
        """Delete a few rows that have expired, or are the first to expire of too many."""
        for _ in range(SWEEP):
            heap = min(filter(None, (self._heap, self._rest)), default=None)
            if heap is None:
                return
            size = len(self.entries) + self._members
            expires, key, member = heap[0]
            outdated = self._expiry(key, member) != expires
            if not (outdated or expires <= self.now or size > self._max):
                break
            heappop(heap)
            if outdated:
                continue
            if member:
                self._drop(key, member[1:])
            else:
                del self.entries[key]
        self._renew()

    def _renew(self) -> None:
        """Move a few items to the new heap; begin one if there are many outdated items."""
        rest = self._rest
        for _ in range(min(SWEEP, len(rest))):
            item = rest.pop()  # the last one: what is left is a heap as well
            expires, key, member = item
            if self._expiry(key, member) == expires:
                heappush(self._heap, item)
        if not rest and len(self._heap) > FEW + ITEMS * (len(self.entries) + self._members):
            self._heap, self._rest = [], self._heap

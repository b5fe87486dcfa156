"""How long an outcome is kept, and the store that keeps it: no I/O and no clock.

1. A positive answer is kept for its TTL, between a floor and a ceiling.
2. A negative one is kept for its TTL (RFC 2308 section 5), between the floor and a ceiling of its
   own; one that didn't say for how long, for the floor.
3. An unavailable one is kept for the moment that a broken server is left alone, no longer.
4. The store is bounded: in entries, in memory, the least recently used going first, and in the size
   of one.
"""

from __future__ import annotations

from collections import OrderedDict

from smtpd_filters.lookups.outcome import MX, Found, NotFound, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from typing import Any, Generic, TypeVar

    from smtpd_filters.lookups.outcome import Outcome

    T = TypeVar("T")
else:
    from smtpd_filters.lookups.outcome import Generic

    T = None

# Strangers choose what their names' records hold: 64 KiB of TXT is no reason to keep 64 KiB. All
# addresses that fit in a datagram are 5 KB.
MAX_ENTRY = 8192
# Of all entries together, in bytes: twice what 8,192 answers of lists take.
MAX_MEMORY = 8 << 20

# Bytes that CPython takes: for an entry, its key and an outcome, without the records; and for each
# record without its characters, text or bytes, and an exchanger.
_ENTRY, _TEXT, _EXCHANGER = 350, 56, 160


class Lifetimes:
    """For how many seconds outcomes are kept."""

    __slots__ = ("backoff", "ceiling", "floor", "negative_ceiling")

    def __init__(
        self,
        *,
        # A message asks for one name several times over; a TTL of 0 would repeat each query.  Nor
        # are negative answers without a SOA asked for again at once: that they "SHOULD NOT be
        # cached" (RFC 2308 section 5) is to keep them from going round between servers that ask
        # each other, and nobody asks us.  unbound, too, keeps them for 5 s.
        floor: float = 5,
        # A day: what BIND (max-cache-ttl is a week) and unbound (cache-max-ttl) cut to at the most.
        ceiling: float = 86400,
        # RFC 2308 section 5: "Values of one to three hours have been found to work well". A new
        # listing or a repaired zone should be seen sooner: unbound's cache-max-negative-ttl.
        negative_ceiling: float = 3600,
        # RFC 2308 section 7.1 allows five minutes for failures; mail is better asked for again.
        backoff: float = 1,
    ) -> None:
        self.floor = floor
        self.ceiling = ceiling
        self.negative_ceiling = negative_ceiling
        self.backoff = backoff

    def of(self, outcome: Outcome[Any]) -> float:
        """Return for how many seconds this outcome is kept; 0 is not at all."""
        match outcome:
            case Found(ttl=ttl):
                if size_of(outcome) > MAX_ENTRY:
                    return 0
                return max(min(ttl, self.ceiling), self.floor)
            case NotFound(_, ttl):
                return min(max(ttl, self.floor), self.negative_ceiling)
            case Unavailable():
                return self.backoff


class Cache(Generic[T]):
    """Values until a point in time, at most `size` of them; 0 keeps nothing.

    `memory` bounds what they take together, in the unit in which `put` is told.
    """

    __slots__ = ("_entries", "_left", "_size")

    def __init__(self, size: int, memory: int = MAX_MEMORY) -> None:
        self._size = size
        self._left = memory
        self._entries: OrderedDict[Hashable, tuple[float, T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, now: float) -> T | None:
        """Return the value if it is there and still good."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        until, value, memory = entry
        if now >= until:
            del self._entries[key]
            self._left += memory
            return None
        self._entries.move_to_end(key)
        return value

    def holds(self, keys: Iterable[Hashable], kind: type, now: float) -> bool:
        """Whether the values of all these are there, are still good and are of this class."""
        entries = self._entries
        for key in keys:
            entry = entries.get(key)
            if entry is None or now >= entry[0] or type(entry[1]) is not kind:
                return False
            entries.move_to_end(key)
        return True

    def put(self, key: Hashable, value: T, until: float, memory: int = _ENTRY) -> None:
        """Keep the value, which takes so much memory; the least recently used ones make room."""
        entries = self._entries
        if (before := entries.pop(key, None)) is not None:
            self._left += before[2]
        entries[key] = until, value, memory
        self._left -= memory
        while entries and (len(entries) > self._size or self._left < 0):
            _, (_, _, released) = entries.popitem(last=False)
            self._left += released

    def clear(self) -> None:
        """Forget everything."""
        self._left += sum(memory for _, _, memory in self._entries.values())
        self._entries.clear()


def size_of(outcome: Outcome[Any]) -> int:
    """Return about how many bytes an entry with this outcome takes."""
    records = outcome.records if isinstance(outcome, Found) else ()
    return _ENTRY + sum(
        _EXCHANGER + len(record.exchange) if isinstance(record, MX) else _TEXT + len(record)
        for record in records
    )

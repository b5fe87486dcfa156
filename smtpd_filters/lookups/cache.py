"""The cache of outcomes and the lifetimes of its entries, without I/O or a clock.

A positive answer is cached for its TTL, between a floor and a ceiling; a negative one for its TTL
(RFC 2308 section 5), between the floor and a ceiling of its own, or for the floor if it has no TTL;
a failure only for the back-off before the servers are queried again.

Invariants
----------
*Bounded*: the cache is bounded in entries and in memory, and so is each entry. The least recently
used entries are evicted first.
"""

from __future__ import annotations

from collections import OrderedDict

from .outcome import MX, Found, NotFound, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable
    from typing import Any, Generic, TypeVar

    from .outcome import Outcome

    T = TypeVar("T")
else:
    from .outcome import Generic

    T = None

# Strangers choose the records of their names: do not cache 64 KiB of TXT for each. All addresses
# that fit in a datagram take 5 KB.
MAX_ENTRY = 8192
# Of all entries together, in bytes: twice the size of 8,192 answers of DNS lists.
MAX_MEMORY = 8 << 20

# Bytes that CPython allocates: for an entry with its key and outcome, without the records; for a
# record (text or bytes) without its characters; and for an exchanger without its name.
_ENTRY, _TEXT, _EXCHANGER = 350, 56, 160


class Lifetimes:
    """The lifetimes of outcomes in the cache, in seconds."""

    __slots__ = ("backoff", "ceiling", "floor", "negative_ceiling")

    def __init__(
        self,
        *,
        # The filters look a name up several times per message; a TTL of 0 would repeat each query.
        # Negative answers without a SOA are cached too. They "SHOULD NOT be cached" (RFC 2308
        # section 5) because servers that query each other would keep them alive, which a stub
        # resolver cannot do. unbound caches them for 5 s as well.
        floor: float = 5,
        # A day, the default of unbound's cache-max-ttl (that of BIND's max-cache-ttl is a week).
        ceiling: float = 86400,
        # RFC 2308 section 5: "Values of one to three hours have been found to work well". A new
        # listing or a repaired zone should be seen sooner: unbound's cache-max-negative-ttl.
        negative_ceiling: float = 3600,
        # RFC 2308 section 7.1 allows five minutes for failures; for mail, retry sooner.
        backoff: float = 1,
    ) -> None:
        self.floor = floor
        self.ceiling = ceiling
        self.negative_ceiling = negative_ceiling
        self.backoff = backoff

    def of(self, outcome: Outcome[Any]) -> float:
        """Return the lifetime of this outcome in seconds; 0 if it must not be cached."""
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
    """A cache of at most `size` values with expiry times; a `size` of 0 caches nothing.

    `memory` bounds their total size, in the unit of `put`'s argument `memory`.
    """

    __slots__ = ("_entries", "_left", "_size")

    def __init__(self, size: int, memory: int = MAX_MEMORY) -> None:
        self._size = size
        self._left = memory
        self._entries: OrderedDict[Hashable, tuple[float, T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, now: float) -> T | None:
        """Return the value, or None if it is missing or expired."""
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
        """Return whether all these keys have unexpired values of class `kind`."""
        entries = self._entries
        for key in keys:
            entry = entries.get(key)
            if entry is None or now >= entry[0] or type(entry[1]) is not kind:
                return False
            entries.move_to_end(key)
        return True

    def put(self, key: Hashable, value: T, until: float, memory: int = _ENTRY) -> None:
        """Cache a value of size `memory` until `until`; evict the least recently used for it."""
        entries = self._entries
        if (before := entries.pop(key, None)) is not None:
            self._left += before[2]
        entries[key] = until, value, memory
        self._left -= memory
        while entries and (len(entries) > self._size or self._left < 0):
            _, (_, _, released) = entries.popitem(last=False)
            self._left += released

    def clear(self) -> None:
        """Remove all entries."""
        self._left += sum(memory for _, _, memory in self._entries.values())
        self._entries.clear()


def size_of(outcome: Outcome[Any]) -> int:
    """Return the approximate size of an entry with this outcome, in bytes."""
    records = outcome.records if isinstance(outcome, Found) else ()
    return _ENTRY + sum(
        _EXCHANGER + len(record.exchange) if isinstance(record, MX) else _TEXT + len(record)
        for record in records
    )

"""A dict split into parts, so that no operation on a large table takes long.

A growing dict copies all of its entries at once: with three million entries that takes 0.2 s, and
freeing them takes 40 ms. Sessions can't be held up that long, so a table keeps its entries in
many small dicts; their number follows from the size of the source.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes of a source for each part: about 3,000 lines, at most 32,768.
PART = 1 << 16


class Index:
    """Entries by key, a text or a number; `size` is the source's size in bytes.

    The entries are strings, which the garbage collector doesn't visit.
    """

    __slots__ = ("_count", "_parts")

    def __init__(self, size: int = 0) -> None:
        # An odd number: networks often end in zero bits.
        self._count = size // PART | 1
        self._parts: list[dict[str | int, str]] = [{} for _ in range(self._count)]

    def get(self, key: str | int) -> str | None:
        """Return the entry of a key, or None."""
        return self._parts[hash(key) % self._count].get(key)

    def add(self, key: str | int, entry: str) -> None:
        """Add an entry unless the key has one."""
        self._parts[hash(key) % self._count].setdefault(key, entry)

    def put(self, key: str | int, entry: str) -> None:
        """Add an entry, replacing the key's previous one."""
        self._parts[hash(key) % self._count][key] = entry

    def __iter__(self) -> Iterator[str]:
        """Yield the entries."""
        for part in self._parts:
            yield from part.values()

    def release(self) -> Iterator[None]:
        """Free the entries, one part per step; look-ups aren't possible afterwards."""
        while self._parts:
            self._parts.pop()
            yield

    def __len__(self) -> int:
        return sum(map(len, self._parts))

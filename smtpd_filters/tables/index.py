"""A dict in parts, for tables of any size.

A dict that grows copies all of its entries at once: with three million of them that takes 0.2 s,
and to free it takes 40 ms. No session may wait that long, so a table keeps its entries in many
small dicts, as many as the size of its source calls for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes of a source for each part: about 3,000 lines, at most 32,768.
PART = 1 << 16


class Index:
    """Entries by their keys, texts or numbers; `size` is that of the source in bytes.

    The entries are texts, which the garbage collector doesn't look at.
    """

    __slots__ = ("_count", "_parts")

    def __init__(self, size: int = 0) -> None:
        # An odd number: networks often end in zero bits.
        self._count = size // PART | 1
        self._parts: list[dict[str | int, str]] = [{} for _ in range(self._count)]

    def get(self, key: str | int) -> str | None:
        """Find the entry of a key."""
        return self._parts[hash(key) % self._count].get(key)

    def add(self, key: str | int, entry: str) -> None:
        """Add an entry, unless the key has one."""
        self._parts[hash(key) % self._count].setdefault(key, entry)

    def put(self, key: str | int, entry: str) -> None:
        """Add an entry in place of the one that the key may have."""
        self._parts[hash(key) % self._count][key] = entry

    def release(self) -> Iterator[None]:
        """Free the entries, a part in each step; nothing can be looked up any more."""
        while self._parts:
            self._parts.pop()
            yield

    def __len__(self) -> int:
        return sum(map(len, self._parts))

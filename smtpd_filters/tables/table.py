"""What all tables have in common, and the two that compare whole keys.

The law:

1. A table is loaded when it is made, and again by `reload()`, whole or not at all: the new
   content is complete before it takes the place of the old one, in one assignment.
2. A look-up never raises, whatever the key: keys come from clients.
3. ASCII letters compare without case: smtpd lower-cases the entries of a table and the keys it
   looks up. Values keep their case.
4. The cost of a look-up doesn't grow with the number of entries. There are two exceptions: of
   regular expressions it is bounded (see `automaton`), and names with a star elsewhere than at
   their beginning are tried one by one.
"""

from __future__ import annotations

from smtpd_filters.tables.source import KEY_MAX, Given, Source, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_UPPER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def lower(text: str) -> str:
    """Lower-case the ASCII letters only, as tolower(3) does in the C locale."""
    return text.lower() if text.isascii() else text.translate(_UPPER)


class Table:
    """A list of entries that keys are matched against. Made from a text as `parse` takes it.

    Raises ConfigError if it can't be loaded.
    """

    __slots__ = ("_from",)

    def __init__(self, spec: str) -> None:
        self._from = parse(spec)
        self._load(self._from)

    @classmethod
    def load(cls, spec: str) -> Self:
        """Make a table, as calling the class does."""
        return cls(spec)

    @classmethod
    def of(cls, entries: Sequence[str], source: str = "built-in") -> Self:
        """Make a table of entries that a program brings along; `source` is what to call it."""
        table = cls.__new__(cls)
        table._from = Given(entries, source)  # noqa: SLF001 - an instance of its own class
        table._load(table._from)  # noqa: SLF001 - an instance of its own class
        return table

    @property
    def source(self) -> str:
        """How the table was given: `file:/etc/mail/ours`, `{ a, b }`, `built-in`."""
        return self._from.spec

    def reload(self) -> None:
        """Read the entries again; raises ConfigError and keeps the present ones if that fails."""
        self._load(self._from)

    def match(self, key: str) -> str | None:
        """Find an entry that covers the key: the entry as it was written, or None."""
        return self._find(key)

    def _find(self, key: str) -> str | None:
        raise NotImplementedError

    def _load(self, source: Source) -> None:
        """Build new content from the source, then assign it."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __bool__(self) -> bool:
        # `if table:` would otherwise ask whether it has entries, and read as "is it set?".
        return True

    def __contains__(self, key: str) -> bool:
        return self.match(key) is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source}: {len(self)} entries>"


class StringTable(Table):
    """A list of keys that are compared whole."""

    __slots__ = ("_entries",)
    _entries: dict[str, str]

    def _load(self, source: Source) -> None:
        entries: dict[str, str] = {}

        def add(text: str) -> None:
            entries.setdefault(lower(short(text)), text)

        source.texts(add)
        self._entries = entries

    def _find(self, key: str) -> str | None:
        return self._entries.get(lower(key))

    def __len__(self) -> int:
        return len(self._entries)


class MappingTable(Table):
    """Keys with a value each. If a key occurs twice, the last one counts, as in smtpd."""

    __slots__ = ("_entries",)
    _entries: dict[str, tuple[str, str]]

    def _load(self, source: Source) -> None:
        entries: dict[str, tuple[str, str]] = {}

        def add(key: str, value: str) -> None:
            entries[lower(short(key))] = key, value

        source.pairs(add)
        self._entries = entries

    def _find(self, key: str) -> str | None:
        found = self._entries.get(lower(key))
        return found and found[0]

    def get(self, key: str) -> str | None:
        """Find the value that belongs to the key."""
        found = self._entries.get(lower(key))
        return found and found[1]

    def __len__(self) -> int:
        return len(self._entries)


def short(text: str) -> str:
    """Refuse what smtpd would drop without a word."""
    if len(text) > KEY_MAX or len(text.encode("utf-8", "surrogateescape")) > KEY_MAX:
        raise ValueError(f"longer than {KEY_MAX} bytes")
    return text

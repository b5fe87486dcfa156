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
5. A reload is cut in steps of bounded work, however large the table is: reading, building, and
   freeing what was replaced, or what could not be completed. Sessions are served between them.
   At most the old and the new content of one table exist at a time.
"""

from __future__ import annotations

from smtpd_filters.errors import ConfigError

from .index import Index
from .source import KEY_MAX, Given, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from typing import ClassVar, Self

    from .source import Source

_UPPER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def lower(text: str) -> str:
    """Lower-case the ASCII letters only, as tolower(3) does in the C locale."""
    return text.lower() if text.isascii() else text.translate(_UPPER)


class Content:
    """The entries of a table: added one by one, then only looked up, released in the end.

    `size` is about how many bytes the entries take in their source.
    """

    __slots__ = ()

    def __init__(self, size: int) -> None:
        pass

    def fill(self, source: Source) -> Iterator[None]:
        """Add all entries of the source, in steps; ConfigError for what is wrong there."""
        return source.texts(self.add)

    def add(self, text: str) -> int:
        """Add an entry of a list; ValueError says why it can't be one.

        Returns the work that it took beyond that of any line, in the unit of `source.STEP`.
        """
        raise NotImplementedError

    def finish(self) -> Iterator[None]:
        """Make ready for look-ups, in steps, when all entries have been added."""
        yield from ()

    def find(self, key: str) -> str | None:
        """Find the entry that covers the key."""
        raise NotImplementedError

    def release(self) -> Iterator[None]:
        """Free the entries, in steps; nothing is looked up any more."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


class Table:
    """A list of entries that keys are matched against. Made from a text as `parse` takes it.

    Raises ConfigError if it can't be loaded.
    """

    __slots__ = ("_content", "_from")
    _content: Content
    #: What it is made of.
    contents: ClassVar[type[Content]]

    def __init__(self, spec: str) -> None:
        self._begin(parse(spec))

    @classmethod
    def load(cls, spec: str) -> Self:
        """Make a table, as calling the class does."""
        return cls(spec)

    @classmethod
    def of(cls, entries: Sequence[str], source: str = "built-in") -> Self:
        """Make a table of entries that a program brings along; `source` is what to call it."""
        table = cls.__new__(cls)
        table._begin(Given(entries, source))  # noqa: SLF001  # an instance of its own class
        return table

    def _begin(self, source: Source) -> None:
        self._from = source
        self._content = self.contents(0)  # is replaced, and released in no time
        for _ in self._load():
            pass

    @property
    def source(self) -> str:
        """How the table was given: `file:/etc/mail/ours`, `{ a, b }`, `built-in`."""
        return self._from.spec

    @property
    def is_file(self) -> bool:
        """Whether there is anything to reload."""
        return self._from.is_file

    @property
    def files(self) -> tuple[str, ...]:
        """The path of the file, if there is one."""
        return (self._from.path,) if self.is_file else ()

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return len(self)

    def reload(self) -> Generator[None, None, bool]:
        """Read the file again, a step of bounded work for each `next`.

        Look-ups meet the old entries or the new ones, never some of both. The result of the
        generator says whether the entries were replaced: an unchanged file is not parsed, and a
        table that isn't in a file has nothing to reload. Raises ConfigError and keeps the entries
        if the file can't be read, has an invalid line, or changes while it is read.
        """
        changed = yield from self._from.changed()
        if changed:
            yield from self._load()
        return changed

    def _load(self) -> Iterator[None]:
        new = self.contents(self._from.size)
        try:
            yield from new.fill(self._from)
            yield from new.finish()
        except Exception:
            yield from new.release()
            raise
        self._from.loaded()
        old, self._content = self._content, new
        yield from old.release()

    def match(self, key: str) -> str | None:
        """Find an entry that covers the key: the entry as it was written, or None."""
        return self._content.find(key)

    def __len__(self) -> int:
        return len(self._content)

    def __bool__(self) -> bool:
        # `if table:` would otherwise ask whether it has entries, and read as "is it set?".
        return True

    def __contains__(self, key: str) -> bool:
        return self.match(key) is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source}: {len(self)} entries>"


def reload_all(tables: Iterable[Table]) -> Generator[None, None, bool]:
    """Reload tables one after the other; the result says whether any was replaced.

    Raises ConfigError with the reasons of those that keep their entries, after all others have been
    reloaded.
    """
    changed = False
    reasons: list[str] = []
    for table in tables:
        try:
            changed |= yield from table.reload()
        except ConfigError as error:
            reasons.append(str(error))
    if reasons:
        raise ConfigError("; ".join(reasons))
    return changed


class _Strings(Content):
    __slots__ = ("_entries",)

    def __init__(self, size: int) -> None:
        self._entries = Index(size)

    def add(self, text: str) -> int:
        self._entries.add(lower(short(text)), text)
        return 0

    def find(self, key: str) -> str | None:
        return self._entries.get(lower(key))

    def release(self) -> Iterator[None]:
        return self._entries.release()

    def __len__(self) -> int:
        return len(self._entries)


class StringTable(Table):
    """A list of keys that are compared whole."""

    __slots__ = ()
    contents = _Strings


class Pairs(Content):
    """Keys with a value each; `add_pair` does what `add` does for a list."""

    __slots__ = ("_entries",)

    def __init__(self, size: int) -> None:
        # The entry is the key as it was written, a NUL, and the value.
        self._entries = Index(size)

    def fill(self, source: Source) -> Iterator[None]:
        """Add all pairs of the source, as `Content.fill` does."""
        return source.pairs(self.add_pair)

    def add_pair(self, key: str, value: str) -> int:
        """Add a key with its value, as `add` does with an entry."""
        self._entries.put(lower(short(key)), f"{key}\0{value}")
        return 0

    def find(self, key: str) -> str | None:
        """Find the key as it was written."""
        found = self._entries.get(lower(key))
        return found and found.partition("\0")[0]

    def value(self, key: str) -> str | None:
        """Find the value that belongs to the key."""
        found = self._entries.get(lower(key))
        return found and found.partition("\0")[2]

    def release(self) -> Iterator[None]:
        """Free the entries, in steps."""
        return self._entries.release()

    def __len__(self) -> int:
        return len(self._entries)


class MappingTable(Table):
    """Keys with a value each. If a key occurs twice, the last one counts, as in smtpd."""

    __slots__ = ()
    _content: Pairs
    contents = Pairs

    def get(self, key: str) -> str | None:
        """Find the value that belongs to the key."""
        return self._content.value(key)


def short(text: str) -> str:
    """Refuse what smtpd would drop without a word."""
    if len(text) > KEY_MAX or len(text.encode("utf-8", "surrogateescape")) > KEY_MAX:
        raise ValueError(f"longer than {KEY_MAX} bytes")
    return text

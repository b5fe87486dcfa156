"""The base class of all tables, and the tables that compare whole keys.

Invariants
----------
*All or nothing*: a table is loaded when it is created, and again by `reload()`. The new content is
complete before one assignment replaces the old one.
*Total look-ups*: a look-up never raises, whatever the key; keys come from clients. Only a table
that is kept elsewhere raises UnavailableError.
*Case*: comparison ignores the case of ASCII letters, since smtpd converts the entries of a table
and the keys of a look-up to lower case. Values keep their case.
*Constant cost*: the cost of a look-up doesn't grow with the number of entries, with two exceptions:
that of regular expressions is bounded (see `automaton`), and names with a star anywhere but at the
beginning are tried one by one.
*Small steps*: a reload is split into steps of bounded work, whatever the size of the table:
reading, building, and freeing the content that was replaced or couldn't be completed. Sessions are
served between the steps. At most the old and the new content of one table exist at a time.
"""

from __future__ import annotations

from smtpd_filters.errors import ConfigError, UnavailableError

from .index import Index
from .source import KEY_MAX, BuiltIn, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import Any, ClassVar, Self

    from .remote.key_lookups import KeyLookups
    from .remote.source import Refresher, RemoteSource
    from .source import Source

_UPPER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def lower(text: str) -> str:
    """Convert ASCII letters, and no others, to lower case, as tolower(3) in the C locale."""
    return text.lower() if text.isascii() else text.translate(_UPPER)


class Content:
    """The entries of a table: added one by one, then looked up, finally released.

    `size` is the approximate size of the entries in their source, in bytes.
    """

    __slots__ = ()
    #: Raises ValueError with the reason for an invalid value, as it is written; see `Checked`.
    check_value: ClassVar[Callable[[str], object] | None] = None

    def __init__(self, size: int) -> None:
        pass

    def fill(self, source: Source) -> Iterator[None]:
        """Add all entries of the source, in steps. Raises ConfigError for an invalid one."""
        return source.texts(self.add)

    def add(self, text: str) -> int:
        """Add an entry of a list. Raises ValueError with the reason if it is invalid.

        Returns the work beyond that of reading a line, in the unit of `source.STEP`.
        """
        raise NotImplementedError

    @staticmethod
    def check_one(check: Callable[[str], object], value: str) -> None:
        """Raise ValueError, as `check` does, if the value is invalid."""
        check(value)

    def values(self) -> Iterator[str]:
        """Yield the values, of a list the entries."""
        raise NotImplementedError

    def finish(self) -> Iterator[None]:
        """Prepare for look-ups, in steps, after all entries have been added."""
        yield from ()

    def find(self, key: str) -> str | None:
        """Return the entry that covers the key, or None."""
        raise NotImplementedError

    def release(self) -> Iterator[None]:
        """Free the entries, in steps; look-ups aren't possible afterwards."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


class Table:
    """A list of entries that keys are matched against, created from a text as for `parse`.

    Raises ConfigError if the table can't be loaded.
    """

    __slots__ = ("_content", "_from", "_key_lookups")
    _content: Content
    #: The class of the content.
    contents: ClassVar[type[Content]]
    #: smtpd's word for this kind of table (table(5)), by which remote sources distinguish queries.
    service: ClassVar[str] = "string"

    def __init__(self, spec: str) -> None:
        self._begin(parse(spec, self.service))

    @classmethod
    def load(cls, spec: str) -> Self:
        """Create a table, as calling the class does."""
        return cls(spec)

    @classmethod
    def load_by_key(cls, spec: str) -> Self:
        """Create a table whose keys are looked up one by one if it is remote and can answer so.

        Only `look_up` and its like can be used then, which wait; `match`, `find` and `get` raise
        RuntimeError.
        """
        source = parse(spec, cls.service)
        remote: Any = source
        if not source.is_remote or not remote.look_up_by_key():
            return cls.load(spec)
        table = cls.__new__(cls)
        table._ask(remote)  # noqa: SLF001  # an instance of its own class
        return table

    @classmethod
    def of(cls, entries: Sequence[str], source: str = "built-in") -> Self:
        """Create a table from a program's own entries; `source` is its name in errors.

        An entry of a mapping is written as in a file: `MappingTable.of(["alice 5"])`.
        """
        table = cls.__new__(cls)
        table._begin(BuiltIn(entries, source))  # noqa: SLF001  # an instance of its own class
        return table

    def _begin(self, source: Source) -> None:
        self._from = source
        self._key_lookups: KeyLookups | None = None
        self._content = self.contents(0)  # replaced and released by `_load`
        if source.is_remote:
            remote: Any = source
            remote.fetch()
            if remote.down:
                self.unload(remote.down)
                return
            for _ in source.changed():
                pass
        try:
            for _ in self._load():
                pass
        except ConfigError as error:
            if not source.is_remote:
                raise
            # Other people write its entries: one must not keep the server from starting.
            self.unload(remote.failed(str(error)))
        if source.is_remote:
            remote.rows = []

    def _ask(self, source: RemoteSource) -> None:
        self._from = source
        self._key_lookups = source.key_lookups
        from .remote.source import AskedOnly  # it is loaded

        content: Any = AskedOnly(self.source)
        self._content = content

    def unload(self, cause: str) -> None:
        """Have every look-up in a remote table raise UnavailableError."""
        from .remote.source import Unloaded  # it is loaded

        unloaded: Any = Unloaded(f"{self.source}: {cause}")
        self._content = unloaded

    @property
    def remote(self) -> RemoteSource | None:
        """The source of a remote table, else None."""
        remote: Any = self._from
        return remote if self._from.is_remote else None

    @property
    def remotes(self) -> tuple[Table, ...]:
        """The table itself if it is remote, else nothing."""
        return (self,) if self._from.is_remote else ()

    def refresher(self) -> Refresher:
        """Return what loads the entries of a remote table again and again."""
        from .remote.source import Refresher  # it is loaded

        remote: Any = self._from
        return Refresher(self, remote, self._load_changed)

    @property
    def by_key(self) -> bool:
        """Whether its keys are looked up one by one."""
        return self._key_lookups is not None

    @property
    def source(self) -> str:
        """The specification of the table: `file:/etc/mail/ours`, `{ a, b }`, `built-in`."""
        return self._from.spec

    @property
    def is_file(self) -> bool:
        """Whether the table is in a file, and so can be reloaded."""
        return self._from.is_file

    @property
    def files(self) -> tuple[str, ...]:
        """The path of the file, if there is one."""
        return (self._from.path,) if self.is_file else ()

    @property
    def entries(self) -> int:
        """The number of entries."""
        return len(self)

    def reload(self) -> Generator[None, None, bool]:
        """Read the file again, with a step of bounded work for each `next`.

        Look-ups use either all old or all new entries. The generator returns whether the entries
        were replaced: an unchanged file is not parsed, and a table that isn't in a file has nothing
        to reload; a remote table has its `refresher`. Raises ConfigError and keeps the
        entries if the file can't be read, has an invalid line, or changes while it is read.
        """
        if self._from.is_remote:
            return False
        return (yield from self._load_changed())

    def _load_changed(self) -> Generator[None, None, bool]:
        """Load the source's entries if they have changed, as `reload` does."""
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
        """Return the entry that covers the key, as it is written in the table, or None.

        Raises UnavailableError if the entries of a remote table are not known.
        """
        return self._content.find(key)

    async def look_up(self, key: str) -> str | None:
        """Do as `match`, and wait for the answer of a remote table."""
        if self._key_lookups is None:
            return self._content.find(key)
        return await self._first(self.asked_keys(key))

    def asked_keys(self, key: str) -> Sequence[str]:
        """Return the keys that a remote source is asked for, the first answer being the best."""
        return (lower(key),)

    async def _first(self, keys: Sequence[str]) -> str | None:
        """Return the first of these keys that the source has. Raises UnavailableError."""
        lookups = self._key_lookups
        assert lookups is not None  # noqa: S101  # checked by the callers
        if len(keys) > 1:
            lookups.start(keys)
        for key in keys:
            if await lookups.look_up(key) is not None:
                return key
        return None

    def __len__(self) -> int:
        return len(self._content)

    def __bool__(self) -> bool:
        # `if table:` reads as "is it set?"; with `__len__` alone it would mean "has it entries?".
        return True

    def __contains__(self, key: str) -> bool:
        return self.match(key) is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source}: {len(self)} entries>"


class Tables:
    """Several tables that are the value of one setting; they are reloaded like a single one."""

    __slots__ = ()

    @property
    def tables(self) -> Sequence[Table]:
        """All tables, of which a subclass has an attribute."""
        raise NotImplementedError

    @property
    def is_file(self) -> bool:
        """Whether any table is reloadable."""
        return any(each.is_file for each in self.tables)

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the files."""
        return tuple(path for each in self.tables for path in each.files)

    @property
    def remotes(self) -> tuple[Table, ...]:
        """The remote tables, such as those in a database."""
        return tuple(remote for each in self.tables for remote in each.remotes)

    @property
    def entries(self) -> int:
        """The number of entries in the files."""
        return sum(len(each) for each in self.tables if each.is_file)

    def reload(self) -> Generator[None, None, bool]:
        """Reload the tables in steps, as `Table.reload` does; return whether any was replaced.

        One that can't be reloaded keeps its entries; after all have been tried, the reasons are
        raised as one ConfigError.
        """
        changed = False
        reasons: list[str] = []
        for table in self.tables:
            try:
                changed |= yield from table.reload()
            except ConfigError as error:
                reasons.append(str(error))
        if reasons:
            raise ConfigError("; ".join(reasons))
        return changed


class Checked(Table):
    """The base of tables whose values, of a list the entries, can be checked."""

    __slots__ = ()

    @classmethod
    def checking(cls, check: Callable[[str], object]) -> type[Self]:
        """Return the class of such tables whose values are checked, as of `table(values=...)`.

        `check` raises ValueError with the reason for an invalid one. A value that is looked up in a
        remote source is checked when it arrives.
        """
        contents: type[Any] = type(
            cls.contents.__name__,
            (cls.contents,),
            {"__slots__": (), "check_value": staticmethod(check)},
        )
        made: type[Self] = type(cls.__name__, (cls,), {"__slots__": (), "contents": contents})
        return made

    def check_values(self, check: Callable[[str], object]) -> None:
        """Raise ValueError with the reason if a value in memory is invalid."""
        for value in () if self._from.is_remote else self._content.values():
            self._content.check_one(check, value)


class _Strings(Content):
    __slots__ = ("_entries",)

    def __init__(self, size: int) -> None:
        self._entries = Index(size)

    def fill(self, source: Source) -> Iterator[None]:
        check = type(self).check_value
        if check is None:
            return source.texts(self.add)

        def add_checked(text: str) -> int:
            check(text)
            return self.add(text)

        return source.texts(add_checked)

    def values(self) -> Iterator[str]:
        return iter(self._entries)

    def add(self, text: str) -> int:
        self._entries.add(lower(checked_key(text)), text)
        return 0

    def find(self, key: str) -> str | None:
        return self._entries.get(lower(key))

    def release(self) -> Iterator[None]:
        return self._entries.release()

    def __len__(self) -> int:
        return len(self._entries)


class StringTable(Checked):
    """A list of keys that are compared as a whole."""

    __slots__ = ()
    contents = _Strings


class Pairs(Content):
    """Keys, each with a value; `add_pair` takes the place of `add`."""

    __slots__ = ("_entries",)

    def __init__(self, size: int) -> None:
        # The entry is the key as it is written, a NUL, and the value.
        self._entries = Index(size)

    def fill(self, source: Source) -> Iterator[None]:
        """Add all pairs of the source, as `Content.fill` does."""
        check = type(self).check_value
        if check is None:
            return source.pairs(self.add_pair)

        def add_checked(key: str, value: str) -> int:
            self.check_one(check, value)
            return self.add_pair(key, value)

        return source.pairs(add_checked)

    def add_pair(self, key: str, value: str) -> int:
        """Add a key with its value, as `add` adds an entry."""
        self._entries.put(lower(checked_key(key)), f"{key}\0{value}")
        return 0

    @staticmethod
    def check_one(check: Callable[[str], object], value: str) -> None:
        """Raise ValueError, as `check` does, with words that name the value as the culprit."""
        try:
            check(value)
        except ValueError as error:
            raise ValueError(f"invalid value: {error}") from None

    def find(self, key: str) -> str | None:
        """Return the key as it is written in the table, or None."""
        found = self._entries.get(lower(key))
        return found and found.partition("\0")[0]

    def value(self, key: str) -> str | None:
        """Return the value of the key, or None."""
        found = self._entries.get(lower(key))
        return found and found.partition("\0")[2]

    def values(self) -> Iterator[str]:
        """Yield the values."""
        for entry in self._entries:
            yield entry.partition("\0")[2]

    def release(self) -> Iterator[None]:
        """Free the entries, in steps."""
        return self._entries.release()

    def __len__(self) -> int:
        return len(self._entries)


class MappingTable(Checked):
    """Keys, each with a value. If a key occurs twice, the last one counts, as in smtpd."""

    __slots__ = ()
    _content: Pairs
    contents: ClassVar[type[Pairs]] = Pairs

    service = "mapping"

    def get(self, key: str) -> str | None:
        """Return the value of the key, or None."""
        return self._content.value(key)

    async def look_up_value(self, key: str) -> str | None:
        """Do as `get`, and wait for the answer of a remote table."""
        if self._key_lookups is None:
            return self._content.value(key)
        value = await self._key_lookups.look_up(lower(key))
        check = self.contents.check_value
        if value is not None and check is not None:
            try:
                self.contents.check_one(check, value)
            except ValueError as error:
                raise UnavailableError(f"{self.source}: {error}") from None
        return value


def checked_key(text: str) -> str:
    """Return the text. Raises ValueError if it is longer than smtpd's keys can be."""
    if len(text) > KEY_MAX or len(text.encode("utf-8", "surrogateescape")) > KEY_MAX:
        raise ValueError(f"longer than {KEY_MAX} bytes")
    return text

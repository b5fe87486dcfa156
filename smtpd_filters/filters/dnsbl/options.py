"""The settings for lists, and the arguments of the earlier filter-dnsbl.

That filter is called `filter-dnsbl [-m] [-v] [[-w] [-d] LIST] ...` (`-w` is an allow list, `-d` a
list of names). Its command lines in smtpd.conf keep their meaning.
"""

from __future__ import annotations

import re
from itertools import islice

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import Kind, common_options
from smtpd_filters.settings.declare import spellings
from smtpd_filters.tables.source import REMOTE
from smtpd_filters.tables.source import parse as parse_source
from smtpd_filters.tables.table import Content, Table, Tables

from .sites import MAX_WEIGHT, Site, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from smtpd_filters.filter import Filter

# postconf(5), postscreen_dnsbl_sites: "separated by comma or whitespace".
_BETWEEN = re.compile(r"[,\s]+")
# The separator between a reason and the entry after it.
_END = "\v"
# The work for a byte of a list, beyond that for any entry (see `source.STEP`).
_WORK = 10
# The number of lists that are freed in a step.
_FREED = 1024
_QUOTED = re.compile(r"""(['"]).*\1""")


class _Listed(Content):
    __slots__ = ("sites",)

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.sites: list[Site] = []

    def add(self, text: str) -> int:
        try:
            self.sites += [parse(word) for word in _BETWEEN.split(text) if word]
        except ValueError as error:
            raise ValueError(f"{error}{_END}") from None
        return _WORK * len(text)

    def release(self) -> Iterator[None]:
        while self.sites:
            del self.sites[-_FREED:]
            yield


class _SitesTable(Table):
    """The lists of one flag. Its errors don't quote the text, which may contain a key."""

    __slots__ = ()
    _content: _Listed
    contents = _Listed

    def __init__(self, spec: str) -> None:
        if spec.lstrip().partition(":")[0] in REMOTE:
            raise ConfigError("the lists can't be in a database or on a server")
        try:
            source = parse_source(spec)
        except ConfigError as error:
            raise ConfigError(_QUOTED.sub("...", str(error), count=1)) from None
        self._begin(source)

    @property
    def sites(self) -> Sequence[Site]:
        return self._content.sites

    def _load(self) -> Iterator[None]:
        try:
            yield from super()._load()
        except ConfigError as error:
            reason, is_entry, _ = str(error).partition(_END)
            raise ConfigError(reason if is_entry else _QUOTED.sub("...", reason, count=1)) from None


class Sites(Tables):
    """Lists with their filters and weights: one, several in braces, or a file with one per line.

    They are reloaded like tables. Raises ConfigError if they are invalid; it doesn't quote the
    text, which may contain a key.
    """

    __slots__ = ("reloaded", "tables")
    tables: tuple[_SitesTable, ...]

    def __init__(self, *tables: _SitesTable) -> None:
        self.tables = tables
        #: A callback for a reload that has changed them.
        self.reloaded: Callable[[], None] | None = None

    def __add__(self, other: Sites) -> Sites:
        return Sites(*self.tables, *other.tables)

    def __iter__(self) -> Iterator[Site]:
        for table in self.tables:
            yield from table.sites

    @property
    def entries(self) -> int:
        """The number of lists in the files."""
        return sum(len(table.sites) for table in self.tables if table.is_file)

    def reload(self) -> Generator[None, None, bool]:
        """Reload the files in steps, as `Table.reload` does."""
        before = list(self)
        try:
            return (yield from super().reload())
        finally:
            if self.reloaded is not None and list(self) != before:
                self.reloaded()

    def __repr__(self) -> str:
        return f"<sites: {list(self)}>"


class _Sites(Kind[Sites]):
    """The kind of settings that are `Sites`."""

    metavar = "LIST"
    noun = 'lists: zone[=filter][*weight], "{ a, b }" or "file:PATH"'
    repeats = True
    toml = (str, list)

    def parse(self, text: str) -> Sites:
        return Sites(_SitesTable(text))

    def show(self, value: Sites) -> str:
        return "{ " + ", ".join(map(str, value)) + " }"

    def from_toml(self, value: object) -> Sites:
        found = Sites()
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise ValueError(f"expected {self.noun}")  # noqa: TRY004  # as every kind does
            found += self.parse(text)
        return found

    def check(self, value: Sites) -> None:
        if not isinstance(value, Sites):
            raise ValueError(f"expected {self.noun}")  # noqa: TRY004  # as every kind does


SITES = _Sites()


def old_style(argv: Iterable[str], cls: type[Filter]) -> list[str]:
    """Replace lists that are arguments by flags."""
    return list(_translated(argv, cls))


def _translated(argv: Iterable[str], cls: type[Filter]) -> Iterator[str]:
    common = common_options(cls.outcomes(), cls.on_error, cls.deadline)
    known = spellings([common.options, cls.Options.options], cls.name)
    words = iter(argv)
    kind, allows = "client", False
    for word in words:
        if word == "-w":
            allows = True
        elif word == "-d":
            kind = "rdns"
        elif word.startswith("-"):
            yield word
            if word in known and known[word].kind.metavar:
                yield from islice(words, 1)
        else:
            yield f"--{kind}={word}*-{MAX_WEIGHT}" if allows else f"--{kind}={word}"
            kind, allows = "client", False

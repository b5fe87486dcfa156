"""How lists are given: as settings, and as the arguments of the filter-dnsbl that came before.

That one is called ``filter-dnsbl [-m] [-v] [[-w] [-d] LIST] ...`` (`-w` a list of those to let in,
`-d` a list of names).  What smtpd.conf says for it means the same here.
"""

from __future__ import annotations

import re
from itertools import islice

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters._dnsbl_sites import MAX_WEIGHT, Site, parse
from smtpd_filters.settings import Kind, common_options
from smtpd_filters.settings.declare import spellings
from smtpd_filters.tables.source import parse as parse_source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from smtpd_filters.filter import Filter
    from smtpd_filters.tables.source import Source

# postconf(5), postscreen_dnsbl_sites: "separated by comma or whitespace".
_BETWEEN = re.compile(r"[,\s]+")
# Behind a reason: what follows is the entry.
_END = "\v"
_QUOTED = re.compile(r"""(['"]).*\1""")


class Sites:
    """Lists with their filters and weights: one, some in braces, or a file with a line each.

    They are read again by `reload`, as tables are. Raises ConfigError if they can't be read; what
    is wrong is said without the text, which may hold a key.
    """

    __slots__ = ("_parts", "renewed")

    def __init__(self, *sources: Source) -> None:
        self._parts = [(source, _read(source)) for source in sources]
        #: Is called when they have been read again.
        self.renewed: Callable[[], None] | None = None

    def __add__(self, other: Sites) -> Sites:
        both = Sites()
        both._parts = self._parts + other._parts
        return both

    def __iter__(self) -> Iterator[Site]:
        for _, sites in self._parts:
            yield from sites

    def reload(self) -> None:
        """Read them again; ConfigError if that fails, and they are what they were."""
        self._parts = [(source, _read(source)) for source, _ in self._parts]
        if self.renewed is not None:
            self.renewed()

    def __repr__(self) -> str:
        return f"<sites: {list(self)}>"


def _read(source: Source) -> tuple[Site, ...]:
    found: list[Site] = []

    def add(entry: str) -> None:
        try:
            found.extend(parse(word) for word in _BETWEEN.split(entry) if word)
        except ValueError as error:
            raise ValueError(f"{error}{_END}") from None

    try:
        source.texts(add)
    except ConfigError as error:
        reason, told, _ = str(error).partition(_END)
        raise ConfigError(reason if told else _QUOTED.sub("...", reason, count=1)) from None
    return tuple(found)


class _Sites(Kind[Sites]):
    """What lists are asked, as `Sites` reads them."""

    metavar = "LIST"
    noun = 'lists: zone[=filter][*weight], "{ a, b }" or "file:PATH"'
    repeats = True
    toml = (str, list)

    def parse(self, text: str) -> Sites:
        try:
            source = parse_source(text)
        except ConfigError as error:
            raise ConfigError(_QUOTED.sub("...", str(error), count=1)) from None
        return Sites(source)

    def show(self, value: Sites) -> str:
        return "{ " + ", ".join(map(str, value)) + " }"

    def from_toml(self, value: object) -> Sites:
        found = Sites()
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise ValueError(f"expected {self.noun}")  # noqa: TRY004 - as kinds do
            found += self.parse(text)
        return found

    def check(self, value: Sites) -> None:
        if not isinstance(value, Sites):
            raise ValueError(f"expected {self.noun}")  # noqa: TRY004 - as kinds do


SITES = _Sites()


def old_style(argv: Iterable[str], cls: type[Filter]) -> list[str]:
    """Put flags in the place of lists that are given as arguments."""
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

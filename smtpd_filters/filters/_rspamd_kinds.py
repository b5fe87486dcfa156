"""Kinds of settings that only filter-rspamd has: a daemon's address, who is not scanned, actions.

The law is that of `smtpd_filters.settings.kinds`.
"""

from __future__ import annotations

from smtpd_filters.filters._rspamd_edits import OUTCOMES
from smtpd_filters.filters._rspamd_request import came_locally
from smtpd_filters.lookups.http import Endpoint
from smtpd_filters.settings import Kind
from smtpd_filters.tables import NetworkTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.session import Session

AUTHENTICATED, LOCAL = "authenticated", "local"


class Skip:
    """Whose mail is not scanned: words, and tables of addresses and networks."""

    __slots__ = ("tables", "words")

    def __init__(self, words: frozenset[str] = frozenset(), *tables: NetworkTable) -> None:
        self.words = words
        self.tables = tables

    def __add__(self, other: Skip) -> Skip:
        return Skip(self.words | other.words, *self.tables, *other.tables)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Skip):
            return NotImplemented
        return self.words == other.words and self.tables == other.tables

    def __hash__(self) -> int:
        return hash((self.words, self.tables))

    def covers(self, session: Session) -> bool:
        """Whether mail of this client is not scanned."""
        if AUTHENTICATED in self.words and session.username:
            return True
        if LOCAL in self.words and came_locally(session):
            return True
        address = session.address
        return address is not None and any(table.match(address) for table in self.tables)

    def reload(self) -> None:
        """Read the tables again; ConfigError for one that can't be, which keeps what it has."""
        for table in self.tables:
            table.reload()


class _SkipKind(Kind[Skip]):
    metavar = "authenticated|local|TABLE"
    literal = True
    repeats = True
    noun = "an array"
    toml = (list,)

    def parse(self, text: str) -> Skip:
        if text in (AUTHENTICATED, LOCAL):
            return Skip(frozenset({text}))
        if text.isalpha():
            # Neither an address nor a file: a word that is misspelt.
            raise ValueError(f"expected {self.metavar}, not {text[:60]!r}")
        return Skip(frozenset(), NetworkTable.load(text))

    def show(self, value: Skip) -> str:
        return ", ".join([*sorted(value.words), *(table.source for table in value.tables)])

    def from_toml(self, value: object) -> Skip:
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise ValueError("expected an array of strings")
        skip = Skip()
        for each in value:
            skip += self.parse(each)
        return skip

    def check(self, value: Skip) -> None:
        if not isinstance(value, Skip):
            raise ValueError("expected a Skip")  # noqa: TRY004  # law 2 of kinds


class _Url(Kind[str]):
    metavar = "URL|PATH"
    noun = "http://HOST:PORT or the path of a socket"

    def parse(self, text: str) -> str:
        # Whether it is one takes a library; see `checked`.
        return text


class _Action(Kind[tuple[str, str]]):
    metavar = "NAME=OUTCOME"
    noun = f"NAME=OUTCOME, with an outcome of {', '.join(OUTCOMES)}"

    def parse(self, text: str) -> tuple[str, str]:
        name, _, outcome = text.rpartition("=")
        if not name.strip() or outcome not in OUTCOMES:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}")
        return name.strip(), outcome

    def show(self, value: tuple[str, str]) -> str:
        name, outcome = value
        return f"{name}={outcome}"


SKIP = _SkipKind()
URL = _Url()
ACTION = _Action()


def checked(url: str) -> str:
    """The url of a daemon; ValueError if it is none."""
    Endpoint(url)
    return url

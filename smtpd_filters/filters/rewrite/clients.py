"""The clients whose mail is rewritten: the setting `--for`."""

from __future__ import annotations

from smtpd_filters.checks.exemptions import Exempt
from smtpd_filters.settings.kind import Repeated
from smtpd_filters.settings.quoting import quote
from smtpd_filters.tables import NetworkTable
from smtpd_filters.tables.table import Tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.session import Session

ALL, INBOUND, OUTBOUND, LOCAL, AUTHENTICATED = WORDS = (
    "all",
    "inbound",
    "outbound",
    "local",
    "authenticated",
)


class Clients(Tables):
    """Clients by words of `WORDS` and by tables of addresses."""

    __slots__ = ("_exempt", "tables", "words")
    tables: tuple[NetworkTable, ...]

    def __init__(self, words: Iterable[str] = (), tables: Iterable[NetworkTable] = ()) -> None:
        self.words = frozenset(words)
        self.tables = tuple(tables)
        known = {LOCAL, AUTHENTICATED}
        self._exempt = Exempt(known if OUTBOUND in self.words else known & self.words, self.tables)

    def covers(self, session: Session) -> bool:
        """Whether a client is one of them."""
        words = self.words
        if ALL in words or self._exempt.reason(session):
            return True
        return INBOUND in words and not session.local and not session.username

    def __add__(self, other: Clients) -> Clients:
        return Clients(self.words | other.words, self.tables + other.tables)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Clients):
            return NotImplemented
        return (self.words, self.tables) == (other.words, other.tables)

    def __hash__(self) -> int:
        return hash((self.words, self.tables))

    def __repr__(self) -> str:
        return f"<clients: {CLIENTS.show(self)}>"


class _ClientsKind(Repeated[Clients]):
    metavar = "|".join((*WORDS, "TABLE"))
    literal = True
    value_class = Clients

    def parse(self, text: str) -> Clients:
        if text in WORDS:
            return Clients((text,))
        if text.isalpha():
            raise ValueError(f"expected {self.metavar}, not {quote(text)}")
        return Clients((), (NetworkTable.load(text),))

    def words(self, value: Clients) -> list[str]:
        words = [word for word in WORDS if word in value.words]
        return words + [each.source for each in value.tables]


#: The kind of `--for`.
CLIENTS = _ClientsKind()

"""The clients that filters exempt from their checks: the flag `--exempt` and its application.

Invariants
----------
*Unknown is not local*: a client is local only if smtpd's `link-connect` reported it on smtpd's
socket or at a loopback address (`Session.local`). A client without a report is a stranger.
*One meaning*: every filter with exemptions uses `Exempt.reason`, and `Exempt.known_reason` where
`--on-error` has decided already.
*No guess*: a check that needs the client's address takes it from `client_address`, which raises
UnavailableError if smtpd has not reported one, so that `--on-error` decides.
"""

from __future__ import annotations

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.protocol.decisions import PROCEED, Exemption
from smtpd_filters.runtime.log import EXEMPT_FOR
from smtpd_filters.settings import SWITCH, choice, option, table
from smtpd_filters.settings.kind import Repeated
from smtpd_filters.tables import NetworkTable
from smtpd_filters.tables.networks import parse_address
from smtpd_filters.tables.table import Tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.filter import Filter
    from smtpd_filters.protocol.decisions import Proceed
    from smtpd_filters.runtime.log import FilterLog
    from smtpd_filters.session import Session

LOCAL, SOCKET, AUTHENTICATED = WORDS = ("local", "socket", "authenticated")
#: The cause logged for a check that needs the client's address and doesn't have it.
UNKNOWN = "the client's address is not known"
# RFC 3463 section 3.4, X.3.0: "Other or undefined mail system status".
UNKNOWN_STATUS = "4.3.0"


class Exempt(Tables):
    """The clients that a filter exempts, by words of `WORDS` and by tables of addresses.

    `given` are the words of the operator. If there are none, the words of `default` are in effect.
    """

    __slots__ = ("_default", "_local", "_socket", "_users", "given", "tables")
    tables: tuple[NetworkTable, ...]

    def __init__(
        self,
        given: Iterable[str] = (),
        tables: Iterable[NetworkTable] = (),
        default: Iterable[str] = (),
    ) -> None:
        self.given = frozenset(given)
        self.tables = tuple(tables)
        self._default = frozenset(default)
        words = self.words
        self._local = LOCAL in words
        self._socket = SOCKET in words
        self._users = AUTHENTICATED in words

    @property
    def words(self) -> frozenset[str]:
        """The words in effect: tables add to the default, words replace it."""
        return self.given or self._default

    @property
    def users(self) -> bool:
        """Whether authenticated clients are exempt; then the filter needs report `link-auth`."""
        return self._users

    def __add__(self, other: Exempt) -> Exempt:
        return Exempt(self.given | other.given, self.tables + other.tables, self._default)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exempt):
            return NotImplemented
        return (self.given, self.words, self.tables) == (other.given, other.words, other.tables)

    def __hash__(self) -> int:
        return hash((self.given, self.words, self.tables))

    def __repr__(self) -> str:
        return f"<exempt: {EXEMPT.show(self)}>"

    def also(self, *tables: NetworkTable | None) -> Exempt:
        """Return a copy that exempts the addresses of these tables as well."""
        more = [each for each in tables if each is not None]
        return Exempt(self.given, (*self.tables, *more), self._default) if more else self

    def only(self, which: str) -> Exempt:
        """Return the copy for `--only`: with "untrusted", local and authenticated ones as well."""
        if which == "all":
            return self
        return Exempt(self.words | {LOCAL, AUTHENTICATED}, self.tables, self._default)

    def without_users(self) -> Exempt:
        """Return a copy that does not exempt authenticated clients as such."""
        words = self.words - {AUTHENTICATED}
        return Exempt(words & self.given, self.tables, words)

    def note_phase(self, phase: str, log: FilterLog) -> None:
        """Log that `--exempt authenticated` has no effect at a `phase` before authentication.

        It isn't an error, since it is the way to exempt no client at all. The default, written out,
        isn't logged.
        """
        if AUTHENTICATED in self.given and self.given != self._default:
            log.event(
                f"--exempt authenticated has no effect at {phase}: no client has authenticated "
                "before mail-from"
            )

    def check_users(self) -> Exempt:
        """Return the copy for `--check-users`; raise ConfigError if `--exempt` contradicts it."""
        if AUTHENTICATED in self.given:
            raise ConfigError("--check-users contradicts --exempt authenticated")
        return self.without_users()

    def reason(self, session: Session) -> str:
        """Return why a client is exempt: a word, or the entry of a table; "" if it is not.

        Raises UnavailableError if this depends on a table that can't be read.
        """
        if session.local:
            if self._local:
                return LOCAL
            if self._socket and session.by_socket:
                return SOCKET
            if entry := self._entry(LOCAL):
                return entry
        if self._users and session.username:
            return AUTHENTICATED
        return self._entry(session.address) if self.tables else ""

    def known_reason(self, session: Session) -> str:
        """Do as `reason`, but while a table can't be read, exempt nobody because of it."""
        try:
            return self.reason(session)
        except UnavailableError:
            return ""

    def _entry(self, key: str | None) -> str:
        unavailable: UnavailableError | None = None
        for each in self.tables if key else ():
            try:
                if entry := each.match(key or ""):
                    return entry
            except UnavailableError as error:
                unavailable = error
        if unavailable is not None:
            raise unavailable
        return ""


class _ExemptKind(Repeated[Exempt]):
    metavar = "|".join((*WORDS, "TABLE"))
    literal = True
    value_class = Exempt

    def __init__(self, default: tuple[str, ...] = ()) -> None:
        self.default = default

    def parse(self, text: str) -> Exempt:
        if text in WORDS:
            return Exempt((text,), (), self.default)
        if words := _several(text):
            each = " ".join(f"--exempt {word}" for word in words)
            raise ValueError(f"each word needs its own flag: {each}")
        if text.isalpha():
            # Neither an address nor a path: a misspelt word.
            raise ValueError(f"expected {self.metavar}, not {text[:60]!r}")
        return Exempt((), (NetworkTable.load(text),), self.default)

    def words(self, value: Exempt) -> list[str]:
        words = [word for word in WORDS if word in value.words]
        return words + [each.source for each in value.tables]

    def from_toml(self, value: object) -> Exempt:
        for each in value if isinstance(value, list) else ():
            if isinstance(each, str) and (words := _several(each)):
                each_quoted = ", ".join(f'"{word}"' for word in words)
                raise ValueError(f"each word is a string of its own: {each_quoted}")
        return super().from_toml(value)

    def empty(self) -> Exempt:
        return Exempt((), (), self.default)


def _several(text: str) -> list[str]:
    """Return the words if a text consists of several words of `WORDS`, else an empty list."""
    words = text.replace(",", " ").split()
    return words if len(words) > 1 and set(words) <= set(WORDS) else []


#: The kind of `--exempt` without a default.
EXEMPT = _ExemptKind()


def exempt_option(*default: str, what: str = "Clients that are exempt") -> Exempt:
    """Declare `--exempt`; `default` are words, `what` begins its help."""
    kind = _ExemptKind(default)
    return option(
        kind,
        default=Exempt((), (), default),
        help=f"{what}: those on this machine (local), those on smtpd's socket alone (socket), "
        "authenticated ones (authenticated), and those whose address is in TABLE. Tables add to "
        "the default; words replace it.",
    )


def only_option() -> str:
    """Declare `--only` of a scanner."""
    return option(
        choice("all", "untrusted"),
        default="all",
        help="Whose mail is scanned: that of all clients, or not that of local and authenticated "
        "ones (untrusted), which is the same as --exempt local --exempt authenticated.",
    )


def allow_option() -> NetworkTable | None:
    """Declare `--allow`."""
    return option(
        table(NetworkTable),
        default=None,
        help="Addresses and networks that are never refused: the same as --exempt TABLE.",
    )


def check_users_option() -> bool:
    """Declare `--check-users`."""
    return option(
        SWITCH,
        default=False,
        help="Check authenticated clients as well: --exempt without authenticated.",
    )


def exempted(filter_: Filter, why: str) -> Proceed:
    """Return the decision on an exempt client, with `why` as its reason if that is kept."""
    if not filter_.log.keeps_exemptions:
        return PROCEED
    return PROCEED.because(Exemption(f"{EXEMPT_FOR}{why}"))


def known_address(session: Session) -> str | None:
    """Return the client's IP address; None if smtpd has reported no valid one."""
    address = session.address
    if address:
        try:
            parse_address(address)
        except ValueError:
            return None
    return address or None


def client_address(session: Session) -> str | None:
    """Return the client's IP address; None for a client on smtpd's socket, which has none.

    Raises UnavailableError if smtpd has not reported one.
    """
    address = known_address(session)
    if address is None and not session.by_socket:
        raise UnavailableError(UNKNOWN, UNKNOWN_STATUS)
    return address

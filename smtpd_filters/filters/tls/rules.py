"""Requirements of filter-tls, as an operator writes them: `1.2 sender=@bank.example`.

A requirement is a version, then words for what else is required and for whom, in any order:

    any                                   TLS of any version, for everybody
    1.2                                   TLS 1.2 or later
    1.2 bits=128 forward-secrecy          and a cipher with these properties
    1.2 cipher=GCM|POLY1305               and a cipher whose name matches a regular expression
    any certificate client=192.0.2.0/24   and a certificate that smtpd has verified
    1.3 sender-domain=file:/etc/mail/tls  for senders of these domains
    1.2 authenticated action=tempfail     for users

Invariants
----------
*All conditions*: a requirement is for mail that meets all of its conditions.
*First phase*: it is checked at the first phase at which its conditions and TLS are certain.
*No rule without effect*: a word that could have none is an error when it is parsed.
"""

from __future__ import annotations

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import INTEGER
from smtpd_filters.settings.kind import Repeated
from smtpd_filters.settings.quoting import quote
from smtpd_filters.tables import (
    AddressTable,
    DomainTable,
    NetworkTable,
    RegexTable,
    StringTable,
)
from smtpd_filters.tables.table import Tables

from .channel import parse_version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from smtpd_filters.addresses import Address
    from smtpd_filters.tables import Table

    from .channel import Channel, Version

REJECT, TEMPFAIL, JUNK, LOG = ACTIONS = ("reject", "tempfail", "junk", "log")
#: The conditions that take a table, with its class.
TABLES: dict[str, type[Table]] = {
    "client": NetworkTable,
    "sender": AddressTable,
    "sender-domain": DomainTable,
    "recipient": AddressTable,
    "recipient-domain": DomainTable,
    "user": StringTable,
}
#: The phases at which conditions are known, in this order.
MAIL, RCPT = range(2)
ANY: Version = (0, 0)
_BITS = INTEGER(low=40, high=4096)
_BLANKS = " \t\r\n"
_SWITCHES = ("forward-secrecy", "certificate", "authenticated")


class Rule:
    """A requirement."""

    __slots__ = (
        "action", "authenticated", "bits", "certificate", "ciphers", "forward_secrecy", "minimum",
        "tables", "text",
    )  # fmt: skip

    def __init__(self, text: str, minimum: Version) -> None:
        #: The requirement as it was written.
        self.text = text
        #: The earliest version; ANY for each.
        self.minimum = minimum
        self.bits = 0
        self.forward_secrecy = False
        self.ciphers: Table | None = None
        self.certificate = False
        #: The tables of its conditions.
        self.tables: dict[str, Table] = {}
        self.authenticated = False
        #: One of ACTIONS, or "" for that of `--action`.
        self.action = ""

    @property
    def of_client(self) -> bool:
        """Whether its conditions are known when the client greets."""
        return not self.authenticated and self.tables.keys() <= {"client"}

    @property
    def of_recipient(self) -> bool:
        """Whether it is for some recipients only."""
        return "recipient" in self.tables or "recipient-domain" in self.tables

    @property
    def of_channel(self) -> bool:
        """Whether a connection with TLS may still not meet it."""
        return bool(self.minimum > ANY or self.bits or self.forward_secrecy or self.ciphers)

    @property
    def phase(self) -> int:
        """The phase at which its conditions are known: MAIL or RCPT."""
        return RCPT if self.of_recipient else MAIL

    @property
    def required(self) -> str:
        """What it requires of a connection, for a reply."""
        if self.minimum == ANY:
            words = ["TLS"]
        else:
            words = [f"TLS {self.minimum[0]}.{self.minimum[1]} or later"]
        if self.bits:
            words.append(f"a key of {self.bits} bits")
        if self.forward_secrecy:
            words.append("forward secrecy")
        return " with ".join([words[0], " and ".join(words[1:])]) if words[1:] else words[0]

    def covers(self, client: str, user: str | None, sender: Address | None = None) -> bool:
        """Whether it is for this client, user and sender; None for a sender that is not known."""
        tables = self.tables
        if self.authenticated and not user:
            return False
        if "user" in tables and (not user or tables["user"].match(user) is None):
            return False
        if "client" in tables and tables["client"].match(client) is None:
            return False
        return sender is None or self._covers("sender", sender)

    def covers_recipient(self, recipient: Address) -> bool:
        """Whether it is for this recipient."""
        return self._covers("recipient", recipient)

    def _covers(self, which: str, address: Address) -> bool:
        tables = self.tables
        addresses = tables.get(which)
        if isinstance(addresses, AddressTable) and addresses.find(address) is None:
            return False
        domains = tables.get(f"{which}-domain")
        return domains is None or domains.match(address.domain) is not None

    def lacks(self, channel: Channel | None) -> str:
        """Return what a connection lacks, or ""."""
        if channel is None:
            return "no TLS"
        if channel.version < self.minimum:
            return channel.protocol
        weak = (
            channel.bits < self.bits
            or (self.forward_secrecy and not channel.forward_secrecy)
            or (self.ciphers is not None and self.ciphers.match(channel.cipher) is None)
        )
        return f"cipher {channel.cipher} of {channel.bits} bits" if weak else ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"<require {self.text}>"


class Rules(Tables):
    """The requirements of a filter, and the tables in them."""

    __slots__ = ("rules",)

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = tuple(rules)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def __add__(self, other: Rules) -> Rules:
        return Rules(self.rules + other.rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and self.rules == other.rules

    def __hash__(self) -> int:
        return hash(self.rules)

    def __repr__(self) -> str:
        return f"<requirements: {', '.join(rule.text for rule in self.rules)}>"

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables."""
        found: list[Table] = []
        for rule in self.rules:
            found += rule.tables.values()
            if rule.ciphers is not None:
                found.append(rule.ciphers)
        return tuple(found)


def parse_rule(text: str) -> Rule:
    """Parse a requirement; raise ValueError or ConfigError with the reason."""
    first, *words = _split(text) or [""]
    rule = Rule(" ".join([first, *words]), _minimum(first))
    seen = set()
    for word in words:
        name, equals, value = word.partition("=")
        if name in seen:
            raise ValueError(f"{name} is there twice")
        seen.add(name)
        if bool(equals) is (name in _SWITCHES) or (equals and not value):
            name = ""  # an error, as an unknown one
        _set(rule, name, value, word)
    if rule.authenticated and "user" in rule.tables:
        raise ValueError("authenticated has no effect beside user=")
    for which, table in rule.tables.items():
        if not (table.is_file or table.remotes or len(table)):
            raise ValueError(f"{which}: no entries in {table.source}")
    return rule


def _set(rule: Rule, name: str, value: str, word: str) -> None:
    """Set what a word of a requirement says."""
    if name in TABLES:
        rule.tables[name] = _table(TABLES[name], name, value)
    elif name == "cipher":
        rule.ciphers = _table(RegexTable, name, value)
    elif name == "bits":
        rule.bits = _BITS.parse(value)
    elif name == "action":
        if value not in ACTIONS:
            raise ValueError(f"{quote(value)} is not one of {', '.join(ACTIONS)}")
        rule.action = value
    elif name in _SWITCHES:
        setattr(rule, name.replace("-", "_"), True)
    else:
        known = ", ".join(
            [*_SWITCHES, "bits=N", *(f"{each}=TABLE" for each in ("cipher", *TABLES))]
        )
        raise ValueError(f"{quote(word)} is not one of {known}, action=ACTION")


def _table(table: type[Table], name: str, value: str) -> Table:
    try:
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        return table.load(value[1:-1] if quoted else value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _minimum(text: str) -> Version:
    if text == "any":
        return ANY
    try:
        version = parse_version(text.lower().removeprefix("tls").removeprefix("v"))
    except ValueError:
        version = ANY
    if version not in {(1, 0), (1, 1), (1, 2), (1, 3)}:
        raise ValueError(f"begins with any, 1.0, 1.1, 1.2 or 1.3, not {quote(text)}")
    return version


def _split(text: str) -> list[str]:
    """Split at blanks outside of quotes and braces."""
    words: list[str] = []
    word, closing = "", ""
    for char in text:
        if not closing and char in _BLANKS:
            words.append(word)
            word = ""
            continue
        if closing:
            closing = "" if char == closing else closing
        elif char in "{\"'":
            closing = "}" if char == "{" else char
        word += char
    return [each for each in (*words, word) if each]


class _Requirement(Repeated[Rules]):
    metavar = "REQUIREMENT"
    value_class = Rules

    def parse(self, text: str) -> Rules:
        return Rules((parse_rule(text),))

    def words(self, value: Rules) -> list[str]:
        return [rule.text for rule in value]


#: The kind of `--require`.
REQUIREMENT = _Requirement()

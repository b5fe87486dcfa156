"""The table of `--override`: users, addresses and networks with limits of their own.

    vip@example.org   unlimited
    news@example.org  messages 5000/1h, recipients 100000/1d
    @partner.example  messages unlimited
    192.0.2.0/24      unlimited

A user's name and an address are compared as a whole; `@domain` covers all names and addresses of
the domain. The most specific entry counts.
"""

from __future__ import annotations

from smtpd_filters.addresses import canonical, folded, path
from smtpd_filters.errors import ConfigError
from smtpd_filters.tables import IPTable, MappingTable
from smtpd_filters.tables.table import Pairs, checked_key

from .rules import COUNTED, parse_amount, parse_options
from .subjects import written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .rules import Amount, Rule
    from .subjects import Values

    #: The amounts in place of those of rules, by what is counted; None for no limit.
    Override = Mapping[str, Amount | None]

UNLIMITED = "unlimited"


class _Overrides(Pairs):
    __slots__ = ("_networks", "_of_networks", "_parsed", "networks")

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._of_networks: list[str] = []
        self.networks = IPTable.of(())
        #: The overrides by their texts, of which there are few.
        self._parsed: dict[str, Override] = {}

    def add_pair(self, key: str, value: str) -> int:
        name = _canonical(key)
        if is_network(key):
            self._of_networks.append(key)
            name = key
        if value not in self._parsed:
            self._parsed[value] = parse_override(value)
        return super().add_pair(name, value)

    def finish(self) -> Iterator[None]:
        self.networks = IPTable.of(self._of_networks)
        yield from super().finish()

    def override(self, key: str) -> Override | None:
        """Return the override of a key, or None."""
        value = self.value(key)
        return None if value is None else self._parsed[value]


class OverrideTable(MappingTable):
    """A mapping from users, addresses, domains and networks to limits of their own."""

    __slots__ = ()
    _content: _Overrides
    contents = _Overrides

    def amount(self, rule: Rule, values: Values) -> Amount | None:
        """Return the amount of a rule for a subject; None for no limit."""
        for kind in rule.subject:
            override = self._of(kind, values)
            if override is not None and rule.counted in override:
                return override[rule.counted]
        return rule.amount

    def _of(self, kind: str, values: Values) -> Override | None:
        content = self._content
        if kind in {"client", "network"}:
            entry = content.networks.match(values.address or "")
            return None if entry is None else content.override(entry)
        value = values.get(kind)
        if not value:
            return None
        if kind.endswith("-domain"):
            return content.override(f"@{value}")
        found = content.override(value)
        if found is None and "@" in value:
            found = content.override(value[value.rindex("@") :])
        return found


def is_network(text: str) -> bool:
    """Return whether a key is an address or network."""
    try:
        IPTable.of((text,))
    except ConfigError:
        return False
    return True


def _canonical(text: str) -> str:
    """Return a key in the form in which values are compared. Raises ValueError."""
    checked_key(text)
    if text.startswith("@"):
        return f"@{canonical(text[1:])}"
    return written(path(text)) if "@" in text else folded(text)


def parse_override(text: str) -> Override:
    """Parse `unlimited`, or amounts separated by commas; raise ValueError."""
    if text.strip() == UNLIMITED:
        return dict.fromkeys(COUNTED)
    override: dict[str, Amount | None] = {}
    for each in text.split(","):
        words = each.split()
        if len(words) < 2 or words[0] not in COUNTED:
            raise ValueError(
                f"expected {UNLIMITED}, or amounts such as messages 5000/1h, not {each.strip()!r}"
            )
        if words[0] in override:
            raise ValueError(f"{words[0]} are there twice")
        override[words[0]] = _amount(words)
    return override


def _amount(words: Iterable[str]) -> Amount | None:
    counted, amount, *options = words
    if amount == UNLIMITED and not options:
        return None
    given = parse_options(options)
    parsed = parse_amount(counted, amount, given)
    if given:
        raise ValueError(f"{' '.join(options)} is not burst=N")
    return parsed

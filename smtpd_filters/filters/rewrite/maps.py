"""Tables of canonical addresses, and their look-up.

A table is a mapping in any form, or a table of regular expressions, `regexp:` and `pcre:`
(`patterns`). In a mapping the key is an address, a user of this server, or `@domain`; the value is
an address, or `@domain`, which keeps the user. This is canonical(5) of Postfix.

Invariants
----------
*One pass*: the result of a look-up is not looked up again.
*First table*: of several tables the first one that has an entry counts.
"""

from __future__ import annotations

from smtpd_filters.addresses import canonical, folded, path
from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.settings.kind import Repeated
from smtpd_filters.tables import MappingTable
from smtpd_filters.tables.table import Pairs, Tables, checked_key

from .addresses import checked, written
from .patterns import PatternTable, PerlTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.addresses import Address


class _Addresses(Pairs):
    __slots__ = ()

    def add_pair(self, key: str, value: str) -> int:
        if value.startswith("@"):
            checked(f"x{value}")
        else:
            checked(value)
        return super().add_pair(_key(key), value)


class AddressMap(MappingTable):
    """A mapping from addresses, users and domains to canonical addresses."""

    __slots__ = ()
    contents = _Addresses


class Maps(Tables):
    """Tables of canonical addresses, in order."""

    __slots__ = ("tables",)
    tables: tuple[PatternTable | AddressMap, ...]

    def __init__(self, tables: Iterable[PatternTable | AddressMap] = ()) -> None:
        self.tables = tuple(tables)

    def __bool__(self) -> bool:
        return bool(self.tables)

    def __add__(self, other: Maps) -> Maps:
        return Maps(self.tables + other.tables)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Maps) and self.tables == other.tables

    def __hash__(self) -> int:
        return hash(self.tables)

    def __repr__(self) -> str:
        return f"<canonical: {', '.join(each.source for each in self.tables)}>"

    @property
    def anchored(self) -> list[str]:
        """The regular expressions that match whole addresses only, since they have no anchors."""
        return [
            text for each in self.tables if isinstance(each, PatternTable) for text in each.anchored
        ]

    @property
    def work(self) -> int:
        """The work of all look-ups by regular expressions so far (`patterns`)."""
        return sum(each.work for each in self.tables if isinstance(each, PatternTable))

    async def look_up(self, address: Address, server_name: str | None) -> str | None:
        """Return the canonical address for another one, not yet checked; None if there is none.

        Waits only for tables that are kept elsewhere, and raises UnavailableError if they are down.

        `server_name` is the domain whose users may stand in a mapping without it.
        """
        for table in self.tables:
            if isinstance(table, PatternTable):
                found = table.get(str(address))
                found = None if found is None else _expanded(found, address)
            else:
                found = await _mapped(table, address, server_name)
            if found is not None:
                return found
        return None


async def _mapped(table: AddressMap, address: Address, server_name: str | None) -> str | None:
    """Look an address up in a mapping: with its tag, without it, then by user and by domain."""
    user, delimiter, tag = address.local.partition(TAGS.delimiter)
    domain = canonical(address.domain)
    local = not domain or (server_name is not None and domain == canonical(server_name))
    for name, rest in ((address.local, ""), *([(user, delimiter + tag)] if delimiter else ())):
        small = folded(name)
        for key in (f"{small}@{domain}", *([small] if local else ())):
            if (found := await table.look_up_value(key)) is not None:
                return _with_tag(found, rest, address)
    found = await table.look_up_value(f"@{domain}")
    return None if found is None else _expanded(found, address)


def _with_tag(found: str, rest: str, address: Address) -> str:
    """Return an entry's address with the tag that was not part of its key, as Postfix does."""
    if not rest or found.startswith("@"):
        return _expanded(found, address)
    to = path(found)
    return found if TAGS.delimiter in to.local else written(to.local + rest, to.domain)


def _expanded(found: str, address: Address) -> str:
    """Return an entry's address: `@domain` keeps the user."""
    return written(address.local, found[1:]) if found.startswith("@") else found


def _key(text: str) -> str:
    """Return a key of a mapping in the form in which addresses are looked up."""
    checked_key(text)
    if "@" not in text:
        return folded(text)
    if text.startswith("@"):
        return f"@{canonical(text[1:])}"
    address = path(text)
    return f"{folded(address.local)}@{canonical(address.domain)}"


class _Maps(Repeated[Maps]):
    metavar = "TABLE"
    toml = (list, str)
    value_class = Maps

    def parse(self, text: str) -> Maps:
        for kind in (PatternTable, PerlTable):
            if text.startswith(kind.prefix):
                return Maps((kind.load(text),))
        return Maps((AddressMap.load_by_key(text),))

    def words(self, value: Maps) -> list[str]:
        return [each.source for each in value.tables]


#: The kind of `--canonical` and its like.
MAPS = _Maps()

"""Domains and mail addresses, matched as smtpd's `hostname_match` and `mailaddr_match` do.

The star of smtpd is not a shell's: it runs up to the first character that equals the one behind
it and never tries a later one. `*.example.org` therefore covers `a.example.org`, but not
`a.b.example.org`, and not `example.org`. This makes every pattern linear to match, and a pattern
that starts with its only star a hash look-up: what is left of the key from that first character
on is compared whole.
"""

from __future__ import annotations

from smtpd_filters.tables.source import BLANKS, Source
from smtpd_filters.tables.table import Table, lower, short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class DomainTable(Table):
    """A list of host names or domains, with stars.

    `match` prefers a name that is written out to one with stars.
    """

    __slots__ = ("_names",)
    _names: _Names

    def _load(self, source: Source) -> None:
        names = _Names()

        def add(text: str) -> None:
            names.users(text).setdefault("", text)

        source.texts(add)
        self._names = names

    def _find(self, key: str) -> str | None:
        for users in self._names.covering(lower(key)):
            return users[""]
        return None

    def __len__(self) -> int:
        return len(self._names)


class AddressTable(Table):
    """A list of mail addresses: `user@domain`, `user` or `user@`, `@domain`, `@` or `*`.

    As in smtpd: the domain may hold stars as in a table of domains; an entry without a tag
    covers the address with any tag (`user@` covers `user+tag@example.org`), one with a tag covers
    that tag only; `@` covers everything, and so does a lone `*` (which smtpd takes for a user of
    that name). The part before the last `@` is the user; it compares without case. The null
    sender is covered by `@` and `*` only.

    `match` prefers the more exact entry: first the domain written out, then with stars, then
    entries without a domain; and for each the user with the tag, without, and no user at all.
    """

    __slots__ = ("_anywhere", "_names")
    _names: _Names
    _anywhere: dict[str, str]

    def _load(self, source: Source) -> None:
        names = _Names()
        anywhere: dict[str, str] = {}

        def add(text: str) -> None:
            user, domain = _parted(lower(short("@" if text == "*" else text)))
            users = names.users(domain) if domain else anywhere
            users.setdefault(user, text)

        source.texts(add)
        self._names, self._anywhere = names, anywhere

    def _find(self, key: str) -> str | None:
        user, domain = _parted(lower(key))
        # "+" is smtpd's default of `smtp sub-addr-delim`.
        asked = (user, user.partition("+")[0], "")
        for users in (*self._names.covering(domain), self._anywhere):
            for name in asked:
                if (entry := users.get(name)) is not None:
                    return entry
        return None

    def __len__(self) -> int:
        return len(self._names) + len(self._anywhere)


def _parted(address: str) -> tuple[str, str]:
    """User and domain; without an `@` all of it is the user."""
    user, at, domain = address.rpartition("@")
    return (user, domain) if at else (domain, "")


class _Names:
    """Domains, each with the entries for its users; "" stands for any user."""

    __slots__ = ("_exact", "_odd", "_tails", "_turns")

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, str]] = {}
        # What stands behind a star at the front, and the characters that those begin with.
        self._tails: dict[str, dict[str, str]] = {}
        self._turns: dict[str, None] = {}
        # Everything else, cut at its stars: these are tried one by one.
        self._odd: dict[tuple[str, ...], dict[str, str]] = {}

    def users(self, domain: str) -> dict[str, str]:
        """Give the entries of a domain, to add to them."""
        domain = lower(short(domain))
        if not domain.strip(BLANKS) or any(char in BLANKS for char in domain):
            raise ValueError("white space in a name")
        if "*" not in domain:
            return self._exact.setdefault(domain, {})
        tail = domain.lstrip("*")
        if domain[0] == "*" and "*" not in tail:
            self._turns[tail[:1]] = None
            return self._tails.setdefault(tail, {})
        first, *others = domain.split("*")
        # A run of stars is one star.
        parts = (first, *(part for part in others[:-1] if part), others[-1])
        return self._odd.setdefault(parts, {})

    def covering(self, name: str) -> Iterator[dict[str, str]]:
        """Find the domains that cover a name in lower case, the one written out first."""
        if name in self._exact:
            yield self._exact[name]
        if not name:
            return  # no star covers an empty name
        for turn in self._turns:
            # An empty turn is a lone star: it runs to the end.
            at = name.find(turn) if turn else len(name)
            if at >= 0 and name[at:] in self._tails:
                yield self._tails[name[at:]]
        for parts, users in self._odd.items():
            if _covers(parts, name):
                yield users

    def __len__(self) -> int:
        names = (self._exact, self._tails, self._odd)
        return sum(len(users) for index in names for users in index.values())


def _covers(parts: tuple[str, ...], name: str) -> bool:
    if not name.startswith(parts[0]):
        return False
    at = len(parts[0])
    for part in parts[1:]:
        if at == len(name):
            return False  # smtpd stops at the end of the name, even before a last star
        if not part:
            return True
        at = name.find(part[0], at)
        if at < 0 or not name.startswith(part, at):
            return False
        at += len(part)
    return at == len(name)

"""Tables of domains and mail addresses, matched like smtpd's `hostname_match`, `mailaddr_match`.

smtpd's star differs from the shell's: it matches up to the first character that equals the one
after the star, and never tries a later one. `*.example.org` therefore covers `a.example.org`, but
neither `a.b.example.org` nor `example.org`. So every pattern is matched in linear time, and a
pattern with a single star at its beginning takes one hash look-up: the rest of the key from that
character on is compared as a whole.

Entries and keys are compared in the canonical form of `smtpd_filters.addresses`. An entry that no
key can equal in that form is invalid: the list would appear to protect more than it does.
"""

from __future__ import annotations

import re

from smtpd_filters.addresses.domains import LABEL_MAX, NAME_MAX, canonical, folded, literal
from smtpd_filters.addresses.mailbox import Address, unquoted
from smtpd_filters.addresses.tags import TAGS

from .index import Index
from .source import BLANKS
from .table import Content, Table, checked_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import ClassVar

# RFC 1035 section 2.3.4, with the underscore, which DNS names may contain. RFC 3696 section 2:
# "top-level domain names not be all-numeric".
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*(?![0-9]+\Z)[a-z0-9_-]{1,63}")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_.*-]")  # smtpd's star is allowed
# RFC 5321 section 4.1.2 and RFC 6531 section 3.3: allowed only in a quoted local part.
_NOT_IN_USERS = re.compile(r"""[\x00-\x20"(),:;<>@\[\\\]\x7f]""")
# Units of work (see `source.STEP`) per character of a name beyond ASCII: a name takes some ms.
_WORK = 100
# Labels of the longest name above a domain that a remote source is asked for: a stranger chooses
# the domain, and each name is a question.
_ASKED_LABELS = 8
# Entries freed in one step.
_FREED = 4096
_QUOTED_USER = re.compile(r'("(?:[^"\\]|\\.)*+")(?:@|\Z)', re.DOTALL)


class _Names(Content):
    """Canonical domains, with or without stars, each after a prefix that identifies the user."""

    __slots__ = ("_exact", "_stops", "_tails", "_with_inner_stars")

    def __init__(self, size: int) -> None:
        self._exact = Index(size)
        # For entries with a star only at the front: the rest, and the first characters of those.
        self._tails = Index(size)
        self._stops: dict[str, None] = {}
        # All other entries, split at their stars; they are tried one by one.
        self._with_inner_stars: dict[tuple[str, ...], dict[str, str]] = {}

    def put(self, prefix: str, domain: str, text: str) -> None:
        """Add an entry unless there is one for that prefix and domain."""
        if "*" not in domain:
            key = prefix + domain
            # Sharing one object saves memory.
            self._exact.add(key, key if key == text else text)
            return
        tail = domain.lstrip("*")
        if "*" not in tail:  # all stars are in front
            self._stops[tail[:1]] = None
            self._tails.add(prefix + tail, text)
            return
        first, *others = domain.split("*")
        # Consecutive stars equal one star.
        parts = (first, *(part for part in others[:-1] if part), others[-1])
        self._with_inner_stars.setdefault(parts, {}).setdefault(prefix, text)

    def covering(self, name: str, prefixes: tuple[str, ...]) -> str | None:
        """Return the entry that covers a canonical name, preferably one without stars.

        Earlier prefixes take precedence.
        """
        for prefix in prefixes:
            if (entry := self._exact.get(prefix + name)) is not None:
                return entry
        # A star doesn't cover an empty name.
        return self._by_star(name, prefixes) if name else None

    def _by_star(self, name: str, prefixes: tuple[str, ...]) -> str | None:
        for stop in self._stops:
            # An empty stop is a lone star, which matches to the end.
            at = name.find(stop) if stop else len(name)
            for prefix in prefixes if at >= 0 else ():
                if (entry := self._tails.get(prefix + name[at:])) is not None:
                    return entry
        for parts, entries in self._with_inner_stars.items():
            if _covers(parts, name):
                for prefix in prefixes:
                    if (entry := entries.get(prefix)) is not None:
                        return entry
        return None

    def release(self) -> Iterator[None]:
        yield from self._exact.release()
        yield from self._tails.release()
        inner = self._with_inner_stars
        while inner:
            for _ in range(min(len(inner), _FREED)):
                inner.popitem()
            yield

    def __len__(self) -> int:
        return len(self._exact) + len(self._tails) + sum(map(len, self._with_inner_stars.values()))


class _Domains(_Names):
    __slots__ = ()
    # Whether an entry may be an address literal.
    _literals: ClassVar[bool] = True

    def add(self, text: str) -> int:
        name = text[1:] if text[0] == "@" else text
        self.put("", domain_entry(name, literals=self._literals), text)
        return 0 if text.isascii() else _WORK * len(text)

    def find(self, key: str) -> str | None:
        return self.covering(canonical(key), ("",))


class _Hosts(_Domains):
    __slots__ = ()
    _literals = False


class DomainTable(Table):
    """A list of mail domains: `example.org`, `*.example.org`, `[192.0.2.1]`.

    `@example.org`, the form of a domain in smtpd's lists of addresses, equals `example.org`.

    `match` prefers an entry without stars. An entry covers no names below its own, except for
    `match_subdomain`.
    """

    __slots__ = ()
    _content: _Domains
    contents: ClassVar[type[_Domains]] = _Domains
    service = "domain"

    def match_subdomain(self, key: str) -> str | None:
        """Return the entry that covers the domain or a domain above it, the nearest one.

        So `example.org` covers `a.b.example.org` as well, and `org` all names below it.
        """
        for name in _with_parents(key):
            if (entry := self._content.find(name)) is not None:
                return entry
        return None

    async def look_up_subdomain(self, key: str) -> str | None:
        """Do as `match_subdomain`, and wait for the answer of a remote table.

        That is asked for the domain and the domains above it with at most eight labels.
        """
        if self._key_lookups is None:
            return self.match_subdomain(key)
        name, *parents = _with_parents(key)
        return await self._first((name, *parents[-_ASKED_LABELS:]))

    def asked_keys(self, key: str) -> Sequence[str]:
        """Return the canonical domain: a remote source has no stars."""
        return (canonical(key),)


def _with_parents(key: str) -> Iterator[str]:
    """Yield the canonical form of a domain, and the domains above it, which have valid lengths."""
    name = canonical(key)
    yield name
    if literal(name):
        return
    at = name.find(".", max(len(name) - NAME_MAX - 1, 0))
    while at >= 0:
        yield name[at + 1 :]
        at = name.find(".", at + 1)


class HostTable(DomainTable):
    """A list of host names, as in the DNS or in HELO; without address literals."""

    __slots__ = ()
    contents = _Hosts


class _Addresses(_Names):
    """Domains with the user and a NUL, which no entry contains, as their prefix."""

    __slots__ = ("_anywhere",)

    def __init__(self, size: int) -> None:
        super().__init__(size)
        # Entries without a domain, by user.
        self._anywhere = Index(size)

    def add(self, text: str) -> int:
        user, domain = address_entry(text)
        if domain:
            self.put(f"{user}\0", domain, text)
        else:
            self._anywhere.add(user, text)
        return 0 if text.isascii() else _WORK * len(text)

    def find(self, key: str) -> str | None:
        return self.of(Address.parse(key))

    def of(self, address: Address) -> str | None:
        """Return the entry that covers an address, or None."""
        user = folded(address.local)
        users = (user, TAGS.without(user), "")
        prefixes = tuple(f"{name}\0" for name in users)
        if (entry := self.covering(canonical(address.domain), prefixes)) is not None:
            return entry
        for name in users:
            if (entry := self._anywhere.get(name)) is not None:
                return entry
        return None

    def release(self) -> Iterator[None]:
        yield from super().release()
        yield from self._anywhere.release()

    def __len__(self) -> int:
        return super().__len__() + len(self._anywhere)


class AddressTable(Table):
    """A list of mail addresses: `user@domain`, `user` or `user@`, `@domain`, `@` or `*`.

    As in smtpd: the domain may contain stars as in a table of domains; an entry without a tag
    covers the address with any tag (`user@` covers `user+tag@example.org`), an entry with a tag
    covers that tag only; `@` covers everything, and so does a lone `*` (in smtpd a user of that
    name). The part before the last `@` is the user; comparison ignores its case and quotes. The
    null sender is covered by `@` and `*` only.

    Unlike in smtpd, a user with a dot needs its `@`, as in `jane.doe@`: `example.org` alone is more
    often a domain without its `@`.

    `match` prefers the most specific entry: first domains without stars, then those with stars,
    then entries without a domain; within each, the user with the tag, the user without it, and
    entries without a user.
    """

    __slots__ = ()
    _content: _Addresses
    contents = _Addresses
    service = "mailaddr"

    def find(self, address: Address) -> str | None:
        """Return the entry that covers a parsed address, or None."""
        return self._content.of(address)

    def asked_keys(self, key: str) -> Sequence[str]:
        """Return the address, the address without its tag, and its domain after an `@`."""
        return _keys(Address.parse(key))

    async def look_up_address(self, address: Address) -> str | None:
        """Do as `find`, and wait for the answer of a remote table."""
        if self._key_lookups is None:
            return self._content.of(address)
        return await self._first(_keys(address))


def _keys(address: Address) -> tuple[str, ...]:
    if not address:
        return ()  # the null sender
    user, domain = folded(address.local), canonical(address.domain)
    plain = TAGS.without(user)
    if not domain:
        return tuple(dict.fromkeys((user, plain)))
    return tuple(dict.fromkeys((f"{user}@{domain}", f"{plain}@{domain}", f"@{domain}")))


def address_entry(text: str) -> tuple[str, str]:
    """Parse an entry of a table of addresses; return user and domain, "" for any.

    Raises ValueError if it covers no address.
    """
    checked_key(text)
    if quoted := _QUOTED_USER.match(text):
        user, domain = folded(unquoted(quoted[1])), text[quoted.end() :]
    else:
        user, at, domain = text.rpartition("@")
        if not at:
            user, domain = domain, ""
        user = _user(user, alone=not at)
    return user, domain_entry(domain) if domain else ""


def _user(user: str, *, alone: bool) -> str:
    if "@" in user:
        raise ValueError('more than one "@" (quote a local part that has one)')
    if wrong := _NOT_IN_USERS.search(user):
        if wrong[0] in BLANKS:
            raise ValueError("white space in an address")
        raise ValueError(f"{_quote(wrong[0])} can't be in an address (user@example.org)")
    if alone and "." in folded(user):
        domain = user if user.isascii() and len(user) <= LABEL_MAX else "example.org"
        raise ValueError(f'did you mean "@{domain}"? (a user with a dot needs an "@" after it)')
    if user.strip("*") and "*" in user:
        raise ValueError("a star can't be part of a user name (quote a name that has one)")
    return folded(user.strip("*"))


def domain_entry(text: str, *, literals: bool = True) -> str:
    """Return the canonical form of a table's entry for a domain, with or without stars.

    Raises ValueError if no domain can equal it. Address literals are valid only with `literals`.
    """
    name = canonical(checked_key(text))
    if _NAME.fullmatch(name) and len(name) <= NAME_MAX:
        return name
    if not text:
        raise ValueError("empty name")
    if any(char in BLANKS for char in text):
        raise ValueError("white space in a name")
    if any("*" in label and not label.isascii() for label in folded(text).split(".")):
        raise ValueError("a label can't have both a star and letters beyond ASCII")
    if name[:1] == "[":
        if not literals:
            raise ValueError("expected a name, not an address")
        if not literal(name):
            raise ValueError("expected an address literal, [192.0.2.1] or [IPv6:2001:db8::1]")
        return name
    _check_name(name)
    return name


def _check_name(name: str) -> None:
    """Raise ValueError for an invalid domain name, stars aside (RFC 1035 section 2.3.4)."""
    if not name.isascii():
        raise ValueError("a label is too long, or has bytes that aren't UTF-8")
    if wrong := _NOT_IN_NAMES.search(name):
        if wrong[0] == "@":
            raise ValueError("an address, not a domain")
        expected = "expected example.org or *.example.org"
        raise ValueError(f"{_quote(wrong[0])} can't be in a domain ({expected})")
    if name[:1] == ".":
        raise ValueError(
            f"a domain can't begin with a dot (*{name} covers names with one label more)"
        )
    if len(name.replace("*", "")) > NAME_MAX:
        raise ValueError(f"longer than {NAME_MAX} characters")
    labels = name.split(".")
    if not all(labels):
        raise ValueError("an empty label")
    if any(len(label.replace("*", "")) > LABEL_MAX for label in labels):
        raise ValueError(f"a label longer than {LABEL_MAX} characters")
    if labels[-1].isdigit():
        raise ValueError("an address, not a domain (an address literal has brackets, [192.0.2.1])")


def _quote(char: str) -> str:
    return f"'{char}'" if char.isprintable() else ascii(char)


def _covers(parts: tuple[str, ...], name: str) -> bool:
    if not name.startswith(parts[0]):
        return False
    at = len(parts[0])
    for part in parts[1:]:
        if at == len(name):
            return False  # smtpd stops at the end of the name, even before a final star
        if not part:
            return True
        at = name.find(part[0], at)
        if at < 0 or not name.startswith(part, at):
            return False
        at += len(part)
    return at == len(name)

"""Tables in LDAP: `ldap:PATH` of a configuration file.

The keys are those of table-ldap(5), `url`, `username`, `password`, `basedn`, `ca_file`,
`SERVICE_filter` and `SERVICE_attributes`, and more (`KEYS`). A list of a table is made with the
same filter, with a star in place of the key, unless there is a `list_filter`.

Invariants
----------
*Missing is an answer*: only a search that succeeds without an entry, or whose entry has no value,
makes a key absent. A missing base is a mistake in the configuration, a referral may lead anywhere,
a limit hides entries, and a value may be there under another name of its attribute.
*One entry*: of a mapping, several entries for a key are an error, not the last one.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError, os_reason

from .backend import (
    LIST_MAX,
    ROWS_MAX,
    SOME,
    AnswerError,
    Backend,
    BackendError,
    release,
    value_of,
)
from .configuration import TIMES, Configuration
from .ldap_client import messages
from .ldap_client.client import Account, Client, Server
from .ldap_client.filters import attributes_of, encode, escape, fill
from .ldap_client.messages import NO_SUCH_OBJECT, SIZE_LIMIT, Search

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.sandbox import Needs

    from .ldap_client.messages import Entry

#: Services of table-ldap, and our own.
SERVICES = (
    "alias", "credentials", "domain", "userinfo", "mailaddr", "mailaddrmap", "netaddr", "string",
    "regex", "mapping",
)  # fmt: skip
#: Further keys.
KEYS = (
    "url", "username", "password", "password_file", "basedn", "ca_file", "starttls", "scope",
    "page_size", "filter", "attributes", "list_filter", "list_attributes",
)  # fmt: skip
_MAPPINGS = frozenset({"alias", "credentials", "userinfo", "mailaddrmap", "mapping"})
_JOINED = frozenset({"alias", "mailaddrmap"})
_ATTRIBUTES = {"credentials": 2, "userinfo": 3}
_SCOPES = {"sub": messages.SUBTREE, "one": messages.ONE, "base": messages.BASE}
#: The names in the description of an attribute: one, or several in parentheses.
_NAMES = re.compile(r" NAME +(?:'[^']*'|\([^()]*\))")
#: The option of an attribute of which Active Directory returns the first 1,500 values.
_PART = ";range="
#: Entries of a page: slapd's default size limit is 500.
_PAGE = 500


def open_backend(text: str, service: str) -> tuple[Backend, dict[str, float]]:
    """Return the back-end and the times of its configuration. Raises ConfigError."""
    if not text:
        raise ConfigError("ldap: needs the path of a configuration file")
    per_service = [f"{each}_{what}" for each in SERVICES for what in ("filter", "attributes")]
    file = Configuration(text, (*KEYS, *per_service))
    times = {name: file.seconds(name) for name in TIMES}
    return LDAP(file, service, times["timeout"]), times


class LDAP(Backend):
    """One table in a directory. Raises ConfigError for a mistake in its file."""

    def __init__(self, file: Configuration, service: str, timeout: float) -> None:
        self.timeout = timeout
        #: The number of values that a list may have.
        self.max_listed = LIST_MAX
        self._name = service
        self._mapping = service in _MAPPINGS
        self._joined = service in _JOINED
        self._servers = _servers(file)
        self._scope = _SCOPES.get(file.get("scope") or "sub", -1)
        if self._scope < 0:
            raise file.error("scope", "expected sub, one or base")
        self._base = file.required("basedn")
        self._page = file.number("page_size", _PAGE, 1, 10_000)
        self._template, self._attributes = self._of_service(file, service)
        self._list_filter, self._list_attributes = self._of_list(file)
        self.lists = bool(self._list_attributes)
        self._client = Client(
            self._servers,
            _account(file, self._servers),
            timeout=timeout,
            context=_context(file, self._servers),
            starts_tls=file.switch("starttls"),
        )

    def _of_service(self, file: Configuration, service: str) -> tuple[str, list[str]]:
        key = f"{service}_filter" if file.get(f"{service}_filter") else "filter"
        template = file.get(key)
        if template is None:
            raise ConfigError(f"{file.path}: expected {service}_filter or filter")
        self._try(file, key, template)
        key = f"{service}_attributes" if file.get(f"{service}_attributes") else "attributes"
        attributes = _words(file.get(key) or "")
        wanted = _ATTRIBUTES.get(service, 1)
        if len(attributes) != wanted and (attributes or self._mapping):
            raise file.error(key, f"expected {wanted}, not {len(attributes)}")
        return template, attributes

    def _of_list(self, file: Configuration) -> tuple[str, list[str]]:
        wanted = 2 if self._mapping else 1
        attributes = _words(file.get("list_attributes") or "")
        if not attributes and not self._mapping:
            attributes = self._attributes
        if attributes and len(attributes) != wanted:
            raise file.error("list_attributes", f"expected {wanted}, not {len(attributes)}")
        given = file.get("list_filter")
        self._try(file, "list_filter" if given else "filter", given or self._template, "*")
        return given or self._template, attributes

    def _try(self, file: Configuration, key: str, template: str, value: str = "x") -> None:
        try:
            encode(fill(template, value, self._name))
        except ValueError as error:
            raise file.error(key, str(error)) from None

    def _search(self, template: str, key: str, attributes: Sequence[str], size: int) -> Search:
        return Search(
            self._base,
            encode(fill(template, key, self._name)),
            # RFC 4511 section 4.5.1.8: "1.1" is no attribute at all.
            attributes or ["1.1"],
            scope=self._scope,
            size=size,
            seconds=max(1, round(self.timeout)),
        )

    async def look_up(self, key: str) -> str | None:
        """Return the value of a key, or None. Raises BackendError."""
        size = 2 if self._mapping else 1
        search = self._search(self._template, escape(key), self._attributes, size)
        entries, result = await self._client.search(search, ROWS_MAX)
        if result.code == NO_SUCH_OBJECT:
            raise AnswerError(f"no such base: {self._base}")
        if result.code and not (result.code == SIZE_LIMIT and entries):
            raise AnswerError(result.reason)
        if not entries:
            return None
        if not self._mapping:
            return ""
        if len(entries) > 1 or result.code:
            raise AnswerError("several entries for one key")
        values = _values(entries[0], self._attributes)
        if not all(values):
            return None
        if len(values) > 1:
            return value_of([":".join(each[0] for each in values)], joined=False)
        if len(values[0]) > 1 and not self._joined:
            raise AnswerError("several values for one key")
        return value_of(values[0], joined=self._joined)

    async def entries(self, seconds: float) -> list[tuple[str, str]]:
        """Return all entries. Raises BackendError."""
        search = self._search(self._list_filter, "*", self._list_attributes, 0)
        search.seconds = 0
        found = await self._client.pages(search, self._page, self.max_listed, seconds)
        rows: list[tuple[str, str]] = []
        try:
            await self._convert(found, rows)
        except BackendError:
            await release(rows)
            await release(found)
            raise
        return rows

    async def _convert(self, entries: list[Entry], rows: list[tuple[str, str]]) -> None:
        """Move entries to rows, in steps by their values. Raises BackendError."""
        entries.reverse()
        left = SOME
        while entries:
            keys, *values = _values(entries.pop(), self._list_attributes)
            if all(values):
                value = ", ".join(values[0]) if values else ""
                rows += [(each, value) for each in keys]
            if len(rows) > self.max_listed:
                raise BackendError(f"more than {self.max_listed} entries")
            left -= sum(map(len, values), 1 + len(keys))
            if left <= 0:
                left = SOME
                await asyncio.sleep(0)

    async def mistakes(self) -> list[str]:
        """Return a text for each attribute that the server's schema doesn't have.

        A search for such an attribute finds nothing (RFC 4511 section 4.5.1.7: undefined), as if no
        key were in the table. Nothing is said if the schema can't be read (RFC 4512 section 4.4).
        """
        everything = encode("(objectClass=*)")
        search = Search(self._base, everything, ["subschemaSubentry"], scope=messages.BASE)
        entries, _ = await self._client.search(search, 1)
        [place, *_] = (entries[0].values("subschemaSubentry") if entries else []) or [""]
        if not place:
            return []
        search = Search(place, everything, ["attributeTypes"], scope=messages.BASE)
        entries, _ = await self._client.search(search, 1)
        texts = entries[0].values("attributeTypes") if entries else []
        known = {name.lower() for text in texts for name in names_in(text)}
        used = [*self._attributes, *self._list_attributes]
        for template in (self._template, self._list_filter):
            used += attributes_of(fill(template, "x", self._name))
        return [
            f"the server's schema has no attribute {name!r}"
            for name in dict.fromkeys(each.partition(";")[0] for each in used)
            if known and name.lower() not in known and not name[:1].isdigit()
        ]

    def declare(self, needs: Needs) -> None:
        """Declare the servers."""
        needs.to_open(len(self._servers))
        for server in self._servers:
            if server.path:
                needs.to_connect_unix(server.path)
            else:
                needs.to_connect(server.host, server.port)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _values(entry: Entry, attributes: Sequence[str]) -> list[list[str]]:
    """Return the values of each attribute. Raises AnswerError if there may be others."""
    values = [entry.values(each) for each in attributes]
    if any(_PART in each for each in entry.attributes):
        raise AnswerError("a part of the values of an attribute")
    if not all(values) and (others := entry.others(attributes)):
        # RFC 4511 section 4.5.2.1: a server may write another name of an attribute than the client.
        lacking = next(name for name, found in zip(attributes, values, strict=True) if not found)
        raise AnswerError(f"the server returns {others[0][:40]!r} in place of {lacking!r}")
    return values


def names_in(description: str) -> list[str]:
    """Return the names in the description of an attribute (RFC 4512 section 4.1.2).

    The time is linear in its length, whatever a server sends.
    """
    found = _NAMES.search(description)
    return re.findall("'([^']+)'", found[0]) if found else []


def _servers(file: Configuration) -> list[Server]:
    file.required("url")
    try:
        return [Server(each) for each in file.urls]
    except ConfigError as error:
        raise file.error("url", str(error)) from None


def _account(file: Configuration, servers: Sequence[Server]) -> Account:
    name, password = file.get("username") or "", file.password()
    if name and not password:
        raise file.error("username", "a password or password_file is required")
    if password and not name:
        raise ConfigError(f"{file.path}: username is missing, but there is a password")
    external = not name and all(server.path for server in servers)
    return Account(name, password, external=external)


def _context(file: Configuration, servers: Sequence[Server]) -> ssl.SSLContext | None:
    starts, path = file.switch("starttls"), file.get("ca_file")
    if starts and any(server.path for server in servers):
        raise file.error("starttls", "not for ldapi://")
    if not starts and not any(server.tls for server in servers):
        if path is not None:
            raise file.error("ca_file", "requires ldaps:// or starttls yes")
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        reason = "no certificate in it" if isinstance(error, ssl.SSLError) else os_reason(error)
        raise file.error("ca_file", f"{path}: {reason}") from None


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()

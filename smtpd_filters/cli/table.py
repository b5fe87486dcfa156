"""`smtpd-filters table`: ask a table as a filter would, and serve tables to smtpd."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING

from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.settings import SWITCH, TEXT, Settings, choice, operand, option
from smtpd_filters.settings.quoting import printable
from smtpd_filters.tables import (
    AddressTable,
    DomainTable,
    HostTable,
    IPTable,
    MappingTable,
    NetworkTable,
    RegexTable,
    StringTable,
    parse,
)
from smtpd_filters.tables.remote.backend import BackendError
from smtpd_filters.tables.remote.source import PROBED

from .store_search import find_delimiter
from .verb import Verb

if TYPE_CHECKING:
    from typing import Any

    from smtpd_filters.tables import Table

GET, LIST, CHECK, SERVE = ACTIONS = ("get", "list", "check", "serve")
KINDS: dict[str, type[Table]] = {
    "domains": DomainTable,
    "hosts": HostTable,
    "addresses": AddressTable,
    "networks": NetworkTable,
    "ips": IPTable,
    "regex": RegexTable,
    "strings": StringTable,
    "mapping": MappingTable,
}
#: smtpd's services (table(5)) and the kinds whose tables answer them; the first is the default.
_SERVED = {
    "domain": ("domains", "hosts"),
    "mailaddr": ("addresses",),
    "netaddr": ("networks", "ips"),
    "regex": ("regex",),
    "string": ("strings",),
    **dict.fromkeys(("alias", "credentials", "userinfo", "addrname", "mailaddrmap"), ("mapping",)),
}
#: Exit statuses: the key is not in the table, a mistake, and the table could not be asked.
ABSENT, MISTAKEN, UNAVAILABLE = 1, 2, 3
#: Kinds to try for a table that does not have domains. Regular expressions would nearly always fit.
_GUESSED = ("addresses", "networks", "mapping")
#: Kinds without look-ups by key.
_LOADED = frozenset({"networks", "ips", "regex"})


class Options(Settings):
    """What to do with which table."""

    action = operand(
        choice(*ACTIONS),
        required=True,
        metavar="ACTION",
        help="get looks a key up as a filter would, and says where the answer came from and how "
        "long it took; list prints all entries that can be listed; check only opens the table; "
        "serve speaks the protocol of smtpd's table programs on stdin and stdout.",
    )
    table = operand(
        TEXT,
        required=True,
        metavar="TABLE",
        help="The table, as in a filter's flag: file:PATH, sqlite:PATH and so on.",
    )
    key = operand(TEXT, default="", metavar="KEY", help="For get: the key.")
    kind = option(
        choice(*KINDS),
        default=None,
        help="The kind of the table, which decides how keys are compared with it. By default that "
        "of --service, or domains.",
    )
    service = option(
        TEXT,
        default="",
        help="The service of table(5), such as alias or credentials, by which a database or a "
        "directory chooses the query. For serve: the services to register, separated by commas, "
        "each with a table of its own kind. By default the one that the kind has in smtpd.",
    )
    json = option(SWITCH, default=False, help="Print JSON.")


def run(options: Options, _rest: list[str]) -> int:
    """Do what the operand says."""
    TAGS.delimiter = find_delimiter()
    if options.action == SERVE:
        from .table_server import serve

        return serve(options.table, options.kind, options.service)
    if (options.action == GET) != bool(options.key):
        raise ConfigError("get requires a KEY" if options.action == GET else "KEY requires get")
    table = opened(options.table, options.kind, options.service, by_key=options.action != LIST)
    if options.action == GET:
        return asyncio.run(_get(table, options))
    if options.action == LIST:
        return _list(table, options)
    return _check(table, options)


def services_of(kind: str | None, services: str) -> list[str]:
    """Return the services that are given, or else the one of the kind."""
    given = [each for each in services.replace(",", " ").split() if each]
    kind = kind or "domains"
    return given or [next(name for name, kinds in _SERVED.items() if kind in kinds)]


def opened(spec: str, kind: str | None, service: str, *, by_key: bool) -> Table:
    """Open a table as a filter does that looks single keys up, or that loads all entries.

    Raises ConfigError, also for a service of another kind.
    """
    kinds = _SERVED.get(service)
    if service and kinds is None:
        raise ConfigError(f"--service {service}: expected {', '.join(sorted(_SERVED))}")
    if kinds is not None and kind is not None and kind not in kinds:
        raise ConfigError(f"--kind {kind}: service {service} needs {' or '.join(kinds)}")
    kind_is_given = bool(kind or kinds)
    kind = kind or (kinds or ("domains",))[0]
    cls = KINDS[kind]
    if service:
        cls = type(cls.__name__, (cls,), {"__slots__": (), "service": service})
    try:
        return cls.load_by_key(spec) if by_key and kind not in _LOADED else cls.load(spec)
    except ConfigError as error:
        fitting = "" if kind_is_given else _kind_of(spec)
        raise ConfigError(f"{error}{fitting and f' (--kind {fitting} fits)'}") from None


def _kind_of(spec: str) -> str:
    """Return the kind as which a table can be loaded, or ""."""
    for kind in _GUESSED:
        with suppress(ConfigError, UnavailableError):
            KINDS[kind].load(spec)
            return kind
    return ""


async def _get(table: Table, options: Options) -> int:
    begun = perf_counter()
    origin, value, entry, cause = "memory", None, None, ""
    try:
        if table.by_key and table.remote is not None:
            origin = f"{options.table.partition(':')[0]}, by key"
        if isinstance(table, MappingTable):
            value = await table.look_up_value(options.key)
            entry = None if value is None else options.key
        else:
            entry = await table.look_up(options.key)
    except UnavailableError as error:
        cause = str(error)
    finally:
        took = perf_counter() - begun
        if table.remote is not None:
            await table.remote.aclose()
    result: dict[str, Any] = {
        "key": options.key,
        "found": None if cause else entry is not None,
        "entry": entry,
        "value": value,
        "from": origin,
        "milliseconds": round(took * 1000, 3),
        "cause": cause,
    }
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        what = f"unavailable: {cause}" if cause else "not found"
        if entry is not None:
            what = f"found as {entry}" if value is None else f"is {value}"
        sys.stdout.write(
            f"{printable(options.key)}: {printable(what)} (from {origin}, {took * 1000:.1f} ms)\n"
        )
    return UNAVAILABLE if cause else 0 if entry is not None else ABSENT


def _list(table: Table, options: Options) -> int:
    if table.remote is None:
        rows = entries_of(options.table, mapping=isinstance(table, MappingTable))
    else:
        asyncio.run(_fetch(table))
        if table.remote.down:
            sys.stderr.write(f"{options.table}: unavailable: {table.remote.down}\n")
            return UNAVAILABLE
        rows = list(table.remote.rows)
    for key, value in rows:
        if options.json:
            sys.stdout.write(json.dumps({"key": key, "value": value or None}) + "\n")
        else:
            sys.stdout.write(printable(f"{key} {value}".rstrip()) + "\n")
    return 0


def entries_of(spec: str, *, mapping: bool) -> list[tuple[str, str]]:
    """Return the entries of a file or an inline table, as they are written."""
    rows: list[tuple[str, str]] = []

    def add(key: str, value: str = "") -> int:
        rows.append((key, value))
        return 0

    source = parse(spec)
    for _ in source.pairs(add) if mapping else source.texts(add):
        pass
    return rows


async def _fetch(table: Table) -> None:
    if table.remote is not None:
        await table.remote.list()
        await table.remote.aclose()


def _check(table: Table, options: Options) -> int:
    remote = table.remote
    if remote is not None and remote.down:
        sys.stdout.write(f"{options.table}: unavailable: {printable(remote.down)}\n")
        return UNAVAILABLE
    return asyncio.run(_probe(table, options))


async def _probe(table: Table, options: Options) -> int:
    begun = perf_counter()
    found = f"{len(table)} entries"
    try:
        if table.by_key:
            # A key that no table has: the answer is of no interest, only that there is one.
            await table.look_up(PROBED)
            found = f"answers, in {(perf_counter() - begun) * 1000:.1f} ms"
        mistakes = [] if table.remote is None else await table.remote.backend.mistakes()
    except (UnavailableError, BackendError) as error:
        sys.stdout.write(f"{options.table}: unavailable: {printable(str(error))}\n")
        return UNAVAILABLE
    finally:
        if table.remote is not None:
            await table.remote.aclose()
    for each in mistakes:
        sys.stdout.write(f"{options.table}: {printable(each)}\n")
    if mistakes:
        return MISTAKEN
    sys.stdout.write(f"{options.table}: {found}\n")
    return 0


VERB = Verb(
    "table",
    run,
    options=Options,
    description="Ask a table, or serve it to smtpd. The answers are those that a filter with the "
    "same TABLE gets.",
    ending="The exit status is 0 if the key is in the table or the table is right, 1 if the key is "
    "not in it, 2 for a mistake in the flags or the table (such as an attribute that is not in the "
    "schema of an LDAP server, which check asks for), 3 if the table is unavailable.",
)

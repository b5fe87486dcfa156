"""`smtpd-filters greylist`: the memory of filter-greylist, shown, changed, exported, imported."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

from smtpd_filters.addresses import canonical
from smtpd_filters.cli.stores import StoreOptions, as_configured, time_in_words, with_store
from smtpd_filters.cli.streams import print_json
from smtpd_filters.cli.verb import Verb
from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.filters.greylist import Greylist, senders
from smtpd_filters.filters.greylist.records import ALL, Record, records
from smtpd_filters.filters.greylist.triplets import ALLOWED, client_key, triplet_key
from smtpd_filters.settings import LIST, SECONDS, SWITCH, TEXT, choice, operand, option
from smtpd_filters.settings.files import open_input
from smtpd_filters.settings.quoting import printable, quote
from smtpd_filters.stores import Delete, Put
from smtpd_filters.tables.networks import network_of

from . import dumps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping

    from smtpd_filters.stores import Store
    from smtpd_filters.stores.operations import Operation

NAME = Greylist.name
#: Requests that are pending at a time.
AT_ONCE = 64
_OWN: Any = Greylist.Options.options
_DAY = 86400.0
#: The options of the filter that say what its clients are, and how long it remembers them.
_PREFIXES = ("ipv4_prefix", "ipv6_prefix")
_TIMES = ("delay", "window", "lifetime", "known_after")


class Options(StoreOptions):
    """What to do, with which clients, in which store."""

    action = operand(
        choice("list", "show", "allow", "forget", "stats", "export", "import"),
        required=True,
        metavar="ACTION",
        help="list shows all entries, or those of some clients; show tells what becomes of a "
        "client, or of a triplet; allow lets clients in without waiting; forget removes clients "
        "with their triplets, or a triplet; stats counts; export writes all entries, one JSON "
        "object in a line; import reads them, or dumps of postgrey and spamd, from files or the "
        "standard input.",
    )
    what = operand(
        LIST(TEXT),
        default=(),
        metavar="CLIENT",
        help="Clients, each an address, a network or a domain. show and forget take triplets, too: "
        "CLIENT SENDER RECIPIENT, with '' for the null sender. For import, files.",
    )
    json = option(SWITCH, default=False, help="Print JSON.")
    duration = option(
        SECONDS(low=1, high=3660 * _DAY),
        default=366 * _DAY,
        help="For allow: how long.",
    )
    ipv4_prefix = _OWN["ipv4_prefix"]
    ipv6_prefix = _OWN["ipv6_prefix"]
    delay = _OWN["delay"]
    window = _OWN["window"]
    lifetime = _OWN["lifetime"]
    known_after = _OWN["known_after"]


def run(options: Options, _rest: list[str]) -> int:
    """Do what the operand says."""
    if options.action == "import":
        options = as_configured(options, NAME, (*_PREFIXES, *_TIMES))
    elif options.what:
        options = as_configured(options, NAME, _PREFIXES)
    if options.action == "import":
        # With the rights of the caller, before the process becomes another user's.
        with ExitStack() as stack:
            files = [_opened(name, stack) for name in options.what] or [_stdin()]
            return with_store(options, NAME, lambda store: _import(store, options, files))
    action, what = _ACTIONS[options.action], list(options.what)
    return with_store(options, NAME, lambda store: action(store, options, what))


# -- showing -------------------------------------------------------------------------------------


async def _list(store: Store, options: Options, what: list[str]) -> int:
    """Print all entries, or those of some clients; return 1 if these have none."""
    clients = [_client(each, options) for each in what]
    prefixes = [client_key(each) for each in clients] or [ALL]
    found = await _print(
        (record for prefix in prefixes async for record in records(store, prefix)), options
    )
    if found or not what:
        return 0
    return await _not_known(store, options, dict(zip(clients, what, strict=True)))


async def _show(store: Store, options: Options, what: list[str]) -> int:
    """Print the entries of a client or a triplet; return 1 if the store has no such entry."""
    client, triplet = _subject(what, options)
    found = (
        record
        async for record in records(store, client_key(client))
        if triplet is None or (record.sender, record.recipient) == triplet
    )
    if await _print(found, options):
        return 0
    return await _not_known(store, options, {client: what[0]}, triplet)


async def _not_known(
    store: Store,
    options: Options,
    clients: Mapping[str, str],
    triplet: tuple[str, str] | None = None,
) -> int:
    """Print that clients, or one with a triplet, have no entries; return 1.

    `clients` has the operands that name them.
    """
    if options.json:
        return 1
    names: dict[str, set[str]] = {}
    async for record in records(store):  # by SPF or a reverse name, an address is a domain
        if record.address in clients.values() and record.client not in clients:
            names.setdefault(record.address, set()).add(record.client)
    for client, operand_ in clients.items():
        stored = ", ".join(map(printable, sorted(names.get(operand_, ()))))
        hint = f" ({printable(operand_)} is stored as {stored})" if stored else ""
        who = printable(client) + (_addresses(*triplet) if triplet else "")
        sys.stdout.write(f"{who}: not known{hint}\n")
    return 1


async def _stats(store: Store, options: Options, what: list[str]) -> int:
    """Print the numbers of entries."""
    _no_more(what, options)
    counts: Counter[str] = Counter(waiting=0, passed=0, counted=0, known=0, allowed=0)
    clients: set[str] = set()
    async for record in records(store):
        counts[record.state] += 1
        if record.is_triplet:
            clients.add(record.client)
    numbers = {
        "triplets waiting": counts["waiting"],
        "triplets passed": counts["passed"],
        "clients with triplets": len(clients),
        "clients counted": counts["counted"],
        "clients known": counts["known"],
        "clients allowed": counts["allowed"],
    }
    if options.json:
        print_json({name.replace(" ", "_"): number for name, number in numbers.items()})
    else:
        sys.stdout.writelines(f"{name:22} {number:>9}\n" for name, number in numbers.items())
    return 0


async def _print(records: AsyncIterator[Record], options: Options) -> int:
    """Print records as they come, of which there may be a million; return their number."""
    count = 0
    async for record in records:
        if options.json:
            sys.stdout.write(",\n" if count else "[\n")
            sys.stdout.write(json.dumps(record.shown))
        else:
            sys.stdout.write(f"{_line(record)}\n")
        count += 1
    if options.json:
        sys.stdout.write("\n]\n" if count else "[]\n")
    return count


def _line(record: Record) -> str:
    """Return a line: what, the state, and the times."""
    who = printable(record.client)
    if record.is_triplet:
        who += _addresses(record.sender or "", record.recipient or "")
    state = record.state if record.count is None else f"passed {_number(record.count, 'time')}"
    address = f" from {printable(record.address)}" if record.address else ""
    times = f"{time_in_words(record.age)} ago, expires in {time_in_words(record.left)}"
    return f"{who} {state}{address}, {times}"


def _addresses(sender: str, recipient: str) -> str:
    """Return the addresses of a triplet, as they follow its client."""
    return f" <{printable(sender)}> <{printable(recipient)}>"


def _number(count: int, of: str, more: str = "") -> str:
    return f"{count} {of if count == 1 else more or f'{of}s'}"


# -- changing ------------------------------------------------------------------------------------


async def _allow(store: Store, options: Options, what: list[str]) -> int:
    """Let clients in without waiting."""
    if not what:
        raise ConfigError("allow requires a CLIENT")
    clients = [_client(each, options) for each in what]
    for client, text in zip(clients, what, strict=True):
        _check_prefix(client, text, options)
    for client in clients:
        await store.ask(Put(client_key(client), ALLOWED, options.duration))
    _report("allowed", clients, options)
    return 0


async def _forget(store: Store, options: Options, what: list[str]) -> int:
    """Remove clients with their triplets, or a triplet; return 1 if there was nothing."""
    if not what:
        raise ConfigError("forget requires a CLIENT")
    if len(what) == 3 and ("@" in what[2] or not what[1]):
        client, triplet = _subject(what, options)
        keys = [triplet_key(client, *triplet)] if triplet else []
        names = [" ".join(what)]
    else:
        names = [_client(each, options) for each in what]
        keys = [key for each in names async for key, _ in store.scan(client_key(each))]
    removed = await _ask_all(store, map(Delete, keys))
    if options.json:
        print_json({"forgotten": removed})
    else:
        entries = _number(removed, "entry", "entries")
        sys.stdout.write(f"forgotten: {entries} of {', '.join(map(printable, names))}\n")
    return 0 if removed else 1


def _report(what: str, clients: list[str], options: Options) -> None:
    if options.json:
        print_json({what: clients})
    else:
        sys.stdout.write(f"{what}: {', '.join(map(printable, clients))}\n")


# -- export and import ---------------------------------------------------------------------------


async def _export(store: Store, options: Options, what: list[str]) -> int:
    """Print all entries, one JSON object in a line."""
    _no_more(what, options)
    async for record in records(store):
        sys.stdout.write(f"{json.dumps(record.shown)}\n")
    return 0


async def _import(store: Store, options: Options, files: list[BinaryIO]) -> int:
    """Read entries from files."""
    terms = dumps.Terms(
        now=time.time(),
        delay=options.delay,
        window=options.window,
        lifetime=options.lifetime,
        known_after=options.known_after,
        prefixes=(options.ipv4_prefix, options.ipv6_prefix),
    )
    imported = skipped = 0
    invalid = ""

    def operations(file: BinaryIO) -> Iterator[Operation[Any]]:
        nonlocal imported, skipped, invalid
        try:
            for record in dumps.read(file, terms):
                if record is None:
                    skipped += 1
                else:
                    imported += 1
                    yield record.operation
        except OSError as error:
            invalid = os_reason(error)
        except ConfigError as error:
            invalid = str(error)

    for file in files:
        await _ask_all(store, operations(file))
        if invalid:
            raise ConfigError(f"{file.name}: {invalid} ({imported} imported before)")
    if options.json:
        print_json({"imported": imported, "skipped": skipped})
    else:
        sys.stdout.write(
            f"{imported} imported, {skipped} skipped: expired, or without a meaning here\n"
        )
    return 0


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise ConfigError("stdin is closed")
    return sys.stdin.buffer


def _opened(name: str, stack: ExitStack) -> BinaryIO:
    """Open a file."""
    try:
        return stack.enter_context(open_input(name))
    except OSError as error:
        raise ConfigError(f"{name}: {os_reason(error)}") from None


async def _ask_all(store: Store, operations: Iterable[Operation[Any]]) -> int:
    """Apply operations, some at a time, each as one request; return how many returned True."""
    done, rest = 0, iter(operations)
    while some := [*islice(rest, AT_ONCE)]:
        done += (await asyncio.gather(*map(store.ask, some))).count(True)
    return done


# -- operands ------------------------------------------------------------------------------------


def _client(text: str, options: Options) -> str:
    """Return the client that an operand names. Raises ConfigError."""
    prefixes = (options.ipv4_prefix, options.ipv6_prefix)
    place, slash, length = text.partition("/")
    try:
        if not slash:
            return network_of(text, *prefixes)
        if length.isascii() and length.isdigit() and int(length) <= (128 if ":" in text else 32):
            return network_of(place, int(length), int(length))
    except ValueError:
        pass
    else:
        raise ConfigError(f"{quote(text)} is not a network")
    name = canonical(text)
    # No top-level domain is a number (RFC 3696 section 2): 192.0.2.300 is a mistyped address.
    number = name.rpartition(".")[2].isdecimal()
    if slash or number or "." not in name or "" in name.split(".") or {" ", "@", ":"} & {*name}:
        raise ConfigError(f"{quote(text)} is neither an address nor a network or domain")
    return name


def _check_prefix(client: str, text: str, options: Options) -> None:
    """Raise ConfigError for a network that is not one of those which the filter sees as clients."""
    _, slash, length = client.partition("/")
    six = ":" in client
    prefix = options.ipv6_prefix if six else options.ipv4_prefix
    if slash and int(length) != prefix:
        raise ConfigError(
            f"{quote(text)} is no client of the filter, whose networks are /{prefix} (see "
            f"--ipv{6 if six else 4}-prefix); use its flag --allow for others"
        )


def _subject(what: list[str], options: Options) -> tuple[str, tuple[str, str] | None]:
    """Return the client of operands, and sender and recipient if they are a triplet."""
    if len(what) not in {1, 3}:
        raise ConfigError(f"{options.action} requires CLIENT, or CLIENT SENDER RECIPIENT")
    client = _client(what[0], options)
    if len(what) == 1:
        return client, None
    return client, (senders.sender(what[1]), senders.recipient(what[2]))


def _no_more(what: list[str], options: Options) -> None:
    if what:
        raise ConfigError(f"{options.action} takes no operand: {quote(what[0])}")


_ACTIONS: dict[str, Callable[[Store, Options, list[str]], Awaitable[int]]] = {
    "list": _list,
    "show": _show,
    "allow": _allow,
    "forget": _forget,
    "stats": _stats,
    "export": _export,
}

VERB = Verb(
    "greylist",
    run,
    options=Options,
    description="Show and change what filter-greylist remembers. The flags of the store, of "
    "prefixes and of times are those of the filter; without --store their values are those of the "
    "filter in smtpd.conf or smtpd-filters.toml.",
    ending="Exit status: 0, 1 when list or show of a client, or forget, find nothing, 75 when the "
    "store fails.",
)

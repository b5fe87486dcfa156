"""`smtpd-filters limit`: what filter-limit has counted, and the subjects that it blocks."""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from smtpd_filters.addresses import canonical, path
from smtpd_filters.addresses.tags import TAGS
from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.limit.ledger import FOREVER
from smtpd_filters.filters.limit.rules import LIMIT, SUBJECTS
from smtpd_filters.filters.limit.subjects import (
    BLOCK,
    HASH,
    SPACE,
    Prefixes,
    fields,
    key,
    part,
    read,
    shown,
    user_name,
    written,
)
from smtpd_filters.filters.limit.uses import Use, forget, key_prefix, most_used, uses_of
from smtpd_filters.settings import INTEGER, LIST, SECONDS, SWITCH, TEXT, choice, operand, option
from smtpd_filters.settings.quoting import printable, quote
from smtpd_filters.stores import Delete, Put

from .store_search import find_delimiter, find_values
from .stores import StoreOptions, as_configured, with_store
from .streams import print_json
from .verb import Verb

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from smtpd_filters.stores import Store

TOP, SHOW, RESET, BLOCKING, RELEASE = ACTIONS = ("top", "show", "reset", "block", "release")
BY_HAND = "by hand"
ALL = "all"
#: The options of the filter that say what its clients and networks are.
PREFIXES = ("client_prefix6", "network_prefix4", "network_prefix6")


class Options(StoreOptions):
    """What to do, with which subject."""

    action = operand(
        choice(*ACTIONS),
        required=True,
        metavar="ACTION",
        help="top shows the subjects that have used most of their limits, show shows a subject, or "
        "without one all that are blocked, reset forgets what was counted of a subject, block "
        "blocks it, release releases and resets it.",
    )
    subject = operand(
        LIST(TEXT),
        default=(),
        metavar="SUBJECT",
        help="A subject: user=NAME, client=ADDRESS, network=NETWORK, sender=ADDRESS and so on; "
        "several of a limit by a combination, in its order. A word without = is a user. A "
        "subject may also be given as it was printed, with its escapes, or as sha256=HASH.",
    )
    number = option(INTEGER(low=1), default=20, help="For top: how many subjects.")
    reason = option(TEXT, default=BY_HAND, help="For block: why, for the log.")
    duration = option(
        SECONDS(low=1, high=FOREVER),
        default=FOREVER,
        help="For block: how long. By default until it is released.",
    )
    client_prefix6 = option(
        INTEGER(low=16, high=128), default=64, help="As of the filter: the prefix of client=."
    )
    network_prefix4 = option(
        INTEGER(low=8, high=32), default=24, help="As of the filter: the prefix of network=."
    )
    network_prefix6 = option(
        INTEGER(low=16, high=128), default=48, help="As of the filter: the prefix of network=."
    )
    json = option(SWITCH, default=False, help="Print JSON.")


def run(options: Options, _rest: list[str]) -> int:
    """Do what the operand says."""
    options = as_configured(options, SPACE, PREFIXES)
    TAGS.delimiter = find_delimiter()
    subject = subject_of(options)
    if options.action in {RESET, BLOCKING, RELEASE} and not subject:
        raise ConfigError(f"{options.action} requires a SUBJECT")
    if options.action == TOP and subject:
        raise ConfigError("top has no SUBJECT (see show)")
    if options.action == BLOCKING and "store" not in options.given:
        _note_effect(subject, options)

    async def work(store: Store) -> int:
        literal = " ".join(_words(options))
        # What the filter has written is not read again: a local part may have quotes of its own.
        if "=" in literal and literal != subject and await _is_stored(store, literal):
            return await _WORK[options.action](store, options, literal)
        return await _WORK[options.action](store, options, subject)

    return with_store(options, SPACE, work)


async def _is_stored(store: Store, subject: str) -> bool:
    """Return whether the store has something of a subject."""
    async for _ in store.scan(key_prefix(subject)):
        return True
    async for _ in store.groups(key_prefix(subject)):
        return True
    return False


def subject_of(options: Options) -> str:
    """Return the subject of the operands as the filter writes it. Raises ConfigError."""
    if options.subject == (ALL,):
        if options.action in {BLOCKING, RELEASE}:
            raise ConfigError(
                "SUBJECT: all mail can't be blocked (a user of this name is user=all)"
            )
        return ALL
    words = _words(options)
    if len(words) == 1 and HASH.fullmatch(words[0]):
        return words[0]
    prefixes = Prefixes(options.client_prefix6, options.network_prefix4, options.network_prefix6)
    parts: dict[str, str] = {}
    for word in words:
        kind, equals, value = word.partition("=")
        if not equals:
            kind, value = "user", word
        if kind not in SUBJECTS or kind == ALL or not value:
            kinds = ", ".join(f"{each}=" for each in SUBJECTS if each not in {ALL, "user"})
            raise ConfigError(f"SUBJECT: {quote(word)} is not user=NAME or one of {kinds}")
        if kind in parts:
            raise ConfigError(f"SUBJECT: {kind}= is there twice (one subject has it once)")
        try:
            parts[kind] = part(kind, _value(kind, value, prefixes))
        except ValueError as error:
            raise ConfigError(f"SUBJECT: {quote(word)}: {error}") from None
    return " ".join(parts.values())


def _words(options: Options) -> list[str]:
    """Return the parts of the operands: a combination may be one of them, as it was printed."""
    return [word for each in options.subject for word in _NEXT.split(read(each).strip())]


#: The blanks ahead of the next part of a subject; a user may have blanks.
_NEXT = re.compile(rf"\s+(?=(?:{'|'.join(SUBJECTS)})=)")


def _value(kind: str, value: str, prefixes: Prefixes) -> str:
    """Return a value as the filter has it. Raises ValueError."""
    if kind in {"client", "network"}:
        address, slash, length = value.partition("/")
        if slash:
            prefixes = _given(kind, address, length)
        named: str = getattr(prefixes, kind)(address)
        return named
    if kind == "user":
        return user_name(value)
    named = canonical(value) if kind.endswith("-domain") else written(path(value))
    if not named:
        raise ValueError("nothing is counted for it")
    return named


def _given(kind: str, address: str, length: str) -> Prefixes:
    """Return the prefix length that an operand has. Raises ValueError."""
    most = 128 if ":" in address else 32
    if not (length.isascii() and length.isdigit() and len(length) < 4 and int(length) <= most):
        raise ValueError(f"a prefix length is a number up to {most}")
    if kind == "client" and most == 32 != int(length):
        raise ValueError("an IPv4 client is a single address: network= has prefix lengths")
    return Prefixes(int(length), int(length), int(length))


# -- actions -----------------------------------------------------------------------------------


async def _top(store: Store, options: Options, _subject: str) -> int:
    _print(await most_used(store, options.number, 2 * options.number), options)
    return 0


async def _show(store: Store, options: Options, subject: str) -> int:
    every = uses_of(store, key_prefix(subject))
    uses = [use async for use in every if subject or use.blocked]
    _print(uses, options)
    if uses or options.json:
        return 0 if uses or not subject else 1
    sys.stdout.write(f"{shown(subject)}: not known\n" if subject else "none is blocked\n")
    return 1 if subject else 0


async def _reset(store: Store, options: Options, subject: str) -> int:
    if await forget(store, subject):
        return _done("reset", subject, options)
    sys.stderr.write(f"{shown(subject)}: nothing is counted\n")
    return 1


async def _block(store: Store, options: Options, subject: str) -> int:
    reason = options.reason.encode("utf-8", "surrogateescape")[:512]
    block = Put(key(subject, BLOCK), reason, ttl=options.duration)
    await store.ask(block)
    return _done("blocked", subject, options)


def _note_effect(subject: str, options: Options) -> None:
    """Note that the filter has no such subjects, and so doesn't see the block."""
    for kind, named in fields(subject).items():
        address, slash, length = named.partition("/")
        if kind not in {"client", "network"} or not slash:
            continue
        name = f"{kind}_prefix{6 if ':' in address else 4}"
        prefix: int = vars(options)[name]
        if int(length) != prefix:
            flag = name.replace("_", "-")
            VERB.note(f"this has no effect: filter-limit has a --{flag} of {prefix}")
            return
    kinds = tuple(word.partition("=")[0] for word in subject.split(" "))
    found = set()
    for value in find_values(SPACE, "limit"):
        with suppress(ValueError):  # `smtpd-filters check` reports it
            found.add(LIMIT.from_toml(value).subject)
    if found and kinds not in found and not HASH.fullmatch(subject):
        by = ", ".join(sorted(map("+".join, found)))
        VERB.note(
            f"this has no effect: filter-limit has limits by {by}, and none by {'+'.join(kinds)}"
        )


async def _release(store: Store, options: Options, subject: str) -> int:
    """Release a subject, and reset it, since it would be blocked at once again."""
    forgotten = await forget(store, subject)
    if await store.ask(Delete(key(subject, BLOCK))):
        return _done("released", subject, options)
    also = ", and what was counted of it is forgotten" if forgotten else ""
    sys.stderr.write(f"{shown(subject)} was not blocked{also}\n")
    return 1


def _done(what: str, subject: str, options: Options) -> int:
    """Print what was done; return the exit status."""
    if options.json:
        json.dump({what: subject}, sys.stdout)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(f"{shown(subject)}: {what}\n")
    return 0


def _print(uses: list[Use], options: Options) -> None:
    if options.json:
        print_json([asdict(use) for use in uses])
        return
    for use in uses:
        subject = shown(use.subject)
        if use.blocked:
            ends = "" if use.seconds is None else f" for {use.seconds:.0f} s"
            sys.stdout.write(f"{subject}: blocked{ends}: {printable(use.blocked)}\n")
        else:
            room = "" if use.seconds is None else f", back to 0 in {use.seconds:.0f} s"
            sys.stdout.write(f"{subject}: {use.used:.0f} of {printable(use.limit)}{room}\n")


_WORK: dict[str, Callable[[Store, Options, str], Coroutine[Any, Any, int]]] = {
    TOP: _top,
    SHOW: _show,
    RESET: _reset,
    BLOCKING: _block,
    RELEASE: _release,
}

VERB = Verb(
    "limit",
    run,
    options=Options,
    description="Show what filter-limit has counted, and block or release users, clients and "
    "senders. The store is that of the filter in smtpd.conf or smtpd-filters.toml, unless --store "
    "is given.",
    ending="The exit status is 1 if show finds nothing of a subject, if reset has nothing to "
    "forget, or if what is to be released was not blocked, and 75 if the store fails.",
)

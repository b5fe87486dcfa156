"""`smtpd-filters store`: the entries in the store of any filter, also of the operator's own."""

from __future__ import annotations

import json
import re
import shlex
import sys
from functools import partial
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import LIST, SWITCH, TEXT, choice, operand, option
from smtpd_filters.settings.quoting import printable, quote
from smtpd_filters.stores import Delete, join, split
from smtpd_filters.stores.keys import is_key

from .stores import StoreOptions, time_in_words, with_store
from .verb import Verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.stores import Entry, Store

#: The escapes of `shown`: a byte, a character, and one of `_SHORT`.
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([nrt\\]))")
_SHORT = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\"}


class Options(StoreOptions):
    """What to do with which entries in which store."""

    action = operand(
        choice("list", "forget"),
        required=True,
        metavar="ACTION",
        help="list prints entries; forget removes one.",
    )
    name = operand(
        TEXT,
        required=True,
        metavar="NAME",
        help="The filter's name, whose store it is unless --store names one.",
    )
    key = operand(
        LIST(TEXT),
        default=(),
        metavar="KEY",
        help="The parts of a key as list prints them, from the first one on: for list those with "
        "which the keys begin, for forget all of them.",
    )
    json = option(
        SWITCH,
        default=False,
        help="Print JSON, an object in a line; a KEY has no escapes then, as in JSON's strings "
        "after parsing.",
    )


def run(options: Options, _rest: list[str]) -> int:
    """List entries or remove one; return 1 if there is no such entry."""
    words = list(map(_bytes if options.json else typed, options.key))
    if options.action == "list":
        return with_store(options, options.name, lambda store: _list(store, options, words))
    if len(words) < 2:
        raise ConfigError("forget requires a KEY: all parts, as list prints them")
    return with_store(options, options.name, lambda store: _forget(store, _key(words)))


def _key(words: list[bytes]) -> bytes:
    """Return the key of these parts. Raises ConfigError for an invalid one."""
    space, shard, *parts = words
    try:
        return join(space.decode("utf-8", "replace"), shard, *parts)
    except ValueError:
        raise ConfigError(f"no key begins with {quote(_text(space))}") from None


async def _list(store: Store, options: Options, words: list[bytes]) -> int:
    """Print the entries and groups whose keys begin with these parts; return 1 if none do."""
    prefix = words[0] + b":" if words else b""
    found = 0

    def show(key: bytes, line: Callable[[list[str]], str]) -> None:
        nonlocal found
        parts = _parts(key)
        if parts[: len(words)] == words:
            found += 1
            sys.stdout.write(f"{line(list(map(_text, parts)))}\n")

    async for key, entry in store.scan(prefix):
        show(key, partial(_json if options.json else _line, entry=entry))
    async for key, members in store.groups(prefix):
        show(key, partial(_json_of_group if options.json else _line_of_group, members=members))
    return 0 if found or not words else 1


async def _forget(store: Store, key: bytes) -> int:
    """Remove an entry; return 1 if there was none."""
    removed = await store.ask(Delete(key))
    words = " ".join(map(_word, map(_text, _parts(key))))
    sys.stdout.write(f"{'forgotten' if removed else 'not known'}: {words}\n")
    return 0 if removed else 1


def _parts(key: bytes) -> list[bytes]:
    """Return the space, the shard and the parts of a key; what has no such form is one part."""
    return [key.partition(b":")[0], *split(key)] if is_key(key) else [key]


def _text(part: bytes) -> str:
    return part.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _word(text: str) -> str:
    """Return a part as it is typed in a shell."""
    return shlex.quote(shown(text))


def shown(text: str) -> str:
    """Return a part with escapes, which `typed` reads."""
    return printable(text.replace("\\", r"\\"))


def typed(text: str) -> bytes:
    """Return the part that `shown` prints as this text; other backslashes stand for themselves."""
    parts = []
    at = 0
    for found in _ESCAPE.finditer(text):
        parts += [_bytes(text[at : found.start()]), _meant(found)]
        at = found.end()
    return b"".join([*parts, _bytes(text[at:])])


def _meant(escape: re.Match[str]) -> bytes:
    byte, short, long, other = escape.groups()
    if other:
        return _SHORT[other]
    if byte:
        return bytes.fromhex(byte)
    try:
        return chr(int(short or long, 16)).encode()
    except (ValueError, OverflowError):  # no character
        return escape[0].encode()


def _line(texts: list[str], entry: Entry) -> str:
    value = f' value "{printable(_text(entry.value))}"' if entry.value else ""
    times = f"{time_in_words(entry.age)} ago, expires in {time_in_words(entry.left)}"
    return f"{' '.join(map(_word, texts))}{value}, {times}"


def _json(texts: list[str], entry: Entry) -> str:
    return json.dumps(
        {
            "key": texts,
            "value": _text(entry.value),
            "age": round(entry.age, 3),
            "left": round(entry.left, 3),
        }
    )


def _line_of_group(texts: list[str], members: int) -> str:
    return f"{' '.join(map(_word, texts))} group of {members}"


def _json_of_group(texts: list[str], members: int) -> str:
    return json.dumps({"key": texts, "members": members})


VERB = Verb(
    "store",
    run,
    options=Options,
    description="Show or remove entries in the store of any filter, such as one of your own. "
    "For filter-greylist and filter-limit, use greylist and limit, which explain the entries.",
    ending="The exit status is 1 if there is no such entry, and 75 if the store fails.",
)

"""Readers of exports, and of the dumps of postgrey's and spamd's databases.

postgrey has two files of Berkeley DB, of which `db_dump -p` (or without `-p`) makes text: in
postgrey.db the key is `NETWORK/SENDER/RECIPIENT` and the value `FIRST,LAST`, in postgrey_clients.db
`ADDRESS` and `COUNT,LAST`; times are seconds of the epoch. spamdb(8) lists one entry in a line:
`WHITE|ADDRESS|||FIRST|PASS|EXPIRE|BLOCKED|PASSED` and
`GREY|ADDRESS|HELO|SENDER|RECIPIENT|FIRST|PASS|EXPIRE|BLOCKED|PASSED`.

Their clients are addresses; a record has the network. What has expired is left out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.greylist import senders
from smtpd_filters.filters.greylist.records import COUNTED, Record, of_json
from smtpd_filters.tables.networks import network_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

#: Bytes of a line at most.
MAX_LINE = 1 << 16
#: A sender, which may be empty, and a recipient: local parts may contain a slash, domains don't.
_ADDRESSES = re.compile(r"((?:.*?@[^/@]+)?)/(.+)", re.DOTALL)
_PRINTED = re.compile(rb"\\([0-9a-f]{2})|\\\\")


@dataclass(frozen=True, slots=True)
class Terms:
    """The times in seconds, and the prefix lengths, of the filter; `now` is that of the epoch."""

    now: float
    delay: float
    window: float
    lifetime: float
    known_after: int
    prefixes: tuple[int, int]

    def client(self, address: str) -> str:
        """Return the client of an address; raise ValueError if it isn't one."""
        return network_of(address, *self.prefixes)


def read(file: BinaryIO, terms: Terms) -> Iterator[Record | None]:
    """Read records of any form; None stands for an entry that has no meaning here.

    Raises ConfigError with the line for what is none of them.
    """
    numbered = _lines(file)
    for number, line in numbered:
        if line.startswith(b"VERSION="):
            yield from _postgrey(numbered, terms)
        elif line.startswith((b"WHITE|", b"GREY|", b"TRAPPED|", b"SPAMTRAP|")):
            yield _valid(_spamd(_text(line).split("|"), terms), number, "spamdb")
        elif line.startswith(b"{"):
            yield _exported(line, number)
        elif line.strip():
            raise ConfigError(f"line {number}: neither an export nor a dump of postgrey or spamd")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their numbers. Raises ConfigError for one that is too long."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ConfigError(f"line {number}: longer than {MAX_LINE} bytes")
        yield number, line.rstrip(b"\r\n")


def _exported(line: bytes, number: int) -> Record:
    try:
        return of_json(json.loads(line))
    except RecursionError:
        raise ConfigError(f"line {number}: not a record of an export") from None
    except ValueError as error:
        raise ConfigError(f"line {number}: {error}") from None


def _valid(found: Iterator[Record | None], number: int, what: str) -> Record | None:
    try:
        return next(found)
    except (ValueError, IndexError):
        raise ConfigError(f"line {number}: not an entry of {what}") from None


def _seconds(text: str) -> float:
    """Return a time; raise ValueError if it is not a finite number."""
    seconds = float(text)
    if not isfinite(seconds):
        raise ValueError(text)
    return seconds


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


# -- spamd ---------------------------------------------------------------------------------------


def _spamd(fields: list[str], terms: Terms) -> Iterator[Record | None]:
    kind, address = fields[:2]
    if kind == "WHITE":
        left = _seconds(fields[6]) - terms.now
        client = terms.client(address)
        yield Record(client, "known", left) if left > 0 else None
    elif kind == "GREY":
        left = _seconds(fields[7]) - terms.now
        sender, recipient = senders.sender(fields[3]), senders.recipient(fields[4])
        client = terms.client(address)
        record = Record(
            client, "waiting", left, sender=sender, recipient=recipient, address=address
        )
        yield record if left > 0 else None
    else:
        yield None


# -- postgrey ------------------------------------------------------------------------------------


def _postgrey(numbered: Iterator[tuple[int, bytes]], terms: Terms) -> Iterator[Record | None]:
    """Read the rest of a dump: its header, then keys and values in turn."""
    printed = False
    for _, line in numbered:
        if line == b"HEADER=END":
            break
        printed = printed or line == b"format=print"
    for number, line in numbered:
        if line == b"DATA=END":
            return
        _, value = next(numbered, (0, b""))
        if not (line.startswith(b" ") and value.startswith(b" ")):
            raise ConfigError(f"line {number}: not an entry of db_dump")
        yield _valid(_entry(line[1:], value[1:], terms, printed=printed), number, "postgrey")


def _undumped(text: bytes, *, printed: bool) -> bytes:
    if not printed:
        return bytes.fromhex(text.decode("ascii", "replace"))
    return _PRINTED.sub(lambda found: bytes.fromhex(found[1].decode()) if found[1] else b"\\", text)


def _entry(dumped: bytes, value: bytes, terms: Terms, *, printed: bool) -> Iterator[Record | None]:
    key, times = (_text(_undumped(each, printed=printed)) for each in (dumped, value))
    one, last, *_ = times.split(",")
    left = _seconds(last) + terms.lifetime - terms.now
    network, slash, rest = key.partition("/")
    if not slash:
        yield _client(key, int(one), left, terms)
        return
    both = _ADDRESSES.fullmatch(rest)
    if both is None:
        raise ValueError(rest)
    sender, recipient = both.groups()
    client = terms.client(network)
    state = "passed"
    first = _seconds(one)
    if _seconds(last) - first < terms.delay:
        state, left = "waiting", first + terms.window - terms.now
    # postgrey has left out what varies, in its own way: the rest is left out here.
    record = Record(
        client, state, left, sender=senders.sender(sender), recipient=senders.recipient(recipient)
    )
    yield record if left > 0 else None


def _client(address: str, count: int, left: float, terms: Terms) -> Record | None:
    if left <= 0 or count < 1:
        return None
    try:
        client = terms.client(address)
    except ValueError:
        return None  # a hash, with postgrey's --privacy
    if not terms.known_after or count >= terms.known_after:
        return Record(client, "known", left)
    return Record(client, COUNTED, left, count=count)

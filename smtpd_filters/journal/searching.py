"""Search in one file of a journal: the words that a text means, and the stories that have them."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any

from . import day as schema
from .privacy import Privacy
from .stories import OUTCOMES, loaded
from .wire import FILTER, VERB

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from .records import Search

#: Rows examined in a day for conditions that have no index.
MAX_SCANNED = 200_000
#: Words of a day that a part of a word may match.
MAX_WORDS = 500
#: Ids of sessions and messages, which have columns of their own.
_HEX = re.compile(r"[0-9a-fA-F]{8,16}")
ALL_KINDS = (schema.MAIL, schema.CLIENT, schema.HOST, schema.USER, schema.MESSAGE_ID)


def words_of(
    connection: sqlite3.Connection, text: str, key: bytes, *, part: bool
) -> list[int] | None:
    """Return the numbers of the words that a text means, or with `part` those that have it in them.

    None for no text, and for the id of a session or a message. `key` is that of hashed addresses.
    """
    if not text or _HEX.fullmatch(text):
        return None
    return _parts(connection, text) if part else _words(connection, text, key)


def rows(
    connection: sqlite3.Connection,
    wanted: Search,
    words: list[int] | None,
    last: int,
    limit: int,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ids and stories below an id, newest first, with any of the words if given."""
    scanned = before = 0
    for id_, data in connection.execute(*_statement(wanted, words, last)):
        if id_ == before:  # a word may be its sender and a recipient
            continue
        before = id_
        scanned += 1
        if limit <= 0 or scanned > MAX_SCANNED:
            return
        found = loaded(data)
        if (wanted.filter or wanted.verb) and not _fits(found, wanted):
            continue
        limit -= 1
        yield id_, found


def _statement(wanted: Search, words: list[int] | None, last: int) -> tuple[str, list[object]]:
    """Return the SELECT of `rows`, and the values of its parameters."""
    conditions = ["s.id < ?", "s.time >= ?", "s.time < ?"]
    values: list[object] = [last, int(wanted.since * 1000), int(min(wanted.until, 1e12) * 1000)]
    source = "story s"
    if wanted.outcomes:
        numbers = [at for at, name in enumerate(OUTCOMES) if name in wanted.outcomes]
        conditions.append(f"s.outcome IN ({', '.join(map(str, numbers)) or 'NULL'})")
    if wanted.filter and wanted.verb != "proceed":  # those of several filters are one text
        # Parsing each story takes ten times as long; `_fits` decides.
        conditions.append("instr(s.data, ?) > 0")
        values.append(f'"{wanted.filter}"')
    order = "s.id"
    if words is not None and len(words) == 1:
        # In the order of the index, so that only the rows that are returned are read.
        source, order = "seen x CROSS JOIN story s ON s.id = x.story", "x.story"
        conditions += ["x.word = ?", "x.story < ?"]
        values += [words[0], last]
    elif words is not None:
        marks = ", ".join(map(str, words))
        source = (
            f"(SELECT DISTINCT story FROM seen WHERE word IN ({marks}) ORDER BY story DESC)"  # noqa: S608  # numbers
            " x CROSS JOIN story s ON s.id = x.story"
        )
    elif wanted.text:
        column = "msgid" if len(wanted.text) == 8 else "session"
        conditions.append(f"s.{column} = ? AND s.{column} <> ''")
        values.append(wanted.text.lower())
    where = " AND ".join(conditions)
    sql = f"SELECT s.id, s.data FROM {source} WHERE {where} ORDER BY {order} DESC"  # noqa: S608  # of this function
    return sql, values


def _words(connection: sqlite3.Connection, text: str, key: bytes) -> list[int]:
    """Return the numbers of the words that a text means, and of clients in a network."""
    execute = connection.execute
    if network := _network(text):
        clients = execute("SELECT id, text FROM word WHERE kind = ?", (schema.CLIENT,))
        found = [id_ for id_, word in clients if _is_in(word, network)][:MAX_WORDS]
        if found:
            return found
    row = execute("SELECT value FROM meta WHERE key = 'addresses'").fetchone()
    privacy = Privacy(row[0] if row else "plain", key)
    words = {text, text.lower(), text.strip("<>"), text.strip("<>").lower()}
    words |= {privacy.mail(text), privacy.client(text), privacy.name(text)}
    words |= {privacy.name(text.lower())}
    marks = ", ".join("?" * len(words))
    ids = execute(
        f"SELECT id FROM word WHERE kind IN {ALL_KINDS} AND text IN ({marks})",  # noqa: S608  # constants
        tuple(words),
    )
    return [id_ for (id_,) in ids]


def _parts(connection: sqlite3.Connection, text: str) -> list[int]:
    """Return the numbers of the words that have a text in them."""
    if "\0" in text:  # ends a pattern, so that it would fit everything
        return []
    part = "".join(f"\\{each}" if each in "%_\\" else each for each in text.lower())
    kinds = (schema.MAIL, schema.HOST, schema.USER)
    ids = connection.execute(
        f"SELECT id FROM word WHERE kind IN {kinds} AND text LIKE ? ESCAPE '\\' LIMIT ?",  # noqa: S608  # numbers
        (f"%{part}%", MAX_WORDS),
    )
    return [id_ for (id_,) in ids]


def _fits(part: dict[str, Any], wanted: Search) -> bool:
    """Whether a verdict is that of a filter, and of this verb."""
    return any(
        (not wanted.filter or wanted.filter in row[FILTER].split(" "))
        and (row[VERB] == wanted.verb if wanted.verb else row[VERB] != "proceed")
        for row in part["w"]
    )


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if "/" not in text:
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _is_in(word: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(word.partition("%")[0]) in network
    except ValueError:
        return False

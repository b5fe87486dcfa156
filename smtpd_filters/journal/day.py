"""The file of one day: its schema, and what is written to it in one transaction.

The schema's reasons are in docs/decisions/journal.md.
"""

from __future__ import annotations

import os
import re
import sqlite3
from time import monotonic
from typing import TYPE_CHECKING, Any

from smtpd_filters.settings.files import check_database

from .rollups import BUCKETS, MAX_REASONS, OTHER, Sums
from .stories import address_of, is_rewritten_address, outcome, stored
from .wire import ARGUMENT, FLAGS, PHASE, REPLY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .privacy import Privacy
    from .reception import Part

#: "smtj", which marks a database as a journal.
APPLICATION_ID = 0x736D746A
#: The version of the schema.
VERSION = 1
#: Seconds that the check of a file may take when it is opened.
CHECKING = 2.0
#: The size of a file that was deleted: no more is written to it.
GONE = 1 << 62
#: Words whose numbers are kept in memory.
MAX_WORDS = 100_000

#: Kinds of words: mail addresses, clients, names of hosts, users, and Message-IDs.
MAIL, CLIENT, HOST, USER, MESSAGE_ID = range(5)
#: What a word is in a story: its sender, a recipient, client, host, user, Message-ID, or a sender
#: or recipient that a filter put in place of the client's.
SENDER, RECIPIENT, OF_CLIENT, OF_HOST, OF_USER, OF_MESSAGE, REWRITTEN = range(7)
#: Ranked words, with their kinds.
RANKS = {SENDER: MAIL, OF_CLIENT: CLIENT, OF_USER: USER}

_TIMES = ", ".join(f"b{at}" for at in range(len(BUCKETS) + 1))
_ADDED = ", ".join(f"b{at} = b{at} + excluded.b{at}" for at in range(len(BUCKETS) + 1))
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE word (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, text TEXT NOT NULL);
CREATE UNIQUE INDEX word_text ON word (kind, text);
CREATE TABLE story (
    id INTEGER PRIMARY KEY, time INTEGER NOT NULL, session TEXT NOT NULL, msgid TEXT NOT NULL,
    outcome INTEGER NOT NULL, data TEXT NOT NULL
);
CREATE INDEX story_session ON story (session);
CREATE INDEX story_msgid ON story (msgid) WHERE msgid <> '';
CREATE INDEX story_outcome ON story (outcome);
CREATE TABLE seen (
    word INTEGER NOT NULL, story INTEGER NOT NULL, role INTEGER NOT NULL,
    PRIMARY KEY (word, story, role)
) WITHOUT ROWID;
CREATE TABLE outcomes (
    hour INTEGER, outcome INTEGER, n INTEGER, PRIMARY KEY (hour, outcome)
) WITHOUT ROWID;
CREATE TABLE verdicts (
    hour INTEGER, filter TEXT, phase TEXT, verb TEXT, n INTEGER, seconds REAL, longest REAL,
    {_TIMES}, PRIMARY KEY (hour, filter, phase, verb)
) WITHOUT ROWID;
CREATE TABLE reasons (
    hour INTEGER, filter TEXT, outcome INTEGER, reason TEXT, n INTEGER,
    PRIMARY KEY (hour, filter, outcome, reason)
) WITHOUT ROWID;
CREATE TABLE ranks (
    role INTEGER, word INTEGER, outcome INTEGER, n INTEGER, PRIMARY KEY (role, word, outcome)
) WITHOUT ROWID;
"""
#: What nothing can be written without: tables, and the index that keeps words apart.
_REQUIRED = frozenset(re.findall(r"CREATE (?:TABLE|UNIQUE INDEX) (\w+)", SCHEMA))


class NewerError(Exception):
    """The file was written by a newer release; the text says so."""


def check_version(connection: sqlite3.Connection, path: str) -> int:
    """Return the version of a file's schema, 0 if it is new.

    Raises NewerError, and sqlite3.DatabaseError for a file of another program.
    """
    # First of all: the journal may be creating the file, in one transaction.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and owner != APPLICATION_ID:
        raise sqlite3.DatabaseError("a database of another program")
    if tables and found < 1:
        raise sqlite3.DatabaseError("the version of its schema is missing")
    if found > VERSION:
        raise NewerError(
            f"{path}: written by a newer release (schema {found}, this one knows {VERSION}); "
            "upgrade this one, or move the file away"
        )
    return int(found)


class Day:
    """A day's file, open for writing."""

    def __init__(self, path: str, privacy: Privacy, *, subjects: bool = False) -> None:
        """Open the file, or create it.

        Raises NewerError; sqlite3.DatabaseError, with the code SQLITE_CORRUPT or SQLITE_NOTADB if
        it is damaged; OSError.
        """
        self.path = path
        self._privacy, self._subjects = privacy, subjects
        check_database(path)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
        self._connection = sqlite3.connect(
            path,
            isolation_level=None,
            timeout=5.0,
            check_same_thread=False,  # one thread after another
        )
        try:
            self._open()
        except BaseException:
            self._connection.close()
            raise
        self._words: dict[tuple[int, str], int] = {}
        self._filters = {
            name for (name,) in self._connection.execute("SELECT DISTINCT filter FROM verdicts")
        }
        self._reasons = {tuple(row) for row in self._connection.execute(
            "SELECT DISTINCT filter, reason FROM reasons"
        )}  # fmt: skip

    def _open(self) -> None:
        execute = self._connection.execute
        new = check_version(self._connection, self.path) == 0
        if not new:
            self._check()
        execute("PRAGMA journal_mode = WAL").fetchone()
        execute("PRAGMA synchronous = NORMAL")
        execute(f"PRAGMA journal_size_limit = {4 << 20}").fetchone()
        execute("PRAGMA cache_size = -16384")
        if new:
            execute("BEGIN IMMEDIATE")
            for statement in filter(str.strip, SCHEMA.split(";")):
                execute(statement)
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
            execute(f"PRAGMA user_version = {VERSION}")
            execute("INSERT INTO meta VALUES ('addresses', ?)", (self._privacy.mode,))
            execute("COMMIT")

    def _check(self) -> None:
        """Look for damage, within a limit of time."""
        until = monotonic() + CHECKING
        self._connection.set_progress_handler(lambda: monotonic() > until, 10_000)
        try:
            (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                raise
            return
        finally:
            self._connection.set_progress_handler(None, 0)
        if found == "ok":
            names = {name for (name,) in self._connection.execute("SELECT name FROM sqlite_master")}
            if missing := sorted(_REQUIRED - names):
                found = f"without {', '.join(missing)}"
        if found != "ok":
            damaged = sqlite3.DatabaseError(found)
            damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damaged

    def write(self, stories: Sequence[tuple[float, Part]], sums: Sums | None = None) -> None:
        """Write stories, with the times of their arrival, in one transaction.

        Adds them to `sums` as well, once they are written. Raises sqlite3.Error; nothing is written
        then.
        """
        batch = Sums(self._filters)
        ranks: dict[tuple[int, int, int], int] = {}
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for time, story in stories:
                self._privacy.apply(story, subjects=self._subjects)
                number, deciding = outcome(story)
                batch.add(time, story, number, deciding)
                self._insert(time, story, number, ranks)
            batch.settle()
            self._add(batch, ranks)
            self._connection.execute("COMMIT")
        except BaseException:
            self._words.clear()  # some may be of this transaction
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        if sums is not None:
            sums.merge(batch)

    def _insert(
        self, time: float, story: Part, number: int, ranks: dict[tuple[int, int, int], int]
    ) -> None:
        execute = self._connection.execute
        row = execute(
            "INSERT INTO story (time, session, msgid, outcome, data) VALUES (?, ?, ?, ?, ?)",
            (int(time * 1000), story["s"], story["m"], number, stored(story)),
        ).lastrowid
        seen = set()
        for role, kind, word in words_of(story):
            id_ = self._word(kind, word)
            seen.add((id_, row, role))
            if role in RANKS:
                key = role, id_, number
                ranks[key] = ranks.get(key, 0) + 1
        self._connection.executemany("INSERT INTO seen VALUES (?, ?, ?)", sorted(seen))

    def _word(self, kind: int, word: str) -> int:
        id_ = self._words.get((kind, word))
        if id_ is None:
            execute = self._connection.execute
            new = execute("INSERT OR IGNORE INTO word (kind, text) VALUES (?, ?)", (kind, word))
            id_ = new.lastrowid
            if not new.rowcount:
                row = execute("SELECT id FROM word WHERE kind = ? AND text = ?", (kind, word))
                (id_,) = row.fetchone()
            if len(self._words) >= MAX_WORDS:
                self._words.clear()
            assert id_ is not None  # noqa: S101  # it was inserted
            self._words[kind, word] = id_
        return id_

    def _add(self, batch: Sums, ranks: dict[tuple[int, int, int], int]) -> None:
        many = self._connection.executemany
        many(
            "INSERT INTO outcomes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            [(*key, n) for key, n in batch.outcomes.items()],
        )
        marks = ", ".join("?" * (7 + len(BUCKETS) + 1))
        many(
            f"INSERT INTO verdicts VALUES ({marks})"  # noqa: S608  # constants
            " ON CONFLICT DO UPDATE SET n = n + excluded.n, seconds = seconds + excluded.seconds,"
            f" longest = max(longest, excluded.longest), {_ADDED}",
            [
                (*key, times.count, times.seconds, times.longest, *times.buckets)
                for key, times in batch.verdicts.items()
            ],
        )
        reasons = []
        for (hour, name, number, reason), n in batch.reasons.items():
            if (name, reason) not in self._reasons:
                if len(self._reasons) >= MAX_REASONS:
                    reason = OTHER  # noqa: PLW2901  # too many
                else:
                    self._reasons.add((name, reason))
            reasons.append((hour, name, number, reason, n))
        many(
            "INSERT INTO reasons VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET n = n + excluded.n",
            reasons,
        )
        many(
            "INSERT INTO ranks VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            [(*key, n) for key, n in ranks.items()],
        )

    def size(self) -> int:
        """Return the size of the file in bytes; that of none if it was deleted."""
        try:
            return os.stat(self.path).st_size  # noqa: PTH116  # a path as text
        except FileNotFoundError:
            return GONE

    def close(self, *, finished: bool = False) -> None:
        """Close the file; if it is `finished`, so that readers need not write beside it."""
        try:
            if finished:
                self._connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        except sqlite3.Error:  # somebody reads it
            pass
        try:
            self._connection.close()
        except sqlite3.Error:
            pass


def words_of(story: Part) -> Iterable[tuple[int, int, str]]:
    """Yield what a story is found by: roles, kinds and words.

    Mail addresses in lower case: few servers still tell users apart by case.
    """
    if story["f"] or story["k"] == "tx":
        yield SENDER, MAIL, story["f"].strip("<>").lower() or "<>"
    for address, _ in story["r"]:
        if address:
            yield RECIPIENT, MAIL, address.strip("<>").lower()
    for row in story["w"]:
        yield from _words_of_verdict(row)
    client, rdns = address_of(story["c"][0]), story["c"][1]
    if client:
        yield OF_CLIENT, CLIENT, client
    for host in {rdns.lower().rstrip("."), story["h"][1].lower()} - {"", "<unknown>"}:
        yield OF_HOST, HOST, host
    if user := story["u"][0] or story["u"][1]:
        yield OF_USER, USER, user
    if story["i"]:
        yield OF_MESSAGE, MESSAGE_ID, story["i"].strip("<>")


def _words_of_verdict(row: list[Any]) -> Iterable[tuple[int, int, str]]:
    if row[ARGUMENT] and row[PHASE] == "rcpt-to":
        yield RECIPIENT, MAIL, row[ARGUMENT].strip("<>").lower()
    if is_rewritten_address(row) and "d" not in row[FLAGS]:
        yield REWRITTEN, MAIL, row[REPLY].lower()

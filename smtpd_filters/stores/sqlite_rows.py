"""The rows of a SQLite store's open file, as `operations` use them, and when they are deleted."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .damage import LONGEST, is_sound
from .operations import Row, entry_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .clock import Epoch, Times
    from .damage import Damage
    from .operations import Entry

#: Rows that a transaction deletes besides its own, at least.
SWEEP = 256
#: Seconds between two sweeps, and between two notes of the time in the file.
SWEEP_INTERVAL = 0.1
NOTE_INTERVAL = 30.0


class Rows:
    """The rows of an open file."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        found: Epoch,
        times: Callable[[], Times],
        max_size: int,
        damage: Damage,
    ) -> None:
        self.now = 0.0
        self._damage = damage
        self._execute = connection.execute
        self._epoch = found
        self._times = times
        (page,) = self._execute("PRAGMA page_size").fetchone()
        self._max_pages = max_size // page
        self._written = 0
        self._swept = self._noted = 0.0

    def tick(self) -> None:
        """Set the time of the requests that follow."""
        self.now = self._epoch.now(self._times())

    @contextmanager
    def transaction(self, *, writes: bool) -> Iterator[None]:
        """Commit what is done within; nothing of it if it fails."""
        self._execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            yield
            if writes and self.now - self._swept >= SWEEP_INTERVAL:
                self._sweep()
            self._execute("COMMIT")
        except BaseException:
            try:
                self._execute("ROLLBACK")
            except sqlite3.Error:  # SQLite has done so
                pass
            raise

    def get(self, key: bytes) -> Row | None:
        """Return the row of a key unless it has expired."""
        row = self._execute(
            "SELECT value, written, expires FROM entries WHERE key = ? AND expires > ?",
            (key, self.now),
        ).fetchone()
        return None if row is None else self._sound(key, Row(*row))

    def _sound(self, key: bytes, row: Row) -> Row | None:
        """Return a row, or None if it is damaged."""
        if is_sound(row, self.now):
            return row
        self._damage.found(key)
        return None

    def put(self, key: bytes, row: Row) -> None:
        """Write the row of a key."""
        self._written += 1
        self._execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", (key, *row))

    def delete(self, key: bytes) -> bool:
        """Delete a key; return whether it was there and had not expired."""
        here = self.get(key) is not None or self.members(key, 1) > 0
        self._execute("DELETE FROM entries WHERE key = ?", (key,))
        self._execute("DELETE FROM members WHERE key = ?", (key,))
        return here

    def members(self, key: bytes, at_most: int) -> int:
        """Return the number of members that have not expired, counted to a bound."""
        count: int
        (count,) = self._execute(
            "SELECT count(*) FROM"
            " (SELECT 1 FROM members WHERE key = ? AND expires > ? AND expires <= ? LIMIT ?)",
            (key, self.now, self.now + LONGEST, at_most),
        ).fetchone()
        return count

    def is_member(self, key: bytes, member: bytes) -> bool:
        """Return whether a member is there and has not expired."""
        row = self._execute(
            "SELECT 1 FROM members WHERE key = ? AND member = ? AND expires > ? AND expires <= ?",
            (key, member, self.now, self.now + LONGEST),
        ).fetchone()
        return row is not None

    def join(self, key: bytes, member: bytes, expires: float) -> None:
        """Write a member of a group."""
        self._written += 1
        self._execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?)", (key, member, expires))

    def leave(self, key: bytes, member: bytes) -> bool:
        """Delete a member; return whether it was there and had not expired."""
        here = self.is_member(key, member)
        self._execute("DELETE FROM members WHERE key = ? AND member = ?", (key, member))
        return here

    def page(self, prefix: bytes, after: bytes, count: int) -> list[tuple[bytes, Entry | None]]:
        """Return the first entries with a prefix, after a key; a damaged one is None."""
        beyond = _beyond(prefix)
        rows = self._execute(
            "SELECT key, value, written, expires FROM entries"
            " WHERE key > ? AND key >= ? AND key < ? AND expires > ? ORDER BY key LIMIT ?",
            (after, prefix, beyond, self.now, count),
        )
        page: list[tuple[bytes, Entry | None]] = []
        for key, *columns in rows:
            row = self._sound(key, Row(*columns))
            page.append((key, None if row is None else entry_of(row, self.now)))
        return page

    def group_page(self, prefix: bytes, after: bytes, count: int) -> list[bytes]:
        """Return the first keys of groups with a prefix, after a key."""
        rows = self._execute(
            "SELECT DISTINCT key FROM members"
            " WHERE key > ? AND key >= ? AND key < ? AND expires > ? AND expires <= ?"
            " ORDER BY key LIMIT ?",
            (after, prefix, _beyond(prefix), self.now, self.now + LONGEST, count),
        )
        return [key for (key,) in rows]

    def _sweep(self) -> None:
        """Delete rows that have expired, or that are the first to expire of too many."""
        if self.now - self._noted >= NOTE_INTERVAL:
            self._noted = self.now
            self._execute("UPDATE epoch SET passed = max(passed, ?)", (self.now,))
        limit = SWEEP + 4 * self._written
        self._written = 0
        self._swept = self.now
        (pages,) = self._execute("PRAGMA page_count").fetchone()
        (free,) = self._execute("PRAGMA freelist_count").fetchone()
        until = float("inf") if pages - free > self._max_pages else self.now
        for table, key in (("entries", "key"), ("members", "(key, member)")):
            columns = key.strip("()")
            self._execute(
                f"DELETE FROM {table} WHERE {key} IN (SELECT {columns} FROM {table}"  # noqa: S608  # constants
                " WHERE expires <= ? ORDER BY expires LIMIT ?)",
                (until, limit),
            )
            # Text and blobs are greater than any number (https://www.sqlite.org/datatype3.html
            # section 4.1), so such a row would never expire.
            endless = self._execute(
                f"DELETE FROM {table} WHERE {key} IN (SELECT {columns} FROM {table}"  # noqa: S608  # constants
                " WHERE expires >= 9e999 LIMIT ?)",
                (limit,),
            )
            if endless.rowcount > 0:
                self._damage.note(f"the expiry of a row of {table}")


def _beyond(prefix: bytes) -> bytes:
    """Return the end of the keys with a prefix: they begin with ASCII text."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else b"\x7f"

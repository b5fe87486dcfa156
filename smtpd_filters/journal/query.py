"""Queries: `Journal` reads the files of a journal, while they are written or later.

The functions return plain records. All texts in them are from outside, to be escaped where they are
shown. Days are read one after another, newest first. A file that is damaged or of a newer release
is left out, and named in `Journal.unread`; one that was purged meanwhile is left out.

Invariants
----------
*Read only*: nothing is written, and no transaction is longer than one query.
*In time*: a query that takes longer than `Journal.deadline` seconds, over all files, raises
TooSlowError.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic, time_ns
from typing import TYPE_CHECKING, NamedTuple

from smtpd_filters.errors import os_reason
from smtpd_filters.settings.files import check_database

from . import day as schema
from .archive import files, quoted, size_of
from .day import NewerError, check_version
from .merging import joined
from .reception import MAX_TEXT
from .records import Overview, Ranked, Search, Totals
from .searching import rows, words_of
from .states import States, read
from .stories import OUTCOMES, Story, loaded, story
from .summing import OverviewSums, passings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Parts of a story that were stored each by itself, of which it is joined.
MAX_PARTS = 100
#: Words of each day that are ranked.
MAX_RANKED = 200
#: Nanoseconds since its last change after which another one changes the time of a file for sure.
STILL = 2_000_000_000
#: The last second that `datetime` has: 9999-12-31 23:59:59.
_LAST = 253_402_300_799.0
#: A number above every story's id.
_END = 1 << 62
#: A whole address of a mailbox or a client: not looked for as a part of a longer one.
_WHOLE = re.compile(
    r"<?[^@\s]+@[^@\s]+\.[A-Za-z]{2,}>?|\d+\.\d+\.\d+\.\d+|[0-9a-fA-F]*:[0-9a-fA-F:.]+"
)
#: How a file is opened that is written to, and one that isn't.
_READ, _STILL = "mode=ro", "mode=ro&immutable=1"
_STORY_ID = re.compile(r"(\d{4}-\d\d-\d\d)(?:\.(\d{1,6}))?-(\d{1,15})")
#: The roles of words in `rankings`.
RANKED = {"senders": schema.SENDER, "clients": schema.OF_CLIENT, "users": schema.OF_USER}


class TooSlowError(Exception):
    """A query took longer than its deadline."""


class Mark(NamedTuple):
    """How far a file has been read."""

    inode: int
    #: Times and sizes of the file and its log before it was read; () if they are too recent to
    #: tell whether it has changed since.
    stamp: tuple[int, ...]
    #: The id of the last story that was read.
    last: int = 0

    @classmethod
    def of(cls, path: str) -> Mark | None:
        """Return a mark before the first story of a file; None if it was deleted."""
        try:
            found = [os.stat(path)]  # noqa: PTH116  # paths as text
        except OSError:
            return None
        try:
            found.append(os.stat(f"{path}-wal"))  # noqa: PTH116
        except OSError:
            pass  # it is not written to
        recent = time_ns() - STILL
        if any(each.st_mtime_ns > recent for each in found):
            return cls(found[0].st_ino, ())
        stamp = tuple(n for each in found for n in (each.st_mtime_ns, each.st_size))
        return cls(found[0].st_ino, stamp)


class Journal:
    """The files of a directory. `key` is that of hashed addresses."""

    def __init__(self, directory: str, *, key: bytes = b"", deadline: float = 20.0) -> None:
        self.directory = directory
        self.deadline = deadline
        self._key = key
        #: When the query has to end, by the monotonic clock.
        self._until = 0.0
        self._stopped = False
        #: Files that could not be read, with the reasons, since the last query began.
        self.unread: dict[str, str] = {}

    def stop(self) -> None:
        """End the query in progress with TooSlowError, in any thread; no other can be made."""
        self._stopped = True

    # -- stories ---------------------------------------------------------------------------

    def search(self, wanted: Search) -> list[Story]:
        """Return the stories that fit, newest first. Raises TooSlowError, OSError."""
        self._begin()
        wanted = replace(wanted, text=_as_stored(wanted.text))
        # A part of a word is looked for only if it is not a whole word anywhere.
        found = self._search(wanted, part=False)
        if not found and wanted.text and not _WHOLE.fullmatch(wanted.text):
            found = self._search(wanted, part=True)
        return found

    def _search(self, wanted: Search, *, part: bool) -> list[Story]:
        found: list[Story] = []
        before = _STORY_ID.fullmatch(wanted.before)
        for name, number, path in self._files(wanted.since, wanted.until, newest_first=True):
            last = _END
            if before:
                place = name, number
                limit = before[1], int(before[2] or 0)
                if place > limit:
                    continue
                last = int(before[3]) if place == limit else last
            with self._reading(path) as connection:
                if connection is None:
                    continue
                words = words_of(connection, wanted.text, self._key, part=part)
                if words is not None and not words:
                    continue
                room = wanted.limit - len(found)
                prefix = _stem(path)
                found += [
                    story(f"{prefix}-{id_}", each)
                    for id_, each in rows(connection, wanted, words, last, room)
                ]
            if len(found) >= wanted.limit:
                break
        return found

    def story(self, id_: str) -> Story | None:
        """Return a story, joined with later parts of its transaction; None if there is none."""
        match = _STORY_ID.fullmatch(id_)
        if match is None:
            return None
        stem = match[1] + (f".{int(match[2])}" if match[2] else "")
        path = os.path.join(self.directory, f"{stem}.sqlite")  # noqa: PTH118  # paths as text
        joint: Story | None = None
        self._begin()
        with self._reading(path) as connection:
            if connection is None:
                return None
            found = connection.execute(
                "SELECT session, msgid, data FROM story WHERE id = ?", (int(match[3]),)
            ).fetchone()
            if found is not None:
                rows = [found[2:]]
                if found[1]:
                    rows = connection.execute(
                        "SELECT data FROM story WHERE session = ? AND msgid = ? ORDER BY id"
                        " LIMIT ?",
                        (*found[:2], MAX_PARTS),
                    ).fetchall()
                joint = story(id_, joined(loaded(data) for (data,) in rows))
        return joint

    def session(self, session: str) -> list[Story]:
        """Return the stories of one of smtpd's sessions, oldest first."""
        return self.search(Search(text=session, limit=1000))[::-1]

    def marks(self) -> dict[str, Mark]:
        """Return marks behind the newest stories, for `new`. Raises OSError."""
        self._begin()
        marks: dict[str, Mark] = {}
        for _, _, path in self._files(0.0, 1e12, newest_first=False):
            mark = Mark.of(path)
            if mark is None:
                continue
            # Of one that can't be read nothing is new until another one replaces it.
            marks[path] = mark._replace(last=_END)
            with self._reading(path) as connection:
                if connection is not None:
                    [(last,)] = connection.execute("SELECT max(id) FROM story")
                    marks[path] = mark._replace(last=last or 0)
        return marks

    def new(self, marks: dict[str, Mark], limit: int = 100) -> list[Story]:
        """Return the stories behind the marks, oldest first in each file, and move the marks.

        A file may be older than another that has marks: the clock can be set back. Raises OSError.
        """
        self._begin()
        found: list[Story] = []
        files_now = self._files(0.0, 1e12, newest_first=False)
        for gone in marks.keys() - {path for _, _, path in files_now}:
            del marks[gone]
        for _, _, path in files_now:
            mark, before = Mark.of(path), marks.get(path)
            if mark is None or (before is not None and before.stamp == mark.stamp != ()):
                continue
            last = before.last if before is not None and before.inode == mark.inode else 0
            room = limit - len(found)
            if room <= 0:
                break
            with self._reading(path) as connection:
                if connection is None:
                    continue
                [(newest,)] = connection.execute("SELECT max(id) FROM story")
                if last != _END and last > (newest or 0):  # another file, with the same inode
                    last = 0
                rows = connection.execute(
                    "SELECT id, data FROM story WHERE id > ? ORDER BY id LIMIT ?", (last, room)
                ).fetchall()
                prefix = _stem(path)
                found += [story(f"{prefix}-{id_}", loaded(data)) for id_, data in rows]
                last = rows[-1][0] if rows else last
                # There may be more of them.
                stamp = mark.stamp if len(rows) < room else ()
                marks[path] = mark._replace(last=last, stamp=stamp)
        return found

    # -- sums ------------------------------------------------------------------------------

    def overview(self, since: float, until: float, *, steps: int = 48) -> Overview:
        """Return sums from `since` to `until`, in at most so many steps of whole hours."""
        self._begin()
        sums = OverviewSums(since, until, steps)
        for _, _, path in self._files(since, until, newest_first=False):
            with self._reading(path) as connection:
                if connection is not None:
                    sums.read(connection)
        return sums.overview()

    def rankings(self, kind: str, since: float, until: float, limit: int = 20) -> list[Ranked]:
        """Return the most active `senders`, `clients` or `users` of the days of a time, in UTC.

        The days count as a whole, and of each the first `MAX_RANKED`.
        """
        self._begin()
        role = RANKED[kind]
        found: dict[str, tuple[Counter[str], Counter[str]]] = {}
        first, last = _day(since), _day(until)
        for name, _, path in self._files(since, until, newest_first=False):
            if not first <= name <= last:
                continue
            with self._reading(path) as connection:
                if connection is None:
                    continue
                rows = connection.execute(
                    "SELECT word.text, outcome, n FROM ranks JOIN word ON word.id = ranks.word"
                    " WHERE role = ? AND word IN (SELECT word FROM ranks WHERE role = ?"
                    " GROUP BY word ORDER BY sum(n) DESC LIMIT ?)",
                    (role, role, MAX_RANKED),
                )
                for word, number, n in rows:
                    outcomes, days = found.setdefault(word, (Counter(), Counter()))
                    outcomes[OUTCOMES[number]] += n
                    days[name] += n
        ranked = [
            Ranked(word, {name: outcomes[name] for name in OUTCOMES if outcomes[name]}, dict(days))
            for word, (outcomes, days) in found.items()
        ]
        return sorted(ranked, key=lambda each: (-each.count, each.word))[:limit]

    def totals(self, marks: dict[str, Mark] | None = None, last: int = 2) -> dict[str, Totals]:
        """Return the sums of the files that were written to since the marks, and move the marks.

        Without marks, return those of the `last` newest files. With marks it can be any file, not
        only the newest: a clock that was ahead has left files of days to come. Raises OSError.
        """
        marks = {} if marks is None else marks
        found: dict[str, Totals] = {}
        self._begin()
        self.unread = {}
        written = self._written(marks, last)
        for path in written:
            with self._reading(path) as connection:
                if connection is None:
                    continue
                outcomes = {
                    OUTCOMES[number]: n
                    for number, n in connection.execute(
                        "SELECT outcome, sum(n) FROM outcomes GROUP BY outcome"
                    )
                }
                found[path] = Totals(outcomes, list(passings(connection)))
        for path in written:
            if path not in found:
                marks[path] = marks[path]._replace(stamp=())  # read it next time
        return found

    def extent(self) -> tuple[str, str, int] | None:
        """Return the first and the last day, and the bytes of all files; None without any.

        Raises OSError.
        """
        found = files(self.directory)
        if not found:
            return None
        return found[0][0], found[-1][0], sum(size_of(path) for _, _, path in found)

    def states(self) -> States | None:
        """Return what the processes do now, as the journal knows it; None if it wrote nothing."""
        return read(self.directory)

    # -- files -----------------------------------------------------------------------------

    def _files(
        self, since: float, until: float, *, newest_first: bool
    ) -> Sequence[tuple[str, int, str]]:
        """Return the files with stories of a time; those that arrived later are in the next."""
        self.unread = {}
        first = _day(since - 86400)
        last = _day(until + 86400)
        found = [each for each in files(self.directory) if first <= each[0] <= last]
        return found[::-1] if newest_first else found

    def _written(self, marks: dict[str, Mark], last: int) -> list[str]:
        """Return the files for `totals`, and move the marks."""
        before = dict(marks)
        now = ((path, Mark.of(path)) for _, _, path in files(self.directory))
        marks.clear()
        marks.update((path, mark) for path, mark in now if mark is not None)
        if not before:
            return list(marks)[-last:]
        return [path for path, mark in marks.items() if not mark.stamp or before.get(path) != mark]

    def _begin(self) -> None:
        """Begin the time of a query."""
        self._until = monotonic() + self.deadline

    def _is_late(self) -> bool:
        return self._stopped or monotonic() > self._until

    @contextmanager
    def _reading(self, path: str) -> Iterator[sqlite3.Connection | None]:
        """Open a file for reading; None if that can't be done."""
        connection = self._connected(path)
        if connection is None:
            if not os.path.lexists(path):
                self.unread.pop(path, None)  # it was purged meanwhile
            yield None
            return
        connection.set_progress_handler(self._is_late, 10_000)
        try:
            if self._is_late():  # whatever is left to read
                raise TooSlowError(f"no result within {self.deadline:g} s")
            yield connection
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise TooSlowError(f"no result within {self.deadline:g} s") from None
            self.unread[path] = str(error)
        except (sqlite3.Error, ValueError, KeyError, TypeError, IndexError) as error:  # damaged
            self.unread[path] = f"{type(error).__name__}: {error}"
        finally:
            connection.close()

    def _connected(self, path: str) -> sqlite3.Connection | None:
        if fault := _fault(path):
            self.unread[path] = fault
            return None
        # One that isn't written any more is readable without write permission beside it. The
        # journal may be about to end or to begin that.
        for mode in (_READ, _STILL, _READ):
            if mode == _STILL and os.path.exists(f"{path}-wal"):  # noqa: PTH110  # paths as text
                continue
            try:
                connection = sqlite3.connect(f"file:{quoted(path)}?{mode}", uri=True, timeout=5.0)
            except sqlite3.Error as error:
                self.unread[path] = str(error)
                continue
            try:
                version = check_version(connection, path)
            except NewerError as error:
                self.unread[path] = str(error).removeprefix(f"{path}: ")
                connection.close()
                return None
            except sqlite3.Error as error:
                self.unread[path] = str(error)
                connection.close()
                continue
            self.unread.pop(path, None)
            if version:
                return connection
            connection.close()
            return None
        return None


def _as_stored(text: str) -> str:
    """Return a text, of a command line perhaps, as stories have it: see `collector`."""
    data = text[:MAX_TEXT].encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "backslashreplace")


def _fault(path: str) -> str:
    """Return why a file can't be read, where SQLite says little or waits; "" if it can."""
    try:
        os.stat(path)  # noqa: PTH116  # paths as text
        check_database(path)
        if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        return os_reason(error)
    return ""


def _stem(path: str) -> str:
    return os.path.basename(path).removesuffix(".sqlite")  # noqa: PTH119  # paths as text


def _day(seconds: float) -> str:
    seconds = min(max(seconds, 0.0), _LAST)
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()

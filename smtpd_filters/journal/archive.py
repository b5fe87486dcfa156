"""The directory of days: which file is written to, what is purged, and what is done about faults.

Invariants
----------
*Purge is unlink*: a file is deleted as a whole; no row ever is.
*Room for others*: nothing is written while the file system has less free space than the floor.
*Not by mistake*: if the clock jumps ahead, or nothing was written in the days before today, as when
it has jumped while the journal did not run, no day is too old for another 24 hours of the monotonic
clock.
*Goes on*: a damaged file is renamed, and a new one begun; a full disk costs stories, and is logged
once; when there is room again they are written again.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from smtpd_filters.errors import os_reason
from smtpd_filters.settings.files import (
    DISK_FAULTS,
    check_database,
    not_written,
    uncreated_files,
)

from .day import Day, NewerError, check_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .privacy import Privacy
    from .reception import Part
    from .rollups import Sums

#: The names of files; a day has several if one is larger than a part of the whole.
NAME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:\.([0-9]{1,6}))?\.sqlite")
#: The names of files that were damaged, and set aside.
_ASIDE = re.compile(NAME.pattern + r"\.damaged-[0-9T]{15}")
#: The part of the size of all that one file may have.
SHARE = 8
#: Seconds between two purges, and between two looks at free space.
PURGE_INTERVAL, LOOK_INTERVAL = 600.0, 2.0
#: Seconds for which days are kept while the clock may be wrong, and by which it jumps ahead then.
DOUBT, JUMP = 86400.0, 3600.0
#: The days before today one of which has a file, unless the clock may be wrong.
GAP = timedelta(days=3)
#: Seconds until a file is opened again after a failure.
PAUSE = 5.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def files(directory: str) -> list[tuple[str, int, str]]:
    """Return the files of a directory: days as in their names, parts and paths, oldest first.

    Raises OSError.
    """
    return sorted(
        (match[1], int(match[2] or 0), os.path.join(directory, match[0]))  # noqa: PTH118
        for match in map(NAME.fullmatch, os.listdir(directory))  # noqa: PTH208  # paths as text
        if match and _is_date(match[1])
    )


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


class Archive:
    """The files of a journal.

    `days` are kept, and `size` bytes; `floor` are the bytes that stay free for others. `note`
    takes lines for the log. `clock` is monotonic.
    """

    def __init__(  # noqa: PLR0913  # keyword-only: the settings
        self,
        directory: str,
        privacy: Privacy,
        *,
        days: int,
        size: int,
        floor: int,
        subjects: bool,
        note: Callable[[str], object],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.directory = directory
        #: Stories that could not be written.
        self.unwritten = 0
        self._privacy, self._subjects, self._note, self._clock = privacy, subjects, note, clock
        self._days, self._size, self._floor = days, size, floor
        self._day: Day | None = None
        self._name = ""
        self._next_purge = self._next_look = self._next_try = self._latest = 0.0
        #: Since when the wall clock may be wrong, by itself and by the monotonic clock, and how far
        #: it was ahead of that then.
        self._doubted = self._doubted_since = self._doubted_ahead = 0.0
        #: How far the wall clock is ahead of the monotonic one, as far as it is believed.
        self._ahead = inf
        #: The files of days to come that were noted.
        self._to_come: set[str] = set()
        self._full = self._failing = False

    def open(self, now: float) -> None:
        """Open the file of today; `now` are seconds since 1970.

        Raises NewerError, and OSError if an operator has to mend the cause. A disk that fails is
        noted, as it is later.
        """
        existing = files(self.directory)
        if existing:
            self._require_ours(existing[-1][2])
        try:
            self._ready(now)
        except sqlite3.Error as error:
            self._failed(now, self._about(error))
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            self._failed(now, os_reason(error), error.filename)

    @staticmethod
    def _require_ours(path: str) -> None:
        check_database(path)
        try:
            with closing(sqlite3.connect(f"file:{quoted(path)}?mode=ro", uri=True)) as connection:
                check_version(connection, path)
        except sqlite3.Error:  # damaged, or unreadable: see below
            pass

    def write(self, stories: Sequence[Part], now: float, sums: Sums | None = None) -> bool:
        """Write stories that are complete at `now`; return whether they were written."""
        if now < self._latest:  # the clock was set back
            self._doubted = 0.0
            self._next_purge = self._next_look = self._next_try = 0.0
        self._latest = now
        if now >= self._next_purge:
            self._next_purge = now + PURGE_INTERVAL
            self.purge(now)
        try:
            if now >= self._next_try and self._has_room(now):
                self._ready(now).write([(now, story) for story in stories], sums)
                if self._failing:
                    self._failing = False
                    self._note(f"writing again; {self.unwritten} stories were lost")
                return True
        except NewerError as error:
            self._failed(now, str(error))
        except sqlite3.Error as error:
            self._failed(now, self._about(error))
        except OSError as error:
            self._failed(now, os_reason(error), error.filename)
        self.unwritten += len(stories)
        return False

    def _ready(self, now: float) -> Day:
        """Return the file to write to."""
        today = datetime.fromtimestamp(now, UTC).date().isoformat()
        day = self._day
        if day is not None and self._name == today and day.size() < self._size // SHARE:
            return day
        if day is not None:
            self._close(finished=True)
            self._next_purge = 0.0
        self._day = self._open(self._next_path(today))
        self._name = today
        return self._day

    def _next_path(self, today: str) -> str:
        """Return the path of today's last file, or of the next one if that is full."""
        parts = [(part, path) for day, part, path in files(self.directory) if day == today]
        if not parts:
            return os.path.join(self.directory, f"{today}.sqlite")  # noqa: PTH118
        part, path = parts[-1]
        if os.stat(path).st_size < self._size // SHARE:  # noqa: PTH116
            return path
        return os.path.join(self.directory, f"{today}.{part + 1}.sqlite")  # noqa: PTH118

    def _open(self, path: str) -> Day:
        try:
            return Day(path, self._privacy, subjects=self._subjects)
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_NOTADB)
            if code & 0xFF not in _DAMAGED:
                raise
            self._set_aside(path, str(error))
            return Day(path, self._privacy, subjects=self._subjects)

    def _set_aside(self, path: str, why: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        aside = f"{path}.damaged-{stamp}"
        for suffix in ("-wal", "-shm", ""):
            try:
                os.rename(path + suffix, aside + suffix)  # noqa: PTH104  # paths as text
            except FileNotFoundError:
                pass
        self._note(f"{path} is damaged ({why}): renamed to {aside}, and a new one begun")

    def _about(self, error: sqlite3.Error) -> str:
        """Return what an error means; set a damaged file aside."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED and self._day is not None:
            path = self._day.path
            self._close()
            try:
                self._set_aside(path, str(error))
            except OSError as fault:
                return f"{path} is damaged ({error}), and can't be renamed: {os_reason(fault)}"
            return "the file was damaged"
        if code == sqlite3.SQLITE_CANTOPEN:
            return uncreated_files(self.directory) or str(error)
        return not_written(error) or str(error)

    def _failed(self, now: float, why: str, path: str | None = None) -> None:
        self._next_try = now + PAUSE
        self._close()
        if not self._failing:
            self._failing = True
            self._note(f"{path or self.directory}: not written: {why}; mail is not affected")

    def _has_room(self, now: float) -> bool:
        """Return whether there is free space."""
        if now >= self._next_look or self._full:
            self._next_look = now + LOOK_INTERVAL
            found = os.statvfs(self.directory)
            full = found.f_bavail * found.f_frsize < self._floor
            if full and not self._full:
                self._note(
                    f"{self.directory}: not written while less than {self._floor >> 20} MiB are "
                    "free; mail is not affected"
                )
            elif self._full and not full:
                self._note(f"writing again; {self.unwritten} stories were lost")
            self._full = full
        return not self._full

    def purge(self, now: float) -> None:
        """Delete what is older than the days to keep, and the oldest of more than the size."""
        try:
            limit = datetime.fromtimestamp(now, UTC).date() - timedelta(days=self._days)
            kept = []
            found = files(self.directory)
            self._note_days_to_come(found, now)
            days = [date.fromisoformat(day) for day, _, _ in found]
            if self._is_doubtful(days, limit, now):
                limit = date.min
            for day, _, path in found:
                if date.fromisoformat(day) < limit:
                    self._delete(path)
                else:
                    kept.append(path)
            aside = [
                (match[1], os.path.join(self.directory, match[0]))  # noqa: PTH118
                for match in map(_ASIDE.fullmatch, sorted(os.listdir(self.directory)))  # noqa: PTH208
                if match
            ]
            total = sum(map(size_of, kept)) + sum(size_of(path) for _, path in aside)
            for day, path in aside:
                if total > self._size or day < limit.isoformat():
                    total -= self._delete(path)
            current = self._day.path if self._day is not None else ""
            for path in kept:
                if total <= self._size:
                    break
                if path != current:
                    total -= self._delete(path)
        except OSError as error:
            self._note(f"{self.directory}: not purged: {os_reason(error)}")

    def _note_days_to_come(self, found: list[tuple[str, int, str]], now: float) -> None:
        """Note files that the clock of another time has left; what is noted once isn't again."""
        tomorrow = (datetime.fromtimestamp(now, UTC).date() + timedelta(days=1)).isoformat()
        to_come = {path for day, _, path in found if day > tomorrow}
        for path in sorted(to_come - self._to_come):
            self._note(
                f"{path}: its date is in the future; if the clock was wrong when it was written, "
                "remove the file, or its messages are kept beyond that date"
            )
        self._to_come = to_come

    def _is_doubtful(self, days: list[date], limit: date, now: float) -> bool:
        """Return whether the clock may be wrong: it has jumped, or all earlier days are old.

        After `DOUBT` seconds it is believed, until it jumps by more than that. A clock that is
        wrong can't measure these.
        """
        ahead = now - self._clock()
        self._ahead = min(self._ahead, ahead)
        # Days that were written since then prove nothing.
        since = datetime.fromtimestamp(self._doubted or now, UTC).date()
        earlier = [day for day in days if day < since]
        newest = max(limit, since - GAP)
        if ahead < self._ahead + JUMP and (not earlier or max(earlier) >= newest):
            self._doubted = 0.0
            return False
        if not self._doubted or ahead > self._doubted_ahead + DOUBT:
            self._doubted, self._doubted_since, self._doubted_ahead = now, self._clock(), ahead
        if self._clock() - self._doubted_since < DOUBT:
            return True
        self._ahead = ahead
        return False

    def _delete(self, path: str) -> int:
        """Delete a file; return the bytes that are free now."""
        try:
            size = size_of(path)
            for suffix in ("", "-wal", "-shm"):
                try:
                    os.unlink(path + suffix)  # noqa: PTH108  # paths as text
                except FileNotFoundError:
                    pass
        except OSError as error:
            self._note(f"{path}: not deleted: {os_reason(error)}")
            return 0
        return size

    def _close(self, *, finished: bool = False) -> None:
        day, self._day = self._day, None
        if day is not None:
            day.close(finished=finished)

    def close(self) -> None:
        """Close the file."""
        self._close()


def size_of(path: str) -> int:
    """Return the bytes of a file and of its log, 0 if it was deleted; a link counts itself.

    Raises OSError.
    """
    total = 0
    for suffix in ("", "-wal"):
        try:
            total += os.lstat(path + suffix).st_size
        except FileNotFoundError:
            pass
    return total


def quoted(path: str) -> str:
    """Return a path for a URI of SQLite."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")

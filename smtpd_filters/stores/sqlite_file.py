"""The file of a SQLite store: its opening, its schema, and what is done about kinds of damage.

Nothing here knows of threads or event loops; `sqlite` calls it from the thread of a store. The rows
of an open file are in `sqlite_rows`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
from contextlib import closing, contextmanager
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

from smtpd_filters.errors import os_reason, unreadable
from smtpd_filters.settings.files import check_database, not_written, uncreated_files

from .clock import Epoch, epoch
from .sqlite_rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .clock import Times
    from .damage import Damage
    from .operations import Entry, Operation

#: The mode of a directory whose group shares its files.
SHARED = stat.S_ISGID | stat.S_IWGRP
#: Steps from each version of the schema to the next; `PRAGMA user_version` is the version.
MIGRATIONS = (
    """
    CREATE TABLE entries (
        key BLOB PRIMARY KEY, value, written REAL NOT NULL, expires REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX entries_by_expiry ON entries (expires);
    CREATE TABLE members (
        key BLOB NOT NULL, member BLOB NOT NULL, expires REAL NOT NULL, PRIMARY KEY (key, member)
    ) WITHOUT ROWID;
    CREATE INDEX members_by_expiry ON members (expires);
    CREATE TABLE epoch (one INTEGER PRIMARY KEY CHECK (one = 1), boot TEXT, offset, passed);
    """,
)
#: "smtf", which marks a database as a store (https://www.sqlite.org/fileformat2.html section 1.3).
APPLICATION_ID = 0x736D7466
#: Later times, in seconds since 1970, are damage: 9999-12-31 is the last one that Python has.
MAX_TIME = 253_402_300_800.0
#: Pages of the log, 16 MiB, after which SQLite copies them into the file: this waits for the disk,
#: and a page that was written several times since is copied once.
CHECKPOINT = 4000

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_REASONS = {
    sqlite3.SQLITE_BUSY: "locked by another process",
    sqlite3.SQLITE_LOCKED: "locked by another process",
    sqlite3.SQLITE_FULL: "disk full",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_IOERR: "input/output error",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PERM: "permission denied",
    sqlite3.SQLITE_NOMEM: "out of memory",
    sqlite3.SQLITE_AUTH: "permission denied",
}


#: Those that have the file open go on with its log; SQLite lets nobody else open it.
_LOG_DELETED = "its log (-wal) was deleted: restart the programs that have the file open"


class FileError(Exception):
    """The file can't be used now; the text is the reason.

    `lasting` means that only an operator can mend it, such as a missing directory.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


class File:
    """A store's file, opened when it is first used, and again after a failure.

    `max_size` is its size in bytes above which rows are dropped before their expiry; `busy` the
    seconds to wait for other processes; `note` takes a text for the log, `damage` the keys of
    damaged rows. A `guest`, such as an operator's command, uses the file of a filter: it neither
    creates a file nor renames a damaged one. Nothing but FileError is raised.
    """

    def __init__(  # noqa: PLR0913  # given by name
        self,
        path: str,
        *,
        max_size: int,
        busy: float,
        times: Callable[[], Times],
        note: Callable[[str], object],
        damage: Damage,
        guest: bool = False,
    ) -> None:
        self.path = path
        self._guest = guest
        self._max_size = max_size
        self._busy = busy
        self._times = times
        self._note = note
        self._damage = damage
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._rows: Rows | None = None

    def open(self) -> None:
        """Open the file, and create or migrate it if necessary."""
        self.apply(())

    def check(self) -> None:
        """Find out, without writing, whether the file can be used, or be created."""
        with self._translated():
            check_database(self.path)
            folder = os.path.dirname(self.path) or "."  # noqa: PTH120  # a path as text
            os.close(os.open(folder, os.O_RDONLY | os.O_CLOEXEC))
            if _is_denied(self.path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if reason := uncreated_files(folder):
                raise FileError(reason)
            if _inode(self.path) == (0, 0):
                return
            from urllib.parse import quote  # start-up time

            # Without the files of a log, reading would create them.
            how = "mode=ro" if _inode(f"{self.path}-wal") != (0, 0) else "immutable=1"
            uri = f"file:{quote(self.path)}?{how}"
            with closing(sqlite3.connect(uri, uri=True, timeout=self._busy)) as connection:
                try:
                    _require_store(connection)
                except sqlite3.DatabaseError as error:
                    if _code(error) not in _DAMAGED:
                        raise
                    reason = f"{error}: the filter will rename the file, and begin a new one"
                    raise FileError(reason) from None

    def apply(self, requests: Sequence[Sequence[Operation[Any]]]) -> list[list[Any]]:
        """Apply requests in one transaction; return the results of each.

        A damaged file is set aside, unless for a guest, and the requests are applied to a new one.
        """
        with self._translated():
            try:
                return self._apply(requests)
            except sqlite3.DatabaseError as error:
                if _code(error) not in _DAMAGED or self._guest:
                    raise
                self._set_aside(str(error))
                return self._apply(requests)

    def _apply(self, requests: Sequence[Sequence[Operation[Any]]]) -> list[list[Any]]:
        rows = self._ready()
        with rows.transaction(writes=any(each.writes for request in requests for each in request)):
            return [[operation.apply(rows) for operation in request] for request in requests]

    def page(self, prefix: bytes, after: bytes, count: int) -> list[tuple[bytes, Entry | None]]:
        """Return the first entries in the order of their keys with a prefix, after a key.

        A damaged entry is None.
        """
        with self._translated():
            return self._ready().page(prefix, after, count)

    def group_page(self, prefix: bytes, after: bytes, count: int) -> list[bytes]:
        """Return the first keys of groups, in their order, with a prefix and after a key."""
        with self._translated():
            return self._ready().group_page(prefix, after, count)

    def close(self) -> None:
        """Close the file."""
        connection, self._connection, self._rows = self._connection, None, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                pass

    # -- opening -----------------------------------------------------------------------------

    def _ready(self) -> Rows:
        """Return the rows of the file at the path, which may have been replaced or deleted."""
        rows = self._rows
        if rows is None or _inode(self.path) != self._inode:
            self.close()
            with self._alone():
                rows = self._rows = self._open()
        rows.tick()
        return rows

    def _open(self) -> Rows:
        check_database(self.path)
        self._inode = _inode(self.path)
        if self._inode == (0, 0):
            if self._guest:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
            self._create()
        # Autocommit: transactions are begun by statements of our own.
        connection = sqlite3.connect(self.path, timeout=self._busy, isolation_level=None)
        self._connection = connection
        _require_store(connection)  # before anything is written
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._migrate(connection)
            found = self._epoch(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        self._inode = _inode(self.path)  # it may be new
        return Rows(connection, found, self._times, self._max_size, self._damage)

    def _create(self) -> None:
        """Create the file, which others may not read, since it has senders and recipients.

        If root creates it, it is for the owner of its directory. Otherwise the filter, which is not
        root, could not use a file of root's tool. SQLite gives the files beside it the same owner
        and mode.

        In a directory that gives its group to its files and lets the group write, the group may
        write to the file: the page runs as another user of that group.
        """
        try:
            owner = os.stat(os.path.dirname(self.path) or ".")  # noqa: PTH116, PTH120  # a path as text
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except OSError:
            return  # SQLite finds out why
        try:
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
            if owner.st_mode & SHARED == SHARED:
                os.fchmod(fd, 0o660)
        finally:
            os.close(fd)

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Bring the schema to the newest version."""
        _migrate(connection, _require_store(connection))
        if not _expected() <= _schema(connection):
            damaged = sqlite3.DatabaseError("its tables are not those of a store")
            damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise damaged
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _epoch(self, connection: sqlite3.Connection) -> Epoch:
        """Return the epoch of this boot (`clock`), and write it if it is new."""
        row = connection.execute("SELECT boot, offset, passed FROM epoch").fetchone()
        stored = Epoch(*row) if row is not None and _is_epoch(*row) else None
        found = epoch(self._times(), stored)
        if found != stored:
            connection.execute("INSERT OR REPLACE INTO epoch VALUES (1, ?, ?, ?)", found)
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from opening or renaming the file meanwhile."""
        # Not a lock on the file itself, which would interfere with SQLite's own locks.
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_CLOEXEC)  # noqa: PTH120  # a path as text
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    # -- failures ----------------------------------------------------------------------------

    def _set_aside(self, why: str) -> None:
        """Rename a damaged file, unless another process has done so."""
        damaged = self._inode
        self.close()
        with self._alone():
            if _inode(self.path) != damaged:
                return
            aside = _free_name(self.path)
            # The file last: without its log it is damaged for a process that opens it in between.
            for suffix in ("-wal", "-shm", ""):
                try:
                    os.rename(self.path + suffix, aside + suffix)  # noqa: PTH104  # paths as text
                except FileNotFoundError:
                    pass
        self._note(f"{self.path} is damaged ({why}): renamed to {aside}, and a new one begun")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise FileError in place of the errors of SQLite and the system."""
        try:
            yield
        except sqlite3.Error as error:
            code = _code(error)
            if code not in _BUSY:
                self.close()  # and open it again for the next request
            if code in _DAMAGED and self._guest:
                reason = f"{error}: not the file of a store, or a damaged one"
                raise FileError(reason, lasting=True) from None
            reason = _REASONS.get(code, str(error))
            if code == sqlite3.SQLITE_IOERR:
                reason = _reason_of_io(error, self.path)
            if code == sqlite3.SQLITE_CANTOPEN:
                reason = uncreated_files(os.path.dirname(self.path) or ".") or reason  # noqa: PTH120  # a path as text
            raise FileError(reason, lasting=code in _REFUSED and _is_denied(self.path)) from None
        except OSError as error:
            self.close()
            folder = os.path.dirname(self.path) or "."  # noqa: PTH120  # a path as text
            # Of the directory, which is only opened for reading, it may be the sandbox's.
            reason = unreadable(error, folder) if error.filename == folder else os_reason(error)
            raise FileError(reason, lasting=error.errno in _LASTING) from None
        except FileError:
            self.close()
            raise


#: EINVAL is that of `check_database`.
_LASTING = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EISDIR, errno.EINVAL}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_REFUSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


def _require_store(connection: sqlite3.Connection) -> int:
    """Return the version of the schema; raise FileError for a database that is not for us."""
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (owner or version or tables):
        raise FileError("a database of another program", lasting=True)
    if version > len(MIGRATIONS):
        raise FileError(
            f"written by a newer release (schema {version}, this one knows {len(MIGRATIONS)})",
            lasting=True,
        )
    known: int = version
    return known


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Bring the tables of a version to the newest one."""
    for step in MIGRATIONS[version:]:
        for statement in filter(str.strip, step.split(";")):
            connection.execute(statement)


@cache
def _expected() -> frozenset[tuple[str, str]]:
    """Return the schema of a new file."""
    with closing(sqlite3.connect(":memory:")) as connection:
        _migrate(connection, 0)
        return _schema(connection)


def _schema(connection: sqlite3.Connection) -> frozenset[tuple[str, str]]:
    """Return names and definitions of tables and indexes."""
    return frozenset(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql != ''"))


def _code(error: sqlite3.Error) -> int:
    """Return the primary result code of an error (https://www.sqlite.org/rescode.html)."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _reason_of_io(error: sqlite3.Error, path: str) -> str:
    """Return the reason of an error of input or output."""
    if _has_lost_log(error, path):
        return _LOG_DELETED
    return not_written(error) or f"{_REASONS[sqlite3.SQLITE_IOERR]} ({error.sqlite_errorname})"


def _has_lost_log(error: sqlite3.Error, path: str) -> bool:
    """Return whether a file was not read since others have a log open that was deleted."""
    try:
        size = os.stat(path + "-wal").st_size  # noqa: PTH116  # a path as text
    except FileNotFoundError:
        size = 0
    return error.sqlite_errorcode == sqlite3.SQLITE_IOERR_SHORT_READ and size == 0


def _is_denied(path: str) -> bool:
    """Return whether permissions forbid to write the file, which an operator must mend.

    A file system that is mounted read-only is a fault, as a full disk is.
    """
    folder = os.path.dirname(path) or "."  # noqa: PTH120  # a path as text
    if os.path.isdir(path):  # noqa: PTH112  # a path as text
        return True
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return False
    exists = os.path.exists(path)  # noqa: PTH110  # a path as text
    return not os.access(folder, os.W_OK | os.X_OK) or (exists and not os.access(path, os.W_OK))


def _inode(path: str) -> tuple[int, int]:
    """Return what identifies the file at a path; (0, 0) if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # pathlib costs more
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _is_epoch(boot: object, offset: object, passed: object) -> bool:
    times = all(
        isinstance(each, int | float) and isfinite(each) and abs(each) < MAX_TIME
        for each in (offset, passed)
    )
    return isinstance(boot, str) and times


def _free_name(path: str) -> str:
    """Return a name beside the file that is not in use."""
    number = 1
    while os.path.exists(name := f"{path}.damaged-{number}"):  # noqa: PTH110  # a path as text
        number += 1
    return name

"""Tables in SQLite: `sqlite:PATH` of a configuration file, `sqlite:PATH?query=SQL` of a database.

The file has the keys of table-sqlite(5): `dbpath`, and `query_SERVICE` for each kind of table, with
one `?` for the key. `query` is for any kind. `list_SERVICE` and `list` are statements without a
`?` that return all entries, or all keys and values of a mapping.

A thread reads the database, which is opened read-only, with a deadline for each statement, and
again when the file at the path is another one. It is checked at start that a statement can be
compiled and has the columns that its kind requires.

Read-only: a database in WAL mode can be read only if its files `-wal` and `-shm` are there or
the filter may create them in its directory.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePath
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from smtpd_filters.errors import ConfigError, os_reason, out_of_reach
from smtpd_filters.settings.files import check_database

from .backend import LIST_MAX, ROWS_MAX, AnswerError, Backend, BackendError, value_of
from .configuration import TIMES, Configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from smtpd_filters.sandbox import Needs

    #: Columns as texts; None for a NULL.
    _Row: TypeAlias = tuple[str | None, ...]

#: What table-sqlite knows and we don't use.
_IGNORED = ("fetch_source", "fetch_source_expire", "fetch_source_refresh")
#: Services of smtpd (table(5)), and our own.
SERVICES = (
    "alias", "domain", "credentials", "netaddr", "userinfo", "source", "mailaddr", "addrname",
    "mailaddrmap", "relayhost", "string", "regex", "mapping",
)  # fmt: skip
#: Values that are joined by commas, as table-sqlite does.
JOINED = frozenset({"alias", "mailaddrmap"})
#: Services whose entries have a value.
_MAPPINGS = frozenset({"alias", "credentials", "userinfo", "mailaddrmap", "mapping"})
#: Their rows, at most: more make a value that is too long, but for rows without a value.
_JOINED_MAX = 10_000
#: Columns of a look-up other than one.
_COLUMNS = {"credentials": 2, "userinfo": 3}
#: A database in WAL mode whose file of shared memory can't be made, while no writer is there.
_NO_SHARED_MEMORY = frozenset({
    sqlite3.SQLITE_READONLY_DIRECTORY,
    sqlite3.SQLITE_READONLY_CANTINIT,
    sqlite3.SQLITE_READONLY_RECOVERY,
    sqlite3.SQLITE_CANTOPEN,
})  # fmt: skip
_WAL = (
    "in WAL mode, and this user can't make its -shm file: allow it to write in the directory, or "
    "set PRAGMA journal_mode = DELETE"
)
#: Instructions of SQLite's machine between two looks at the clock: less than a millisecond.
_STEPS = 4000


def open_backend(text: str, service: str) -> tuple[Backend, dict[str, float]]:
    """Return the back-end and the times of its configuration. Raises ConfigError."""
    path, question, rest = text.partition("?")
    if not path:
        raise ConfigError("sqlite: needs a path")
    if question:
        name, _, statement = rest.partition("=")
        if name not in {"query", "list"} or not statement.strip():
            raise ConfigError(
                f"sqlite:{path}?...: expected ?query=SQL or ?list=SQL, not {rest[:40]!r}"
            )
        query, listing = (statement, None) if name == "query" else (None, statement)
        return SQLite(path, service, query, listing), dict(TIMES)
    known = ["dbpath", "query", "list"]
    known += [f"{kind}_{each}" for kind in ("query", "list") for each in SERVICES]
    file = Configuration(path, known, _IGNORED)
    times = {name: file.seconds(name) for name in TIMES}
    query = file.get(f"query_{service}") or file.get("query")
    listing = file.get(f"list_{service}") or file.get("list")
    if query is None and listing is None:
        raise ConfigError(f"{path}: expected query_{service}, list_{service}, query or list")
    return SQLite(file.required("dbpath"), service, query, listing, times["timeout"]), times


class SQLite(Backend):
    """One table in the database at `path`; `query` finds a key, `listing` all entries."""

    def __init__(
        self,
        path: str,
        service: str,
        query: str | None,
        listing: str | None,
        timeout: float = TIMES["timeout"],
    ) -> None:
        self.path = path
        self.timeout = timeout
        self.by_key, self.lists = query is not None, listing is not None
        self._query, self._listing = query, listing
        self._joined = service in JOINED
        self._mapping = service in _MAPPINGS
        self._columns = _COLUMNS.get(service, 1)
        self._database = _Database(path)
        self._thread: ThreadPoolExecutor | None = None
        self._check()

    def _check(self) -> None:
        """Compile the statements. Raises ConfigError for what only an operator can mend."""
        try:
            for statement, keys, columns in (
                (self._query, ("",), self._columns),
                (self._listing, (), 2 if self._mapping else 1),
            ):
                if statement is not None:
                    found = self._database.columns(statement, keys, self.timeout)
                    if found != columns:
                        shown = f"{statement[:80]!r} returns {found} columns, not {columns}"
                        raise ConfigError(f"{self.path}: {shown}")
        except _LastingError as error:
            raise ConfigError(f"{self.path}: {error}") from None
        except BackendError:
            pass  # locked, perhaps
        finally:
            self._database.close()

    async def look_up(self, key: str) -> str | None:
        """Return the value of a key, or None. Raises BackendError."""
        most = _JOINED_MAX + 1 if self._joined else ROWS_MAX
        rows = await self._run(self._query or "", (key,), most, self.timeout)
        if len(rows) > _JOINED_MAX:
            raise AnswerError(f"more than {_JOINED_MAX} rows for one key")
        # A row with a NULL is none, as in table-sqlite.
        rows = _of(self._columns, rows)
        values = [":".join(map(str, row)) for row in rows if None not in row]
        return value_of(values, joined=self._joined)

    async def entries(self, seconds: float) -> list[tuple[str, str]]:
        """Return all entries. Raises BackendError."""
        limit = LIST_MAX + 1
        convert = _pairs if self._mapping else _single
        rows: list[tuple[str, str]] = await self._run(
            self._listing or "", (), limit, seconds, convert
        )
        if len(rows) == limit:
            raise BackendError(f"more than {LIST_MAX} entries")
        return rows

    async def _run(  # as the call in the thread
        self,
        statement: str,
        keys: tuple[str, ...],
        most: int,
        seconds: float,
        convert: Callable[[list[_Row]], list[Any]] = list,
    ) -> Any:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "sqlite-table")
        due = monotonic() + seconds
        rows, self.version = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._database.rows, statement, keys, most, due, convert
        )
        return rows

    def declare(self, needs: Needs) -> None:
        """Declare the directory: SQLite has files beside the database, in WAL mode makes them."""
        directory = str(PurePath(self.path).parent)
        if _in_wal_mode(self.path) and os.access(directory, os.W_OK):
            needs.to_write(directory)
        else:
            needs.to_read(directory)
        needs.to_start_threads(1)
        needs.to_open(4)

    async def aclose(self) -> None:
        """Close the file; a statement that runs ends at its deadline."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._database.close)
            thread.shutdown(wait=True)


class _LastingError(BackendError):
    """An error that only an operator can mend."""


class _Database:
    """The file, used in one thread at a time, and opened when it is first needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._opened = 0

    def columns(self, statement: str, keys: tuple[str, ...], seconds: float) -> int:
        """Return the number of columns of a statement. Raises BackendError."""
        with self._translated():
            cursor = self._open(monotonic() + seconds).execute(statement, keys)
            return len(cursor.description or ())

    def rows(
        self,
        statement: str,
        keys: tuple[str, ...],
        most: int,
        due: float,
        convert: Callable[[list[_Row]], list[Any]],
    ) -> tuple[list[Any], int]:
        """Return the first rows of a statement, converted, and the version of the content."""
        with self._translated():
            connection = self._open(due)
            ((version,),) = connection.execute("PRAGMA data_version").fetchall()
            found = connection.execute(statement, keys).fetchmany(most)
            rows = [tuple(map(_text, row)) for row in found]
        return convert(rows), self._opened << 32 | version

    def close(self) -> None:
        """Close the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self, due: float) -> sqlite3.Connection:
        """Return a connection to the file at the path, which may be another one by now."""
        found = os.stat(self._path)  # noqa: PTH116  # pathlib costs more
        inode = found.st_dev, found.st_ino
        if self._connection is None or inode != self._inode:
            self.close()
            check_database(self._path)
            connection = sqlite3.connect(
                f"file:{quote(self._path)}?mode=ro",
                uri=True,
                timeout=0.5,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection, self._inode = connection, inode
            connection.text_factory = _decoded
            connection.execute("PRAGMA query_only = 1")
            self._opened += 1
        self._connection.set_progress_handler(lambda: monotonic() > due, _STEPS)
        return self._connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise BackendError for errors of SQLite and of the file."""
        try:
            yield
        except OSError as error:
            self.close()
            raise _LastingError(os_reason(error)) from None
        except UnicodeEncodeError:
            raise _LastingError("the statement is not UTF-8") from None
        except sqlite3.Error as error:
            extended = getattr(error, "sqlite_errorcode", 0)
            if extended in _NO_SHARED_MEMORY:
                self.close()
                self._require_permission()
                raise BackendError(_WAL) from None
            code = extended & 0xFF
            if code == sqlite3.SQLITE_INTERRUPT:
                raise BackendError("the statement took too long") from None
            if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise BackendError("locked by another process") from None
            self.close()
            raise _LastingError(str(error)) from None

    def _require_permission(self) -> None:
        """Raise BackendError if SQLite's code is due to the user's rights, or to the sandbox.

        To open and close it here would release the locks that this process holds on it.
        """
        effective = os.access in os.supports_effective_ids
        if not os.access(self._path, os.R_OK, effective_ids=effective):
            error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            raise _LastingError(os_reason(error))
        directory = str(PurePath(self._path).parent)
        try:
            os.scandir(directory).close()
        except PermissionError:
            if reason := out_of_reach(directory):
                raise _LastingError(reason) from None
        except OSError as error:  # no descriptor is left, for SQLite neither
            raise BackendError(os_reason(error)) from None


def _in_wal_mode(path: str) -> bool:
    """Return whether a database is in WAL mode (sqlite.org/fileformat2.html section 1.3)."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # a path as text
            return file.read(20)[18:] == b"\2\2"
    except OSError:
        return False


def _of(columns: int, rows: list[_Row]) -> list[_Row]:
    """Return rows; raise BackendError if they have other columns than at start, as of `*`."""
    if rows and len(rows[0]) != columns:
        raise BackendError(f"the statement returns {len(rows[0])} columns, not {columns}")
    return rows


def _pairs(rows: list[_Row]) -> list[tuple[str, str]]:
    return [(row[0], row[1]) for row in _of(2, rows) if row[0] is not None and row[1] is not None]


def _single(rows: list[_Row]) -> list[tuple[str, str]]:
    return [(row[0], "") for row in _of(1, rows) if row[0] is not None]


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return _decoded(value) if isinstance(value, bytes) else str(value)

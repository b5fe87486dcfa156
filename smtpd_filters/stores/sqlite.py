"""A store in a SQLite file, for the filters of one machine.

A thread of the store does all work on the file (`sqlite_file`), so that the event loop never waits
for a disk. It gets the requests of a turn of the loop together, takes those that are queued, up to
`BATCH`, and applies them in one transaction. It starts with the first request: the sandbox binds
threads only if they start after it (docs/decisions/sandbox.md).

Invariants
----------
*One writer at a time*: a transaction begins with BEGIN IMMEDIATE, so that processes which share the
file apply their requests one after the other.
*Survives a kill*: the file is in WAL mode. What was answered is kept if the process is killed. If
the machine loses power, the last seconds may be lost, but nothing is damaged
(https://www.sqlite.org/pragma.html#pragma_synchronous, NORMAL).
*Set aside*: a damaged file is renamed, never deleted, and a new one is begun.
*Bounded*: in a file of `max_size` bytes the rows that expire first are dropped.
*Bounded queue*: at most `MAX_QUEUED` requests wait for the thread; further ones are unavailable at
once. So are all requests while the thread has been stuck for longer than the timeout.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_filters.errors import ConfigError, UnavailableError, user_name
from smtpd_filters.runtime.counters import INVALID, LOCAL, TIMEOUT

from .clock import read_times
from .damage import Damage
from .sqlite_file import File, FileError
from .store import CLOSED, Store, StoreUnavailableError
from .trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from .clock import Times
    from .operations import Entry, Operation

#: A million triplets of a greylist take about 250 MiB.
MAX_SIZE = 512 << 20
#: Requests in a transaction.
BATCH = 128
MAX_QUEUED = 4096
#: Entries that `scan` reads at a time.
PAGE = 512
#: Seconds for which the end of the process waits for the thread.
LAST = 2.0


class _Request(NamedTuple):
    """Operations, or the page of a scan, and the future of their result."""

    done: asyncio.Future[Any]
    operations: Sequence[Operation[Any]]
    #: Of a scan: the prefix, and the key after which the page begins.
    page: tuple[bytes, bytes] | None = None
    #: Whether it is a scan of groups.
    groups: bool = False


def _advice(path: str) -> str:
    """Return what keeps the file from being opened, and what to do about it; "" if unknown."""
    from shlex import quote  # needed only for an error

    directory = os.path.dirname(path) or "."  # noqa: PTH120  # as given
    user = user_name()
    if not os.path.exists(directory):  # noqa: PTH110
        by_hand = os.geteuid() == 0  # smtpd runs no filter as root
        owner = "USER" if by_hand else user
        which = " with the user that smtpd runs filters as" if by_hand else ""
        how = f"install -d -o {owner} -m 700 {quote(directory)}{which}"
        return f"the directory {directory} is missing; create it as root: {how}"
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"user {user} may not write in the directory {directory}"
    if os.path.isfile(path) and not os.access(path, os.R_OK | os.W_OK):  # noqa: PTH113
        return f"user {user} may not read and write the file"
    return ""


class SQLiteStore(Store):
    """A store in the file at `path`, which is created if it is missing; its folder is not.

    `timeout` is for a request, in seconds; `max_size` is in bytes. `note` takes a text for the log.
    A `guest` neither creates the file nor renames a damaged one: it is that of another program.
    With `check` the file is only looked at, and may be missing.

    Raises ConfigError if an operator must mend something before the file can be used. A fault that
    may pass, such as a full disk, is noted, and the file is opened later.
    """

    one_place = True
    kind = "sqlite"

    def __init__(  # noqa: PLR0913  # given by name
        self,
        path: str,
        *,
        timeout: float,
        note: Callable[[str], object],
        max_size: int = MAX_SIZE,
        times: Callable[[], Times] = read_times,
        guest: bool = False,
        check: bool = False,
    ) -> None:
        self.label = f"sqlite:{path}"
        self._timeout = timeout
        self._note = note
        #: The requests of this turn of the loop.
        self._turn: list[_Request] = []
        self._queue: SimpleQueue[Sequence[_Request] | None] = SimpleQueue()
        #: The numbers of all requests: counted by the loop when made, and by the thread when taken.
        self._made = self._taken = 0
        #: The ends of the requests that are pending, in their order, and the timer of the first.
        self._ends: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        #: The requests that the thread has got and not taken.
        self._got: deque[_Request] = deque()
        #: The loop's clock at which the thread began its transaction; 0.0 while it waits.
        self._busy_since = 0.0
        self._closed = False
        # Notes of the thread; the loop logs them.
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._damage = Damage(self.label, self._notes.put)
        self._trouble = Trouble(self.label, note)
        self._file = File(
            path,
            max_size=max_size,
            busy=timeout,
            times=times,
            note=self._notes.put,
            damage=self._damage,
            guest=guest or check,
        )
        self._check = check
        self._thread: Thread | None = None
        self._try_file()

    def _try_file(self) -> None:
        """Open the file, and close it for the thread; raise ConfigError for a lasting failure."""
        try:
            if self._check:
                self._file.check()
            else:
                self._file.open()
        except FileError as error:
            if error.lasting:
                raise ConfigError(f"{self.label}: {_advice(self._file.path) or error}") from None
            self._note(f"{self.label}: {error}")
        self._file.close()
        self._log_notes()

    def fault(self) -> str:
        """Return why the file can't be used, or ""; nothing is written."""
        try:
            self._file.check()
        except FileError as error:
            return str(error)
        return ""

    # -- the event loop's side ---------------------------------------------------------------

    async def _apply(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        result: Sequence[Any] = await self._request(operations)
        return result

    async def _request(
        self,
        operations: Sequence[Operation[Any]],
        page: tuple[bytes, bytes] | None = None,
        *,
        groups: bool = False,
    ) -> Any:
        """Have the thread carry out a request; return its result within the timeout."""
        if self._closed:
            raise UnavailableError(CLOSED)
        busy = self._busy_since
        if busy and time.monotonic() - busy > self._timeout:
            raise self._unavailable("does not respond", TIMEOUT)
        if self._made - self._taken >= MAX_QUEUED:
            raise self._unavailable("too many requests are pending", LOCAL)
        if self._thread is None:
            self._start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        self._ends.append((loop.time() + self._timeout, done))
        if self._timer is None:
            self._timer = loop.call_later(self._timeout, self._expire, loop)
        # A thread that was woken by each request would take turns with this one: with the
        # interpreter's lock that costs more than the request.
        if not self._turn:
            loop.call_soon(self._hand_over)
        self._turn.append(_Request(done, operations, page, groups))
        self._made += 1
        return await done

    def _hand_over(self) -> None:
        """Give the thread the requests of this turn."""
        if self._turn:
            turn, self._turn = self._turn, []
            self._queue.put(turn)

    def _start(self) -> None:
        thread = Thread(target=self._run, name="store", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # a limit of the user or the system
            raise self._unavailable(str(error) or "out of memory", LOCAL) from None
        self._thread = thread

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the requests whose time is over."""
        self._timer = None
        now = loop.time()
        while self._ends:
            end, done = self._ends[0]
            if not done.done():
                if end > now:
                    self._timer = loop.call_at(end, self._expire, loop)
                    break
                cause = f"no answer within {self._timeout:g} s"
                done.set_exception(self._unavailable(cause, TIMEOUT))
            self._ends.popleft()

    def _unavailable(self, cause: str, failure: str = INVALID) -> UnavailableError:
        return StoreUnavailableError(f"{self.label}: {cause}", failure)

    async def scan(self, prefix: bytes) -> AsyncIterator[tuple[bytes, Entry]]:
        """Iterate over entries, in the order of their keys."""
        after = b""
        while page := await self._request((), (prefix, after)):
            for key, entry in page:
                if entry is not None and self._is_key(key):
                    yield key, entry
            after = key

    async def _group_keys(self, prefix: bytes) -> AsyncIterator[bytes]:
        after = b""
        while page := await self._request((), (prefix, after), groups=True):
            for after in page:
                yield after

    def damaged(self, key: bytes) -> None:
        """Note that a value has no meaning, as `Store.damaged`."""
        super().damaged(key)
        self._log_notes()

    async def aclose(self) -> None:
        """End the thread after the requests that are queued."""
        self._closed = True
        self._hand_over()
        self._queue.put(None)
        if self._thread is not None:
            try:
                await asyncio.to_thread(self._thread.join, LAST)
            except RuntimeError:  # no thread can be started: the process ends anyway
                pass
        self._log_notes()

    def _deliver(self, results: Sequence[tuple[_Request, Any]]) -> None:
        """Resume the callers of the requests of a transaction."""
        self._log_notes()
        for request, result in results:
            if request.done.done():
                continue
            if isinstance(result, Exception):
                request.done.set_exception(result)
            else:
                request.done.set_result(result)
        while self._ends and self._ends[0][1].done():
            self._ends.popleft()

    def _log_notes(self) -> None:
        while True:
            try:
                self._note(self._notes.get_nowait())
            except Empty:
                return

    # -- the thread's side -------------------------------------------------------------------

    def _run(self) -> None:
        """Carry out requests until there is a None; the thread never fails."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        last = False
        while not last:
            batch, last = self._next_batch()
            self._busy_since = time.monotonic()
            results = self._carry_out(batch)
            self._busy_since = 0.0
            if results:
                try:
                    results[0][0].done.get_loop().call_soon_threadsafe(self._deliver, results)
                except RuntimeError:  # the loop is closed
                    pass
        self._file.close()

    def _next_batch(self) -> tuple[list[_Request], bool]:
        """Wait for requests; return them, and whether the store is closed behind them."""
        batch: list[_Request] = []
        got = self._got
        turn = () if got else self._queue.get()
        while turn is not None:
            got.extend(turn)
            while got:
                if len(batch) >= BATCH:
                    return batch, False
                request = got.popleft()
                self._taken += 1
                if not request.done.done():  # it may have expired in the queue
                    batch.append(request)
            try:
                turn = self._queue.get_nowait()
            except Empty:
                return batch, False
        return batch, True

    def _carry_out(self, batch: Sequence[_Request]) -> list[tuple[_Request, Any]]:
        """Return the result of each request, or its exception."""
        ordinary = [request for request in batch if request.page is None]
        done: list[tuple[_Request, Any]] = []
        if ordinary:
            try:
                results: Sequence[Any] = self._file.apply([each.operations for each in ordinary])
            except Exception as error:  # noqa: BLE001  # the thread never fails
                results = [self._failed(error) for _ in ordinary]
            done += zip(ordinary, results, strict=True)
        for request in batch:
            if request.page is not None:
                try:
                    file = self._file
                    page = file.group_page if request.groups else file.page
                    done.append((request, page(*request.page, PAGE)))
                except Exception as error:  # noqa: BLE001  # the thread never fails
                    done.append((request, self._failed(error)))
        return done

    def _failed(self, error: Exception) -> UnavailableError:
        cause = str(error) if isinstance(error, FileError) else f"{type(error).__name__}: {error}"
        return self._unavailable(cause)

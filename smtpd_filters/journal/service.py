"""The journal's process: a socket is read in one thread, and files are written in another.

Linux queues only about eleven datagrams of a unix socket, whatever its buffer, so the thread that
reads does nothing but read. The other parses, joins and writes in batches.

Invariants
----------
*One journal*: a second one for the same directory or socket is refused.
*Bounded*: the queue between the threads has `MAX_QUEUE` datagrams and `MAX_QUEUED` bytes; more are
dropped and counted. Stories are written before more are parsed than the merger may hold.
*Clean end*: after SIGTERM everything that was received is written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import stat
import sys
from collections import Counter, deque
from threading import Event, Thread
from time import monotonic, time
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError, os_reason, user_name
from smtpd_filters.startup import ignore_strays

from .archive import Archive
from .day import NewerError
from .merging import Merger
from .reception import MAX_DATAGRAM, InvalidError, OtherVersionError, decode, is_state, part_of
from .sender import MAX_PATH
from .states import WRITTEN, Collected, remove
from .wire import BEGINNING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Write permission only: for the journal's user and smtpd's group.
MODE = 0o620
#: Datagrams between the two threads, their bytes, and stories of one transaction.
MAX_QUEUE, MAX_QUEUED, BATCH = 50_000, 64 << 20, 500
#: Seconds between two transactions, between two lines about losses, and between two files of
#: processes' states.
INTERVAL, REPORTING, SHOWING = 0.5, 60.0, 5.0
#: Datagrams read between two looks at the signals.
READS = 1000
#: Seconds after which the thread that writes has to let the other one read: in Python's 5 ms more
#: datagrams can come than the socket holds.
SWITCHING = 0.0005
_BUFFER = 1 << 20
#: What is lost, in the log.
LOSSES = {
    "invalid": "{} invalid",
    "foreign": "{} from filters of another release (restart smtpd to start those of this release)",
    "overflow": "{} that came too fast",
    "lost": "{} that filters could not send",
}


class Service:
    """A journal with its socket and its files.

    `note` takes lines for the log; `group` is the number of the group that may write to the socket,
    or None for the process's own. `max_queued` is the limit of the queue in bytes.
    """

    def __init__(
        self,
        archive: Archive,
        path: str,
        *,
        group: int | None,
        note: Callable[[str], object],
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._archive, self._path, self._group, self._note = archive, path, group, note
        self._max_queued = max_queued
        self._merger = Merger()
        self._states = Collected()
        self._hides = False
        self._queue: deque[bytes] = deque()
        #: Bytes that were put into the queue by one thread, and taken from it by the other.
        self._put = self._taken = 0
        #: Something is in the queue; the end was asked for; nothing more will be in the queue.
        self._arrived, self._ending, self._complete = Event(), Event(), Event()
        #: Counts since the start: received, invalid, foreign (those of them that are of another
        #: release), overflow (dropped between the threads), lost (by the senders), stories,
        #: unwritten.
        self.counts: Counter[str] = Counter()
        self._lock = self._socket_lock = -1
        self._socket: socket.socket | None = None
        self._bound = (0, 0)
        self._reported: Counter[str] = Counter()
        self._next_report = self._next_bug = 0.0

    # -- start -----------------------------------------------------------------------------

    def open(self) -> None:
        """Lock the directory, open the file and the socket. Raises ConfigError."""
        directory = self._archive.directory
        lock = os.path.join(directory, "lock")  # noqa: PTH118  # paths as text
        try:
            self._lock = _locked(lock)
        except BlockingIOError:
            raise ConfigError(f"{directory}: in use by another journal") from None
        except OSError as error:
            raise ConfigError(f"{lock}: {os_reason(error)}") from None
        try:
            self._archive.open(time())
        except NewerError as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise ConfigError(f"{error.filename or directory}: {os_reason(error)}") from None
        self._bind()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ending.set())
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        ignore_strays()

    def _bind(self) -> None:
        path = self._path
        if len(os.fsencode(path)) > MAX_PATH:
            raise ConfigError(f"{path}: longer than {MAX_PATH} bytes, too long for a socket")
        try:
            self._socket_lock = _locked(f"{path}.lock")
        except BlockingIOError:
            raise ConfigError(f"{path}: in use by another journal") from None
        except OSError as error:
            raise ConfigError(f"{path}: {os_reason(error)}") from None
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            _remove_socket(path)
            before = os.umask(0o777 & ~MODE)
            try:
                listening.bind(path)
            finally:
                os.umask(before)
            self._give_to_group(path)
            os.chmod(path, MODE)  # noqa: PTH101
            found = os.stat(path)  # noqa: PTH116
        except BaseException as error:
            listening.close()
            if not isinstance(error, OSError):
                raise
            raise ConfigError(f"{path}: {os_reason(error)}") from None
        self._bound = found.st_dev, found.st_ino
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        listening.setblocking(False)  # noqa: FBT003  # its only parameter
        self._socket = listening

    def _give_to_group(self, path: str) -> None:
        """Let the group of smtpd's filters write to the socket. Raises ConfigError, OSError."""
        if self._group is None:
            return
        try:
            os.chown(path, -1, self._group)
        except PermissionError:
            os.unlink(path)  # noqa: PTH108
            group = _group_name(self._group)
            raise ConfigError(
                f"{path}: user {user_name()} can't give it to the group {group}, whose members "
                f"send to it: make the user a member of {group}, or name another group with "
                "--socket-group"
            ) from None

    # -- receiving -------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; write what was received."""
        assert self._socket is not None  # noqa: S101  # opened
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(woken)
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCHING)
        writer = Thread(target=self._write, name="writer")
        writer.start()
        if self._ending.is_set():  # before there was a descriptor for it
            os.write(woken, b"!")
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(wake, select.POLLIN)
        try:
            while not self._ending.is_set():
                poll.poll()
                self._read(self._socket)
            self._read(self._socket)  # what came before the signal
        finally:
            self._complete.set()
            self._arrived.set()
            signal.set_wakeup_fd(-1)
            writer.join()
            sys.setswitchinterval(before)
            os.close(wake)
            os.close(woken)

    def _read(self, listening: socket.socket) -> None:
        queue = self._queue
        for _ in range(READS):
            try:
                data = listening.recv(MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:  # of a sender
                continue
            if len(queue) >= MAX_QUEUE or self._put - self._taken > self._max_queued:
                self.counts["overflow"] += data.count(BEGINNING) or 1
                continue
            self._put += len(data)
            queue.append(data)
        if queue and not self._arrived.is_set():
            self._arrived.set()

    # -- writing ---------------------------------------------------------------------------

    def _write(self) -> None:
        """Write until the end: the work of a thread."""
        while True:
            ending = self._complete.is_set()
            try:
                self._parse_all()
                self._write_due(everything=ending)
                self._write_states()
                self._report(at_once=ending)
            except Exception as error:  # noqa: BLE001  # goes on
                self._note_bug(error)
            if ending and not self._queue:
                return
            if not self._queue and not len(self._merger):
                self._arrived.wait(WRITTEN)
            self._arrived.clear()
            if not self._queue:
                self._complete.wait(INTERVAL)

    def _parse_all(self) -> None:
        queue, counts = self._queue, self.counts
        now = monotonic()
        for _ in range(len(queue)):
            if self._merger.is_full:
                return
            data = queue.popleft()
            self._taken += len(data)
            try:
                several = decode(data)
            except InvalidError:
                counts["received"] += 1
                counts["invalid"] += 1
                continue
            for found in several:
                counts["received"] += 1
                try:
                    self._take(found, now, len(data) // len(several))
                except InvalidError as error:
                    counts["invalid"] += 1
                    counts["foreign"] += isinstance(error, OtherVersionError)
                except Exception as error:  # noqa: BLE001  # goes on
                    counts["invalid"] += 1
                    self._note_bug(error)

    def _take(self, found: Any, now: float, size: int) -> None:
        """Take in a part of a story, or the state of a process. Raises InvalidError."""
        if is_state(found):
            self._states.add(found)
            return
        part = part_of(found)
        self.counts["lost"] += max(0, part["x"])
        self._merger.add(part, now, size)

    def _write_due(self, *, everything: bool) -> None:
        due = self._merger.due(monotonic(), everything=everything)
        now = time()
        for story in due:
            # A sender's clock is that of this machine; one that says otherwise isn't believed.
            if not -86400 <= story["t"] / 1000 - now <= 1:
                story["t"] = int(now * 1000)
        for at in range(0, len(due), BATCH):
            batch = due[at : at + BATCH]
            if self._archive.write(batch, now):
                self.counts["stories"] += len(batch)
        self.counts["unwritten"] = self._archive.unwritten

    def _write_states(self) -> None:
        """Write the states of the processes for the page, once in a while."""
        try:
            if self._states.write(self._archive.directory, self.counts, SHOWING):
                self._hides = False
        except OSError as error:
            if not self._hides:
                self._note(f"the state of processes can't be written: {os_reason(error)}")
            self._hides = True

    def _note_bug(self, error: Exception) -> None:
        """Log a failure of our own, and not each one of many."""
        now = monotonic()
        if now >= self._next_bug:
            self._next_bug = now + REPORTING
            self._note(f"bug: {type(error).__name__}: {error}")

    def _report(self, *, at_once: bool = False) -> None:
        """Log what was lost, once in a while, or the rest at the end."""
        now = monotonic()
        if now < self._next_report and not at_once:
            return
        new = self.counts - self._reported
        new["invalid"] -= new["foreign"]
        said = [text.format(new[kind]) for kind, text in LOSSES.items() if new[kind]]
        if said:
            self._next_report = now + REPORTING
            self._reported = self.counts.copy()
            self._note(f"events not stored: {', '.join(said)}; mail is not affected")

    def close(self) -> None:
        """Remove the socket, and release the locks."""
        self._archive.close()
        if self._lock >= 0:
            remove(self._archive.directory)
        if self._socket is not None:
            self._socket.close()
            try:
                found = os.stat(self._path)  # noqa: PTH116
                if (found.st_dev, found.st_ino) == self._bound:
                    os.unlink(self._path)  # noqa: PTH108
            except OSError:
                pass
        for fd in (self._lock, self._socket_lock):
            if fd >= 0:
                os.close(fd)
        self._lock = self._socket_lock = -1


def _remove_socket(path: str) -> None:
    """Remove the socket that an earlier journal has left. Raises ConfigError, OSError."""
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"{path}: exists, and is not a socket")
        os.unlink(path)  # noqa: PTH108


def _group_name(number: int) -> str:
    from grp import getgrgid  # needed only for an error

    try:
        return getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _locked(path: str) -> int:
    """Lock a file; return its descriptor. Raises BlockingIOError, OSError."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        fd = os.open(path, os.O_RDONLY | flags)  # it is there, but for the first start
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd

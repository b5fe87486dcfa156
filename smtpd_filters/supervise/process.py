"""One program: started as smtpd starts a filter, with its descriptors, its log and its memory."""

from __future__ import annotations

import _socket  # `socket` imports `selectors`, which takes 0.3 MiB
import os
import shlex
import signal
import sys

from smtpd_filters.runtime.channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.runtime.log import Log

#: smtpd's directories of commands without a slash: on Debian, OpenBSD, FreeBSD, Alpine.
LIBEXEC = (
    "/usr/libexec/opensmtpd",
    "/usr/local/libexec/smtpd",
    "/usr/local/libexec/opensmtpd",
    "/usr/libexec/smtpd",
    "/usr/lib/opensmtpd",
)
#: Bytes of one read of a program's stderr, and of a line of it.
STDERR = 1 << 14
#: Lines of stderr that are logged at once, and in each second after that.
BURST, RATE = 200, 50
#: Seconds between notes on lines that were dropped.
NOTES = 1.0
#: Dropped lines that are logged after all when the program has ended: its last words.
LAST = 5
#: The signals that Python or this process treats in its own way, and a program as usual.
_SIGNALS = tuple(
    getattr(signal, name)
    for name in (
        "SIGHUP",
        "SIGINT",
        "SIGPIPE",
        "SIGUSR1",
        "SIGUSR2",
        "SIGTERM",
        "SIGCHLD",
        "SIGALRM",
        "SIGXCPU",
        "SIGXFSZ",
    )
    if hasattr(signal, name)
)
#: RLIMIT_DATA counts more than what is resident, and ends a program that grows within a second.
_ROOM = 256 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = "/proc"


def shell_command(words: Sequence[str]) -> str:
    """Return the command for `sh -c`: a single word as it is, since smtpd.conf may quote one.

    A program without a slash is searched for beside this one and where smtpd does, then in PATH.
    """
    if len(words) == 1:
        name, blank, rest = words[0].partition(" ")
        return (shlex.quote(found) if (found := _find(name)) != name else name) + blank + rest
    return shlex.join([_find(words[0]), *words[1:]])


def _find(name: str) -> str:
    if "/" in name or not name:
        return name
    for place in _places():
        path = f"{place}/{name}"
        if os.access(path, os.X_OK):
            return path
    return name


def _places() -> tuple[str, ...]:
    here = sys.argv[0].rpartition("/")[0]
    return (os.path.abspath(here), *LIBEXEC) if here else LIBEXEC  # noqa: PTH100  # pathlib costs start-up


def extend_path() -> None:
    """Have what a command like `env LANG=C filter-x` runs be found there as well, after PATH."""
    os.environ["PATH"] = ":".join([os.environ.get("PATH") or os.defpath, *_places()])


def keep_to_ourselves() -> None:
    """Have programs not inherit what this process has inherited."""
    for fd in range(3, 256):
        try:
            os.set_inheritable(fd, False)  # noqa: FBT003  # by position only
        except OSError:
            continue


class Process:
    """A running program, in a process group of its own.

    `memory` is the limit in bytes, or 0. Raise OSError if it can't be started.
    """

    def __init__(self, command: str, memory: int = 0) -> None:
        self.memory = memory
        self.status: int | None = None
        limit = ""
        if memory:
            # In KiB. Where there is no /proc this is the only limit.
            room = 2 * memory + _ROOM if os.path.exists(_PROC) else memory  # noqa: PTH110  # pathlib costs start-up
            limit = f"ulimit -d {-(-room // 1024)}; "
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        reader = writer = -1
        try:
            reader, writer = os.pipe()
            inner = theirs.fileno()
            self._socket = ours
            self.channel = Channel(ours.fileno(), ours.fileno())
            self.fd, self.stderr = ours.fileno(), reader
            os.set_blocking(reader, False)
            self._rest = b""
            # Last: what has been started must not be lost for lack of memory.
            self.pid = os.posix_spawn(
                "/bin/sh",
                ["sh", "-c", f"{limit}exec {command}"],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, inner, 0),
                    (os.POSIX_SPAWN_DUP2, inner, 1),
                    (os.POSIX_SPAWN_DUP2, writer, 2),
                ],
                setpgroup=0,
                setsigmask=(),
                setsigdef=_SIGNALS,
            )
        except (OSError, MemoryError):
            ours.close()
            if reader >= 0:
                os.close(reader)
            raise
        finally:
            theirs.close()
            if writer >= 0:
                os.close(writer)

    def reap(self) -> bool:
        """Return whether it has ended, and if so end what is left of its group."""
        if self.status is not None:
            return True
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                return False
            # Until it is waited for, its number can't be another's.
            self.signal(signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            self.status = 0
        return True

    def ended(self) -> str:
        """Return how it has ended, for the log."""
        status = self.status or 0
        return f"killed by signal {-status}" if status < 0 else f"exited with status {status}"

    def signal(self, number: int) -> None:
        """Send a signal to its group, and to itself if it has left that, unless it was reaped."""
        if self.status is not None:
            return
        try:
            os.killpg(self.pid, number)
        except OSError:
            pass
        try:
            if os.getpgid(self.pid) != self.pid:
                os.kill(self.pid, number)
        except OSError:
            pass

    def terminate(self) -> None:
        """Ask it to end, even if it is stopped."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)

    def resident(self) -> int:
        """Return the bytes of memory it uses, or 0 if the system does not tell."""
        try:
            with open(f"{_PROC}/{self.pid}/statm", "rb") as file:  # noqa: PTH123  # pathlib costs start-up
                return int(file.read().split()[1]) * _PAGE
        except (OSError, ValueError, IndexError):
            return 0

    def end_input(self) -> None:
        """Let the program read the end of its input."""
        try:
            self._socket.shutdown(_socket.SHUT_WR)
        except OSError:
            pass

    def hang_up(self) -> None:
        """Close the conversation."""
        if self.fd >= 0:
            self.fd = -1
            self._socket.close()

    def close_log(self) -> None:
        """Close its stderr."""
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1

    def log_lines(self) -> list[bytes] | None:
        """Return the lines on its stderr; None at the end."""
        try:
            data = os.read(self.stderr, STDERR)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            rest, self._rest = self._rest, b""
            return [rest] if rest else None
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > STDERR:
            lines.append(rest)
            rest = b""
        self._rest = rest
        return lines


class LogRate:
    """The rate at which lines of a program are logged, and notes on those that are dropped."""

    def __init__(self, log: Log, name: str) -> None:
        self._log, self._name = log, name
        self._room = float(BURST)
        self._since = 0.0
        #: The last lines, if they were dropped.
        self._dropped: list[bytes] = []
        #: Lines dropped since the last note, and when there may be another.
        self._count = 0
        self._next_note = 0.0

    def write(self, lines: Sequence[bytes], now: float) -> None:
        """Log lines as they are; drop and count those beyond the rate."""
        self._room = min(BURST, self._room + (now - self._since) * RATE)
        self._since = now
        for line in lines:
            if self._room < 1:
                self._count += 1
                self._dropped = [*self._dropped[1 - LAST :], line]
                continue
            self._dropped = []
            if now >= self._next_note and self._note_dropped():
                self._next_note = now + NOTES
            self._room -= 1
            self._write(line)

    def finish(self) -> None:
        """Log how many were dropped, and the last lines if they were."""
        last, self._dropped = self._dropped, []
        self._count -= len(last)
        self._note_dropped()
        for line in last:
            self._write(line)

    def _note_dropped(self) -> bool:
        count, self._count = self._count, 0
        if count:
            self._log.event(self._name, "log lines dropped", lines=str(count))
        return count > 0

    def _write(self, line: bytes) -> None:
        self._log.line(line.decode("utf-8", "backslashreplace"))

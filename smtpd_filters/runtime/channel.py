"""The two descriptors to smtpd, and the signals.

smtpd gives its filters one socket as stdin and stdout; a shell gives two pipes. Both ends are moved
away from descriptors 0 and 1 (`Ends`), so that a stray `print` in a policy goes to the log and not
to smtpd, which would exit on such a line.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import sys
from collections import deque
from itertools import islice

from smtpd_filters import startup
from smtpd_filters.errors import ConfigError, user_name

from .prints import BoundedPrints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

#: Bytes of one read. Sizes from 32 to 256 KiB are equally fast. Less than 64 KiB, so that a line
#: that begins and ends within one read is never too long to be returned.
READ = 60 << 10
#: Bytes of pending output above which nothing more is read, and above which no more of the held
#: messages is sent. Pending output delays everything after it: at 10 MB/s, which is as fast as
#: smtpd reads, by 25 and 12 ms.
HIGH_WATER = 1 << 18
LOW_WATER = 1 << 17
#: Bytes, and pieces, of one write.
WRITE = 1 << 18
PIECES = 64
#: Bytes of one read or write while memory is scarce: Python has preallocated the integers up to it.
SMALL = 256
_LF = 0x0A
#: Seconds allowed for writing the last output after the end of input.
LAST_WORDS = 10.0
#: Seconds allowed at the end for filters to release their resources.
CLOSING = 2.0
#: Seconds after which the process exits whatever a policy does: from then on, and from the end of
#: input.
LEAVING = 3 * CLOSING
ENDING = LAST_WORDS + LEAVING


class Ends:
    """The descriptors to smtpd, moved away from 0 and 1.

    Code that still uses these, such as a policy's `print`, reads nothing, and writes to the log,
    line by line. The log is never smtpd's own socket: if stderr is closed, or the same file as
    stdin or stdout (`2>&1`), log lines are discarded.

    Raise ConfigError if stdin or stdout is closed, since smtpd can't be connected to them then.
    """

    def __init__(self) -> None:
        # Descriptors opened from here on must not get a standard number.
        _open_standard()
        self.source, self.sink = _duplicate(0), _duplicate(1)
        #: A duplicate of stderr while stderr is /dev/null, or -1.
        self._log = -1
        #: The descriptor that `log` has returned, or -1.
        self._copy = -1
        if _shared(2, (self.source, self.sink)):
            self._log = _duplicate(2)
            _to_null(2, os.O_WRONLY)
        _to_null(0, os.O_RDONLY)
        os.dup2(2, 1)
        # What was printed before goes to the log as well, and what is printed from now on at once.
        self._prints = BoundedPrints()

    def terminal(self) -> bool:
        """Return whether both are a terminal, since the command was started by hand."""
        return os.isatty(self.source) and os.isatty(self.sink)

    def log(self) -> int:
        """Return another descriptor of the log: a policy may close stderr and reuse its number."""
        self._copy = _duplicate(2)
        return self._copy

    def leave_terminal(self, prog: str, checked: str, more: str = "") -> None:
        """Restore the standard descriptors, and write to stderr that what was checked is right."""
        self.give_back()
        if sys.stderr is not None:  # closed
            sys.stderr.write(
                f"{prog}: {checked} are right, as user {user_name()}{more}; "
                "smtpd starts this filter, see smtpd.conf(5)\n"
            )

    def give_back(self) -> None:
        """Restore the standard descriptors, if there is to be no conversation."""
        self._prints.give_back()
        for fd, number in ((self.source, 0), (self.sink, 1), (self._log, 2)):
            if fd >= 0:
                os.dup2(fd, number)
                os.close(fd)
        if self._copy >= 0:
            os.close(self._copy)


def _open_standard() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _to_null(number, os.O_RDWR)
            if number < 2:
                raise ConfigError(f"{name} is closed: a filter must be started by smtpd") from None


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _to_null(number: int, flags: int) -> None:
    fd = os.open(os.devnull, flags)
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)


def _shared(log: int, ends: tuple[int, ...]) -> bool:
    """Return whether the log would go to smtpd; a terminal or a file never does."""
    found = os.fstat(log)
    if not (stat.S_ISSOCK(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        return False
    return any(os.path.samestat(found, os.fstat(end)) for end in ends)


class Channel:
    """A source of bytes and a sink for them; neither blocks.

    Invariants
    ----------
    *In pieces*: pending output is kept in the pieces in which it came and is never joined. Answers
    overtake pieces of messages, each of which consists of whole lines.
    *Once*: whatever allocation fails, each byte is read once and written once, since progress is
    recorded by operations that take no memory. A system call allocates only for a result above 256,
    so nothing larger is read or written while memory is `scarce`.
    """

    #: Whether answers may be written without being queued first.
    direct = True

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        #: The reader has closed its end: output is discarded.
        self.broken = False
        self._closed = False
        #: Memory is scarce.
        self.scarce = False
        #: Number of bytes in the buffer, which `read` returns until this is set to 0.
        self.unread = 0
        #: The read buffer: a read needs no memory, so nothing read is lost for lack of it.
        self._buffer = bytearray(READ)
        self._large = (memoryview(self._buffer),)
        self._small = (memoryview(self._buffer)[:SMALL],)
        # The order of output: the rest of an answer or of a line that was written in part, as a
        # piece with start and end; answers; the lines after that rest, in its piece; lines.
        self._rest = b""
        self._rest_at = self._rest_end = 0
        self._answers: deque[bytes] = deque()
        self._part = b""
        self._part_at = 0
        self._lines: deque[bytes] = deque()
        #: Bytes of pending output.
        self.size = 0
        #: Bytes that have been written but not dropped from the queues yet; how many answers were
        #: offered to that write.
        self._done = self._offered = 0
        for fd in (source, sink):
            mode = os.fstat(fd).st_mode
            # Other processes share a terminal or a file, and would not expect this mode.
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                os.set_blocking(fd, False)

    def read(self) -> bytes | None:
        """Return what is there, the same until `unread` is set to 0; None if nothing, empty at EOF.

        Raise MemoryError.
        """
        if not self.unread:
            try:
                self.unread = os.readv(self.source, self._small if self.scarce else self._large)
            except BlockingIOError:
                return None
            except OSError:
                return b""
        return bytes(self._large[0][: self.unread])

    def write(self, answers: list[bytes], lines: list[bytes]) -> None:
        """Take whole lines of the protocol from the lists, and write what can be written now.

        Raise MemoryError; lines that were not taken are then still in the lists.
        """
        if answers and self.direct and not (lines or self.size or self.scarce or self.broken):
            self._write_answers(answers)
            return
        if answers or lines:
            self._keep(b"".join(answers), b"".join(lines))
            answers.clear()
            lines.clear()
        if self.size:
            self.flush()

    def _write_answers(self, answers: list[bytes]) -> None:
        """Write answers while nothing else is pending, the most frequent case.

        Has the effect of `_keep` and `flush`.
        """
        data = b"".join(answers)
        size = len(data)
        self._rest, self._rest_at, self._rest_end = data, 0, size
        self.size = size
        answers.clear()
        try:
            self._done = os.write(self.sink, data)
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
            self._drop()
            return
        if self._done == size:
            self._drop()
        else:
            self._forget()

    def _keep(self, answers: bytes, lines: bytes) -> None:
        """Queue both, or neither and raise MemoryError."""
        if self.broken:
            return
        size = self.size + len(answers) + len(lines)
        if answers:
            self._answers.append(answers)
        if lines:
            try:
                self._lines.append(lines)
            except MemoryError:
                if answers:
                    self._answers.pop()
                raise
        self.size = size

    def flush(self) -> None:
        """Write as much pending output as can be written now.  Raise MemoryError."""
        while self.size:
            if self._done:
                self._forget()
                continue
            size = 0
            try:
                pieces = self._next()
                size = sum(map(len, pieces))
                if self.scarce:
                    self._done = os.write(self.sink, pieces[0][:SMALL])
                else:
                    self._done = os.writev(self.sink, pieces)
            except BlockingIOError:
                return
            except OSError:
                # EPIPE: the reader has closed its end. The end of input will follow.
                self.broken = True
                self._drop()
                return
            if self._done < size:
                self._forget()
                if not self.scarce:
                    return

    def _next(self) -> list[memoryview]:
        """Return the pieces of the next write."""
        pieces = []
        size = offered = 0
        if self._rest:
            pieces.append(memoryview(self._rest)[self._rest_at : self._rest_end])
            size = len(pieces[0])
        for data in self._answers:
            if size >= WRITE or len(pieces) == PIECES:
                break
            pieces.append(memoryview(data))
            size += len(data)
            offered += 1
        if self._part and size < WRITE and len(pieces) < PIECES:
            pieces.append(memoryview(self._part)[self._part_at :])
            size += len(pieces[-1])
        for data in self._lines:
            if size >= WRITE or len(pieces) == PIECES:
                break
            pieces.append(memoryview(data))
            size += len(data)
        self._offered = offered
        return pieces

    def _forget(self) -> None:
        """Drop what has been written.  Raise MemoryError, and then drop nothing."""
        done = self._done
        size = self.size - done
        rest, rest_at, rest_end = self._rest, self._rest_at, self._rest_end
        part, part_at = self._part, self._part_at
        answers = lines = 0
        written = min(done, rest_end - rest_at)
        rest_at += written
        done -= written
        for data in islice(self._answers, self._offered if done else 0):
            answers += 1
            rest, rest_at, rest_end = data, min(done, len(data)), len(data)
            done -= rest_at
            if not done:
                break
        if done and part:
            rest, rest_at, rest_end, done = _written(part, part_at, done)
            part_at = rest_end
        for data in self._lines:
            if not done:
                break
            lines += 1
            rest, rest_at, rest_end, done = _written(data, 0, done)
            part, part_at = data, rest_end
        if rest_at == rest_end:
            rest = b""
        if part_at == len(part):
            part, part_at = b"", 0
        # Nothing below takes memory.
        self._rest, self._rest_at, self._rest_end = rest, rest_at, rest_end
        self._part, self._part_at = part, part_at
        while answers:
            self._answers.popleft()
            answers -= 1
        while lines:
            self._lines.popleft()
            lines -= 1
        self.size = size
        self._done = 0

    def _drop(self) -> None:
        self._rest = self._part = b""
        self._rest_at = self._rest_end = self._part_at = 0
        self._answers.clear()
        self._lines.clear()
        self.size = self._done = 0

    def hung_up(self) -> bool:
        """Return whether the other end is closed in both directions, so nothing is expected.

        An end that is only shut down for writing still reads.
        """
        if not self.broken:
            hangup = select.poll()
            hangup.register(self.sink, 0)  # POLLHUP and POLLERR are always reported
            self.broken = bool(hangup.poll(0))
        return self.broken

    def discard(self) -> None:
        """Have both descriptors, unless they are closed, refer to /dev/null."""
        for fd in () if self._closed else {self.source, self.sink}:
            _to_null(fd, os.O_RDWR)

    def close(self) -> None:
        """Close both descriptors."""
        self._closed = True
        for fd in {self.source, self.sink}:
            os.close(fd)


def _written(data: bytes, at: int, done: int) -> tuple[bytes, int, int, int]:
    """Return what is left of a line that was written in part, in a piece of whole lines.

    `at` is where the write began in the piece `data`, `done` how many bytes were written. The
    result is the piece, the start and end of the rest in it (equal at the end of a line), and the
    number of written bytes beyond the piece.
    """
    left = done - (len(data) - at)
    if left >= 0:
        return data, len(data), len(data), left
    at += done
    if data[at - 1] == _LF:
        return data, at, at, 0
    return data, at, data.find(b"\n", at) + 1 or len(data), 0


#: SIGINT, too: on a terminal smtpd gets it as well, and our input ends when smtpd does.
_IGNORED = (
    signal.SIGINT, signal.SIGPIPE, *(each for each in startup.STRAY if each != signal.SIGALRM),
)  # fmt: skip


class Signals:
    """The operator's signals: SIGTERM to stop, SIGHUP to reload tables.

    `stopping` is called on SIGTERM, whatever runs then. It must not raise.
    """

    def __init__(self, stopping: Callable[[], object]) -> None:
        self._stopping = stopping
        self.stop = self.reload = False
        #: Becomes readable with every signal.
        self.wakeup, write_end = os.pipe()
        self._write_end = write_end
        for fd in (self.wakeup, write_end):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._handlers = {signal.SIGTERM: self._stop, signal.SIGHUP: self._reload}
        for number in self._handlers:
            signal.signal(number, self._handlers[number])
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        if startup.early:
            startup.early.clear()
            self._reload(signal.SIGHUP, None)

    def restore(self) -> None:
        """Restore the handlers after a policy has replaced them; it keeps its own of others."""
        for number in self._handlers:
            handler = self._handlers[number]
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
        for number in _IGNORED:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, signal.SIG_IGN)

    def drain(self) -> None:
        """Discard the wake-ups."""
        try:
            while os.read(self.wakeup, 512):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Stop handling signals."""
        signal.set_wakeup_fd(-1)
        # From here on a signal must not make a failure of an exit that is about to happen.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        os.close(self.wakeup)
        os.close(self._write_end)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stop = True
        self._wake()
        self._stopping()

    def _reload(self, _signal: int, _frame: FrameType | None) -> None:
        self.reload = True
        self._wake()

    def _wake(self) -> None:
        """Make `wakeup` readable, even if a policy has replaced Python's own descriptor for it."""
        try:
            os.write(self._write_end, b"\0")
        except OSError:
            pass  # it is full, and readable


def exit_now(status: int) -> None:
    """Exit without the interpreter's clean-up, which would run code of policies."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # closed
    os._exit(status)

"""The two descriptors to smtpd, and the signals.

smtpd gives its filters one socket as stdin and stdout; a shell gives two pipes.  Both ends are
taken away from descriptors 0 and 1 (`Ends`), so that a stray ``print`` in a policy goes to the log
and not to smtpd, which exits on such a line.
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

from smtpd_filters.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: Bytes taken in one read.  Sizes from 32 to 256 KiB are equally fast.  A little less than 64 KiB,
#: so that no line that begins and ends within one read is too long to be sent back.
READ = 60 << 10
#: Bytes waiting to be written above which nothing more is read, and above which no more of the
#: messages that are held is sent.  What is pending delays whatever comes behind it: at 10 MB/s,
#: which is as fast as smtpd reads, by 25 and 12 ms.
HIGH_WATER = 1 << 18
LOW_WATER = 1 << 17
#: Bytes, and pieces, that are written at a time.
WRITE = 1 << 18
PIECES = 64
#: Bytes that are read or written at a time while memory is scarce: Python's numbers up to it exist.
SMALL = 256
_LF = 0x0A
#: Seconds that the last output may take to be written once the input has ended.
LAST_WORDS = 10.0
#: Seconds in which filters must have let go of what they hold, at the end.
CLOSING = 2.0


class Ends:
    """The descriptors to smtpd, taken away from 0 and 1.

    What goes on using these, as a policy's ``print``, gets nothing, and the log, line by line.  The
    log is never smtpd's own socket: if stderr is the same file as stdin or stdout (``2>&1``), or
    closed, what is logged goes nowhere.

    Raises ConfigError if stdin or stdout is closed: there is nobody to talk to.
    """

    def __init__(self) -> None:
        # None of what is opened from here on may get a standard number.
        _open_standard()
        self.source, self.sink = _duplicate(0), _duplicate(1)
        #: Where stderr was, while it is none.
        self._log = -1
        if _shared(2, (self.source, self.sink)):
            self._log = _duplicate(2)
            _to_null(2, os.O_WRONLY)
        _to_null(0, os.O_RDONLY)
        os.dup2(2, 1)
        _log_lines()

    def terminal(self) -> bool:
        """Whether both are a terminal: somebody tries the command by hand."""
        return os.isatty(self.source) and os.isatty(self.sink)

    def give_back(self) -> None:
        """Undo it, when there is to be no conversation after all."""
        _log_lines()
        for fd, number in ((self.source, 0), (self.sink, 1), (self._log, 2)):
            if fd >= 0:
                os.dup2(fd, number)
                os.close(fd)


def _log_lines() -> None:
    """Write what has been printed, and from now on each line, and whatever it holds, at once.

    As with stderr.  What is printed is smtpd's log by now, which has to be there when it is read.
    """
    stdout: object = sys.stdout  # None, or replaced by a filter's own
    if hasattr(stdout, "reconfigure"):
        try:
            stdout.reconfigure(line_buffering=True, errors="backslashreplace")
        except (OSError, ValueError):
            pass  # nobody reads the log, or it is closed


def _open_standard() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _to_null(number, os.O_RDWR)
            if number < 2:
                raise ConfigError(f"{name} is closed: smtpd is not there") from None


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _to_null(number: int, flags: int) -> None:
    fd = os.open(os.devnull, flags)
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)


def _shared(log: int, ends: tuple[int, ...]) -> bool:
    """Whether the log would be written to smtpd; a terminal, or a file, is nobody's end."""
    found = os.fstat(log)
    if not (stat.S_ISSOCK(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
        return False
    return any(os.path.samestat(found, os.fstat(end)) for end in ends)


class Channel:
    """A source of bytes and a sink for them; neither blocks.

    Invariants
    ----------
    In pieces
        What is pending is kept in the pieces in which it came and is never joined.  Answers
        overtake lines of messages, each of which is a piece of whole lines.
    Once
        Whatever allocation fails, each byte is read once and written once: what was done is noted
        by operations that take no memory.  The system's own calls need some for a result above 256
        alone, so that nothing larger is read or written while memory is `scarce`.
    """

    #: Whether answers may be written without being kept first.
    direct = True

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        #: The reader has gone: what is written goes nowhere.
        self.broken = False
        #: There is hardly any memory.
        self.scarce = False
        #: Bytes that were read, and that `read` gives until this is set to 0.
        self.unread = 0
        #: What is read into: a read needs no memory, so that nothing read can get lost for want
        #: of it.
        self._buffer = bytearray(READ)
        self._large = (memoryview(self._buffer),)
        self._small = (memoryview(self._buffer)[:SMALL],)
        # What goes first, from one place in a piece to another: the rest of an answer or of a
        # line.  Then answers, the lines behind that rest, and lines.
        self._rest = b""
        self._rest_at = self._rest_end = 0
        self._answers: deque[bytes] = deque()
        self._part = b""
        self._part_at = 0
        self._lines: deque[bytes] = deque()
        #: Bytes waiting to be written.
        self.size = 0
        #: Bytes that have been written, but not been forgotten yet; how many answers were among
        #: what was to be written with them.
        self._done = self._offered = 0
        for fd in (source, sink):
            mode = os.fstat(fd).st_mode
            # A terminal or a file is shared with others, who would not expect it.
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                os.set_blocking(fd, False)

    def read(self) -> bytes | None:
        """What is there, until `unread` is set to 0; None when nothing is, empty at the end.

        Raises MemoryError.
        """
        if not self.unread:
            try:
                self.unread = os.readv(self.source, self._small if self.scarce else self._large)
            except BlockingIOError:
                return None
            except OSError:
                return b""
        return bytes(memoryview(self._buffer)[: self.unread])

    def write(self, answers: list[bytes], lines: list[bytes]) -> None:
        """Take over whole lines of the protocol from the lists, and write what can be written now.

        Raises MemoryError; what is then still in the lists was not taken over.
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
        """Write answers when nothing else is pending, which is what nearly all that is written is.

        Does what `_keep` and `flush` do.
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
        """Keep both, or neither: MemoryError."""
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
        """Write of what is kept as much as can be written now.  Raises MemoryError."""
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
                # EPIPE: nobody reads any more.  The end of input will tell.
                self.broken = True
                self._drop()
                return
            if self._done < size:
                self._forget()
                if not self.scarce:
                    return

    def _next(self) -> list[memoryview]:
        """What is written next."""
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
        """Forget what has been written.  Raises MemoryError, and then has forgotten nothing."""
        done = self._done
        size = self.size - done
        rest, rest_at, rest_end = self._rest, self._rest_at, self._rest_end
        part, part_at = self._part, self._part_at
        answers = lines = 0
        taken = min(done, rest_end - rest_at)
        rest_at += taken
        done -= taken
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
        # From here on nothing takes memory.
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

    def deserted(self) -> bool:
        """Whether the other end is closed both ways, so that nobody waits for anything.

        One that has only said all it had to say still reads.
        """
        if not self.broken:
            gone = select.poll()
            gone.register(self.sink, 0)  # POLLHUP and POLLERR are always told
            self.broken = bool(gone.poll(0))
        return self.broken

    def close(self) -> None:
        """Close both."""
        for fd in {self.source, self.sink}:
            os.close(fd)


def _written(data: bytes, at: int, done: int) -> tuple[bytes, int, int, int]:
    """What is left of a line of which, in a piece of lines, the last of the bytes are written.

    That piece, from where and to where in it (equal at a line's end), and the bytes left over.
    """
    left = done - (len(data) - at)
    if left >= 0:
        return data, len(data), len(data), left
    at += done
    if data[at - 1] == _LF:
        return data, at, at, 0
    return data, at, data.find(b"\n", at) + 1 or len(data), 0


def ignore_hangup() -> None:
    """Ignore SIGHUP until `Signals` takes it over: what it asks for is being done."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


class Signals:
    """What the operator asks for: an end, or that tables be read anew."""

    def __init__(self) -> None:
        self.stop = self.reload = False
        #: Becomes readable with every signal.
        self.wakeup, write_end = os.pipe()
        self._write_end = write_end
        for fd in (self.wakeup, write_end):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, self._reload)
        # SIGINT, too: on a terminal it goes to smtpd as well, whose end is ours.
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    def drain(self) -> None:
        """Forget the wake-ups."""
        try:
            while os.read(self.wakeup, 512):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the signals back."""
        signal.set_wakeup_fd(-1)
        # What ends the process from here on is no failure: it is about to end.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        os.close(self.wakeup)
        os.close(self._write_end)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stop = True

    def _reload(self, _signal: int, _frame: FrameType | None) -> None:
        self.reload = True

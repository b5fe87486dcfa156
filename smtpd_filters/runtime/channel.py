"""The two descriptors to smtpd, and the signals.

smtpd gives its filters one socket as stdin and stdout; a shell gives two pipes.  Both ends are
taken away from descriptors 0 and 1, so that a stray ``print`` in a policy goes to the log and
not to smtpd, which exits on such a line.
"""

from __future__ import annotations

import os
import select
import signal
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: Bytes taken in one read.  Sizes from 32 to 256 KiB are equally fast.  A little less than 64 KiB,
#: so that no line that begins and ends within one read is too long to be sent back.
READ = 60 << 10
#: Bytes waiting to be written above which nothing more is read.
HIGH_WATER = 1 << 20
#: Seconds that the last output may take to be written once the input has ended.
LAST_WORDS = 10.0
#: Seconds in which filters must have let go of what they hold, at the end.
CLOSING = 2.0


def take_over() -> tuple[int, int]:
    """Stdin and stdout under other numbers.

    What goes on using them by theirs, as a policy's ``print``, gets nothing, and the log.
    """
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return source, sink


def give_back(source: int, sink: int) -> None:
    """Undo `take_over`, when there is to be no conversation after all."""
    for fd, number in ((source, 0), (sink, 1)):
        os.dup2(fd, number)
        os.close(fd)


class Channel:
    """A source of bytes and a sink for them; neither blocks."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        #: The reader has gone: what is written goes nowhere.
        self.broken = False
        self._pending: list[bytes] = []
        #: Bytes waiting to be written.
        self.size = 0
        for fd in (source, sink):
            mode = os.fstat(fd).st_mode
            # A terminal or a file is shared with others, who would not expect it.
            if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
                os.set_blocking(fd, False)

    def read(self) -> bytes | None:
        """What is there; None when nothing is, empty at the end of input."""
        try:
            return os.read(self.source, READ)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        """Write what can be written now and keep the rest."""
        if data and not self.broken:
            self._pending.append(data)
            self.size += len(data)
        if self._pending:
            self.flush()

    def flush(self) -> None:
        """Write of what is kept as much as can be written now."""
        data = b"".join(self._pending) if len(self._pending) > 1 else self._pending[0]
        done = 0
        try:
            done = os.write(self.sink, data)
        except BlockingIOError:
            pass
        except OSError:
            # EPIPE: nobody reads any more.  The end of input will tell.
            self.broken = True
            done = len(data)
        self.size -= done
        self._pending = [data[done:]] if done < len(data) else []

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

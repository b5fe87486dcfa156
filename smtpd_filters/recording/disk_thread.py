"""Files that are written by a thread: who has something written never waits for the disk.

Law
---
1. A call here returns at once.  What is done to files is done in the order in which it was asked
   for.
2. A write is whole: one that fails takes back what it has written, and is the last to its file.
3. A failure is kept for whoever asks next (`Disk.failures`).  So is that no thread can be started;
   this is tried again for the next file.
4. The thread takes no signal: those are for the thread that runs the filters.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from queue import SimpleQueue
from threading import Thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    #: A file, what is done to it, and how many bytes it is about.
    Job: TypeAlias = "tuple[File, Callable[[], None], int]"


class File:
    """A file to be written.  `open`, `write` and `close` are for the thread of a `Disk`."""

    def __init__(self, path: str) -> None:
        self.path = path
        #: Who is recorded in it; what is to be written; how many bytes were given to the disk.
        self.sessions: set[bytes] = set()
        self.buffer: list[bytes] = []
        self.size = 0
        #: Whether something has failed: then nothing more is written.
        self.failed = False
        self._fd = -1
        self._written = 0

    def open(self) -> None:
        """Create it, for the owner alone: OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
        self._fd = os.open(self.path, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Write all of it, or nothing: OSError."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, memoryview(data)[done:])
        except OSError:
            os.ftruncate(self._fd, self._written)
            raise
        self._written += done

    def close(self) -> None:
        """Close it, if it was opened; one in which nothing is written goes."""
        if self._fd < 0:
            return
        os.close(self._fd)
        if not self._written:
            os.unlink(self.path)  # noqa: PTH108  # pathlib costs start-up


class Disk:
    """A thread that does to files what it is told, one thing behind the other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._failures: deque[tuple[File, Exception]] = deque()
        # Each is counted by one thread.
        self._given = self._taken = 0

    @property
    def pending(self) -> int:
        """Bytes that are still to be written."""
        return self._given - self._taken

    def do(self, file: File, job: Callable[[], None], size: int = 0) -> None:
        """Have it done to the file, of which it is about `size` bytes.

        Unless the file has failed by then; one that has failed is still closed.
        """
        if self._thread is None and (file.failed or not self._start(file)):
            return  # there is nothing to be closed
        self._jobs.put((file, job, size))
        self._given += size

    def _start(self, file: File) -> bool:
        """Start the thread, for a file that fails otherwise; whether that was possible."""
        thread = Thread(target=self._run, name="disk", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # a limit of the user's or the system's
            file.failed = True
            self._failures.append((file, error))
            return False
        self._thread = thread
        return True

    def failures(self) -> Iterator[tuple[File, Exception]]:
        """What has failed since the last call, each file at most once."""
        while self._failures:
            yield self._failures.popleft()

    def finish(self, seconds: float) -> bool:
        """End the thread when all is done; whether that was within so many seconds."""
        if self._thread is None:
            return True
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (asked := self._jobs.get()) is not None:
            file, job, size = asked
            try:
                if not file.failed or job == file.close:
                    job()
            except Exception as error:  # noqa: BLE001  # no failure reaches the mail
                if not file.failed:
                    file.failed = True
                    self._failures.append((file, error))
            self._taken += size

"""A thread that writes files, so that its callers never wait for the disk.

Invariants
----------
*Non-blocking*: every call returns at once. Operations are executed in the order of the calls.
*Whole writes*: a write that fails is undone, and is the last one to its file.
*Failures are kept*: each is stored until the next call of `Disk.failures`, including the failure to
start a thread, which is tried again for the next file.
*No signals*: the thread blocks all signals; the thread that runs the filters handles them.
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

    #: A file, an operation on it, and the number of bytes that the operation writes.
    Job: TypeAlias = "tuple[File, Callable[[], None], int]"


class File:
    """A file to write. `open`, `write` and `close` are called by the thread of a `Disk`."""

    def __init__(self, path: str) -> None:
        self.path = path
        #: The sessions recorded in it; the output that is still buffered; bytes passed to the disk.
        self.sessions: set[bytes] = set()
        self.buffer: list[bytes] = []
        self.size = 0
        #: Hashes of the look-ups that are in it, by type and name.
        self.lookups: dict[tuple[str, str], int] = {}
        #: Whether an operation has failed: then nothing more is written.
        self.failed = False
        self._fd = -1
        self._written = 0

    def open(self) -> None:
        """Create the file, accessible to its owner only. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
        self._fd = os.open(self.path, flags, 0o600)

    def write(self, data: bytes) -> None:
        """Write all of the data or none. Raises OSError."""
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, memoryview(data)[done:])
        except OSError:
            os.ftruncate(self._fd, self._written)
            raise
        self._written += done

    def close(self) -> None:
        """Close the file if it is open, and delete it if nothing was written."""
        if self._fd < 0:
            return
        os.close(self._fd)
        if not self._written:
            os.unlink(self.path)  # noqa: PTH108  # pathlib costs start-up


class Disk:
    """A thread that executes operations on files, one after the other."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._failures: deque[tuple[File, Exception]] = deque()
        # Each is written by one thread only.
        self._queued = self._finished = 0

    @property
    def pending(self) -> int:
        """The number of bytes that are still to be written."""
        return self._queued - self._finished

    def do(self, file: File, job: Callable[[], None], size: int = 0) -> None:
        """Queue an operation that writes `size` bytes to the file.

        It is skipped if the file has failed by then; a failed file is still closed.
        """
        if self._thread is None and (file.failed or not self._start(file)):
            return  # there is nothing to close
        self._jobs.put((file, job, size))
        self._queued += size

    def _start(self, file: File) -> bool:
        """Start the thread; if that is impossible, mark the file as failed and return False."""
        thread = Thread(target=self._run, name="disk", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # a limit of the user or the system
            file.failed = True
            self._failures.append((file, error))
            return False
        self._thread = thread
        return True

    def failures(self) -> Iterator[tuple[File, Exception]]:
        """Yield the failures since the last call, at most one for each file."""
        while self._failures:
            yield self._failures.popleft()

    def finish(self, seconds: float) -> bool:
        """End the thread after its last operation; return whether it ended within `seconds`."""
        if self._thread is None:
            return True
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (item := self._jobs.get()) is not None:
            file, job, size = item
            try:
                if not file.failed or job == file.close:
                    job()
            except Exception as error:  # noqa: BLE001  # a failure must not affect mail
                if not file.failed:
                    file.failed = True
                    self._failures.append((file, error))
            self._finished += size

"""A player of smtpd's part for one filter, which checks its answers and measures the cost.

As in smtpd, the filter's standard input and output are one stream socket, only the events that it
registered are sent, and a session's next request waits for the answer to the one before. What is
sent is made before the clock starts, and a message is compared after it has stopped.

This is written without the package's own notion of the protocol, so that a filter is measured, and
found wrong, by somebody else. `tests.bench.workloads` says what is played.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

# The repository: filters under test are found from here.
ROOT = Path(__file__).resolve().parents[2]

CONFIG = b"".join(
    b"config|" + line + b"\n"
    for line in (
        b"smtpd-version|7.8.0",
        b"protocol|0.7",
        b"smtp-session-timeout|300",
        b"subsystem|smtp-in",
        b"admd|mx.example.org",
        b"ready",
    )
)
REGISTRATION = re.compile(r"register\|(report|filter)\|smtp-(?:in|out)\|([a-z-]+|\*)")

# As much as a stream socket holds; more in one call gains nothing.
PIECE = 1 << 18
# A filter that neither reads nor writes for so long has stopped.
PATIENCE = 20.0


class MisbehaviourError(Exception):
    """The filter wrote something that smtpd would not accept, or stopped answering."""


class Player:
    """One running filter, and smtpd's end of its socket."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start the filter and read its registrations; `ready` is the time in seconds."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by kill()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # What was read last.
        self.room = bytearray()
        start = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=self._log,
            cwd=ROOT,
            start_new_session=True,
        )
        theirs.close()
        self._socket.settimeout(0)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self.reports: set[str] = set()
        self.phases: set[str] = set()
        try:
            with self.exchange(CONFIG, ending=b"register|ready\n") as registrations:
                self.ready = time.perf_counter() - start
                self._register(registrations.tobytes().decode("latin-1"))
        except MisbehaviourError:
            self.kill()
            raise

    def _register(self, text: str) -> None:
        for line in text.removesuffix("register|ready\n").splitlines():
            match = REGISTRATION.fullmatch(line)
            if match is None:
                raise self.error(f"invalid registration {line!r}")
            (self.reports if match[1] == "report" else self.phases).add(match[2])

    def __enter__(self) -> Self:
        """Return the player: leaving the block ends the filter."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """End the filter: in order when all went well, and by force otherwise."""
        try:
            if kind is None:
                self.finish()
        finally:
            self.kill()

    def finish(self) -> None:
        """Close the filter's input; check that it writes nothing more and exits with status 0."""
        self._socket.shutdown(socket.SHUT_WR)
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            raise self.error("still running 5 s after the end of its input") from None
        try:
            surplus = self._socket.recv(PIECE)
        except (BlockingIOError, ConnectionError):
            surplus = b""
        if surplus:
            raise self.error(f"output that nobody asked for: {surplus[:120]!r}")
        if status:
            raise self.error(f"exit status {status} at the end of its input")

    def kill(self) -> None:
        """Kill the filter if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        self._log.close()

    def error(self, reason: str) -> MisbehaviourError:
        """Make the error for `reason`, with the end of the filter's log."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 600))
        said = self._log.read().decode("utf-8", "replace").strip()
        return MisbehaviourError(f"{reason}\n{said}" if said else reason)

    def logged(self, text: str) -> int:
        """Return how often a text is in the filter's log."""
        # The offset of the file is the filter's as well.
        log = os.pread(self._log.fileno(), PIECE, 0)
        return log.decode("utf-8", "replace").count(text)

    def wait(self, *, sending: bool) -> int:
        """Wait until the socket can be read or, when `sending`, written; return the poll events."""
        self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if sending else 0))
        ready = self._poll.poll(PATIENCE * 1000)
        if not ready:
            raise self.error(f"no progress for {PATIENCE:.0f} s")
        return ready[0][1]

    def send(self, data: bytes | memoryview) -> int:
        """Send what the socket takes now; return how many bytes that were."""
        try:
            return self._socket.send(data[:PIECE])
        except BlockingIOError:
            return 0
        except ConnectionError:
            raise self.error("closed its input") from None

    def receive(self, at: int = 0) -> int:
        """Read what is there into `room`, from `at` on; return how many bytes that were."""
        if len(self.room) < at + PIECE:
            self.reserve(at + 64 * PIECE)
        try:
            with memoryview(self.room) as view:
                size = self._socket.recv_into(view[at : at + PIECE])
        except BlockingIOError:
            return 0
        except ConnectionError:
            size = 0
        if not size:
            raise self.error("its output ended before its input")
        return size

    def reserve(self, size: int) -> None:
        """Allocate this much memory in advance, since that costs more than a read."""
        self.room.extend(b"\xff" * (size - len(self.room)))

    def exchange(
        self, data: bytes, *, ending: bytes = b"\n", lines: int = 0, size: int | None = None
    ) -> memoryview:
        """Send all of `data`, and read until what has come is whole; return that, in `room`.

        It is whole with `size` bytes, or else with `lines` lines, or else when `ending` ends it.
        """
        got = seen = 0
        unsent = memoryview(data)
        while True:
            if unsent:
                done = False
            elif size is not None:
                done = got >= size
            elif lines:
                done = seen >= lines
            else:
                done = self.room.endswith(ending, max(0, got - len(ending)), got)
            if done:
                return memoryview(self.room)[:got]
            events = self.wait(sending=bool(unsent))
            if events & select.POLLOUT:
                unsent = unsent[self.send(unsent) :]
            if events & ~select.POLLOUT:
                more = self.receive(got)
                if lines:
                    seen += self.room.count(b"\n", got, got + more)
                got += more

    @property
    def pid(self) -> int:
        """The number of the filter's process."""
        return self._process.pid

    def cpu(self) -> int:
        """CPU nanoseconds that the filter has used so far, in all its threads."""
        return _used(self._process.pid)

    def cpu_of_each(self) -> list[int]:
        """CPU nanoseconds of the filter and of each of the processes that it has started."""
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [_used(pid) for pid in (self._process.pid, *map(int, path.read_text().split()))]

    def anonymous(self) -> int:
        """Bytes of anonymous memory, in which all leaks of a filter are.

        Pages of the interpreter become a process's own when the last other one to map them ends;
        these do not count here.
        """
        return 1024 * self._rollup()["Anonymous"]

    def _rollup(self) -> dict[str, int]:
        rollup = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text(encoding="ascii")
        found = re.findall(r"^(\w+):\s+(\d+)", rollup, re.MULTILINE)
        return {name: int(size) for name, size in found}

    def memory(self) -> tuple[int, int]:
        """Bytes of memory that only the filter uses (USS), and all that it has mapped (RSS).

        A filter that runs on the same interpreter as the benchmark shares that with it: its USS
        is then what one more such filter costs, and its RSS nearer to what the first one does.
        """
        kib = self._rollup()
        return 1024 * (kib["Private_Clean"] + kib["Private_Dirty"]), 1024 * kib["Rss"]


def _used(pid: int) -> int:
    """Return the CPU nanoseconds of a process, in all its threads."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())

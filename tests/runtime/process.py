"""A filter as a separate process, and smtpd's part of the conversation with it."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Self

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.events import Line, Malformed, Register, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: Seconds after which an expected event counts as missing.
PATIENCE = 60.0
#: So many looks in a row find it asleep, some milliseconds apart: it is not between two reads.
ASLEEP = 10
ROOT = Path(__file__).parents[2]
POLICIES = str(Path(__file__).with_name("policies.py"))
TOKENS = {
    name: b"%016x" % (0xBEEF00 + number)
    for number, name in enumerate(
        (
            *("connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data"),
            *("data-line", "commit", "rset", "noop", "quit"),
        )
    )
}


def sid(number: int) -> bytes:
    return b"%016x" % (0x7641DF9700000000 + number)


class FilterProcess:
    """A child process that is a filter.

    `pipes`: over two pipes, as a shell would, instead of one socket, as smtpd does.
    """

    def __init__(  # noqa: PLR0913  # what a child process is started with
        self,
        argv: Sequence[str],
        *,
        pipes: bool = False,
        protocol: tuple[int, int] = (0, 7),
        stderr: int | None = None,
        before: Callable[[], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.smtpd = SmtpdConnection(protocol)
        self.oracle = Oracle()
        self.answers: list[Result | Line | Malformed] = []
        self.eof = False
        #: All that it logged, once it is over.
        self.last_words = ""
        if pipes:
            theirs_in, self.sink = os.pipe()
            self.source, theirs_out = os.pipe()
            theirs = [theirs_in, theirs_out]
        else:
            ours, other = socket.socketpair()
            self.source = ours.detach()
            self.sink = os.dup(self.source)
            theirs = [other.detach()]
        for fd in (self.source, self.sink):
            os.set_blocking(fd, False)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # closed below
        self.child = subprocess.Popen(
            [sys.executable, *argv],
            stdin=theirs[0],
            stdout=theirs[-1],
            stderr=self.log if stderr is None else stderr,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            preexec_fn=before,  # noqa: PLW1509  # limits of the child's own
        )
        for fd in theirs:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_input()
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        os.close(self.source)
        self.last_words = self.logged
        self.log.close()

    # -- bytes ----------------------------------------------------------------------------

    def close_input(self) -> None:
        """Close the input of the filter."""
        if self.sink >= 0:
            if stat.S_ISSOCK(os.fstat(self.sink).st_mode):
                with socket.socket(fileno=os.dup(self.sink)) as sink, suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
            os.close(self.sink)
            self.sink = -1

    def send(self, data: bytes, *, reading: bool = True) -> None:
        """Write all of it, or what a process takes that ends; read what comes meanwhile."""
        self.oracle.from_smtpd(data)
        end = monotonic() + PATIENCE
        rest = memoryview(data)
        while rest:
            sources = [self.source] if reading and not self.eof else []
            left = max(end - monotonic(), 0)
            readable, writable, _ = select.select(sources, [self.sink], [], left)
            assert readable or writable, f"nothing moves: {self.logged}"
            if readable:
                self.read()
            if writable:
                try:
                    rest = rest[os.write(self.sink, rest[: 1 << 16]) :]
                except BrokenPipeError:
                    return

    def read(self) -> bytes:
        """Read what is there."""
        try:
            data = os.read(self.source, 1 << 18)
        except BlockingIOError:
            return b""
        except ConnectionError:
            data = b""
        if not data:
            self.eof = True
        self.oracle.from_filter(data)
        for answer in self.smtpd.receive(data):
            if not isinstance(answer, Register):
                self.answers.append(answer)
        return data

    def until(self, done: Callable[[], object]) -> None:
        """Read until a condition holds."""
        end = monotonic() + PATIENCE
        while not done():
            assert not self.eof, f"it ended: {self.logged}"
            left = end - monotonic()
            readable, _, _ = select.select([self.source], [], [], max(left, 0))
            assert readable, f"still not so: {self.logged}"
            self.read()

    def wait(self) -> None:
        """Read once there is something to be read."""
        readable, _, _ = select.select([self.source], [], [], PATIENCE)
        assert readable, f"nothing comes: {self.logged}"
        self.read()

    def push(self, data: bytes) -> int:
        """Write as much as possible without reading; return how much it was.

        On return the child is blocked until something is read.
        """
        done = 0
        end = monotonic() + PATIENCE
        asleep = 0
        while asleep < ASLEEP:
            assert monotonic() < end, f"it never sleeps: {self.logged}"
            _, writable, _ = select.select([], [self.sink] if done < len(data) else [], [], 0.005)
            if writable:
                done += os.write(self.sink, data[done : done + (1 << 16)])
                end = monotonic() + PATIENCE
            asleep = 0 if writable or not self._sleeps() else asleep + 1
        return done

    def _sleeps(self) -> bool:
        """Return whether the child is blocked, rather than ready to run."""
        stat = Path(f"/proc/{self.child.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "S"

    def exchange(self, data: bytes, mark: bytes) -> int:
        """Write, and read up to the line that ends in `mark`; how many lines that was.

        No line is looked at: for what is too much for an oracle.
        """
        count = 0
        tail = b""
        rest = memoryview(data)
        while not tail.endswith(mark):
            sinks = [self.sink] if rest else []
            readable, writable, _ = select.select([self.source], sinks, [], PATIENCE)
            assert readable or writable, f"nothing moves: {self.logged}"
            if readable:
                got = os.read(self.source, 1 << 18)
                assert got, f"it ended: {self.logged}"
                count += got.count(b"\n")
                tail = (tail + got)[-64:]
            if writable:
                rest = rest[os.write(self.sink, rest[: 1 << 16]) :]
        return count

    def until_dot(self, session: bytes) -> None:
        """Read until the message of a session has come back."""
        self.until(
            lambda: any(
                isinstance(answer, Line) and answer.session == session and answer.line == b"."
                for answer in self.answers
            )
        )

    def answer_of(self, session: bytes) -> Result:
        """The answer of a session that has come already."""
        for answer in self.answers:
            if isinstance(answer, Result) and answer.session == session:
                self.answers.remove(answer)
                return answer
        raise AssertionError(f"no answer: {self.answers}")

    def finish(self, status: int = 0) -> None:
        """Close the input and check that the process exits with status 0."""
        self.close_input()
        while not self.eof:
            readable, _, _ = select.select([self.source], [], [], PATIENCE)
            assert readable, f"it does not end: {self.logged}"
            self.read()
        assert self.child.wait(PATIENCE) == status, self.logged
        self.oracle.finish()
        self.oracle.verify()

    @property
    def logged(self) -> str:
        """What it wrote to stderr."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode("utf-8", "replace")

    def until_logged(self, text: str) -> None:
        """Wait for a line in the log: the one thing that nothing can be selected for."""
        end = monotonic() + PATIENCE
        while text not in self.logged:
            assert monotonic() < end, self.logged
            # What it wrote at last is there when it has ended.
            assert self.child.poll() is None or text in self.logged, self.logged
            select.select([], [], [], 0.005)

    def until_noted(self, notes: Path, text: str) -> None:
        """Wait for a line in the notes of a policy."""
        end = monotonic() + PATIENCE
        while text not in notes.read_text():
            assert monotonic() < end, self.logged
            select.select([], [], [], 0.005)

    def until_asleep(self) -> None:
        """Wait until it waits for input."""
        end = monotonic() + PATIENCE
        asleep = 0
        while asleep < ASLEEP:
            assert monotonic() < end, f"it never sleeps: {self.logged}"
            asleep = asleep + 1 if self._sleeps() else 0
            select.select([], [], [], 0.005)

    def catches(self, number: signal.Signals) -> bool:
        """Return whether it has a handler for a signal."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        caught = status.partition("SigCgt:")[2].split()[0]
        return bool(int(caught, 16) >> (number - 1) & 1)

    def kill(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def memory(self) -> int:
        """Return the bytes of its private dirty memory."""
        smaps = Path(f"/proc/{self.child.pid}/smaps_rollup").read_text()
        return 1024 * sum(
            int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Private_Dirty")
        )

    # -- smtpd's part ---------------------------------------------------------------------

    def hand_shake(self) -> Self:
        self.send(self.smtpd.configure())
        self.until(lambda: self.smtpd.ready)
        return self

    def connect(self, session: bytes) -> None:
        values = (b"mx.example.org", b"pass", b"192.0.2.1:25", b"192.0.2.2:25")
        self.send(self.smtpd.report("link-connect", session, *values))

    def report(self, name: str, session: bytes, *values: bytes) -> None:
        self.send(self.smtpd.report(name, session, *values))

    def request(self, phase: str, session: bytes, argument: bytes = b"") -> bytes:
        return self.smtpd.request(phase, session, TOKENS[phase], argument)

    def ask(self, phase: str, session: bytes, argument: bytes = b"") -> Result:
        """Send a request and wait for its answer."""
        self.send(self.request(phase, session, argument))
        return self.answer(session)

    def answer(self, session: bytes) -> Result:
        """Wait for the answer of a session."""

        def found() -> list[Result]:
            return [
                answer
                for answer in self.answers
                if isinstance(answer, Result) and answer.session == session
            ]

        self.until(found)
        first = found()[0]
        self.answers.remove(first)
        return first

    def message(self, session: bytes, lines: Sequence[bytes]) -> list[bytes]:
        """Send a message and wait until it has come back."""
        self.send(self.smtpd.lines(session, TOKENS["data-line"], lines))
        self.until_dot(session)
        back = [
            answer.line
            for answer in self.answers
            if isinstance(answer, Line) and answer.session == session
        ]
        self.answers = [
            answer
            for answer in self.answers
            if not (isinstance(answer, Line) and answer.session == session)
        ]
        return back[:-1]


def policy(name: str, *flags: str) -> list[str]:
    """The command line of one of our `policies`."""
    return [POLICIES, name, *flags]

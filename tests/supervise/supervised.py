"""A real filter-supervise, with smtpd's end of its socket under the oracle."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.events import Line, Malformed, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import PHASES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-S", "-E", str(ROOT / "tests" / "supervise" / "misbehaving.py"))
TOKENS = {name: b"%016x" % (0xA0 + at) for at, name in enumerate((*PHASES, "data-line"))}
#: Seconds that a test waits for anything.
PATIENCE = 60.0


def chain(folder: Path, text: str) -> list[str]:
    """The command of a chain with this configuration."""
    file = folder / "chain.toml"
    file.write_text(text, "utf-8")
    return [sys.executable, "-m", "smtpd_filters.cli.chain", "--config", str(file)]


class Client:
    """One session: each method goes on to the reply of the filter."""

    def __init__(self, smtpd: Started, number: int) -> None:
        self.smtpd = smtpd
        self.name = b"%016x" % (0x7641DF97 << 32 | number)
        self.results: list[Result] = []
        self.returned: list[bytes] = []
        self.report("link-connect", b"host", b"pass", b"192.0.2.1:25", b"192.0.2.2:25")

    def report(self, name: str, *values: bytes) -> None:
        self.smtpd.send(self.smtpd.side.report(name, self.name, *values))

    def send(self, phase: str, argument: bytes = b"") -> None:
        self.smtpd.send(self.smtpd.side.request(phase, self.name, TOKENS[phase], argument))

    def ask(self, phase: str, argument: bytes = b"") -> Result:
        self.send(phase, argument)
        return self.result()

    def result(self) -> Result:
        self.smtpd.until(lambda: bool(self.results))
        return self.results.pop()

    def lines(self, lines: Iterable[bytes], *, end: bool = False) -> None:
        data = self.smtpd.side.lines(self.name, TOKENS["data-line"], lines, end=end)
        self.smtpd.send(data)

    def begin(self, sender: bytes = b"a@example.org") -> Result:
        """Begin a transaction."""
        result = self.ask("mail-from", sender)
        self.report("tx-begin", b"0000000a")
        self.report("tx-mail", b"0000000a", b"ok", sender)
        return result

    def message(self, *lines: bytes) -> Result:
        """Send a message; return the answer at commit."""
        self.lines(lines, end=True)
        return self.commit()

    def commit(self) -> Result:
        self.smtpd.until(lambda: b"." in self.returned)
        result = self.ask("commit")
        self.report("tx-reset", b"0000000a")
        return result

    def who(self) -> tuple[int, list[str]]:
        """Return the program's process, and the reports it got of this session."""
        result = self.ask("rcpt-to", b"who@example.org")
        assert result.argument is not None
        _, pid, *reports = result.argument.decode().split()
        return int(pid), reports

    def quit(self) -> None:
        self.report("link-disconnect")


class Started:
    """A command that smtpd has started as a filter."""

    def __init__(self, command: Sequence[str], *, protocol: tuple[int, int] = (0, 7)) -> None:
        self.side = SmtpdConnection(protocol)
        self.oracle = Oracle()
        self.clients: dict[bytes, Client] = {}
        self._socket, theirs = socket.socketpair()
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=writer, cwd=ROOT
        )
        theirs.close()
        os.close(writer)
        self._socket.settimeout(PATIENCE)
        self._errors = reader
        os.set_blocking(reader, False)
        self._log = b""
        try:
            self.send(self.side.configure())
            self.until(lambda: self.side.ready)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()
        os.close(self._errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is not None:
            self.process.kill()
        self._socket.shutdown(socket.SHUT_WR)
        try:
            status = self.process.wait(PATIENCE)
        finally:
            log = self.log
            self._close()
        if kind is None:
            assert status == 0, log
            self.oracle.finish()
            self.oracle.verify()

    def connect(self) -> Client:
        client = Client(self, len(self.clients) + 1)
        self.clients[client.name] = client
        return client

    def send(self, data: bytes) -> None:
        self.oracle.from_smtpd(data)
        left = memoryview(data)
        while left:
            ready = select.select([self._socket], [self._socket], [], PATIENCE)
            assert ready[0] or ready[1], "not read"
            if ready[0]:
                self._receive()
            if ready[1]:
                left = left[self._socket.send(left[: 1 << 16]) :]

    def until(self, done: Callable[[], bool]) -> None:
        """Read until something is the case."""
        end = monotonic() + PATIENCE
        while not done():
            assert self.process.poll() is None, self.log
            ready, _, _ = select.select([self._socket], [], [], 0.1)
            if ready:
                self._receive()
            assert monotonic() < end, self.log

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        assert data, self.log
        self.oracle.from_filter(data)
        for answer in self.side.receive(data):
            assert not isinstance(answer, Malformed), answer
            if isinstance(answer, Result):
                self.clients[answer.session].results.append(answer)
            elif isinstance(answer, Line):
                self.clients[answer.session].returned.append(answer.line)

    @property
    def log(self) -> list[str]:
        """The lines of the log so far."""
        while True:
            try:
                data = os.read(self._errors, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            self._log += data
        return self._log.decode().splitlines()

    def logged(self, *words: str) -> str:
        """Wait for a line of the log with all of these words; return it."""
        found: list[str] = []

        def look() -> bool:
            found[:] = [line for line in self.log if all(word in line for word in words)]
            return bool(found)

        self.until(look)
        return found[-1]

    def reload(self) -> None:
        """Have it reload."""
        self.process.send_signal(signal.SIGHUP)


class Supervised(Started):
    """A filter-supervise that runs a command."""

    def __init__(
        self,
        *flags: str,
        command: Sequence[str] = PROGRAM,
        protocol: tuple[int, int] = (0, 7),
    ) -> None:
        start = [sys.executable, "-m", "smtpd_filters.supervise.program"]
        super().__init__([*start, *flags, *command], protocol=protocol)

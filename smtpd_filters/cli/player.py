"""A filter's process, and smtpd's end of its socket.

As under smtpd, stdin and stdout of the process are one stream socket. Its stderr is kept, and its
last line is part of the error when the process fails.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

from smtpd_filters.errors import ConfigError
from smtpd_filters.oracle.rules import Kind
from smtpd_filters.supervise.process import LIBEXEC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smtpd_filters.recording.replay import Replay, Step

#: Bytes read or written at once.
PIECE = 1 << 18
#: Bytes of a filter's log that are shown.
TAIL = 2000
#: The kinds of complaint on which smtpd ends or hangs.
DEADLY = frozenset({Kind.ENDS_SERVER, Kind.HANGS_SERVER})


class FatalError(Exception):
    """The filter would have ended or hung smtpd; the text is the reason."""


def find(command: Sequence[str], *, libexec: Sequence[str] = LIBEXEC) -> list[str]:
    """Return the command with the path of its program, searched for as by smtpd and a shell.

    Raises ConfigError if there is no such program.
    """
    name = command[0]
    beside = str(Path(sys.argv[0]).parent)
    for path in (None, os.pathsep.join(libexec), beside, str(Path(sys.executable).parent)):
        if found := shutil.which(name, path=path):
            return [found, *command[1:]]
    if "/" in name and Path(name).is_file():
        raise ConfigError(f"{name}: not executable, run chmod 755 {name}")
    raise ConfigError(f"{name}: no such program")


class Process:
    """A running filter; `close` ends it."""

    def __init__(
        self,
        command: Sequence[str],
        timeout: float,
        *,
        show_log: bool = False,
        inherit: Sequence[int] = (),
    ) -> None:
        """Start the filter; raise ConfigError if that fails.

        One that `inherit`s descriptors stays in our process group, so that it is ended with us.
        """
        self._timeout = timeout
        self._leads = not inherit
        self._log = None if show_log else tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._process = subprocess.Popen(  # noqa: S603  # the operator's own command
                command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=self._log,
                start_new_session=self._leads,
                pass_fds=inherit,
            )
        except OSError as error:
            self._socket.close()
            if self._log is not None:
                self._log.close()
            raise ConfigError(f"{command[0]}: {error.strerror}") from None
        finally:
            theirs.close()
        self._socket.settimeout(0)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def play(self, replay: Replay, tick: Callable[[], None]) -> None:
        """Play a recording, calling `tick` for each step. Raises FatalError."""
        try:
            self._exchange(replay, replay.handshake(), None)
            for step in replay.steps():
                tick()
                self._exchange(replay, step.data, step)
            self._finish(replay)
        except (BrokenPipeError, ConnectionResetError):
            raise FatalError(self._ended()) from None
        finally:
            replay.finish()

    def close(self) -> None:
        """End the process, by SIGKILL if it still runs."""
        self._socket.close()
        if self._process.poll() is None:
            if self._leads:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        if self._log is not None:
            self._log.close()

    def _exchange(self, replay: Replay, data: bytes, step: Step | None) -> None:
        """Write the data; read until the step is answered or the registrations are complete."""
        left = memoryview(data)
        deadline = monotonic() + self._timeout
        while left or (step.waiting if step else not replay.ready):
            mask = select.POLLIN | (select.POLLOUT if left else 0)
            self._poll.modify(self._socket, mask)
            seconds = deadline - monotonic()
            events = self._poll.poll(max(seconds, 0) * 1000)
            if not events:
                raise FatalError(self._silent(step, reads=not left))
            if events[0][1] & ~select.POLLOUT:
                self._read(replay)
                deadline = monotonic() + self._timeout
            elif left:
                left = left[self._socket.send(left[:PIECE]) :]
                deadline = monotonic() + self._timeout

    def _silent(self, step: Step | None, *, reads: bool) -> str:
        doing = "no answer" if reads else "no data read"
        if step is None:
            return f"{doing} for {self._timeout:g} s in the hand-shake: smtpd would wait forever"
        where = f"at {step.phase or 'a report'} of session {step.session.decode('latin-1')}"
        return f"{doing} for {self._timeout:g} s {where}: the client would wait forever"

    def _read(self, replay: Replay) -> None:
        data = self._socket.recv(PIECE)
        if data:
            replay.receive(data)
        for complaint in replay.oracle.complaints:
            if complaint.kind in DEADLY:
                raise FatalError(str(complaint))
        if not data:
            raise FatalError(self._ended())

    def _finish(self, replay: Replay) -> None:
        """Close the filter's input, as smtpd does at its end, and read the rest of the output."""
        self._socket.shutdown(socket.SHUT_WR)
        self._poll.modify(self._socket, select.POLLIN)
        deadline = monotonic() + self._timeout
        while self._poll.poll(max(deadline - monotonic(), 0) * 1000):
            data = self._socket.recv(PIECE)
            if not data:
                return
            replay.receive(data)
        raise FatalError(f"still runs {self._timeout:g} s after the end of its input")

    def _ended(self) -> str:
        try:
            status = self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            return "closed its output, which ends smtpd"
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"exited with {how}, which ends smtpd{self._last_words()}"

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(size - TAIL, 0))
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        return f": {lines[-1]}" if lines else ""

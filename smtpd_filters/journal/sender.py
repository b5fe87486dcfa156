"""The socket of a process that sends to the journal: it never waits."""

from __future__ import annotations

import _socket
import errno
import os
from contextlib import closing
from time import monotonic

from smtpd_filters.errors import ConfigError, os_reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.runtime.log import Log
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs

#: Seconds between two attempts to connect.
PAUSE = 1.0
#: Bytes of a unix socket's path, without the final zero: 104 on BSD, 108 on Linux.
MAX_PATH = 103
_GONE = {errno.ECONNREFUSED, errno.ENOTCONN, errno.EDESTADDRREQ, errno.EPIPE, errno.ECONNRESET}


def fault(path: str) -> str:
    """Return why a process can't send to the journal with this socket, or ""."""
    with closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)) as tried:
        try:
            tried.connect(path)
        except OSError as error:
            text = os_reason(error)
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                text += "; does smtpd-filters journal run?"
            return text
    return ""


def probe_of(path: str) -> Probe:
    """Return a probe of a journal's socket, which sends nothing."""
    from smtpd_filters.runtime.probes import Probe

    async def ask() -> str:
        return fault(path)

    return Probe(f"journal {path}", ask)


class Sender:
    """A connection to the journal's socket, made again when the journal was restarted."""

    def __init__(self, path: str, log: Log, clock: Callable[[], float] = monotonic) -> None:
        """Raise ConfigError for a path that can't be one of a socket.

        The journal need not run yet.
        """
        if not path.startswith("/") or len(os.fsencode(path)) > MAX_PATH:
            raise ConfigError(
                f"--journal: expected an absolute path of at most {MAX_PATH} bytes, not {path!r}"
            )
        self.path = path
        #: Stories, or parts of them, that were not sent; and of them those that no story that was
        #: sent has reported.
        self.dropped = self.unreported = 0
        self._log, self._clock = log, clock
        self._socket = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_DGRAM | getattr(_socket, "SOCK_CLOEXEC", 0)
        )
        self._socket.setblocking(False)  # noqa: FBT003  # its only parameter
        self._connected = False
        self._next_try = 0.0
        self._failing = False
        self._connect()

    def declare(self, needs: Needs) -> None:
        """Declare what it needs in a sandbox."""
        needs.to_connect_unix(self.path)

    def send(self, data: bytes, stories: int = 1) -> bool:
        """Send a datagram of so many stories, or drop and count them; return whether it was sent.

        Never raises.
        """
        try:
            if self._connected or self._connect():
                return self._send(data)
        except OSError as error:
            self._failed(error)
        except MemoryError:
            pass
        self.dropped += stories
        self.unreported += stories
        return False

    def _send(self, data: bytes) -> bool:
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._connected = False
            if not self._connect():
                raise
            self._socket.send(data)
        if self._failing:
            self._failing = False
            self._log.event("journal", "reached again", dropped=str(self.dropped))
        return True

    def _connect(self) -> bool:
        now = self._clock()
        if now < self._next_try:
            return False
        self._next_try = now + PAUSE
        try:
            self._socket.connect(self.path)
        except OSError as error:
            self._failed(error)
            return False
        self._connected = True
        return True

    def _failed(self, error: OSError) -> None:
        """Log the first of several failures; a journal that is merely busy is none."""
        if error.errno in (errno.EAGAIN, errno.ENOBUFS) or self._failing:
            return
        self._failing = True
        self._log.limited(
            "journal",
            "journal",
            "not reached",
            result="mail is not affected",
            socket=self.path,
            error=error.strerror or str(error),
        )

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

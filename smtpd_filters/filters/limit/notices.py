"""Notices of blocked accounts: a command that is run, or a mail, in a process of its own.

Invariants
----------
*Never waits*: the filter writes a notice to a socket and goes on. If the process doesn't keep up,
notices are dropped, and the log says so.
*No descriptor of smtpd*: the process has its own socket, /dev/null and the log. It starts before
the filter gives up its rights (`--sandbox`), and runs nothing but the command and sendmail of the
settings. It ends when its socket is closed, however the filter ends.
*No line from outside*: what a client has named is printable in the notice, and never part of a
command line's options.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.settings import Shared
from smtpd_filters.settings.kinds import printable

from . import notifier

if TYPE_CHECKING:
    from smtpd_filters.runtime.log import FilterLog

SENDMAIL = "/usr/sbin/sendmail"
#: Seconds for the process to end after its socket was closed.
PATIENCE = 5.0


class Notices:
    """The process that gives notices; it has `patience` seconds to end."""

    def __init__(
        self,
        command: str,
        mail: str,
        sendmail: str,
        log: FilterLog,
        *,
        patience: float = PATIENCE,
    ) -> None:
        """Start it. Raises OSError."""
        self._log = log
        self._patience = patience
        # A datagram is written as a whole or not at all, and its end is seen.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The file alone: it needs nothing of the package, which would take three times the memory.
        start = [sys.executable, "-I", "-S", str(Path(notifier.__file__))]
        try:
            self._process = subprocess.Popen(  # noqa: S603  # our own code
                [*start, command, mail, sendmail],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)  # noqa: FBT003  # its only parameter

    def give(self, **fields: str) -> None:
        """Give a notice with `notifier.FIELDS`; never wait, and never raise."""
        values = {name: printable(text)[:1000] for name, text in fields.items()}
        try:
            self._socket.send(json.dumps(values).encode())
        except BlockingIOError:
            self._log.limited("notices", "notice", error="dropped: too many are pending")
        except OSError as error:
            self._log.limited("notices", "notice", error=f"dropped: {os_reason(error)}")

    async def aclose(self) -> None:
        """End the process after the notice that it is about."""
        self._socket.close()
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class SharedNotices(Shared[Notices]):
    """The process that gives notices, shared by filters that give them alike.

    `patience` is the seconds for it to end after its socket was closed.
    """

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self._patience = patience

    def key(self, filter_: Any) -> tuple[str, ...]:
        """Return what notices are given."""
        settings = filter_.settings
        return settings.notify_command or "", settings.notify_mail or "", settings.sendmail

    def open(self, filter_: Any) -> Notices:
        """Start the process. Raises ConfigError."""
        command, mail, sendmail = self.key(filter_)
        for flag, path in (("notify-command", command), ("sendmail", mail and sendmail)):
            if path and not (os.path.isabs(path) and os.access(path, os.X_OK)):  # noqa: PTH117  # a path as text
                raise ConfigError(f"--{flag}: {path}: not the absolute path of a program")
        try:
            return Notices(command, mail, sendmail, filter_.log, patience=self._patience)
        except OSError as error:
            raise ConfigError(f"--notify-command: {os_reason(error)}") from None

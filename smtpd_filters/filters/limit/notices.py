"""Notices of blocked accounts: a command that is run, or a mail, in a process of its own.

Invariants
----------
*Never waits*: the filter writes a notice to a socket and goes on. If the process doesn't keep up,
notices are dropped, and the log says so.
*Not confined*: the process starts before the filter gives up its rights (`--sandbox`), and runs
nothing but the command and sendmail of the settings.
*No line from outside*: what a client has named is printable in the notice, and never part of a
command line's options.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.runtime.helpers import end_helper, start_helper
from smtpd_filters.settings import Shared
from smtpd_filters.settings.quoting import printable

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
        # The file alone: it needs nothing of the package, which would take three times the memory.
        words = ["-I", "-S", str(Path(notifier.__file__)), command, mail, sendmail]
        # A datagram is written as a whole or not at all, and its end is seen.
        self._socket, self._process = start_helper(words, socket.SOCK_SEQPACKET)

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
        end_helper(self._process, self._patience)


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

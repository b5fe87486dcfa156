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
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.settings import Shared
from smtpd_filters.settings.kinds import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smtpd_filters.runtime.log import FilterLog

SENDMAIL = "/usr/sbin/sendmail"
_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from smtpd_filters.filters.limit.notices import serve; serve(sys.argv[1:])"
)
#: Seconds for a command, and for the process to end after its socket was closed.
_COMMAND: Final = 60.0
_PATIENCE: Final = 5.0
#: Bytes of a notice.
_MOST: Final = 16_384
#: What a notice says.
FIELDS = ("subject", "limit", "address", "session")


class Notices:
    """The process that gives notices."""

    def __init__(self, command: str, mail: str, sendmail: str, log: FilterLog) -> None:
        """Start it. Raises OSError."""
        self._log = log
        # A datagram is written as a whole or not at all, and its end is seen.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start = [sys.executable, "-E", "-S", "-c", _START.format(path=sys.path)]
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
        """Give a notice with FIELDS; never wait, and never raise."""
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
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if TYPE_CHECKING:
    _Base = Shared[Notices]
else:
    _Base = Shared


class SharedNotices(_Base):
    """The process that gives notices, shared by filters that give them alike."""

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
            return Notices(command, mail, sendmail, filter_.log)
        except OSError as error:
            raise ConfigError(f"--notify-command: {os_reason(error)}") from None


# -- the process -------------------------------------------------------------------------------


def serve(arguments: Sequence[str]) -> None:
    """Give notices until the socket at descriptor 0 is closed: the main function of a process."""
    command, mail, sendmail = arguments
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    receiver = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    while data := receiver.recv(_MOST):
        fields: Mapping[str, str] = json.loads(data)
        values = [fields.get(name, "") for name in FIELDS]
        if command:
            _run([command, *values], b"")
        if mail:
            _run([sendmail, "-i", "--", mail], letter(mail, fields))


def letter(mail: str, fields: Mapping[str, str]) -> bytes:
    """Return the mail of a notice."""
    lines = [
        f"To: {mail}",
        f"Subject: blocked: {fields['subject'][:200]}",
        # RFC 3834 section 5: so that nobody answers automatically.
        "Auto-Submitted: auto-generated",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        f"{fields['subject']} has exceeded a limit and can send no mail until it is released:",
        "",
        *(f"    {name}: {fields[name]}" for name in FIELDS),
        "",
        "When the cause is mended, such as a stolen password, release it with",
        "",
        f"    smtpd-filters limit release '{fields['subject']}'",
        "",
    ]
    return "\n".join(lines).encode("utf-8", "replace")


def _run(command: Sequence[str], text: bytes) -> None:
    """Run a command within its time; log if it fails."""
    try:
        done = subprocess.run(  # noqa: S603  # of the settings
            command, input=text, stdout=subprocess.DEVNULL, timeout=_COMMAND, check=False
        )
        problem = f"exited with {done.returncode}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"not done within {_COMMAND:g} s"
    except OSError as error:
        problem = os_reason(error)
    if problem:
        os.write(2, f'limit notice error="{command[0]}: {problem}"\n'.encode())

"""Protection against an early SIGHUP, in effect from the first statement of a filter's process.

It also has the command to start this interpreter again.

If an operator reloads tables right after a restart, the signal reaches filters that are still being
loaded; the first that it ends takes smtpd with it. This module therefore only notes the signal
until the event loop handles it, after the tables have been read: a table may have been replaced
after that, so the event loop reloads them then. It does so only in processes that smtpd
has started, whose stdin and stdout are the same socket: the module is loaded with the package, and
other programs that use the package keep their signal handling.
"""

from __future__ import annotations

import os
import signal
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: Holds SIGHUP if it has come and is to be handled later.
early: set[int] = set()


def note_hangup() -> None:
    """Note SIGHUP until it is handled."""
    signal.signal(signal.SIGHUP, _note)


def ignore_hangup() -> None:
    """Ignore SIGHUP, even one that was noted; a program that replaces this one ignores it, too."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    early.clear()


def _note(number: int, _frame: FrameType | None) -> None:
    early.add(number)


def started_by_smtpd() -> bool:
    """Whether stdin and stdout are the same socket, as in a process started by smtpd."""
    try:
        source, sink = os.fstat(0), os.fstat(1)
    except OSError:
        return False
    return stat.S_ISSOCK(source.st_mode) and os.path.samestat(source, sink)


def python(module: str, call: str = "main()") -> list[str]:
    """Return the command that runs `main` of a module by this interpreter, with its modules.

    `call` is how it is called.

    Nothing in the environment or a user's directory has a say in what runs.
    """
    start = (
        f"import sys; sys.path[:] = {sys.path!r}; sys.pycache_prefix = {sys.pycache_prefix!r}; "
        f"from {module} import main; sys.exit({call})"
    )
    return [sys.executable, "-IS", "-c", start]


if started_by_smtpd():
    note_hangup()

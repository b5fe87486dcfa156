"""Protection against early signals, in effect from the first statement of a process.

It also has the command to start this interpreter again.

If an operator reloads tables right after a restart, the signal reaches filters that are still being
loaded; the first that it ends takes smtpd with it. This module therefore only notes the signal
until the event loop handles it, after the tables have been read: a table may have been replaced
after that, so the event loop reloads them then. It does so only in processes that smtpd
has started, whose stdin and stdout are the same socket: the module is loaded with the package, and
other programs that use the package keep their signal handling.

A program of this package that somebody runs by hand ends at SIGINT without a traceback while it is
being loaded. Those that handle the signal afterwards call `handle_interrupt`.
"""

from __future__ import annotations

import os
import signal
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: Signals that mean nothing to a program that serves, and would end it: log rotation and monitors
#: send them by habit, the kernel at a soft limit of processor time. The timer of a filter's
#: watchdog has a handler of its own.
STRAY = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGXCPU)

#: Holds SIGHUP if it has come and is to be handled later.
early: set[int] = set()


def note_hangup() -> None:
    """Note SIGHUP until it is handled."""
    signal.signal(signal.SIGHUP, _note)


def ignore_hangup() -> None:
    """Ignore SIGHUP, even one that was noted; a program that replaces this one ignores it, too."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    early.clear()


def ignore_strays() -> None:
    """Ignore the signals that would end a program although they mean nothing to it."""
    for number in STRAY:
        signal.signal(number, signal.SIG_IGN)


def _note(number: int, _frame: FrameType | None) -> None:
    early.add(number)


def started_by_smtpd() -> bool:
    """Whether stdin and stdout are the same socket, as in a process started by smtpd."""
    try:
        source, sink = os.fstat(0), os.fstat(1)
    except OSError:
        return False
    return stat.S_ISSOCK(source.st_mode) and os.path.samestat(source, sink)


def _is_ours() -> bool:
    """Whether the program is one of this package, by its name."""
    argv: list[str] = getattr(sys, "argv", [])
    name = os.path.basename(argv[0]) if argv else ""  # noqa: PTH119  # pathlib costs start-up
    return name == "smtpd-filters" or name.startswith("filter-")


def end_at_interrupt() -> None:
    """Have SIGINT end the process, unless it is ignored or handled already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def handle_interrupt() -> None:
    """Have SIGINT raise KeyboardInterrupt, unless it is ignored or handled in another way."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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


try:
    if started_by_smtpd():
        note_hangup()
    elif _is_ours():
        end_at_interrupt()
except ValueError:
    pass  # a thread loads the package, but only the main thread may set handlers

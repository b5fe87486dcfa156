"""The exceptions of this package whose texts are for operators."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class ConfigError(Exception):
    """An invalid flag, file or line of a file.

    The text is a single line that names the flag, or the file and the line; the filter writes it
    to stderr and exits with status 2. `others` are further errors in the same table of a file, for
    a command that reports all of them.
    """

    others: tuple[ConfigError, ...] = ()
    #: The exit status under filter-supervise, of sysexits(3): EX_CONFIG.
    status = 78

    def as_text(self, text: str) -> ConfigError:
        """Return the error with another text."""
        other = ConfigError(text)
        other.status = self.status
        return other


class NotStartedError(ConfigError):
    """A filter can't be started for a reason that may pass by itself (EX_TEMPFAIL)."""

    status = 75


class BugError(ConfigError):
    """A filter can't be started because its code fails (EX_SOFTWARE)."""

    status = 70


#: The errors of files that an operator has to mend; others may pass by themselves.
_LASTING = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}
)


#: The errors of a missing permission.
_DENIED = frozenset({errno.EACCES, errno.EPERM})
#: The beginning of the text of what the sandbox itself refuses (`sandbox.audit`).
SANDBOX = "--sandbox: "
#: Holds this process if it has entered its sandbox (`sandbox.confinement`).
sandboxed: set[int] = set()
_OUT_OF_REACH = (
    "Permission denied by the sandbox: its directory was replaced or added after the start; "
    "restart smtpd"
)


def config_error(error: OSError) -> ConfigError:
    """Return the error for one of a file or a server that a filter needs at its start."""
    lasts = error.errno in _LASTING
    return (ConfigError if lasts else NotStartedError)(str(error))


def first_of(errors: Sequence[ConfigError]) -> ConfigError:
    """Return the first of several errors, with the rest as its `others`."""
    every = [each for error in errors for each in (error, *error.others)]
    every[0].others = tuple(every[1:])
    return every[0]


class UnavailableError(Exception):
    """Raise from a handler when a dependency is unavailable; `--on-error` decides.

    The text is logged as the cause, without a traceback. `status` is the enhanced status code
    (RFC 3463) of the reply if the request is refused; "4.4.3" is the code for a DNS failure. What
    the handler has done to a message is undone, unless it `keeps_edits`: then it has removed forged
    fields itself (`Filter.remove_forged`).
    """

    def __init__(self, cause: str, status: str = "4.3.0", *, keeps_edits: bool = False) -> None:
        super().__init__(cause)
        self.status = status
        self.keeps_edits = keeps_edits


def not_started(error: OSError | ImportError | MemoryError) -> ConfigError:
    """Return the error of a process that can't start: it lacks a descriptor, a file, a module."""
    if isinstance(error, MemoryError):
        return NotStartedError("cannot start: out of memory")
    if isinstance(error, OSError):
        what = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return NotStartedError(f"cannot start: {what}{os_reason(error)}")
    return ConfigError(f"cannot start: {error}")


def os_reason(error: OSError) -> str:
    """Return the reason why a file can't be used; for a missing permission, with the user."""
    text = error.strerror or str(error)
    if error.errno not in _DENIED or text.startswith(SANDBOX):
        return text
    return f"{text} for user {user_name()}"


def unreadable(error: OSError, path: str) -> str:
    """Return the reason why a file can't be read: that of `os_reason`, or the sandbox.

    For a relative path it ends with the place where the file was looked for: smtpd starts filters
    in a directory of its own.
    """
    reason = (error.errno in _DENIED and out_of_reach(path)) or os_reason(error)
    return f"{reason}{looked_for(path)}"


def looked_for(path: str) -> str:
    """Return the absolute path of a relative one, in parentheses; "" for an absolute one."""
    try:
        whole = os.path.abspath(path)  # noqa: PTH100  # start-up time
    except OSError:  # the current directory is deleted
        return " (the current directory is deleted)"
    return "" if os.path.isabs(path) else f" ({whole})"  # noqa: PTH117  # as above


def uncreated(error: OSError) -> str:
    """Return the reason why a file can't be created: that of `os_reason`, or the sandbox.

    The error names the file or its directory, or two files, for one that can't be renamed. The
    sandbox is the reason if the user may change the directory.
    """
    paths = [each for each in (error.filename, error.filename2) if isinstance(each, str)]
    if error.errno in _DENIED and paths and all(map(_is_out_of_reach, paths)):
        return _OUT_OF_REACH
    return os_reason(error)


def _is_out_of_reach(path: str) -> bool:
    folder = path if os.path.isdir(path) else os.path.dirname(path)  # noqa: PTH112, PTH120  # start-up
    return bool(out_of_reach(folder, os.R_OK | os.W_OK | os.X_OK))


def out_of_reach(path: str, access: int = os.R_OK) -> str:
    """Return that the sandbox is why a file or directory can't be opened; "" if it is not.

    The kernel's rules of the sandbox are for directories, not for their names. It keeps a file
    from being opened, but not from being examined. `access` is what was tried.
    """
    return _OUT_OF_REACH if sandboxed and os.access(path, access) else ""


def user_name() -> str:
    """Return the name of the process's effective user, or its number if it has no name."""
    from pwd import getpwuid  # needed only for an error

    number = os.geteuid()
    try:
        return getpwuid(number).pw_name
    except KeyError:
        return str(number)

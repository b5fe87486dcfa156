"""Errors that an operator sees."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class ConfigError(Exception):
    """A flag, a file or a line in a file is wrong.

    The text is the one clear line that is written to stderr before the filter
    exits with status 2; it names the flag, or the file and the line.  `others` are
    further ones of the same table of a file, for who checks all of it.
    """

    others: tuple[ConfigError, ...] = ()


def first_of(errors: Sequence[ConfigError]) -> ConfigError:
    """Give the first of some errors, with the rest as its `others`."""
    every = [each for error in errors for each in (error, *error.others)]
    every[0].others = tuple(every[1:])
    return every[0]


class UnavailableError(Exception):
    """What a policy must know could not be found out: raised by a handler, in place of a decision.

    The request is answered as ``--on-error`` says, and the text is logged as the cause, without
    a traceback. `status` is the enhanced status code (RFC 3463) of that answer where it is a
    refusal; "4.4.3" is that of a DNS which does not answer.
    """

    def __init__(self, cause: str, status: str = "4.3.0") -> None:
        super().__init__(cause)
        self.status = status


def not_started(error: OSError | ImportError) -> ConfigError:
    """Say why a process that lacks descriptors, or a module, can't serve."""
    return ConfigError(f"cannot start: {os_reason(error) if isinstance(error, OSError) else error}")


def os_reason(error: OSError) -> str:
    """Say why a file can't be used; if a permission is missing, also which user lacks it."""
    text = error.strerror or str(error)
    if error.errno not in {errno.EACCES, errno.EPERM}:
        return text
    return f"{text} for user {user_name()}"


def user_name() -> str:
    """The name of the user that this process is, or its number where it has none."""
    from pwd import getpwuid  # only a mistake pays for it

    number = os.geteuid()
    try:
        return getpwuid(number).pw_name
    except KeyError:
        return str(number)

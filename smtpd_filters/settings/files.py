"""The reader of small files that settings name: secrets, keys, rules, passwords."""

from __future__ import annotations

import os
import stat

from smtpd_filters.errors import ConfigError, os_reason

from .kinds import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of a file, unless its reader has a limit of its own.
LARGEST = 1 << 20


def read_file(
    path: str, limit: int = LARGEST, *, check: Callable[[os.stat_result], None] | None = None
) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises ConfigError, which names the file; `check` may raise one for its owner or mode. It never
    waits, as opening a FIFO does for a writer, and reads no device.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise ConfigError(f"{path}: Is a directory")
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: not a regular file")
            if check is not None:
                check(status)
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{printable(path[:80])}: {error}") from None
    if len(data) > limit:
        raise ConfigError(f"{path}: larger than {limit} bytes")
    return data

"""The reader of small files that settings name: secrets, keys, rules, passwords."""

from __future__ import annotations

import os
import stat

from smtpd_filters.errors import ConfigError, os_reason

#: Bytes of a file, unless its reader has a limit of its own.
LARGEST = 1 << 20


def read_file(path: str, limit: int = LARGEST, *, mode: list[int] | None = None) -> bytes:
    """Return the content of a regular file of at most `limit` bytes; `mode` gets its mode.

    Raises ConfigError, which names the file. It never waits, as opening a FIFO does for a writer,
    and reads no device.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123  # a descriptor
            found = os.fstat(fd).st_mode
            if stat.S_ISDIR(found):
                raise ConfigError(f"{path}: Is a directory")
            if not stat.S_ISREG(found):
                raise ConfigError(f"{path}: not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{path[:80]!r}: {error}") from None
    if len(data) > limit:
        raise ConfigError(f"{path}: larger than {limit} bytes")
    if mode is not None:
        mode.append(found)
    return data

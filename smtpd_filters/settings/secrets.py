"""Secrets that an operator keeps in a file, so that they are in no list of processes."""

from __future__ import annotations

import os
import stat

from smtpd_filters.errors import ConfigError

from .files import read_file


def read_secret(path: str | None, flag: str) -> str:
    """Return the first line of a file; "" without a path.

    Raises ConfigError, with the flag and the file, if it is unreadable, or readable for all users,
    or if the line is empty or has characters that can't be typed.
    """
    if path is None:
        return ""

    def keep_secret(status: os.stat_result) -> None:
        if status.st_mode & stat.S_IROTH:
            raise ConfigError(f"{path}: others may read this file (chmod o= {path})")

    try:
        text = read_file(path, check=keep_secret).decode()
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None
    except UnicodeError:
        raise ConfigError(f"{flag}: {path}: not UTF-8") from None
    secret = text.partition("\n")[0].rstrip("\r")
    if not secret.isprintable() or not secret:
        raise ConfigError(f"{flag}: {path}: no password in the first line")
    return secret


class Secret:
    """The first line of a file, as `read_secret` returns it; it is read again on demand.

    Raises ConfigError when it is made. Later an unreadable or invalid file changes nothing.
    """

    def __init__(self, path: str | None, flag: str) -> None:
        self._path, self._flag = path, flag
        self.value = read_secret(path, flag)

    def read_again(self) -> str:
        """Read the file; return its secret."""
        try:
            self.value = read_secret(self._path, self._flag)
        except ConfigError:  # such as a file that is being written
            pass
        return self.value

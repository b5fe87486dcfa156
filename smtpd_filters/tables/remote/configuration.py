"""The configuration files of remote tables: lines of a key and a value.

As of OpenSMTPD's table programs: a key ends at a blank, a tab or a colon; `#` at the start of a
line begins a comment; the first of several lines with one key counts. `url` may occur repeatedly.
"""

from __future__ import annotations

import os
import stat

from smtpd_filters.errors import ConfigError, unreadable
from smtpd_filters.settings.declare import suggest
from smtpd_filters.settings.files import open_file
from smtpd_filters.settings.secrets import read_secret

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_FILE_MAX = 1 << 16
#: Keys that every back-end has, with their defaults in seconds.
TIMES = {"timeout": 2.0, "cache": 60.0, "cache_missing": 10.0, "stale": 0.0, "refresh": 60.0}
#: The bounds of these times.
_LOWEST = {"timeout": 0.05, "refresh": 1.0}
_HIGHEST = {"timeout": 60.0}
_DAY = 86400.0


class Configuration:
    """The values of a file by their keys.

    Raises ConfigError if the file can't be read or has an invalid line.
    """

    def __init__(self, path: str, known: Iterable[str], ignored: Iterable[str] = ()) -> None:
        self.path = path
        self.values: dict[str, str] = {}
        #: The values of `url`, in their order.
        self.urls: list[str] = []
        self._numbers: dict[str, int] = {}
        allowed = {*known, *ignored, *TIMES}
        text, self._mode = _read(path)
        for number, line in enumerate(text.splitlines(), 1):
            self._line(number, line.strip(" \t"), allowed)
        if "password" in self.values:
            self._keep_secret()

    def _line(self, number: int, line: str, allowed: set[str]) -> None:
        if not line or line[0] == "#":
            return
        end = next((at for at, char in enumerate(line) if char in " \t:"), len(line))
        key, value = line[:end], line[end + 1 :].lstrip(" \t")
        if key not in allowed:
            near = suggest(key, allowed) or f" (expected one of {', '.join(sorted(allowed))})"
            raise ConfigError(f"{self.path}:{number}: unknown key {key[:40]!r}{near}")
        if not value:
            raise ConfigError(f"{self.path}:{number}: {key} has no value")
        if "\0" in value:
            raise ConfigError(f"{self.path}:{number}: {key} has a NUL byte")
        if key == "url":
            self.urls += value.split()
        if key not in self.values:
            self.values[key] = value
            self._numbers[key] = number

    def _keep_secret(self) -> None:
        if self._mode & stat.S_IROTH:
            raise ConfigError(
                f"{self.path}: others may read the password in this file (chmod o= {self.path})"
            )

    def get(self, key: str) -> str | None:
        """Return the value of a key, or None."""
        return self.values.get(key)

    def required(self, key: str) -> str:
        """Return the value of a key. Raises ConfigError if it is missing."""
        if (value := self.values.get(key)) is None:
            raise ConfigError(f"{self.path}: {key} is missing")
        return value

    def password(self) -> str:
        """Return the password, or that in the file of `password_file`; "" without either."""
        if (path := self.get("password_file")) is not None:
            if "password" in self.values:
                raise self.error("password_file", "there is a password already")
            return read_secret(path, f"{self.path}: password_file")
        return self.get("password") or ""

    def seconds(self, key: str) -> float:
        """Return a time of `TIMES`. Raises ConfigError if it is invalid."""
        text = self.get(key)
        if text is None:
            return TIMES[key]
        from smtpd_filters.settings import SECONDS

        try:
            return SECONDS(_LOWEST.get(key, 0.0), _HIGHEST.get(key, _DAY)).parse(text)
        except ValueError as error:
            raise self.error(key, str(error)) from None

    def switch(self, key: str) -> bool:
        """Return a value of yes or no; no by default."""
        text = (self.get(key) or "no").lower()
        if text not in {"yes", "no", "true", "false", "1", "0"}:
            raise self.error(key, f"expected yes or no, not {text!r}")
        return text in {"yes", "true", "1"}

    def number(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number within bounds."""
        text = self.get(key)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise self.error(key, f"expected a number from {low} to {high}, not {text[:40]!r}")
        return int(text)

    def error(self, key: str, reason: str) -> ConfigError:
        """Return the error for the value of a key."""
        number = self._numbers.get(key)
        place = self.path if number is None else f"{self.path}:{number}"
        return ConfigError(f"{place}: {key}: {reason}")


def _read(path: str) -> tuple[str, int]:
    """Return the text and the mode of a file. Raises ConfigError."""
    try:
        with open_file(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_FILE_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {unreadable(error, path)}") from None
    except ValueError as error:
        raise ConfigError(f"{path[:80]!r}: {error}") from None
    if text.startswith(b"SQLite format 3\0"):
        raise ConfigError(
            f"{path}: a database, not a configuration file: add ?query=SQL or ?list=SQL to its path"
        )
    if len(text) > _FILE_MAX:
        raise ConfigError(f"{path}: larger than {_FILE_MAX} bytes")
    try:
        return text.decode(), mode
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None

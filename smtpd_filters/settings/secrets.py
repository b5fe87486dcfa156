"""Secrets that an operator keeps in a file, so that they are in no list of processes."""

from __future__ import annotations

from smtpd_filters.errors import ConfigError, os_reason


def read_secret(path: str | None, flag: str) -> str:
    """Return the first line of a file; "" without a path.

    Raises ConfigError, with the flag and the file, if it is unreadable, or if the line is empty or
    has characters that can't be typed.
    """
    if path is None:
        return ""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123  # start-up time
            secret = file.readline().rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{flag}: {path}: {reason}") from None
    if not secret.isprintable() or not secret:
        raise ConfigError(f"{flag}: {path}: no password in the first line")
    return secret

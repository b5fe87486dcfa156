"""The default places of a journal."""

from __future__ import annotations

import sys
from pathlib import Path

from smtpd_filters.errors import ConfigError, os_reason

_LINUX = sys.platform.startswith("linux")
#: The directory of its files. Not that of the filters' stores, which belongs to smtpd's user.
DIRECTORY = "/var/lib/smtpd-filters-journal" if _LINUX else "/var/db/smtpd-filters-journal"
SOCKET = f"{'/run' if _LINUX else '/var/run'}/smtpd-filters-journal/socket"
#: The name of the file with the key of hashed addresses.
KEY = "key"


def read_key(directory: str) -> bytes:
    """Return the key of hashed addresses, b"" if there is none. Raises ConfigError."""
    path = Path(directory, KEY)
    try:
        return path.read_bytes().strip()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"{path}: {os_reason(error)}") from None

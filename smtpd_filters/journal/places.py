"""The default places of a journal."""

from __future__ import annotations

import os
import sys

from smtpd_filters.settings.files import read_file

_LINUX = sys.platform.startswith("linux")
#: The directory of its files. Not that of the filters' stores, which belongs to smtpd's user.
DIRECTORY = "/var/lib/smtpd-filters-journal" if _LINUX else "/var/db/smtpd-filters-journal"
SOCKET = f"{'/run' if _LINUX else '/var/run'}/smtpd-filters-journal/socket"
#: The name of the file with the key of hashed addresses.
KEY = "key"


def read_key(directory: str) -> bytes:
    """Return the key of hashed addresses, b"" if there is none. Raises ConfigError."""
    path = os.path.join(directory, KEY)  # noqa: PTH118  # paths as text
    return read_file(path).strip() if os.path.lexists(path) else b""

"""The sandbox on FreeBSD: no new privileges, procctl(2).

Capability mode, capsicum(4), allows a process neither to connect nor to open a file by its path, so
look-ups and late imports would fail. What is left are the limits and the checks of `audit`.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .libc import Libc
    from .needs import Needs

_P_PID = 0
_PROC_NO_NEW_PRIVS_CTL = 19
_ENABLE = (1).to_bytes(4, sys.byteorder)


def confine(libc: Libc, needs: Needs) -> list[str]:
    """Give up what is possible; return what is not, for the log."""
    missing = ["files, connections and system calls: FreeBSD has no limits that fit (capsicum(4))"]
    if not needs.runs:
        try:
            libc.call("procctl", _P_PID, os.getpid(), _PROC_NO_NEW_PRIVS_CTL, _ENABLE)
        except OSError as error:
            missing.append(f"procctl(2): {error.strerror}")
    return missing

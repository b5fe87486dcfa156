"""The first statement of a filter's process: a SIGHUP that comes early does not end it.

An operator who reloads tables right after a restart hits filters that are still being loaded, and
smtpd ends with the first of them.  So the signal is ignored from here on; the event loop takes it
over when the tables have been read.  It is ignored only in processes that smtpd has started, which
are those whose stdin and stdout are one socket: this module is loaded with the package, and a
program that merely uses the package keeps its signals.
"""

from __future__ import annotations

import os
import signal
import stat


def started_by_smtpd() -> bool:
    """Whether stdin and stdout are one socket, as smtpd makes them."""
    try:
        source, sink = os.fstat(0), os.fstat(1)
    except OSError:
        return False
    return stat.S_ISSOCK(source.st_mode) and os.path.samestat(source, sink)


if started_by_smtpd():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

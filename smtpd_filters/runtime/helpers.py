"""Helper processes of filters: this interpreter, with one end of a socket as its stdin.

Invariants
----------
*No descriptor of smtpd*: a helper has its own socket, /dev/null and the log. It ends when its
socket is closed, however the filter ends.
"""

from __future__ import annotations

import socket
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def start_helper(
    words: Sequence[str], kind: socket.SocketKind
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start Python with these words; return the filter's end of the socket, and the process.

    Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    try:
        process = subprocess.Popen(  # noqa: S603  # our own code
            [sys.executable, *words], stdin=theirs.fileno(), stdout=subprocess.DEVNULL
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)  # noqa: FBT003  # its only parameter
    return ours, process


def end_helper(process: subprocess.Popen[bytes], patience: float) -> None:
    """Wait for the end of a helper whose socket is closed; kill it after so many seconds."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

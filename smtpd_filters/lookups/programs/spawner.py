"""The process that starts a program for a filter.

It is run as a file, with the program and its arguments; `children` starts it and has its
invariants. Each datagram on the socket at descriptor 0 asks for a program; the answer is the same
datagram with the descriptor of a socket that is the program's stdin and stdout, or with the number
of an error.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bytes of a request: its number.
MAX_REQUEST = 20
#: Seconds for a program to end after its socket was closed, then after SIGTERM.
GRACE, PATIENCE = 1.0, 3.0
#: Seconds between two looks at programs that are to end.
_LOOK = 0.2


class _Ending:
    """A program whose socket was closed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._since = monotonic()

    def ended(self) -> bool:
        """Return whether it has ended; end it if it takes too long."""
        if self._process.poll() is not None:
            return True
        took = monotonic() - self._since
        if took > PATIENCE:
            self._process.kill()
        elif took > GRACE:
            self._process.terminate()
        return False


def main(command: Sequence[str]) -> None:
    """Start programs, one at a time, until the socket at descriptor 0 is closed."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    ended = _child_ends()
    current: subprocess.Popen[bytes] | None = None
    ending: list[_Ending] = []
    while True:
        ending = [each for each in ending if not each.ended()]
        ready = select.select([control.fileno(), ended], [], [], _LOOK if ending else None)[0]
        if ended in ready:
            os.read(ended, 100)
            if current is not None and current.poll() is not None:
                current = None
        if control.fileno() not in ready:
            continue
        request = control.recv(MAX_REQUEST)
        if current is not None:  # its socket was closed, since another one is wanted
            ending.append(_Ending(current))
        if not request:
            break
        current = _start(control, request, command)
    control.close()
    while ending := [each for each in ending if not each.ended()]:
        select.select([], [], [], _LOOK)


def _child_ends() -> int:
    """Return a descriptor that has data when a child has ended."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _start(
    control: socket.socket, request: bytes, command: Sequence[str]
) -> subprocess.Popen[bytes] | None:
    """Start the program and answer the request."""
    process = None
    with suppress(OSError):  # the filter has ended: its socket is closed
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                process = subprocess.Popen(  # noqa: S603  # of the settings
                    list(command), stdin=theirs.fileno(), stdout=theirs.fileno()
                )
            except OSError as error:
                control.send(request + b"%d" % (error.errno or 0))
            else:
                socket.send_fds(control, [request], [ours.fileno()])
    return process


if __name__ == "__main__":
    main(sys.argv[1:])

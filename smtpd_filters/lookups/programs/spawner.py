"""The process that starts a program for a filter, and a second one that stands by.

It is run as a file, with the program and its arguments; `children` starts it and has its
invariants. Each datagram on the socket at descriptor 0 asks for a program: it has a number, and the
numbers of the programs that are in use; others are to end. The answer is the same number with the
descriptor of a socket that is the program's stdin and stdout, or with the number of an error.

The filter can't start this process again from its sandbox. So there are two: one serves, the other
waits for the end of a link to it. Whichever is killed, the other one replaces it, with a line in
the log. The one that takes over sends `AGAIN`, whereupon the filter repeats a request that may be
lost. A program that the killed process had started goes on; it ends when its socket is closed.
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

#: Signals that would end this process although they mean nothing to it, as in `startup`.
_STRAY = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGXCPU)
#: Bytes of a request: its number, and those of a few programs.
MAX_REQUEST = 1000
#: Seconds for a program to end after its socket was closed, then after SIGTERM.
GRACE, PATIENCE = 1.0, 3.0
#: Seconds between two looks at programs that are to end.
_LOOK = 0.2
#: Seconds between two starts of a process that stands by.
_RESPITE = 1.0
#: What the process that has taken over sends to the filter.
AGAIN = b"again"
#: What the process that stands by is sent at the end.
_DONE = b"."
_PEEK, _DONT_WAIT = socket.MSG_PEEK, socket.MSG_DONTWAIT


class _Ending:
    """A program whose socket was closed, with the processes that it has started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._since = monotonic()
        self._signalled = False

    def ended(self) -> bool:
        """Return whether it has ended; end it if it takes too long."""
        if self._process.poll() is not None:
            if self._signalled:
                self._signal(signal.SIGKILL)  # such as what a shell script has waited for
            return True
        took = monotonic() - self._since
        if took > PATIENCE:
            self._signal(signal.SIGKILL)
        elif took > GRACE:
            self._signal(signal.SIGTERM)
        return False

    def _signal(self, number: signal.Signals) -> None:
        self._signalled = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Spawner:
    """The process that serves the socket `control`, and the one that stands by."""

    def __init__(self, control: socket.socket, command: Sequence[str]) -> None:
        self._control = control
        self._command = command
        self._ends = _child_ends()
        #: The programs by the number of their request.
        self._running: dict[bytes, subprocess.Popen[bytes]] = {}
        self._ending: list[_Ending] = []
        #: The last request that was answered.
        self._answered = b""
        #: The process that stands by: its id, and the link to it, None without it.
        self._second = 0
        self._link: socket.socket | None = None
        #: When another one may be started.
        self._next = 0.0

    def run(self) -> None:
        """Start programs until the control socket is closed."""
        while True:
            self._stand_by()
            ready = self._ready()
            if self._link in ready:
                self._replace()
            if self._ends[0] in ready:
                os.read(self._ends[0], 100)
                self._running = {
                    number: self._running[number]
                    for number in self._running
                    if self._running[number].poll() is None
                }
            if self._control in ready and not self._serve():
                break
        if self._link is not None:
            with suppress(OSError):
                self._link.send(_DONE)
        while self._has_ending():
            select.select([], [], [], _LOOK)

    def _serve(self) -> bool:
        """Serve a request; return False if there will be no more."""
        number, *in_use = self._control.recv(MAX_REQUEST).split() or [b""]
        if number and number == self._answered:
            return True  # it was repeated, since this process has taken over
        for each in self._running.keys() - in_use:  # its socket was closed
            self._ending.append(_Ending(self._running.pop(each)))
        if not number:
            return False
        process = _start(self._control, number + b" ", self._command)
        if process is not None:
            self._running[number] = process
        self._answered = number
        return True

    def _has_ending(self) -> bool:
        """Whether programs are to end; those that take too long are ended."""
        self._ending = [each for each in self._ending if not each.ended()]
        return bool(self._ending)

    def _ready(self) -> list[socket.socket | int]:
        """Wait; return what has data."""
        waited: list[socket.socket | int] = [self._control, self._ends[0]]
        if self._link is not None:
            waited.append(self._link)
        looks = self._has_ending() or self._link is None
        return select.select(waited, [], [], _LOOK if looks else None)[0]

    # -- the process that stands by ------------------------------------------------------------

    def _stand_by(self) -> None:
        """Start the process that stands by, unless it runs; it returns when it takes over."""
        if self._link is not None or monotonic() < self._next:
            return
        self._next = monotonic() + _RESPITE
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._second = os.fork()
            except OSError:
                ours.close()
                return
            if self._second:
                self._link = ours
                return
            signal.set_wakeup_fd(-1)
            ours.close()
            if theirs.recv(1):
                os._exit(0)
        self._take_over()

    def _take_over(self) -> None:
        """Become the process that serves: the one that did has ended."""
        for descriptor in self._ends:
            os.close(descriptor)
        if select.select([self._control], [], [], 0)[0] and not self._control.recv(1, _PEEK):
            os._exit(0)  # the filter has ended as well
        self._ends = _child_ends()
        self._running, self._ending, self._answered = {}, [], b""
        self._next = 0.0
        self._say()
        with suppress(OSError):  # such as a full queue, which has one already
            self._control.send(AGAIN, _DONT_WAIT)

    def _replace(self) -> None:
        """Release the process that stood by, which has ended."""
        assert self._link is not None  # noqa: S101  # it had data
        self._link.close()
        self._link = None
        with suppress(ChildProcessError):
            os.waitpid(self._second, 0)
        self._say()

    def _say(self) -> None:
        program = ascii(self._command[0])[1:-1].replace('"', "?")
        line = f'smtpd-filters replaced a process that starts programs program="{program}"\n'
        with suppress(OSError):
            os.write(2, line.encode())


def main(command: Sequence[str]) -> None:
    """Start programs until the socket at descriptor 0 is closed."""
    # After a signal to the process group of the filter, this process ends the programs.
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in _STRAY:
        signal.signal(number, lambda *_: None)  # not ignored, which programs inherit
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    Spawner(control, command).run()


def _child_ends() -> tuple[int, int]:
    """Return a pipe that has data when a child has ended."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader, writer


def _start(
    control: socket.socket, number: bytes, command: Sequence[str]
) -> subprocess.Popen[bytes] | None:
    """Start the program and answer the request."""
    process = None
    with suppress(OSError):  # the filter has ended: its socket is closed
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                process = subprocess.Popen(  # noqa: S603  # of the settings
                    list(command),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    start_new_session=True,  # so that all that it starts can be ended
                )
            except OSError as error:
                control.send(number + b"%d" % (error.errno or 0))
            else:
                socket.send_fds(control, [number], [ours.fileno()])
    return process


if __name__ == "__main__":
    main(sys.argv[1:])

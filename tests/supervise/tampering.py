"""A program that runs another as its filter, and misbehaves at signals.

    tampering.py COMMAND...

It passes the lines of both sides. At SIGUSR1 it writes nonsense between two lines of COMMAND, at
SIGUSR2 half of a line, so that the next one is spoilt, and at SIGWINCH it uses memory without end:
any program can be tested as if it did that itself.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

#: What it writes at a signal.
WRITES = {signal.SIGUSR1: b"proceed\r\n", signal.SIGUSR2: b"filter-result|0123"}
SIGNALS = {*WRITES, signal.SIGWINCH}
BLOCK = 1 << 16


def write(fd: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(fd, data) :]


def feed(program: socket.socket) -> None:
    """Pass the input to the program until it ends."""
    try:
        while data := os.read(0, BLOCK):
            program.sendall(data)
        program.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the program has ended


def receive(program: socket.socket) -> bytes:
    """Return what the program has written, empty at its end."""
    try:
        return program.recv(BLOCK)
    except ConnectionResetError:  # it has not read everything
        return b""


def misbehave(number: int, _frame: object) -> None:
    """Do what the signal asks for."""
    if number in WRITES:
        write(1, WRITES[signal.Signals(number)])
        return
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 12)) * (1 << 10))
        time.sleep(0.01)


def main() -> int:
    """Run the command until it ends; return its exit status."""
    ours, theirs = socket.socketpair()
    with subprocess.Popen(sys.argv[1:], stdin=theirs.fileno(), stdout=theirs.fileno()) as program:
        theirs.close()
        for number in SIGNALS:
            signal.signal(number, misbehave)
        # The thread inherits that they are blocked, so they interrupt this one only.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=feed, args=(ours,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        rest = b""
        while data := receive(ours):
            lines, line_feed, rest = (rest + data).rpartition(b"\n")
            # Signals come between lines, never within one.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            write(1, lines + line_feed)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return int(program.returncode)


if __name__ == "__main__":
    sys.exit(main())

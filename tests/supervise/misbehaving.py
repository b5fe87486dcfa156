"""A filter program that misbehaves when an address or a line of a message tells it to.

    misbehaving.py [--register PHASES] [--reports NAMES] [--whole] [--refuse] [--once FILE]

The local part of the sender, or a line `Do: MODE` of a message, names the mode (`MODES`); any other
is answered with proceed. Its reply to the recipient `who@...` is a 550 with its process id and the
reports it got of the session. With `--refuse` the sender `refuse@...` is refused. With `--whole`
messages are returned when they are complete. With `--fail FILE` it exits at its start while the
file exists; with `--once FILE` each mode is done only if that file does not exist, which is then
made. At SIGUSR1 it writes nonsense, at SIGUSR2 half of a line, at SIGWINCH it uses memory without
end.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from pathlib import Path

PHASES = (
    "connect", "helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data", "data-line",
    "commit", "rset", "quit", "noop",
)  # fmt: skip
MODES = (
    "exit", "kill", "stop", "hang", "garbage", "half", "twice", "token", "session", "early-dot",
    "flood", "long-line", "close-output", "close-input", "memory", "stderr", "junk-at-commit",
    "bad-reply", "deaf", "leave-group",
)  # fmt: skip


#: Signals at which it writes.
INTERRUPTIONS = {signal.SIGUSR1, signal.SIGUSR2}


class Program:
    """Its state."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seen: dict[str, list[str]] = {}
        self.held: dict[str, list[bytes]] = {}
        self.at_commit = ""
        self.source = open(0, "rb", closefd=False)  # noqa: SIM115
        self.sink = 1

    def write(self, data: bytes) -> None:
        """Write all of it; what a signal makes it write comes before or after, not within."""
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
        while data:
            data = data[os.write(self.sink, data) :]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTIONS)

    def run(self) -> None:
        """Serve until the input ends."""
        signal.signal(signal.SIGUSR1, lambda *_: self.write(b"proceed\r\n"))
        signal.signal(signal.SIGUSR2, lambda *_: self.write(b"filter-result|0123"))
        signal.signal(signal.SIGWINCH, lambda *_: self.misbehave("memory", b"", b""))
        for line in self.source:
            row = line[:-1]
            if row == b"config|ready":
                self.register()
            elif row.startswith(b"report|"):
                fields = row.decode("latin-1").split("|", 6)
                self.seen.setdefault(fields[5], []).append(fields[4])
                if fields[4] == "tx-reset":
                    self.held.pop(fields[5], None)
            elif row.startswith(b"filter|"):
                self.asked(row.split(b"|", 7))

    def register(self) -> None:
        """Register."""
        names = [f"register|report|smtp-in|{name}" for name in self.options.reports.split()]
        names += [f"register|filter|smtp-in|{name}" for name in self.options.register.split()]
        self.write("".join(f"{name}\n" for name in (*names, "register|ready")).encode())

    def asked(self, fields: list[bytes]) -> None:
        """Answer a request."""
        phase, session, token, argument = fields[4], fields[5], fields[6], fields[7]
        answer = b"filter-result|%b|%b|" % (session, token)
        if phase == b"data-line":
            self.line(session, token, argument)
            return
        mode = argument.decode("latin-1").partition("@")[0] if phase == b"mail-from" else ""
        if phase == b"commit":
            mode, self.at_commit = self.at_commit, ""
        if mode == "junk-at-commit" and phase == b"mail-from":
            self.at_commit, mode = mode, ""
        if self.misbehave(mode, session, token):
            return
        if phase == b"rcpt-to" and argument.startswith(b"who@"):
            reports = " ".join(self.seen.get(session.decode(), ()))
            answer += b"reject|550 %d %b\n" % (os.getpid(), reports.encode())
        elif phase == b"mail-from" and self.options.refuse and argument.startswith(b"refuse@"):
            answer += b"reject|550 5.7.1 refused\n"
        else:
            answer += b"proceed\n"
        self.write(answer)

    def line(self, session: bytes, token: bytes, line: bytes) -> None:
        """Return a line, or keep it until the message is complete."""
        name = session.decode()
        head = b"filter-dataline|%b|%b|" % (session, token)
        mode = line.removeprefix(b"Do: ").decode("latin-1") if line.startswith(b"Do: ") else ""
        if mode and self.misbehave(mode, session, token):
            return
        if not self.options.whole:
            self.write(head + line + b"\n")
            return
        held = self.held.setdefault(name, [])
        held.append(head + line + b"\n")
        if line == b".":
            self.write(b"".join(self.held.pop(name)))

    def misbehave(self, mode: str, session: bytes, token: bytes) -> bool:  # noqa: C901, PLR0912, PLR0915  # a list
        """Do it; return whether the request is answered by that."""
        if mode not in MODES:
            return False
        once = self.options.once
        if once:
            if Path(once).exists():
                return False
            Path(once).touch()
        answer = b"filter-result|%b|%b|" % (session, token)
        head = b"filter-dataline|%b|%b|" % (session, token)
        match mode:
            case "exit":
                sys.stderr.write("misbehaving: exits\n")
                sys.stderr.flush()
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":
                pass
            case "garbage":
                self.write(b"proceed\r\n")
            case "half":
                self.write(answer + b"proc")
            case "twice":
                self.write((answer + b"proceed\n") * 2)
            case "token":
                self.write(b"filter-result|%b|%b|proceed\n" % (session, b"0" * 16))
            case "session":
                self.write(b"filter-result|%b|%b|proceed\n" % (b"0" * 16, token))
            case "early-dot":
                self.write(head + b".\n")
            case "flood":
                while True:
                    self.write((head + b"x" * 900 + b"\n") * 1000)
            case "long-line":
                self.write(head + b"x" * 70000 + b"\n")
            case "close-output":
                socket.socket(fileno=os.dup(1)).shutdown(socket.SHUT_WR)
                signal.pause()
            case "close-input":
                socket.socket(fileno=os.dup(0)).shutdown(socket.SHUT_RD)
                signal.pause()
            case "memory":
                kept = []
                while True:
                    kept.append(bytearray(os.urandom(1 << 12)) * (1 << 10))
                    time.sleep(0.01)
            case "stderr":
                for number in range(5000):
                    sys.stderr.write(f"line {number}\n")
                sys.stderr.flush()
                return False
            case "junk-at-commit":
                self.write(answer + b"junk\n")
            case "bad-reply":
                self.write(answer + b"reject|go\raway\n")
            case "deaf":
                signal.pause()
            case "leave-group":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.setpgid(0, os.getpgid(os.getppid()))
                while True:
                    signal.pause()
        return True


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--register", default=" ".join(PHASES))
    parser.add_argument(
        "--reports", default="link-connect link-identify link-disconnect tx-begin tx-mail tx-rcpt"
    )
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--once", default="")
    parser.add_argument("--fail", default="")
    options = parser.parse_args()
    if options.fail and Path(options.fail).exists():
        sys.stderr.write("misbehaving: cannot start\n")
        sys.exit(4)
    Program(options).run()


main()

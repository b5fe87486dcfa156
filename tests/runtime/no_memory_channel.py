"""Input and output of a channel while single allocations fail: a program for a test.

`no_memory_channel.py WIDTH`: while lines are handed over and answers and lines of messages written,
with a peer that is slow to read, each allocation is made to fail once, and the `WIDTH` - 1 after it
as well.  Each byte must pass once.  Prints what went wrong, and at the end how often something was
tried.
"""

# ruff: noqa: T201

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # CPython's own
import os
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from smtpd_filters.runtime.channel import Channel
from smtpd_filters.runtime.poll_loop import hand_over, send
from tests.effort import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STEPS = 5
#: More than the allocations of a step in which everything fits.
ALLOCATIONS = 60
#: A line of a message, of which two don't fit into the peer's buffer.
LONG = 3000
#: What smtpd says in a step: more than is read at a time while memory is scarce.
SAID = b"report|%d|" + b"x" * 500 + b"\n"


class _Calls:
    """The system's calls, whose result takes memory if it is above 256: was that what failed?"""

    def __init__(self) -> None:
        self.failed = False
        self._writev, self._readv = os.writev, os.readv
        os.writev = self._wrap(os.writev)
        os.readv = self._wrap(os.readv)

    def _wrap(self, call: Callable[[int, Any], int]) -> Callable[[int, Any], int]:
        def called(fd: int, buffers: Any) -> int:
            try:
                return call(fd, buffers)
            except (MemoryError, SystemError):
                self.failed = True
                raise

        return called

    def restore(self) -> None:
        os.writev, os.readv = self._writev, self._readv


class _Side:
    """A channel, what an engine would be, and smtpd's end."""

    def __init__(self, *, scarce: bool) -> None:
        ours, self.peer = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.peer.settimeout(0)
        fd = ours.detach()
        self.channel = Channel(fd, os.dup(fd))
        connection = SimpleNamespace(answers=[], lines=[], ended=set())
        self.engine = cast(
            "Any",
            SimpleNamespace(connection=connection, scarce=scarce, unread=b"", stalled=False),
        )
        self.taken = self.got = b""

    def say(self, number: int) -> None:
        """Have something read and something to write."""
        self.peer.send(SAID % number)
        connection = self.engine.connection
        connection.answers.append(b"answer|%d\n" % number)
        connection.lines += (b"line|", b"%d|" % number, b"y" * LONG, b"\n", b"short|%d\n" % number)

    def move(self) -> None:
        """Read and write, as a loop does."""
        if not self.engine.stalled:
            hand_over(self.channel, self.engine)
        send(self.engine, self.channel)

    def settle(self, most: int) -> None:
        """Take what was handed over; have the peer read."""
        self.taken += self.engine.unread
        self.engine.unread, self.engine.stalled = b"", False
        try:
            self.got += self.peer.recv(most)
        except BlockingIOError:
            pass

    def close(self) -> None:
        self.channel.close()
        self.peer.close()


def wrong(side: _Side) -> list[str]:
    """What has not passed once."""
    found = []
    if side.taken != b"".join(SAID % number for number in range(STEPS)):
        found.append("what was read")
    rows = side.got.splitlines()
    for kind in (b"answer", b"line", b"short"):
        passed = [row.split(b"|")[1] for row in rows if row.startswith(kind + b"|")]
        if passed != [b"%d" % number for number in range(STEPS)]:
            found.append(f"{kind.decode()}s: {passed}")
    if len(rows) != 3 * STEPS or side.channel.size:
        found.append(f"{len(rows)} lines, {side.channel.size} left")
    return found


def play(calls: _Calls, step: int, start: int, stop: int, *, scarce: bool) -> Sequence[str]:
    """What went wrong when these allocations failed in that step."""
    side = _Side(scarce=scarce)
    calls.failed = False
    try:
        for number in range(STEPS):
            side.say(number)
            move = side.move
            if number == step:
                _testcapi.set_nomemory(start, stop)
            try:
                move()
            except (MemoryError, SystemError):
                pass
            finally:
                _testcapi.remove_mem_hooks()
            side.settle(2000)
        for _ in range(10_000):
            side.move()
            side.settle(1 << 16)
            if not side.channel.size and len(side.taken) == len(SAID % 0) * STEPS:
                break
        return [] if calls.failed and not scarce else wrong(side)
    finally:
        side.close()


def main() -> int:
    width = int(sys.argv[1])
    calls = _Calls()
    tried = 0
    for scarce in (False, True):
        for step in range(STEPS):
            for start in range(0, ALLOCATIONS, SHARE):
                tried += 1
                if found := play(calls, step, start, start + width, scarce=scarce):
                    print(f"scarce={scarce}, step {step}, from {start}: {', '.join(found)}")
    calls.restore()
    print(f"{tried} tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())

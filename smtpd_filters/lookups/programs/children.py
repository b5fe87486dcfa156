"""Programs that answer on stdin and stdout, as Postfix's spawn(8) starts them.

A process of its own starts the program, because the filter itself can start nothing after it has
given up its rights (`--sandbox`).

Invariants
----------
*A program for each request*: a program answers one request at a time, and a slow one must not hold
up the others. So another one is started for a request while those before are in use, up to `most`.
*Closed is ended*: a program whose socket was closed, because it didn't answer in time or was out of
step, ends by itself or is ended at the next start.
*No descriptor of smtpd*: the process has its own socket, /dev/null and the log; the program has a
socket and the log. Both end when their socket is closed, however the filter ends.
*Replaced*: if the process is killed, another one takes its place (`spawner`).
*Not confined*: the process starts before the sandbox, and runs nothing but the program of the
settings.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.lookups.stream.connection import Connection, UnconnectedError, over
from smtpd_filters.runtime.helpers import end_helper, start_helper

from . import spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

#: Seconds for the process to end after its socket was closed.
_PATIENCE = spawner.PATIENCE + 2
#: Seconds between two starts of a program that ends without an answer.
REST = 1.0
#: Bytes of an answer: the number of the request, and that of an error.
_MAX_ANSWER = 100
_ENDED = "the process that starts it has ended"


class Children:
    """The process that starts a program; for a client it is a server, each connection a program.

    `label` is the program's name in the log.
    """

    #: The most programs at a time: they take memory, and each some time to start.
    most = 8
    #: Seconds between two starts while it ends without a reply (`lookups.stream.client`, *Rests*).
    rest = REST

    def __init__(self, label: str, command: Sequence[str]) -> None:
        """Start it. Raises ConfigError for a program that can't be run."""
        self.label = label
        program = command[0]
        if not (os.path.isfile(program) and os.access(program, os.X_OK)):  # noqa: PTH113  # a path as text
            raise ConfigError(f"{program}: not a program that this user may run")
        self._number = 0
        #: The sockets of programs by the number of their request, those closed lately included.
        self._sockets: dict[int, socket.socket] = {}
        self._lock: asyncio.Lock | None = None
        # The file alone: it needs nothing of the package, which would take three times the memory.
        words = ["-I", "-S", str(Path(spawner.__file__)), *command]
        try:
            # A datagram is written as a whole or not at all, and its end is seen.
            self._control, self._process = start_helper(words, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise ConfigError(f"{program}: can't be started: {os_reason(error)}") from None

    async def connect(self) -> Connection:
        """Start the program; return a connection to its stdin and stdout.

        Raises UnconnectedError if it can't be started.
        """
        try:
            return over(await self._start())
        except OSError as error:
            raise UnconnectedError(error) from None

    async def _start(self) -> socket.socket:
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            self._process.poll()  # reaps it if it was killed
            self._number += 1
            number = b"%d " % self._number
            request = number + self._in_use()
            self._send(request)
            while True:
                await self._readable()
                with _Answer(self._control) as answer:
                    if answer.text == spawner.AGAIN:
                        self._send(request)
                    # The answer to an earlier request, whose caller was cancelled, is dropped.
                    if answer.text.startswith(number):
                        started = answer.socket(answer.text.removeprefix(number))
                        self._sockets[self._number] = started
                        return started

    def _in_use(self) -> bytes:
        """Return the numbers of the programs whose sockets are open; the others are to end."""
        self._sockets = {
            number: self._sockets[number]
            for number in self._sockets
            if self._sockets[number].fileno() >= 0
        }
        return b" ".join(b"%d" % number for number in self._sockets)

    def _send(self, request: bytes) -> None:
        try:
            self._control.send(request)
        except BrokenPipeError:
            raise OSError(0, _ENDED) from None

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        descriptor = self._control.fileno()
        loop.add_reader(descriptor, _resolve, ready)
        try:
            await ready
        finally:
            loop.remove_reader(descriptor)

    async def aclose(self) -> None:
        """End the process, and with it the program."""
        with self._control as control, suppress(OSError):
            control.shutdown(socket.SHUT_WR)
            control.settimeout(_PATIENCE)
            while control.recv(_MAX_ANSWER):  # until no process has the other end
                pass
        end_helper(self._process, _PATIENCE)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class _Answer:
    """An answer of the process; a descriptor that isn't used is closed."""

    def __init__(self, control: socket.socket) -> None:
        """Read it. Raises OSError if the process has ended."""
        text, self._descriptors, _, _ = socket.recv_fds(control, _MAX_ANSWER, 1)
        if not text:
            raise OSError(0, _ENDED)
        self.text = text

    def socket(self, error: bytes) -> socket.socket:
        """Return the socket of the program. Raises OSError with the number `error` without one."""
        if not self._descriptors:
            number = int(error or b"0")
            raise OSError(number, os.strerror(number) if number else "not started")
        started = socket.socket(fileno=self._descriptors.pop())
        started.setblocking(False)  # noqa: FBT003  # its only parameter
        return started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._descriptors:
            os.close(each)

"""Processes that sign, for signatures that would hold up the event loop.

A request is a kind of key, the key and a digest; a reply is the signature. Processes and not
threads, because the arithmetic holds the interpreter's lock.

Invariants
----------
*Never stuck*: if a process ends, or its reply is not a signature, this process signs itself.
*One at a time*: a process has one request; further ones wait for the process that has the fewest.
*Confined*: with the sandbox on, a process gives up everything but its descriptors before it gets a
key.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from smtpd_filters.authentication.dkim.keys import ED25519, RSA
from smtpd_filters.authentication.dkim.private_keys import PrivateKey
from smtpd_filters.runtime.helpers import end_helper, start_helper
from smtpd_filters.startup import ignore_strays

if TYPE_CHECKING:
    from smtpd_filters.runtime.log import FilterLog

_KINDS: Final = (RSA, ED25519)
#: The kind, the size of the key, the digest; and the size of the signature.
_REQUEST: Final = struct.Struct("!BH32s")
_REPLY: Final = struct.Struct("!H")
#: The kind of a request without a reply: to give up everything.
_CONFINE: Final = 255
#: Bytes of memory, and descriptors, of a confined process, beside those it has.
_MEMORY: Final = 64 << 20
_DESCRIPTORS: Final = 16
_START = (
    "import sys; sys.path[:] = {path!r}; "
    "from smtpd_filters.filters.dkimsign.workers import serve; serve()"
)
#: Seconds for a process to end after its socket was closed.
_PATIENCE: Final = 5.0


class Workers:
    """A number of processes that sign."""

    def __init__(self, count: int, log: FilterLog) -> None:
        """Start them. Raises OSError."""
        self._log = log
        self._workers = [_Worker() for _ in range(count)]
        self._confined = False

    def confine(self) -> None:
        """Have the processes give up everything that they don't need, which is nearly all."""
        for worker in () if self._confined else self._workers:
            worker.confine()
        self._confined = True

    async def sign(self, key: PrivateKey, digest: bytes) -> bytes:
        """Return the signature of a digest."""
        worker = min(self._workers, key=lambda each: each.waiting)
        signature = b""
        if not worker.ended:
            # A request goes on if its caller is cancelled: the reply belongs to it.
            signature = await asyncio.shield(worker.ask(key, digest))
        if not signature:
            self._log.limited("worker", "a process for signatures has ended")
            return key.sign(digest)
        return signature

    async def aclose(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process."""

    def __init__(self) -> None:
        words = ["-E", "-S", "-c", _START.format(path=sys.path)]
        self._socket, self._process = start_helper(words, socket.SOCK_STREAM)
        self._lock = asyncio.Lock()
        self.waiting = 0
        self.ended = False

    def confine(self) -> None:
        """Have the process enter its sandbox before its next request."""
        try:
            self._socket.send(_REQUEST.pack(_CONFINE, 0, b""))
        except OSError:
            self.ended = True

    def ask(self, key: PrivateKey, digest: bytes) -> asyncio.Task[bytes]:
        """Ask for a signature; empty if the process has ended.

        It counts as waiting at once, so that requests of one turn are shared out.
        """
        self.waiting += 1
        asked = asyncio.get_running_loop().create_task(self._ask(key, digest), name="signature")
        asked.add_done_callback(self._answered)
        return asked

    def _answered(self, _asked: asyncio.Task[bytes]) -> None:
        self.waiting -= 1

    async def _ask(self, key: PrivateKey, digest: bytes) -> bytes:
        try:
            async with self._lock:
                if self.ended:
                    return b""
                loop = asyncio.get_running_loop()
                head = _REQUEST.pack(_KINDS.index(key.kind), len(key.secret), digest)
                await loop.sock_sendall(self._socket, head + key.secret)
                (size,) = _REPLY.unpack(await self._receive(_REPLY.size))
                return await self._receive(size)
        except (OSError, EOFError):
            self.ended = True
            return b""

    async def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = await asyncio.get_running_loop().sock_recv(self._socket, size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def close(self) -> None:
        """End the process."""
        self.ended = True
        self._socket.close()
        end_helper(self._process, _PATIENCE)


def serve() -> None:
    """Sign until the socket at descriptor 0 is closed: the main function of a process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignore_strays()
    keys: dict[tuple[int, bytes], PrivateKey] = {}
    with suppress(OSError, EOFError):
        while True:
            kind, size, digest = _REQUEST.unpack(_read(_REQUEST.size))
            if kind == _CONFINE:
                _enter_sandbox()
                continue
            secret = _read(size)
            if (kind, secret) not in keys:
                keys[kind, secret] = PrivateKey(_KINDS[kind], secret)
            signature = keys[kind, secret].sign(digest)
            os.write(0, _REPLY.pack(len(signature)) + signature)


def _enter_sandbox() -> None:
    """Give up everything. What the kernel lacks, the process that asks has logged for itself."""
    from smtpd_filters.sandbox import Needs, confinement  # not with --sandbox off

    # The library for signatures, which may still be read afterwards, is loaded by the first one.
    needs = Needs()
    needs.memory, needs.descriptors = _MEMORY, _DESCRIPTORS
    confinement.confine(needs)


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data

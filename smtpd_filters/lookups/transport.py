"""One question to one server, over UDP or TCP, on the running event loop.

1. A question has a socket of its own, so a port of its own, which the kernel draws at random
   (RFC 5452 section 4.5). It is connected: the kernel drops what other addresses send, and says at
   once when nobody listens.
2. What doesn't answer the question is passed over until the time is up (RFC 5452 section 9.1).
3. Every way to fail is a value; nothing is raised but cancellation, and no socket outlives it.

These are plain sockets on the loop rather than dnspython's `asyncquery`. That of 2.3, which Debian
12 has, waits for ever when its time is up between two datagrams (a time-out of 0 is none to it),
and loses datagrams that arrive in one burst, so that a forgery displaces the answer. And all
versions leave the UDP socket unconnected.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from smtpd_filters.lookups.retry import Failure
from smtpd_filters.lookups.wire import UDP_PAYLOAD, Question, Stray, Trouble

if TYPE_CHECKING:
    from smtpd_filters.lookups.outcome import Found, NotFound

# This machine's own lack, not the server's fault.
_LOCAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM})

# So many strays are an attack, which would otherwise keep the loop busy; TCP is harder to forge.
# (PowerDNS Recursor's spoof-nearmiss-max was 20.)
MAX_STRAYS = 20


class Endpoint:
    """Where a name server is; `label` is how it is called in logs.

    Raises ValueError if `address` isn't one.
    """

    __slots__ = ("_family", "_sockaddr", "label")

    def __init__(self, address: str, port: int) -> None:
        try:
            # Numeric only: this never asks anybody. It understands zone indices (fe80::1%em0).
            (info, *_) = socket.getaddrinfo(
                address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
            )
        except (OSError, UnicodeError) as exc:
            raise ValueError(f"{address!r} is not an IP address") from exc
        self._family = info[0]
        self._sockaddr: Any = info[4]
        self.label = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    async def ask(
        self, question: Question, *, tcp: bool, seconds: float
    ) -> Found[Any] | NotFound | Trouble:
        """Ask, and return what the server says within `seconds`, or what went wrong."""
        silence = Trouble(Failure.SILENT, "timeout")
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        try:
            with socket.socket(self._family, kind | socket.SOCK_NONBLOCK) as sock:
                async with asyncio.timeout(seconds):
                    if tcp:
                        return await self._ask_tcp(sock, question)
                    return await self._ask_udp(sock, question, silence)
        except TimeoutError:
            # A subclass of OSError, and also what connect(2) says with ETIMEDOUT.
            return silence
        except EOFError:
            return Trouble(Failure.UNREACHABLE, "connection closed")
        except OSError as exc:
            failure = Failure.LOCAL if exc.errno in _LOCAL else Failure.UNREACHABLE
            return Trouble(failure, os.strerror(exc.errno or 0).lower())

    async def _ask_udp(
        self, sock: socket.socket, question: Question, silence: Trouble
    ) -> Found[Any] | NotFound | Trouble:
        loop = asyncio.get_running_loop()
        sock.connect(self._sockaddr)  # for UDP this only notes the address
        sock.send(question.wire)
        for _ in range(MAX_STRAYS):
            # One byte more than may come: what is longer is cut, and malformed.
            data = await loop.sock_recv(sock, UDP_PAYLOAD + 1)
            reading = question.read(data, tcp=False)
            if not isinstance(reading, Stray):
                return reading
            silence.cause = reading.cause  # worth more in a log than "timeout"
        return Trouble(Failure.USE_TCP, "many forged answers")

    async def _ask_tcp(
        self, sock: socket.socket, question: Question
    ) -> Found[Any] | NotFound | Trouble:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, self._sockaddr)
        await loop.sock_sendall(sock, len(question.wire).to_bytes(2, "big") + question.wire)
        length = int.from_bytes(await _read_exactly(sock, 2), "big")
        reading = question.read(await _read_exactly(sock, length), tcp=True)
        # Nobody else can have sent this: it is the server that is wrong.
        if isinstance(reading, Stray):
            return Trouble(Failure.BROKEN, reading.cause)
        return reading


async def _read_exactly(sock: socket.socket, count: int) -> bytes:
    """Return `count` bytes; raises EOFError if the connection ends before."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while len(data) < count:
        chunk = await loop.sock_recv(sock, count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)

"""One question to one server, over UDP or TCP, on the running event loop.

Invariants
----------
*Own port*: a question has a socket of its own, so a port that the kernel draws at random (RFC 5452
section 4.5). It is connected: the kernel drops what other addresses send, and reports at once that
nobody listens.
*Patience*: what doesn't answer the question is ignored until the time is up (RFC 5452 section 9.1),
up to a bound.
*Pace*: no response is read before `pace` admits the work. The wait for that is not the server's: it
counts against the deadline of a look-up, not against the server's time-out.
*Values*: every failure is a value; nothing is raised but cancellation, and no socket outlives the
call.

These are plain sockets on the loop rather than dnspython's `asyncquery`. That of 2.3, which Debian
12 has, waits for ever when its time is up between two datagrams (it takes a time-out of 0 for
none), and loses datagrams that arrive in one burst, so that a forgery displaces the answer. And all
versions leave the UDP socket unconnected.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from smtpd_filters.lookups.retry import Failure
from smtpd_filters.runtime.pace import pace

from .message import UDP_PAYLOAD, Question, Stray, Trouble
from .response import MAX_WORK

if TYPE_CHECKING:
    from smtpd_filters.lookups.outcome import Found, NotFound

# What this machine is short of for the moment.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# So many strays are an attack, which would otherwise keep the loop busy; TCP is harder to forge.
# (PowerDNS Recursor's spoof-nearmiss-max was 20.)
MAX_STRAYS = 20
# 64 KiB are 123 segments of 536 bytes, what a host sends at least (RFC 9293 section 3.7.1).
MAX_PIECES = 256

#: The price of making and sending a question, and of receiving a response beyond reading it
#: (`pace`).
SEND, RECEIVE = 150, 150


class _PiecesError(Exception):
    """A response over TCP came in more than MAX_PIECES."""


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
        ask = self._ask_tcp if tcp else self._ask_udp
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        try:
            with socket.socket(self._family, kind | socket.SOCK_NONBLOCK) as sock:
                return await ask(sock, question, asyncio.get_running_loop().time() + seconds)
        except EOFError:
            return Trouble(Failure.UNREACHABLE, "connection closed")
        except _PiecesError:
            return Trouble(Failure.BROKEN, "answer in too many pieces")
        except TimeoutError:
            # A subclass of OSError, and also what connect(2) says with ETIMEDOUT.
            return Trouble(Failure.SILENT, "timeout")
        except OSError as exc:
            return Trouble(_failure(exc), os.strerror(exc.errno or 0).lower())

    async def _ask_udp(
        self, sock: socket.socket, question: Question, until: float
    ) -> Found[Any] | NotFound | Trouble:
        loop = asyncio.get_running_loop()
        sock.connect(self._sockaddr)  # for UDP this only notes the address
        sock.send(question.wire)
        cause = "timeout"
        for _ in range(MAX_STRAYS):
            try:
                async with asyncio.timeout_at(until):
                    # One byte more than may come: what is longer is cut, and malformed.
                    data = await loop.sock_recv(sock, UDP_PAYLOAD + 1)
            except TimeoutError:
                return Trouble(Failure.SILENT, cause)
            reading = await _read(question, data, tcp=False)
            if not isinstance(reading, Stray):
                return reading
            cause = reading.cause  # worth more in a log than "timeout"
        return Trouble(Failure.USE_TCP, "many forged answers")

    async def _ask_tcp(
        self, sock: socket.socket, question: Question, until: float
    ) -> Found[Any] | NotFound | Trouble:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(until):
            await loop.sock_connect(sock, self._sockaddr)
            await loop.sock_sendall(sock, len(question.wire).to_bytes(2, "big") + question.wire)
            data = await _receive(sock)
        reading = await _read(question, data, tcp=True)
        # Nobody else can have sent this: it is the server that is wrong.
        if isinstance(reading, Stray):
            return Trouble(Failure.BROKEN, reading.cause)
        return reading


def _failure(exc: OSError) -> Failure:
    if exc.errno in _SHORT:
        return Failure.SHORT
    # A rule of this machine's firewall is not the server's fault.
    return Failure.LOCAL if exc.errno == errno.EPERM else Failure.UNREACHABLE


async def _read(
    question: Question, data: bytes, *, tcp: bool
) -> Found[Any] | NotFound | Trouble | Stray:
    await pace().admit(RECEIVE + min(len(data), MAX_WORK))
    return question.read(data, tcp=tcp)


async def _receive(sock: socket.socket) -> bytes:
    """Return the message that a stream begins with (RFC 1035 section 4.2.2).

    Raises EOFError if the stream ends before, and _PiecesError.
    """
    size = bytearray(2)
    pieces = await _fill(sock, size, MAX_PIECES)
    message = bytearray(int.from_bytes(size, "big"))
    await _fill(sock, message, pieces)
    return bytes(message)


async def _fill(sock: socket.socket, buffer: bytearray, pieces: int) -> int:
    """Fill a buffer from a stream in at most so many pieces; return how many are left."""
    loop = asyncio.get_running_loop()
    left = memoryview(buffer)
    while left:
        if not pieces:
            raise _PiecesError
        count = await loop.sock_recv_into(sock, left)
        if not count:
            raise EOFError
        left = left[count:]
        pieces -= 1
    return pieces

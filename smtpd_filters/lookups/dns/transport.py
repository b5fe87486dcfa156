"""The transport of DNS: sends one query to one server over UDP or TCP and awaits the response.

Invariants
----------
*Own port*: each query has its own socket, and so a random port (RFC 5452 section 4.5). The socket
is connected: the kernel drops datagrams from other addresses, and reports a closed port at once.
*Patience*: messages that don't answer the question are ignored until the timeout (RFC 5452 section
9.1), up to a bound.
*Pace*: no response is parsed before `pace` admits the work. That wait counts against the deadline
of the look-up, not against the server's timeout.
*Values*: every failure is returned; only cancellation is raised. No socket outlives the call.

This uses plain sockets on the loop rather than dnspython's `asyncquery`. Version 2.3, in Debian 12,
hangs if its timeout expires between two datagrams (it treats a timeout of 0 as no timeout), and
loses datagrams that arrive in one burst, so that a forgery displaces the answer. All versions leave
the UDP socket unconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from smtpd_filters.lookups.places import CROWDED
from smtpd_filters.lookups.retry import Failure
from smtpd_filters.runtime.pace import pace
from smtpd_filters.settings import ENDPOINT

from .message import UDP_PAYLOAD, Question, Stray, Trouble
from .names import is_link_local
from .response import MAX_WORK

if TYPE_CHECKING:
    from smtpd_filters.lookups.outcome import Found, NotFound
    from smtpd_filters.lookups.places import Place

# Errors of a resource that this machine lacks for the moment.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# This many strays are an attack, which would otherwise keep the loop busy; TCP is harder to forge.
# PowerDNS Recursor's spoof-nearmiss-max was 20.
MAX_STRAYS = 20
# 64 KiB are 123 segments of 536 bytes, the default segment size (RFC 9293 section 3.7.1).
MAX_PIECES = 256

#: The prices (`pace`) of encoding and sending a query, and of receiving a response without parsing.
SEND, RECEIVE = 150, 150


class _PiecesError(Exception):
    """A response over TCP arrived in too many pieces."""


class Endpoint:
    """The address of a name server; `label` names it in logs.

    A response over TCP has at most `pieces`. Raises ValueError if `address` is not an IP address.
    The interface of a link-local address (`fe80::1%em0`) may be created later.
    """

    __slots__ = ("_family", "_missing", "_pieces", "_sockaddr", "label")

    def __init__(self, address: str, port: int, *, pieces: int = MAX_PIECES) -> None:
        #: The interface that was missing when it was last looked for, or "".
        self._missing = ""
        try:
            self._family, self._sockaddr = _sockaddr(address, port)
        except (OSError, UnicodeError) as exc:
            if not is_link_local(address):
                raise ValueError(f"{address!r} is not an IP address") from exc
            self._family, self._sockaddr = socket.AF_INET6, (address, port)
            self._missing = address.partition("%")[2]
        self._pieces = pieces
        self.label = ENDPOINT.show((address, port))

    @property
    def server(self) -> tuple[str, int]:
        """The address and the port."""
        address, port, *_ = self._sockaddr
        return address, port

    def _find_interface(self) -> None:
        """Look again for the interface that was missing."""
        with contextlib.suppress(OSError, UnicodeError):
            self._family, self._sockaddr = _sockaddr(*self.server)
            self._missing = ""

    async def ask(
        self, question: Question, *, tcp: bool, seconds: float, place: Place
    ) -> Found[Any] | NotFound | Trouble:
        """Send the query, and return the server's answer within `seconds`, or the failure.

        `place` ends the wait for the answer earlier if others need the place.
        """
        ask = self._ask_tcp if tcp else self._ask_udp
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        if self._missing:
            self._find_interface()
            if self._missing:
                return Trouble(Failure.UNREACHABLE, f"no interface {self._missing}")
        try:
            with socket.socket(self._family, kind | socket.SOCK_NONBLOCK) as sock:
                until = asyncio.get_running_loop().time() + seconds
                return await ask(sock, question, until, place)
        except EOFError:
            return Trouble(Failure.UNREACHABLE, "connection closed")
        except _PiecesError:
            return Trouble(Failure.BROKEN, "answer in too many pieces")
        except TimeoutError:
            # Before OSError, its base class. ETIMEDOUT of connect(2) is a TimeoutError, too.
            return _timeout(place, "timeout")
        except OSError as exc:
            return Trouble(_failure(exc), os.strerror(exc.errno or 0).lower())

    async def _ask_udp(
        self, sock: socket.socket, question: Question, until: float, place: Place
    ) -> Found[Any] | NotFound | Trouble:
        loop = asyncio.get_running_loop()
        sock.connect(self._sockaddr)  # for UDP this only sets the peer
        sock.send(question.wire)
        cause = "timeout"
        for _ in range(MAX_STRAYS):
            try:
                async with asyncio.timeout_at(until) as limit:
                    place.wait(limit)
                    # One byte above the maximum: a longer datagram is cut, and so malformed.
                    data = await loop.sock_recv(sock, UDP_PAYLOAD + 1)
            except TimeoutError:
                return _timeout(place, cause)
            place.arrived()
            reading = await _read(question, data, tcp=False)
            if not isinstance(reading, Stray):
                return reading
            cause = reading.cause  # more specific than "timeout"
        return Trouble(Failure.USE_TCP, "many forged answers")

    async def _ask_tcp(
        self, sock: socket.socket, question: Question, until: float, place: Place
    ) -> Found[Any] | NotFound | Trouble:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(until) as limit:
            place.wait(limit)
            await loop.sock_connect(sock, self._sockaddr)
            await loop.sock_sendall(sock, len(question.wire).to_bytes(2, "big") + question.wire)
            data = await _receive(sock, self._pieces)
        place.arrived()
        reading = await _read(question, data, tcp=True)
        # Over TCP it can't be a forgery: the server is broken.
        if isinstance(reading, Stray):
            return Trouble(Failure.BROKEN, reading.cause)
        return reading


def _sockaddr(address: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the socket address of an IP address. Raises OSError, UnicodeError."""
    # Numeric only: no look-up. Zone indices are understood (fe80::1%em0).
    (info, *_) = socket.getaddrinfo(
        address, port, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )
    return info[0], info[4]


def _timeout(place: Place, cause: str) -> Trouble:
    if place.evicted:
        return Trouble(Failure.SHORT, CROWDED)
    return Trouble(Failure.SILENT, cause)


def _failure(exc: OSError) -> Failure:
    if exc.errno in _SHORT:
        return Failure.SHORT
    # EPERM comes from a firewall rule of this machine; the server is not at fault.
    return Failure.LOCAL if exc.errno == errno.EPERM else Failure.UNREACHABLE


async def _read(
    question: Question, data: bytes, *, tcp: bool
) -> Found[Any] | NotFound | Trouble | Stray:
    await pace().admit(RECEIVE + min(len(data), MAX_WORK))
    return question.read(data, tcp=tcp)


async def _receive(sock: socket.socket, pieces: int) -> bytes:
    """Read a message from a stream (RFC 1035 section 4.2.2) in at most `pieces` pieces.

    Raises EOFError if the stream ends early, and _PiecesError.
    """
    size = bytearray(2)
    pieces = await _fill(sock, size, pieces)
    message = bytearray(int.from_bytes(size, "big"))
    await _fill(sock, message, pieces)
    return bytes(message)


async def _fill(sock: socket.socket, buffer: bytearray, pieces: int) -> int:
    """Fill a buffer from a stream in at most `pieces` pieces; return the rest of that number."""
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

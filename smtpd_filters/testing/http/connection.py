"""One connection to the stub: parsing of requests, and their answers or failures."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from .answers import END, PARTIAL, Answer, Request

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket
    from collections import deque
    from collections.abc import Callable

    from .server import HTTPStub

#: Octets of a header block, as in the daemon's HTTP parser.
_HEAD_MAX = 80 << 10
_ENDLESS = b"x" * (64 << 10)


@dataclass(slots=True)
class Seen:
    """What the stub has seen: see its properties of these names."""

    requests: deque[Request]
    asked: int = 0
    connections: int = 0
    connected: int = 0
    most_at_once: int = 0
    waiting: int = 0


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, stub: HTTPStub, seen: Seen) -> None:
        self._stub = stub
        self._seen = seen
        self._transport: asyncio.Transport | None = None
        self._number = 0
        # Input of the current request and of those after it.
        self._buffer = bytearray()
        self._head = b""
        self._request: Request | None = None
        self._left = 0  # octets of the body still to be read; -1 while it is chunked
        self._body: list[bytes] = []
        self._size = 0
        self._stale = False
        self._answering = False
        self._timer: asyncio.TimerHandle | None = None

    # -- callbacks of asyncio --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection with the stub."""
        self._transport = cast("asyncio.Transport", transport)
        self._stub.protocols.add(self)
        self._seen.connections += 1
        self._seen.connected += 1
        self._number = self._seen.connections

    def connection_lost(self, _exc: Exception | None) -> None:
        """Cancel the pending answer and unregister."""
        if self._timer is not None:
            self._timer.cancel()
        self._done()
        self._stub.protocols.discard(self)
        self._seen.connected -= 1
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Process input."""
        if self._stale:
            self._close()
            return
        self._buffer += data
        self._process()

    @property
    def socket(self) -> TransportSocket | None:
        """The socket, while it is read."""
        if self._transport is None or self._transport.is_closing():
            return None
        found: TransportSocket = self._transport.get_extra_info("socket")
        return found

    def reset(self) -> None:
        """End the connection with an RST rather than a FIN."""
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # -- requests --------------------------------------------------------------------------

    def _process(self) -> None:
        """Process the buffered input, up to a request whose answer is pending."""
        while not self._answering and self._transport is not None:
            if self._request is None and not self._read_head():
                return
            if not self._read_body():
                return
            request = cast("Request", self._request)
            self._request = None
            body = b"".join(self._body)
            self._body = []
            self._answer(replace(request, body=body, size=self._size))

    def _read_head(self) -> bool:
        end = self._buffer.find(END)
        if end < 0:
            if len(self._buffer) > _HEAD_MAX:
                self._write(b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n")
                self._close()
            return False
        head = bytes(self._buffer[:end])
        del self._buffer[: end + len(END)]
        first, *rest = head.decode("latin-1").split("\r\n")
        method, _, path = first.partition(" ")
        fields = tuple(
            (name, value.strip()) for name, _, value in (line.partition(":") for line in rest)
        )
        request = Request(method, path.partition(" ")[0], fields, b"", 0, self._number, head)
        self._request = request
        self._size = 0
        chunked = (request.get("Transfer-Encoding") or "").lower() == "chunked"
        self._left = -1 if chunked else int(request.get("Content-Length") or 0)
        if request.get("Expect"):
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        answer = self._stub.answer
        if isinstance(answer, Answer) and answer.behaviour == "early" and not _is_ping(request):
            self._seen.asked += 1
            self._write(self._stub.answer_to(request)[1])
            self._close()
            return False
        return True

    def _read_body(self) -> bool:
        """Read the body; return whether it is complete."""
        while self._left < 0:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return False
            size = int(self._buffer[:end].partition(b";")[0], 16)
            if len(self._buffer) < end + size + 4:
                return False
            self._add_to_body(bytes(self._buffer[end + 2 : end + 2 + size]))
            del self._buffer[: end + size + 4]
            if not size:
                return True
        if self._left:
            part = bytes(self._buffer[: self._left])
            del self._buffer[: self._left]
            self._left -= len(part)
            self._add_to_body(part)
        return not self._left

    def _add_to_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._stub.keep and part:
            self._body.append(part)

    # -- answers ---------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        if _is_ping(request):
            if self._stub.pings:
                self._write(Answer(b"pong\r\n", content_type="text/plain").wire())
            return
        seen = self._seen
        seen.asked += 1
        if self._stub.keep:
            seen.requests.append(request)
        answer, wire = self._stub.answer_to(request)
        if request.method == "HEAD":  # RFC 9110 section 9.3.2: no content
            wire = wire[: wire.find(END) + len(END)]
        if not (answer.delay or answer.behaviour):
            self._write(wire)
            return
        self._answering = True
        seen.waiting += 1
        seen.most_at_once = max(seen.most_at_once, seen.waiting)
        delay = 0 if answer.behaviour == "trickle" else answer.delay
        self._later(delay, lambda: self._behave(answer, wire))

    def _behave(self, answer: Answer, wire: bytes) -> None:
        if answer.behaviour in PARTIAL:
            self._fail_within(answer, wire)
            return
        if answer.behaviour == "garbage":
            wire = b"SSH-2.0-OpenSSH_9.2p1\r\n"
        if answer.behaviour not in {"close", "reset"}:
            self._write(wire)
        if answer.behaviour == "reset":
            self.reset()
        elif answer.behaviour in {"close", "garbage", "close-after"}:
            self._close()
        self._stale = answer.behaviour == "stale"
        self._done()
        self._process()

    def _fail_within(self, answer: Answer, wire: bytes) -> None:
        """Send less than the whole reply, or more; no further request is answered."""
        behaviour = answer.behaviour
        if behaviour == "trickle":
            self._trickle(wire, answer.delay)
        elif behaviour == "endless":
            self._write(wire)
            self._endless()
        elif behaviour != "drop":
            self._write(wire[: len(wire) - (len(answer.body) + 1) // 2])
            if behaviour == "cut":
                self._close()
            elif behaviour == "reset-half":
                # Delayed, since an RST makes the peer's kernel discard unread input.
                self._later(0.02, self.reset)

    def _trickle(self, wire: bytes, delay: float) -> None:
        self._write(wire[:1])
        if wire[1:]:
            self._later(delay, lambda: self._trickle(wire[1:], delay))
        else:
            self._done()
            self._process()

    def _endless(self) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() < 1 << 20:
            self._write(b"%x\r\n%b\r\n" % (len(_ENDLESS), _ENDLESS))
        self._later(0, self._endless)

    def _done(self) -> None:
        if self._answering:
            self._answering = False
            self._seen.waiting -= 1

    def _later(self, delay: float, then: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, then)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _is_ping(request: Request) -> bool:
    return request.method == "GET" and request.path == "/ping"

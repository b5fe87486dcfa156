"""A scripted clamd: what it replies, and every fault that the real one has or may have.

Run as a program, it listens at a port of its own, writes it to its output, and ends with its input.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}" + b"$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
CLEAN, FOUND = b"stream: OK\0", b"stream: Own.Test.EICAR.UNOFFICIAL FOUND\0"
TOO_LARGE = b"INSTREAM size limit exceeded. ERROR\0"
TIMED_OUT = b"COMMAND READ TIMED OUT\n"
#: The faults by which a connection ends after the first chunk, with what it says then.
EARLY = {
    "close": b"",
    "deaf": b"",
    "limit": TOO_LARGE,
    "limit-reset": TOO_LARGE,
    "early-ok": CLEAN,
}
#: The faults: what a connection does in place of the usual reply.
FAULTS = (
    "close", "reset", "half", "drip", "flood", "silent", "limit", "limit-reset", "timed-out",
    "early-ok", "two", "deaf",
)  # fmt: skip


class Clamd:
    """A server; `reply` is what it says to every scan, "" to look for EICAR."""

    def __init__(self, reply: bytes = b"", fault: str = "", path: str = "", limit: int = 0) -> None:
        self.reply, self.fault, self.limit = reply, fault, limit
        #: The messages that it got, and the number of connections.
        self.messages: list[bytes] = []
        self.commands: list[bytes] = []
        self.connections = 0
        self.ended = threading.Event()
        stub = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                stub.connections += 1
                try:
                    stub.serve(self.request)
                except OSError:
                    pass

        # Inherited by connections, so that the system doesn't take a large message at once.
        small = (socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        if path:
            self._server: socketserver.BaseServer = _Unix(path, Handler)
            self.address = path
        else:
            tcp = _Tcp(("127.0.0.1", 0), Handler)
            self._server, self.address = tcp, f"127.0.0.1:{tcp.server_address[1]}"
            tcp.socket.setsockopt(*small)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve(self, link: socket.socket) -> None:
        """Answer a command."""
        end = b"\0"
        command = _until(link, end)
        self.commands.append(command)
        if command == b"zPING\0":
            link.sendall(b"PONG\0" if self.fault != "deaf" else b"")
        elif command == b"zINSTREAM\0":
            self._scan(link)
        else:
            link.sendall(b"UNKNOWN COMMAND\0")

    def _scan(self, link: socket.socket) -> None:
        if self.fault in EARLY:
            _chunk(link)
            self._say(link, EARLY[self.fault])
            return
        message = bytearray()
        while chunk := _chunk(link):
            message += chunk
            if self.limit and len(message) > self.limit:
                link.sendall(TOO_LARGE)
                return
        self.messages.append(bytes(message))
        self._say(link, self.reply or (FOUND if EICAR in message else CLEAN))

    def _say(self, link: socket.socket, reply: bytes) -> None:
        match self.fault:
            case "half" | "two" | "timed-out" as fault:
                odd = {"half": reply[:-3], "two": reply + reply, "timed-out": TIMED_OUT}
                link.sendall(odd[fault])
            case "silent":
                self.ended.wait(30)
            case "flood":
                while not self.ended.is_set():
                    link.sendall(b"x" * 65536)
            case "drip":
                for at in range(len(reply)):
                    link.sendall(reply[at : at + 1])
                    time.sleep(0.001)
            case "reset":
                _reset(link)
            case "limit-reset":
                link.sendall(reply)
                _reset(link)
            case _:
                link.sendall(reply)


class _Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Bind with a small receive buffer: the kernel must not take whole messages unread."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        super().server_bind()


class _Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


def _until(link: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = link.recv(1)
        if not piece:
            break
        data += piece
    return data


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = link.recv(min(size - len(data), 1 << 16))
        if not piece:
            raise ConnectionError("the client has closed the connection")
        data += piece
    return bytes(data)


def _chunk(link: socket.socket) -> bytes:
    (size,) = struct.unpack(">I", _exactly(link, 4))
    return _exactly(link, size)


def _reset(link: socket.socket) -> None:
    if link.family == socket.AF_INET:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


if __name__ == "__main__":
    with Clamd() as clamd:
        sys.stdout.write(f"{clamd.address}\n")
        sys.stdout.flush()
        sys.stdin.read()

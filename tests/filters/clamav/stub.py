"""A scripted clamd: what it replies, and every fault that the real one has or may have.

Run as a program, it listens at a port of its own, writes it to its output, and ends with its input.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.filters.serving import Serving

if TYPE_CHECKING:
    from typing import Self

    from tests.filters.serving import Link

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
        self._messages: list[bytes] = []
        self._path = Path(path) if path else None
        self._serving = Serving(self._serve, self._path, new=_small)

    @property
    def address(self) -> str:
        """The address for a filter."""
        return str(self._path) if self._path is not None else f"127.0.0.1:{self._serving.port}"

    @property
    def messages(self) -> list[bytes]:
        """The messages that it got as a whole."""
        self._serving.catch_up()
        return self._messages

    @property
    def connections(self) -> int:
        """The number of connections."""
        return self._serving.connections

    def __enter__(self) -> Self:
        self._serving.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._serving.close()

    def _serve(self, link: Link) -> None:
        command = _until(link, b"\0")
        if command == b"zPING\0":
            link.sendall(b"PONG\0" if self.fault != "deaf" else b"")
        elif command == b"zINSTREAM\0":
            self._scan(link)
        else:
            link.sendall(b"UNKNOWN COMMAND\0")

    def _scan(self, link: Link) -> None:
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
        self._messages.append(bytes(message))
        self._say(link, self.reply or (FOUND if EICAR in message else CLEAN))

    def _say(self, link: Link, reply: bytes) -> None:
        match self.fault:
            case "half" | "two" | "timed-out" as fault:
                odd = {"half": reply[:-3], "two": reply + reply, "timed-out": TIMED_OUT}
                link.sendall(odd[fault])
            case "silent":
                link.wait_for_end()
            case "flood":
                while True:
                    link.sendall(b"x" * 65536)
            case "drip":
                for at in range(len(reply)):
                    link.sendall(reply[at : at + 1])
                    time.sleep(0.001)
            case "reset":
                link.reset()
            case "limit-reset":
                link.sendall(reply)
                link.reset()
            case _:
                link.sendall(reply)


def _small() -> socket.socket:
    """Return a socket with a small receive buffer: the kernel must not take messages unread."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    return made


def _until(link: Link, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = link.recv(1)
        if not piece:
            break
        data += piece
    return data


def _exactly(link: Link, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = link.recv(min(size - len(data), 1 << 16))
        if not piece:
            raise ConnectionError("the client has closed the connection")
        data += piece
    return bytes(data)


def _chunk(link: Link) -> bytes:
    (size,) = struct.unpack(">I", _exactly(link, 4))
    return _exactly(link, size)


if __name__ == "__main__":
    with Clamd() as clamd:
        sys.stdout.write(f"{clamd.address}\n")
        sys.stdout.flush()
        sys.stdin.read()

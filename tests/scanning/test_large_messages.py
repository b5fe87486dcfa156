"""Fifty messages of 20 MB at once through each filter that has messages scanned.

The filter is a process, the other ends are this one's: smtpd, which sends a line of each message in
turns, and a scanner that reads all and finds nothing.
"""

from __future__ import annotations

import itertools
import re
import socketserver
import threading
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.milter import Agreement, MilterSide, Verdict
from smtpd_filters.milter import vocabulary as v
from tests.bench.scanners import command
from tests.bench.stalls import HEAD, Flood
from tests.effort import part

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Self

MESSAGES = part(50)
SIZE = 20 << 20
LINE = b"x" * 998
#: MiB that a filter may have at most: without any message each has about 35.
MOST = 80
PIECE = 1 << 18


class Scanner:
    """A server at a free port; `scan` reads a message, and returns its size or 0."""

    def __init__(self, scan: Callable[[socket.socket], int]) -> None:
        self.sizes: list[int] = []
        self.connections = 0
        scanner = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                scanner.connections += 1
                if size := scan(self.request):
                    scanner.sizes.append(size)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()  # waits for the threads, which note sizes after their replies


def read(link: socket.socket, end: bytes = b"") -> int:
    """Read to the end of the input, or to these bytes; return the number of bytes."""
    size, tail = 0, b""
    while data := link.recv(PIECE):
        size += len(data)
        tail = (tail + data)[-4:]
        if end and tail == end:
            break
    return size


def clamd(link: socket.socket) -> int:
    """INSTREAM, which ends with an empty chunk."""
    size = read(link, bytes(4))
    link.sendall(b"stream: OK\0")
    return size


def spamd(link: socket.socket) -> int:
    """Any command, which ends with the input."""
    size = read(link)
    body = b"X-Spam-Status: No, score=0.0\n\n"
    head = b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: False ; 0.0 / 5.0\r\n\r\n"
    link.sendall(head % len(body) + body)
    return size


def milter(link: socket.socket) -> int:
    """A session of one message, which wants all that there is, and answers everything."""
    side, size = MilterSide(), 0
    agreed = Agreement(6, 0x1FF, 0)
    while data := link.recv(PIECE):
        for event in side.receive(data):
            if event.command == v.NEGOTIATE:
                link.sendall(agreed.encode())
            elif event.command not in {v.ABORT, v.QUIT}:
                size += sum(map(len, event.fields)) if event.command == v.BODY else 0
                link.sendall(Verdict(v.CONTINUE).encode())
    return size


def rspamd(link: socket.socket) -> int:
    """An HTTP request, after which the connection is closed."""
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := link.recv(PIECE)):
            return 0
        head += data
    head, _, rest = head.partition(b"\r\n\r\n")
    [length] = re.findall(rb"(?i)\r\ncontent-length: *(\d+)", head)
    size = len(rest)
    while size < int(length):
        if not (data := link.recv(PIECE)):
            return 0
        size += len(data)
    body = b'{"action": "no action", "score": 0, "required_score": 15, "symbols": {}}'
    link.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
    link.sendall(body)
    return size


SCANNERS: dict[str, tuple[Callable[[socket.socket], int], str]] = {
    "clamav": (clamd, "--clamd SCANNER --connections 50"),
    "spamd": (spamd, "--spamd SCANNER --connections 50 --max-size 25M"),
    "milter": (milter, "--milter inet:SCANNER"),
    "rspamd": (rspamd, "-url http://SCANNER --max-size 25M"),
}


@pytest.mark.parametrize("name", SCANNERS)
def test_memory_is_bounded(name: str) -> None:
    scan, flags = SCANNERS[name]
    keys = [b"%016x" % (0x1000 + number) for number in range(MESSAGES)]
    lines = itertools.repeat(LINE, SIZE // (len(LINE) + 2))
    with Scanner(scan) as scanner:
        words = command(name, *flags.replace("SCANNER", scanner.address).split())
        with Flood(words) as flood:
            for key in keys:
                flood.connect(key)
            flood.send(keys, itertools.chain(HEAD, [b""], lines))
            flood.flush(0)
            # clamd has few threads, and one waits for each connection.
            assert name == "milter" or scanner.connections == 0
            flood.send(keys, [b"."])
            flood.flush(MESSAGES)
            memory = flood.memory()
    assert len(scanner.sizes) == MESSAGES
    # smtpd counts a line with the two bytes of its end, a scanner gets one of them at least.
    assert min(scanner.sizes) > SIZE * 0.99
    assert memory < MOST, f"{memory:.0f} MiB"

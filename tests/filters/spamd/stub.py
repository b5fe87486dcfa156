"""A spamd for tests, with scripted replies and faults."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Seconds that anything may take.
PATIENCE = 60.0
HAM = "Spam: False ; 1.5 / 5.0"
SPAM = "Spam: True ; 7.2 / 5.0"
STATUS = (
    "X-Spam-Status: Yes, score=7.2 required=5.0 tests=MISSING_MID,RCVD_ILLEGAL_IP,\n"
    "\tURIBL_BLACK autolearn=no version=4.0.1\n"
)


@dataclass
class Request:
    """A request as it arrived."""

    command: str
    fields: dict[str, str]
    #: The message, decompressed.
    body: bytes
    #: Whether the client has ended its side.
    ended: bool = True


@dataclass
class Answer:
    """What the stub does for a request.

    behaviour: "" sends the reply and closes; "close" and "reset" end the connection without one,
    "early" replies and closes without reading the message, "stall" never replies, "cut" sends half
    of the reply, "trickle" sends it in single bytes, "endless" sends more and more of its last
    byte, "keep" sends it and doesn't close.
    """

    reply: bytes | Callable[[Request], bytes]
    behaviour: str = ""


def reply(body: bytes = b"", *fields: str, code: str = "SPAMD/1.1 0 EX_OK") -> bytes:
    """A reply with a body."""
    lines = [code, f"Content-length: {len(body)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ham(request: Request) -> bytes:
    """What spamd says of ham: the message with its own fields below the Return-Path."""
    return reply(content(request, "X-Spam-Status: No, score=1.5 required=5.0 tests=A_B\n"), HAM)


def spam(request: Request) -> bytes:
    """The same of spam, with report_safe 0."""
    return reply(content(request, "X-Spam-Flag: YES\nX-Spam-Level: *******\n" + STATUS), SPAM)


def content(request: Request, fields: str) -> bytes:
    """The body of a reply to a request for a list, a header block or a message.

    As spamd does it, the message loses the client's own fields except for X-Spam-Prev-*.
    """
    if request.command == "SYMBOLS":
        return b"MISSING_MID,URIBL_BLACK"
    head, empty, body = request.body.partition(b"\n\n")
    head = re.sub(rb"(?mi)^X-Spam-(?!Prev-).*\n(?:[ \t].*\n)*", b"", head + b"\n")
    top, _, rest = head.partition(b"\n")
    message = top + b"\n" + fields.encode() + rest[:-1] + empty + body
    if request.command == "HEADERS":
        message = message.partition(b"\n\n")[0] + b"\n\n"
    return message


def wrapped(request: Request) -> bytes:
    """The same of spam with report_safe 1."""
    boundary = "----------=_6B0DEBFB.11469C7A"
    head = (
        "Received: from localhost by vm\n\twith SpamAssassin (version 4.0.1);\n"
        "\tMon, 30 Nov 2026 21:34:51 +0000\nFrom: bob@example.net\nSubject: [SPAM] hello\n"
        f"X-Spam-Flag: YES\n{STATUS}"
        f'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="{boundary}"\n\n'
    ).encode()
    body = (
        f"This is a multi-part message in MIME format.\n\n--{boundary}\n"
        "Content-Type: message/rfc822; x-spam-type=original\n\n"
    ).encode() + request.body
    end = f"\n--{boundary}--\n".encode()
    whole = head + body + end
    return reply(head if request.command == "HEADERS" else whole, SPAM)


@dataclass
class SpamdStub:
    """A context manager that runs the stub; `answer` may be replaced at any time."""

    answer: Answer = field(default_factory=lambda: Answer(ham))
    path: Path | None = None
    requests: list[Request] = field(default_factory=list)
    pings: int = 0
    #: Set by a request.
    asked: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._port = 0
        self.start()
        return self

    def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        self._ending.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self.path))
        else:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", self._port))
            self._port = self._listener.getsockname()[1]
        self._listener.listen(1024)
        thread = threading.Thread(target=self._accept, args=(self._listener,))
        thread.start()
        self._threads.append(thread)

    @property
    def server(self) -> str:
        """The address for a filter."""
        return str(self.path) if self.path is not None else f"127.0.0.1:{self._port}"

    def stop(self) -> None:
        """Close everything: new connections are refused."""
        self._ending.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._listener.close()

    def __exit__(self, *_: object) -> None:
        if not self._ending.is_set():
            self.stop()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            with self._lock:
                self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._converse(connection)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        answer = self.answer
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(1 << 16)
            if not piece:
                return
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        command = first.split(" ")[0]
        if command == "PING":
            self.pings += 1
            connection.sendall(b"SPAMD/1.5 0 PONG\r\n")
            return
        fields = dict(line.split(": ", 1) for line in lines)
        if answer.behaviour != "early":
            while piece := connection.recv(1 << 16):
                body += piece
            assert len(body) == int(fields["Content-length"])
        if fields.get("Compress") == "zlib":
            body = zlib.decompress(body)
        request = Request(command, fields, body)
        self.requests.append(request)
        self.asked.set()
        self._reply(connection, answer, request)

    def _reply(self, connection: socket.socket, answer: Answer, request: Request) -> None:
        behaviour = answer.behaviour
        if behaviour == "close":
            return
        if behaviour == "reset":
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return
        if behaviour == "stall":
            self._wait(connection)
            return
        made = answer.reply(request) if callable(answer.reply) else answer.reply
        if behaviour == "cut":
            made = made[:-1]
        if behaviour == "trickle":
            for at in range(len(made)):
                connection.sendall(made[at : at + 1])
            return
        connection.sendall(made)
        while behaviour == "endless":
            connection.sendall(made[-1:] * (1 << 16))
        if behaviour == "keep":
            self._wait(connection)

    @staticmethod
    def _wait(connection: socket.socket) -> None:
        """Wait until the client or `stop` ends the connection."""
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLHUP | select.POLLERR)
        poll.poll(PATIENCE * 1000)

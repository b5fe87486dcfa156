"""A spamd for tests, with scripted replies and faults."""

from __future__ import annotations

import re
import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from tests.filters.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.filters.serving import Link

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


class SpamdStub:
    """A context manager that runs the stub; `answer` may be replaced at any time."""

    def __init__(self, answer: Answer | None = None, path: Path | None = None) -> None:
        self.answer = answer or Answer(ham)
        self._path = path
        self._requests: list[Request] = []
        self._pings = 0
        #: Set by a request.
        self.asked = threading.Event()
        self._serving = Serving(self._converse, path)

    @property
    def requests(self) -> list[Request]:
        """The requests, without pings."""
        self._serving.catch_up()
        return self._requests

    @property
    def pings(self) -> int:
        """The number of pings."""
        self._serving.catch_up()
        return self._pings

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Listen; after `stop` on the same port again."""
        self._serving.start()

    @property
    def server(self) -> str:
        """The address for a filter."""
        return str(self._path) if self._path is not None else f"127.0.0.1:{self._serving.port}"

    def stop(self) -> None:
        """Close everything: new connections are refused."""
        self._serving.stop()

    def __exit__(self, *_: object) -> None:
        self._serving.close()

    def _converse(self, connection: Link) -> None:
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
            self._pings += 1
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
        self._requests.append(request)
        self.asked.set()
        self._reply(connection, answer, request)

    def _reply(self, connection: Link, answer: Answer, request: Request) -> None:
        behaviour = answer.behaviour
        if behaviour == "close":
            return
        if behaviour == "reset":
            connection.reset()
            return
        if behaviour == "stall":
            connection.wait_for_end()
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
            connection.wait_for_end()

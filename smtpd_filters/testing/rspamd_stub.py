"""An Rspamd on loopback that answers what it is told to: for tests, measurements, demonstrations.

It is a real HTTP server, over TCP or a unix socket, that scans nothing. The law:

1. Every POST gets the `Answer` that is set, whatever it asks for; ``GET /ping`` gets ``pong``, as
   of the daemon. An answer can be a function of the `Request`.
2. An answer says how it fails as well: see `BEHAVIOURS`. What it does not say is as HTTP has it:
   connections are kept alive, bodies may be chunked, several requests may come at once.
3. `requests` is what was asked, in order, as it came: names, values and bodies byte for byte.
4. It never becomes what is measured: a request costs tens of microseconds, and with ``keep=0``
   bodies are counted and not held.

Example::

    with RspamdStub({"action": "reject", "score": 20, "required_score": 15}) as rspamd:
        ...  # filter-rspamd -url {rspamd.url}
        assert rspamd.requests[0].get("IP") == "192.0.2.1"
        rspamd.answer = Answer(b"{}", status=500)
        rspamd.answer = Answer.of({"action": "no action"}, delay=0.5)

Run as a program, it gives one answer until SIGTERM or the end of its input, and writes
``ready URL`` as soon as it can be asked::

    python -m smtpd_filters.testing.rspamd_stub --listen 127.0.0.1:0 --reply FILE
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
import threading
from collections import deque
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType, TracebackType

#: How an answer fails, by name.
BEHAVIOURS: dict[str, str] = {
    "": "it doesn't",
    "drop": "nothing is ever sent; the connection stays open",
    "close": "the connection is closed without an answer",
    "reset": "the connection is reset without an answer",
    "cut": "half of the reply, then the connection is closed",
    "reset-half": "half of the reply, then the connection is reset",
    "stall": "half of the reply, then nothing more; the connection stays open",
    "trickle": "byte after byte, `delay` seconds apart",
    "endless": "a reply that never ends",
    "garbage": "bytes that are no HTTP",
    "early": "the whole reply as soon as the request begins (not of a function), then a close",
    "close-after": "the whole reply as if to be kept alive, then the connection is closed",
    "stale": "the whole reply; the connection is closed when its next request comes",
}
_PARTIAL = frozenset({"drop", "cut", "reset-half", "stall", "trickle", "endless"})
#: What a clean message comes to.
CLEAN: dict[str, Any] = {
    "is_skipped": False,
    "score": 0.0,
    "required_score": 15.0,
    "action": "no action",
    "symbols": {},
    "messages": {},
    "message-id": "stub@example.org",
    "time_real": 0.001,
}
#: Requests that are kept; older ones go.
KEEP = 1000
_END = b"\r\n\r\n"
#: Octets of a header block; the daemon's own limit is the same (its http parser's).
_HEAD_MAX = 80 << 10
_ENDLESS = b"x" * (64 << 10)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked."""

    method: str
    path: str
    #: Names and values as they came, in order; bytes that aren't ASCII as Latin-1.
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)
    #: Octets of the body, which `body` has only if it is kept.
    size: int
    #: Which connection it came over, counted from 1.
    connection: int
    #: The whole header block.
    head: bytes = field(repr=False)

    def get(self, name: str) -> str | None:
        """The value of the first field of that name."""
        return next(iter(self.get_all(name)), None)

    def get_all(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        return [value for known, value in self.headers if known.lower() == name.lower()]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said to a request, and how."""

    body: bytes = b""
    status: int = 200
    #: Further header fields, such as ``("Message-Offset", "120")``.
    headers: tuple[tuple[str, str], ...] = ()
    #: Seconds before it is said.
    delay: float = 0.0
    #: One of `BEHAVIOURS`.
    behaviour: str = ""
    #: Whether the body is sent in chunks, without its length.
    chunked: bool = False
    content_type: str = "application/json"

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise ValueError(f"{self.behaviour!r} is not one of {', '.join(BEHAVIOURS)}")

    @classmethod
    def of(cls, reply: Mapping[str, Any], new_body: bytes | None = None, **how: Any) -> Answer:
        """A reply as JSON, with the message's new body behind it if there is one."""
        text = json.dumps(reply).encode()
        if new_body is None:
            return cls(text, **how)
        headers = (*how.pop("headers", ()), ("Message-Offset", str(len(text))))
        return cls(text + new_body, headers=headers, **how)

    def wire(self) -> bytes:
        """The whole response."""
        try:
            reason = HTTPStatus(self.status).phrase
        except ValueError:
            reason = "Error"
        lines = [
            f"HTTP/1.1 {self.status} {reason}",
            "Server: rspamd-stub",
            f"Content-Type: {self.content_type}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        endless = self.behaviour == "endless"
        if self.chunked or endless:
            lines.append("Transfer-Encoding: chunked")
        else:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join(lines).encode("latin-1") + _END
        if not (self.chunked or endless):
            return head + self.body
        half = len(self.body) // 2
        parts = [part for part in (self.body[:half], self.body[half:]) if part]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        return head + body + (b"" if endless else b"0\r\n\r\n")


class RspamdStub:
    """The server, in a thread of its own, for as long as its ``with`` block.

    ``answer`` can be assigned anew at any time. ``listen`` is ``HOST:PORT`` (0: any free port) or
    the path of a unix socket. ``keep`` requests are remembered; with 0 not even a body is read
    into memory, and only `asked` counts.
    """

    def __init__(
        self,
        answer: Mapping[str, Any] | Answer | Callable[[Request], Answer] = CLEAN,
        *,
        listen: str = "127.0.0.1:0",
        keep: int = KEEP,
    ) -> None:
        self.answer = answer
        self.requests: deque[Request] = deque(maxlen=keep)
        self.keep = keep
        #: How many requests there were, pings not counted.
        self.asked = 0
        #: How many connections there were, and how many there are.
        self.connections = self.connected = 0
        #: The highest number of requests that waited for their answers at one time.
        self.most_at_once = self.waiting = 0
        self._listen = listen
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._bound = threading.Event()
        self._failures: list[BaseException] = []
        self.protocols: set[_Connection] = set()
        self._made: tuple[object, Answer, bytes] | None = None
        self._kept: socket.socket | None = None

    @property
    def url(self) -> str:
        """What a filter is given: ``http://127.0.0.1:PORT``, or the path of the socket."""
        return self._listen if self._listen.startswith("/") else f"http://{self._listen}"

    @property
    def port(self) -> int:
        """The port, of a server that listens on one."""
        return int(self._listen.rpartition(":")[2])

    def start(self) -> None:
        """Listen; again on the same port, after `stop`. Raises OSError if that can't be."""
        self._bound.clear()
        self._failures.clear()
        self._unlink()
        self._thread = threading.Thread(target=self._run, name="rspamd-stub", daemon=True)
        self._thread.start()
        self._bound.wait()
        for failure in self._failures:
            self._thread.join()
            raise failure

    def stop(self) -> None:
        """Break all connections and listen no more: who comes now is refused."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
            self._unlink()

    def _unlink(self) -> None:
        if self._listen.startswith("/"):
            Path(self._listen).unlink(missing_ok=True)

    def break_connections(self) -> None:
        """Reset every connection that there is, and go on listening."""
        if self._loop is not None:
            done = threading.Event()

            def abort() -> None:
                for protocol in list(self.protocols):
                    protocol.reset()
                done.set()

            self._loop.call_soon_threadsafe(abort)
            done.wait()

    def __enter__(self) -> Self:
        if not self._listen.startswith("/"):
            self._keep_port()
        try:
            self.start()
        except BaseException:
            self._give_up_port()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._give_up_port()

    def _keep_port(self) -> None:
        """Have the port until the end: while the server is stopped, nobody else listens there.

        Two sockets may be bound to a port if both say so; what one of them hears is its own.
        """
        host, _, port = self._listen.rpartition(":")
        kept = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            kept.bind((host.strip("[]"), int(port)))
        except OSError:
            kept.close()
            raise
        self._kept = kept
        self._listen = f"{host}:{kept.getsockname()[1]}"

    def _give_up_port(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def said(self, request: Request) -> tuple[Answer, bytes]:
        """The answer to a request, and its wire form, which is made once of each."""
        answer = self.answer
        if self._made is not None and self._made[0] is answer:
            return self._made[1], self._made[2]
        if callable(answer):
            made = answer(request)
            return made, made.wire()
        made = answer if isinstance(answer, Answer) else Answer.of(answer)
        self._made = answer, made, made.wire()
        return made, self._made[2]

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that started it
            self._failures.append(exc)
        finally:
            self._bound.set()

    async def _serve(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        if self._listen.startswith("/"):
            server: asyncio.Server = await loop.create_unix_server(
                lambda: _Connection(self), self._listen, backlog=1024
            )
        else:
            host, _, port = self._listen.rpartition(":")
            server = await loop.create_server(
                lambda: _Connection(self),
                host.strip("[]"),
                int(port),
                backlog=1024,
                reuse_address=True,
            )
            # Where `start` was called by itself.
            self._listen = f"{host}:{server.sockets[0].getsockname()[1]}"
        self._bound.set()
        await self._stop.wait()
        # Who has just been let in is no protocol yet; asyncio forgets it once the server is closed.
        for sock in server.sockets:
            loop.remove_reader(sock.fileno())
        if being_let_in := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(being_let_in)
        server.close()
        for protocol in list(self.protocols):
            protocol.reset()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, stub: RspamdStub) -> None:
        self._stub = stub
        self._transport: asyncio.Transport | None = None
        self._number = 0
        # What was read of the request that is coming in, and of those behind it.
        self._buffer = bytearray()
        self._head = b""
        self._request: Request | None = None
        self._left = 0  # octets of the body that are still to come; -1 while it is chunked
        self._body: list[bytes] = []
        self._size = 0
        self._stale = False
        self._answering = False
        self._timer: asyncio.TimerHandle | None = None

    # -- asyncio's -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._stub.protocols.add(self)
        self._stub.connections += 1
        self._stub.connected += 1
        self._number = self._stub.connections

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._done()
        self._stub.protocols.discard(self)
        self._stub.connected -= 1
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._stale:
            self._close()
            return
        self._buffer += data
        self._go_on()

    def reset(self) -> None:
        """End the connection with an RST rather than a FIN."""
        if self._transport is None:
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # -- a request -------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take in as much as there is; a request behind one that waits is left alone."""
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
        end = self._buffer.find(_END)
        if end < 0:
            if len(self._buffer) > _HEAD_MAX:
                self._write(b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n")
                self._close()
            return False
        head = bytes(self._buffer[:end])
        del self._buffer[: end + len(_END)]
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
        if method != "GET" and not callable(self._stub.answer):
            # A function is asked once, when there is the whole request.
            answer, wire = self._stub.said(request)
            if answer.behaviour == "early":
                self._stub.asked += 1
                self._write(wire)
                self._close()
                return False
        return True

    def _read_body(self) -> bool:
        """Take in the body; whether it is complete."""
        while self._left < 0:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return False
            size = int(self._buffer[:end].partition(b";")[0], 16)
            if len(self._buffer) < end + size + 4:
                return False
            self._keep(bytes(self._buffer[end + 2 : end + 2 + size]))
            del self._buffer[: end + size + 4]
            if not size:
                return True
        if self._left:
            part = bytes(self._buffer[: self._left])
            del self._buffer[: self._left]
            self._left -= len(part)
            self._keep(part)
        return not self._left

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._stub.keep and part:
            self._body.append(part)

    # -- its answer ------------------------------------------------------------------------

    def _answer(self, request: Request) -> None:
        if request.method == "GET":
            self._write(Answer(b"pong\r\n", content_type="text/plain").wire())
            return
        stub = self._stub
        stub.asked += 1
        if stub.keep:
            stub.requests.append(request)
        answer, wire = stub.said(request)
        if not (answer.delay or answer.behaviour):
            self._write(wire)
            return
        self._answering = True
        stub.waiting += 1
        stub.most_at_once = max(stub.most_at_once, stub.waiting)
        delay = 0 if answer.behaviour == "trickle" else answer.delay
        self._later(delay, lambda: self._behave(answer, wire))

    def _behave(self, answer: Answer, wire: bytes) -> None:
        if answer.behaviour in _PARTIAL:
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
        self._go_on()

    def _fail_within(self, answer: Answer, wire: bytes) -> None:
        """Send less than the whole reply, or more; the connection takes no further request."""
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
                # Later: an RST makes the kernel throw away what has not been read yet.
                self._later(0.02, self.reset)

    def _trickle(self, wire: bytes, delay: float) -> None:
        self._write(wire[:1])
        if wire[1:]:
            self._later(delay, lambda: self._trickle(wire[1:], delay))
        else:
            self._done()
            self._go_on()

    def _endless(self) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() < 1 << 20:
            self._write(b"%x\r\n%b\r\n" % (len(_ENDLESS), _ENDLESS))
        self._later(0, self._endless)

    def _done(self) -> None:
        if self._answering:
            self._answering = False
            self._stub.waiting -= 1

    def _later(self, delay: float, then: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, then)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (name and colon):
        raise ValueError(text)
    return name, value.strip()


def main(arguments: list[str] | None = None) -> int:
    """Give one answer until SIGTERM or the end of standard input."""
    parser = argparse.ArgumentParser(
        prog="python -m smtpd_filters.testing.rspamd_stub",
        description=(__doc__ or "").partition("\n")[0],
        epilog="behaviours: " + "; ".join(f"{k}: {v}" for k, v in BEHAVIOURS.items() if k),
    )
    parser.add_argument(
        "--listen", metavar="HOST:PORT|PATH", default="127.0.0.1:0", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--reply", metavar="FILE", type=Path, help="the body of the reply (default: a clean one)"
    )
    parser.add_argument("--status", metavar="N", type=int, default=200)
    parser.add_argument(
        "--header", metavar="NAME:VALUE", type=_field, action="append", default=[],
        help="a further field of the reply; may be repeated",
    )  # fmt: skip
    parser.add_argument("--delay", metavar="SECONDS", type=float, default=0.0)
    parser.add_argument("--behaviour", choices=[*filter(None, BEHAVIOURS)], default="")
    parser.add_argument("--chunked", action="store_true", help="send the reply in chunks")
    parser.add_argument(
        "--log", action="store_true", help="write what was asked, without bodies, at the end"
    )
    settings = parser.parse_args(arguments)
    try:
        body = settings.reply.read_bytes() if settings.reply else json.dumps(CLEAN).encode()
        answer = Answer(
            body,
            status=settings.status,
            headers=tuple(settings.header),
            delay=settings.delay,
            behaviour=settings.behaviour,
            chunked=settings.chunked,
        )
        stub = RspamdStub(answer, listen=settings.listen, keep=KEEP if settings.log else 0)
        signal.signal(signal.SIGTERM, _terminated)
        with contextlib.suppress(KeyboardInterrupt), stub:
            sys.stdout.write(f"ready {stub.url}\n")
            sys.stdout.flush()
            while os.read(0, 4096):
                pass
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"{parser.prog}: {exc}\n")
        return 2
    for request in stub.requests:
        sys.stderr.write(request.head.decode("latin-1").replace("\r\n", "\n") + "\n\n")
    sys.stderr.write(f"{stub.asked} requests over {stub.connections} connections\n")
    return 0


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

"""The stub's server, which listens and records requests."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from smtpd_filters.testing.background import catch_up

from .answers import Answer, Request
from .connection import Connection, Seen

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket
    from collections.abc import Callable

#: The number of requests kept; older ones are dropped.
KEEP = 1000
_FAILED = "an answer of the stub could not be made"


class HTTPStub:
    """A context manager that runs an HTTP server in a thread, on loopback.

    `answer` is what every request gets, whatever its method and path: a mapping, sent as JSON, an
    `Answer`, or a function of the `Request` that returns one of the two. Only `GET /ping`, by which
    the framework finds out whether a server is alive, is answered whatever `answer` is, and never
    recorded. Without `pings` it gets no answer, as from a server that is dead.

    An answer that can't be made, as when its function raises, has status 500, and the end of the
    `with` block raises AssertionError for the first of them (`errors` has all).

    `answer` and `pings` can be replaced at any time. `listen` is `HOST:PORT` (0: any free port) or
    the path of a unix socket. The last `keep` requests are kept; with 0 not even their bodies are,
    and only `asked` is counted.
    """

    def __init__(
        self,
        answer: Mapping[str, Any] | Answer | Callable[[Request], Mapping[str, Any] | Answer],
        *,
        listen: str = "127.0.0.1:0",
        keep: int = KEEP,
    ) -> None:
        self.answer = answer
        self.keep = keep
        #: Whether `GET /ping` is answered.
        self.pings = True
        #: Why answers could not be made.
        self.errors: list[BaseException] = []
        self._counted = Seen(deque(maxlen=keep))
        self._listen = listen
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._stop: asyncio.Event | None = None
        self._bound = threading.Event()
        self._listening: list[socket.socket] = []
        self._failures: list[BaseException] = []
        #: The open connections.
        self.protocols: set[Connection] = set()
        self._made: tuple[object, Answer, bytes] | None = None
        self._reserved: socket.socket | None = None

    @property
    def url(self) -> str:
        """The URL for a filter: `http://127.0.0.1:PORT`, or the path of the socket."""
        return self._listen if self._listen.startswith("/") else f"http://{self._listen}"

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._listen.rpartition(":")[2])

    @property
    def _seen(self) -> Seen:
        """What it has seen, after it has read all that it was sent."""
        if self._loop is not None and self._thread not in {None, threading.current_thread()}:
            catch_up(self._loop, self._read_sockets, self._being_accepted)
        return self._counted

    @property
    def requests(self) -> deque[Request]:
        """The last `keep` requests, without pings."""
        return self._seen.requests

    @property
    def asked(self) -> int:
        """The number of requests, without pings."""
        return self._seen.asked

    @property
    def connections(self) -> int:
        """The number of connections ever made."""
        return self._seen.connections

    @property
    def connected(self) -> int:
        """The number of open connections."""
        return self._seen.connected

    @property
    def most_at_once(self) -> int:
        """The highest number of pending requests so far."""
        return self._seen.most_at_once

    @property
    def waiting(self) -> int:
        """The number of pending requests: those whose answer has a delay or a behaviour."""
        return self._seen.waiting

    def start(self) -> None:
        """Listen; after `stop` on the same port again. Raises OSError."""
        self._bound.clear()
        self._failures.clear()
        self._unlink()
        self._thread = threading.Thread(target=self._run, name="http-stub", daemon=True)
        self._thread.start()
        self._bound.wait()
        for failure in self._failures:
            self._thread.join()
            self._thread = None
            raise failure

    def stop(self) -> None:
        """Reset all connections and stop listening: new connections are refused."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None
            self._unlink()

    def _unlink(self) -> None:
        if self._listen.startswith("/"):
            Path(self._listen).unlink(missing_ok=True)

    def break_connections(self) -> None:
        """Reset all connections, but keep listening."""
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
            self._reserve_port()
        try:
            self.start()
        except BaseException:
            self._release_port()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        _ = self._seen
        self.stop()
        self._release_port()
        if not self.errors:
            return
        first = self.errors[0]
        text = f"{_FAILED}: {type(first).__name__}: {first}"
        if kind is None:
            raise AssertionError(text) from first
        if error is not None:
            error.add_note(text)  # often the reason why the test failed

    def _reserve_port(self) -> None:
        """Reserve the port, so that no other process can listen there while the stub is stopped.

        Two sockets may be bound to one port if both set SO_REUSEADDR and only one listens.
        """
        host, _, port = self._listen.rpartition(":")
        reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind((host.strip("[]"), int(port)))
        except OSError:
            reserved.close()
            raise
        self._reserved = reserved
        self._listen = f"{host}:{reserved.getsockname()[1]}"

    def _release_port(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def answer_to(self, request: Request) -> tuple[Answer, bytes]:
        """Return the answer to a request and its wire form; that of an `Answer` is cached."""
        answer = self.answer
        if self._made is not None and self._made[0] is answer:
            return self._made[1], self._made[2]
        try:
            made = _answer(answer(request) if callable(answer) else answer)
            wire = made.wire()
        except BaseException as error:  # noqa: BLE001  # a test's, such as `pytest.fail`
            self.errors.append(error)
            made = Answer(_FAILED.encode(), status=500, content_type="text/plain")
            return made, made.wire()
        if made is answer:
            self._made = answer, made, wire
        return made, wire

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:  # noqa: BLE001  # raised in the thread that started it
            self._failures.append(exc)
        finally:
            self._bound.set()

    def _read_sockets(self) -> list[socket.socket | TransportSocket]:
        open_ = (protocol.socket for protocol in self.protocols)
        return [*self._listening, *(sock for sock in open_ if sock is not None)]

    def _being_accepted(self) -> set[asyncio.Task[Any]]:
        """The connections that have no protocol yet."""
        return asyncio.all_tasks(self._loop) - {self._task}

    async def _serve(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._task = asyncio.current_task()
        if self._listen.startswith("/"):
            server: asyncio.Server = await loop.create_unix_server(
                lambda: Connection(self, self._counted), self._listen, backlog=1024
            )
        else:
            host, _, port = self._listen.rpartition(":")
            server = await loop.create_server(
                lambda: Connection(self, self._counted),
                host.strip("[]"),
                int(port),
                backlog=1024,
                reuse_address=True,
            )
            # For a `start` outside the context manager.
            self._listen = f"{host}:{server.sockets[0].getsockname()[1]}"
        self._listening = list(server.sockets)
        self._bound.set()
        await self._stop.wait()
        # A connection being accepted has no protocol yet, and asyncio loses it when the server
        # closes; wait for those.
        for sock in server.sockets:
            loop.remove_reader(sock.fileno())
        if being_accepted := self._being_accepted():
            await asyncio.wait(being_accepted)
        server.close()
        for protocol in list(self.protocols):
            protocol.reset()
        await asyncio.sleep(0)


def _answer(given: object) -> Answer:
    """Return an answer as such; a mapping becomes JSON."""
    if isinstance(given, Answer):
        return given
    if isinstance(given, Mapping):
        return Answer.of(given)
    raise TypeError(f"expected a mapping or an Answer, not {given!r}")

"""A policy server whose replies are scripted, on a unix socket or at a port of loopback.

It parses requests strictly and keeps all of them, with the number of the connection.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from smtpd_filters.filters.policy.request import ATTRIBUTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self, TypeAlias

    #: The bytes to answer a request with, and whether the connection is closed after them.
    Script: TypeAlias = Callable[[dict[str, str]], bytes | tuple[bytes, bool]]

PATIENCE = 60.0


def action(text: str) -> bytes:
    return f"action={text}\n\n".encode("utf-8", "surrogateescape")


def dunno(_request: dict[str, str]) -> bytes:
    return action("DUNNO")


class Scripted:
    """The server; `script` may be replaced at any time."""

    def __init__(
        self,
        path: Path | None = None,
        script: Script = dunno,
        listener: Callable[[], socket.socket] = socket.socket,
    ) -> None:
        """Listen on a unix socket, or without one at a free port, with the socket of `listener`."""
        self.script = script
        self._new = listener
        #: Each request with its connection's number.
        self.requests: list[tuple[int, dict[str, str]]] = []
        #: What was wrong with a request.
        self.errors: list[str] = []
        #: Bytes that were sent before the client ended the connection.
        self.sent = 0
        self._path = path
        self.port = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self._lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Listen, also again after `stop`, at the same place."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._path))
            self._path.chmod(0o777)
        else:
            self._listener = self._new()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", self.port))
            self.port = self._listener.getsockname()[1]
        self._listener.listen(64)
        self._spawn(self._accept, self._listener)

    @property
    def name(self) -> str:
        """Its address for `--server`."""
        return str(self._path) if self._path is not None else f"127.0.0.1:{self.port}"

    @property
    def seen(self) -> list[dict[str, str]]:
        """The requests."""
        return [request for _, request in self.requests]

    def _spawn(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                link, _ = listener.accept()
                with self._lock:
                    self.connections += 1
                    self._open.add(link)
                self._spawn(self._serve, link, self.connections)

    def _serve(self, link: socket.socket, number: int) -> None:
        data = b""
        with suppress(OSError), link:
            while chunk := link.recv(65536):
                data += chunk
                while b"\n\n" in data:
                    head, _, data = data.partition(b"\n\n")
                    request = self._parse(head)
                    self.requests.append((number, request))
                    answer = self.script(request)
                    reply, closes = answer if isinstance(answer, tuple) else (answer, False)
                    for at in range(0, len(reply), 65536):
                        self.sent += link.send(reply[at : at + 65536])
                    if closes:
                        return
        self._open.discard(link)

    def _parse(self, head: bytes) -> dict[str, str]:
        pairs = [line.partition("=") for line in head.decode("utf-8", "replace").split("\n")]
        if [name for name, _, _ in pairs] != list(ATTRIBUTES):
            self.errors.append(repr(head))
        return {name: value for name, _, value in pairs}

    def stop(self) -> None:
        """Close the listener and all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in list(self._open):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._threads = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert not self.errors

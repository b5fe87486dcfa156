"""A policy server whose replies are scripted, on a unix socket or at a port of loopback.

It parses requests strictly and keeps all of them, with the number of the connection.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from smtpd_filters.filters.policy.request import ATTRIBUTES
from tests.filters.serving import Serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self, TypeAlias

    from tests.filters.serving import Link

    #: The bytes to answer a request with, and whether the connection is closed after them.
    Script: TypeAlias = Callable[[dict[str, str]], bytes | tuple[bytes, bool]]


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
        self._requests: list[tuple[int, dict[str, str]]] = []
        #: What was wrong with a request.
        self.errors: list[str] = []
        self._sent = 0
        self._path = path
        self._serving = Serving(self._serve, path, listener)
        self.start()

    def start(self) -> None:
        """Listen, also again after `stop`, at the same place."""
        self._serving.start()

    @property
    def name(self) -> str:
        """Its address for `--server`."""
        return str(self._path) if self._path is not None else f"127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Its port."""
        return self._serving.port

    @property
    def requests(self) -> list[tuple[int, dict[str, str]]]:
        """Each request with its connection's number."""
        self._serving.catch_up()
        return self._requests

    @property
    def seen(self) -> list[dict[str, str]]:
        """The requests."""
        return [request for _, request in self.requests]

    @property
    def connections(self) -> int:
        """The number of connections so far."""
        return self._serving.connections

    @property
    def sent(self) -> int:
        """The number of bytes that were sent before the client ended the connection."""
        self._serving.catch_up()
        return self._sent

    @property
    def links(self) -> list[Link]:
        """The open connections."""
        return self._serving.links

    def _serve(self, link: Link) -> None:
        data = b""
        while chunk := link.recv(65536):
            data += chunk
            while b"\n\n" in data:
                head, _, data = data.partition(b"\n\n")
                request = self._parse(head)
                self._requests.append((link.number, request))
                answer = self.script(request)
                reply, closes = answer if isinstance(answer, tuple) else (answer, False)
                for at in range(0, len(reply), 65536):
                    self._sent += link.send(reply[at : at + 65536])
                if closes:
                    return

    def _parse(self, head: bytes) -> dict[str, str]:
        pairs = [line.partition("=") for line in head.decode("utf-8", "replace").split("\n")]
        if [name for name, _, _ in pairs] != list(ATTRIBUTES):
            self.errors.append(repr(head))
        return {name: value for name, _, value in pairs}

    def stop(self) -> None:
        """Close the listener and all connections."""
        self._serving.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._serving.close()
        assert not self.errors

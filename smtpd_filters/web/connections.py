"""The connections of the page: which ones wait for nothing, and are ended.

aiohttp waits for the header of a request, and for a client that doesn't read, as long as it takes.
It keeps in memory what a client sends meanwhile: fields of a header or of a trailer, and further
requests.

Invariants
----------
*One request*: a connection ends after its response, and when its client has sent more than
`received` bytes, or `header` bytes without completing the header.
*Bounded*: a connection without a request in progress ends after `idle` seconds (`Bounds`), and
those that have been without one for longest end earlier if there are more than `connections`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from aiohttp import web

from smtpd_filters.errors import os_reason

from .bounds import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .bounds import Bounds

#: Seconds between two lines of the log on connections that can't be accepted.
REPORTING = 60.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LOG = logging.getLogger(__name__)


class Connections:
    """What the connections of a server do."""

    def __init__(self, bounds: Bounds = DEFAULT) -> None:
        self._bounds = bounds
        #: The number of requests in progress.
        self._busy: Counter[Any] = Counter()
        #: Since when each connection has none.
        self._since: dict[Any, float] = {}

    @property
    def middleware(self) -> Any:
        """The middleware of an application, which has to be its first."""

        @web.middleware
        async def counted(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            connection = request.protocol
            self._busy[connection] += 1
            try:
                response = await handler(request)
            except web.HTTPException as error:
                error.force_close()
                raise
            else:
                response.force_close()
                return response
            finally:
                self._since[connection] = time.monotonic()
                self._busy[connection] -= 1
                if not self._busy[connection]:
                    del self._busy[connection]

        return counted

    def useless(self, connections: Iterable[Any], now: float) -> list[Any]:
        """Return those of all connections that are to be ended."""
        known, busy = self._since, self._busy
        self._since = {each: now if each in busy else known.get(each, now) for each in connections}
        waiting = sorted(
            (each for each in self._since if each not in busy), key=self._since.__getitem__
        )
        surplus = max(len(self._since) - self._bounds.connections, 0)
        return [
            each
            for at, each in enumerate(waiting)
            if at < surplus or now - self._since[each] > self._bounds.idle
        ]

    async def watch(self, server: web.Server) -> None:
        """End useless connections of a server, until it is cancelled."""
        while True:
            await asyncio.sleep(self._bounds.watch)
            for each in self.useless(server.connections, time.monotonic()):
                if each.transport is not None:
                    each.transport.abort()


class Limited(asyncio.Protocol):
    """A connection's protocol, which gets one request, of limited size."""

    def __init__(self, protocol: asyncio.Protocol, bounds: Bounds) -> None:
        self._protocol, self._header, self._room = protocol, bounds.header, bounds.received
        #: The beginning of the request, until its header is complete.
        self._begun = bytearray()
        self._complete = self._bodiless = False
        self._transport: Any = None
        self.connection_lost = protocol.connection_lost  # type: ignore[method-assign]
        self.eof_received = protocol.eof_received  # type: ignore[method-assign]
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Hand bytes on, or end the connection; drop what is behind a request without a body."""
        self._room -= len(data)
        if not self._complete:
            data = self._heading(data)
        elif self._bodiless:
            data = b""
        if self._room < 0:
            self._transport.abort()
        elif data:
            self._protocol.data_received(data)

    def _heading(self, data: bytes) -> bytes:
        """Return what is handed on of bytes that are of the header, or complete it."""
        before = len(self._begun)
        self._begun += data
        begin = len(self._begun) - len(self._begun.lstrip(b"\r\n"))  # which parsers skip
        end = self._begun.find(b"\r\n\r\n", begin) + 4
        self._complete = end > 3
        if (end if self._complete else len(self._begun)) > self._header:
            self._room = -1
        if self._complete:
            self._bodiless = self._begun.startswith((b"GET ", b"HEAD "), begin)
            self._begun.clear()
        return data[: end - before] if self._bodiless else data


class LimitedServer:
    """A server whose connections are `Limited`."""

    def __init__(self, server: web.Server, bounds: Bounds) -> None:
        self._server, self._bounds = server, bounds

    def __call__(self) -> Limited:
        """Return the protocol of a new connection."""
        return Limited(self._server(), self._bounds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


class LimitedRunner:
    """A runner that has been set up, for sites whose connections are `Limited`."""

    def __init__(self, runner: web.BaseRunner, bounds: Bounds) -> None:
        assert runner.server is not None  # noqa: S101  # it is set up
        self._runner, self.server = runner, LimitedServer(runner.server, bounds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


class Failures:
    """The failures that asyncio reports: of those to accept a connection few are logged.

    Without descriptors there are more than a hundred in a second, with a traceback each.
    """

    def __init__(
        self, idle: float = DEFAULT.idle, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._idle, self._clock = idle, clock
        self._next = float("-inf")

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log a failure, as the handler of a loop."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _EXHAUSTED and "socket" in context):
            loop.default_exception_handler(context)
        elif (now := self._clock()) >= self._next:
            self._next = now + REPORTING
            _LOG.warning(
                "no more connections can be accepted: %s; idle ones are closed after %g seconds",
                os_reason(error),
                self._idle,
            )

"""One request to one HTTP server, over a connection of aiohttp's `ClientSession`.

Invariants
----------
*Streamed*: a body is sent no faster than the server reads it, and a body given in chunks is never
held as a whole.
*Limited*: a reply is read up to its limit, and at the pace of all look-ups (`pace`, `intake`), so
that a server that sends much, or in tiny chunks, doesn't delay others. Waiting for that counts
against the server's timeout.
*Whole*: a connection is used again only after a complete exchange without any other data
(`intake`); otherwise it is aborted at once. Bytes that arrive after the next request was sent
can't be distinguished from its reply: HTTP/1.1 doesn't number replies.
*Verbatim*: header fields are sent unchanged; a field of more than one line is never sent.
*Early*: a reply that arrives before the whole request is sent is valid: a server need not read
the rest. `Response.early` tells those for which it makes a difference.

`docs/decisions/http.md` gives the reasons for this design.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from smtpd_filters.lookups.failover.failures import (
    CLOSED,
    BadReplyError,
    Trouble,
    connect_trouble,
    reason,
)
from smtpd_filters.lookups.failover.turns import Turns
from smtpd_filters.lookups.retry import Failure
from smtpd_filters.runtime.pace import pace

from . import trust
from .intake import UNLIMITED, TCPConnector, UnixConnector, current
from .messages import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import TypeVar

    from aiohttp.abc import AbstractStreamWriter

    from smtpd_filters.runtime.pace import Pace

    from .intake import Intake
    from .messages import Endpoint, Request

    T = TypeVar("T")

#: Seconds for which an idle connection is kept, as nginx's keepalive_timeout.
KEPT_ALIVE = 75.0
#: Seconds to establish a connection: a lost SYN is sent again after 1 and after 3 (RFC 6298).
CONNECT = 5.0
#: URLs kept at most.
_URLS = 64
#: The errors of a failed connect, and of any broken connection, which include those.
UNCONNECTED = aiohttp.ClientConnectorError
BROKEN = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)


class Host:
    """A server and the connections to it, which are opened when first needed."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        self.endpoint = endpoint
        self.turns = Turns(connections)
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        self._urls: dict[str, URL] = {}
        #: The budget of the session's loop.
        self.pace: Pace
        # At start, not at the first request: it reads files.
        self._tls = trust.context() if endpoint.tls else None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session of the running loop; raise BadReplyError if this is closed."""
        if self._session is None:
            if self._closed:
                raise BadReplyError(CLOSED)
            self._session = self._new_session()
        return self._session

    def _new_session(self) -> aiohttp.ClientSession:
        path = self.endpoint.socket
        self.pace = pace()
        connector: aiohttp.BaseConnector
        # `turns` limits the number of connections.
        if path:
            connector = UnixConnector(path, limit=0, keepalive_timeout=KEPT_ALIVE)
        elif self._tls is not None:
            connector = TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE, ssl=self._tls)
        else:
            connector = TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=UNLIMITED,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    def url(self, path: str) -> URL:
        """Return the URL of a request."""
        url = self._urls.get(path)
        if url is None:
            if len(self._urls) >= _URLS:  # paths can have text of clients
                self._urls.clear()
            url = URL(f"{self.endpoint.base}{self.endpoint.path}{path}", encoded=True)
            self._urls[path] = url
        return url

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Exchange:
    """One request and its reply over one connection."""

    __slots__ = (
        "_host", "_request", "early", "intake", "refused", "replied", "sent", "source_failed",
    )  # fmt: skip

    def __init__(self, host: Host, request: Request) -> None:
        self._host = host
        self._request = request
        #: The connection, once established; it is in use by this exchange if `intake.exchange is
        #: self`.
        self.intake: Intake | None = None
        #: Whether the whole request has been passed to aiohttp.
        self.sent = True
        #: Whether a reply has begun.
        self.replied = False
        #: Whether it has begun before the whole request was sent.
        self.early = False
        #: Why the rest of the reply is not read.
        self.refused = ""
        #: Why the body could not be read.
        self.source_failed = ""

    async def run(self, read: Callable[[Response], Awaitable[T]]) -> T:
        """Send the request; return the result of `read` for the reply.

        Raises BadReplyError, and the exceptions of aiohttp and `read`.
        """
        host, request = self._host, self._request
        session, fields, body = host.session, self._fields(), request.body
        data: _Whole | _Chunks | None
        if body is None:
            data = None
        elif isinstance(body, bytes):
            data = _Whole(self, body)
        else:
            data = _Chunks(self, body(), request.size)
            if request.size is not None:
                fields.append(("Content-Length", str(request.size)))
        current.set(self)
        response: aiohttp.ClientResponse | None = None
        try:
            response = await session.request(
                "GET" if body is None else "POST",
                host.url(request.path),
                data=data,
                headers=fields,
                allow_redirects=False,
            )
            self.replied = True
            reply = Response(response, self, request.limit, host.pace)
            if reply.size is not None and reply.size > response.content.total_bytes:
                self._expect(reply, reply.size - response.content.total_bytes)
            return await read(reply)
        except Exception:
            if self.refused:
                raise BadReplyError(self.refused) from None
            raise
        finally:
            self._release(response)

    def before_sending(self) -> None:
        """Close the connection if the server has replied before anything was sent."""
        if self.intake is not None:
            self.intake.before_sending()

    def _expect(self, response: Response, size: int) -> None:
        """Announce to the intake that `size` bytes of content follow, if it has a known length."""
        intake = self.intake
        if intake is not None and intake.exchange is self:
            intake.expect(0 if "Transfer-Encoding" in response.headers else size)

    def taken(self) -> None:
        """Resume reading from the connection: everything parsed has been read."""
        intake = self.intake
        if intake is not None and intake.exchange is self:
            intake.taken()

    def _release(self, response: aiohttp.ClientResponse | None) -> None:
        """Abort the connection, unless aiohttp keeps it for another request.

        A close could wait forever for a server that hangs.
        """
        intake = self.intake
        if intake is not None and (intake.exchange is self or intake.closing):
            intake.abort()
            if response is not None:
                response.close()

    def _fields(self) -> list[tuple[str, str]]:
        fields = list(self._request.headers)
        text = "".join(chain.from_iterable(fields))
        if "\r" in text or "\n" in text:
            raise BadReplyError("not sent: a header field of more than one line")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise BadReplyError("not sent: a header field that is not UTF-8") from None
        return fields


class _Whole(aiohttp.BytesPayload):
    """A body that is sent at once."""

    def __init__(self, exchange: Exchange, body: bytes) -> None:
        super().__init__(body)
        self._exchange = exchange

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._exchange.before_sending()
        await super().write(writer)

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self._exchange.before_sending()
        await super().write_with_length(writer, content_length)


class _Chunks:
    """A body, read as it is sent; an asynchronous iterator for aiohttp."""

    __slots__ = ("_chunks", "_exchange", "_sent", "_size")

    def __init__(self, exchange: Exchange, chunks: Iterator[bytes], size: int | None) -> None:
        exchange.sent = False
        self._exchange = exchange
        self._chunks = chunks
        self._size = size
        self._sent = 0

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        if not self._sent:
            self._exchange.before_sending()
        try:
            chunk = next(self._chunks, None)
        except Exception as error:
            self._exchange.source_failed = str(error) or type(error).__name__
            raise
        size, sent = self._size, self._sent + len(chunk or b"")
        if size is not None and (sent > size or (chunk is None and sent < size)):
            self._exchange.source_failed = f"{sent} bytes in place of {size}"
            raise BadReplyError(self._exchange.source_failed)
        if chunk is None:
            self._exchange.sent = True
            raise StopAsyncIteration
        self._sent = sent
        if sent == size:
            self._exchange.sent = True  # aiohttp writes the chunk before anything else happens
        return chunk


def trouble(error: Exception, *, replied: bool) -> Trouble:
    """Translate an exception of aiohttp or of the system."""
    unreachable = Failure.UNREACHABLE
    if isinstance(error, aiohttp.ClientConnectorError):
        # The error of a certificate has another attribute.
        return connect_trouble(getattr(error, "certificate_error", None) or error.os_error)
    lost = isinstance(error, (OSError, aiohttp.ClientError))  # not a bug of our own
    if isinstance(error, aiohttp.ClientPayloadError) or (replied and lost):
        return Trouble(unreachable, "reply cut short")
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return Trouble(unreachable, "closed the connection")
    if isinstance(error, OSError):  # some of aiohttp's are
        return Trouble(unreachable, reason(error, "connection lost"))
    if isinstance(error, aiohttp.ClientResponseError):
        return Trouble(Failure.BROKEN, "invalid HTTP response")
    return Trouble(Failure.BROKEN, f"{type(error).__name__}: {error}"[:200])

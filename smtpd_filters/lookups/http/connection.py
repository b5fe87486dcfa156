"""One request to one HTTP server, over a connection that aiohttp makes, keeps and reads from.

1. A body is sent no faster than it is taken, and never held as a whole if it is made as it goes.
2. A reply is read up to its limit, and at the pace of all look-ups (`pace`, `intake`): a server
   that sends much, or in tiny chunks, takes no time from others.  The wait for that counts against
   the time of the server.
3. A connection is used again only after a whole exchange; any other is cut off at once. So is one
   over which something came that nobody asked for: it would be taken for the next reply.  What
   comes after the next request was sent can't be told from its reply: HTTP/1.1 has no mark for it.
4. What a request says is sent as it is, but no field of it has a second line.
5. A reply that comes before all of the request is sent is the reply: a server need not read on.

How it works. aiohttp's pool gives the connection (`BaseConnector.connect`), which `intake` makes,
and its parser reads what comes over it. Its `ClientSession`, which would add headers, cookies,
redirections and as much time again as all this takes, has no part in it. So these two are the
places that know what of aiohttp lies below that; they were tried with 3.8.4, 3.11.16 and 3.14.5.

The module is cheap to import; making a `Host` imports aiohttp.
"""

from __future__ import annotations

import errno
import os
from _socket import gaierror

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.outcome import Value
from smtpd_filters.lookups.retry import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from typing import Any, TypeVar

    import aiohttp

    T = TypeVar("T")

    #: A body: at once, or a function that gives it in chunks, anew for each try.
    Body = bytes | Callable[[], Iterator[bytes]]

#: Seconds for which a connection without a request is kept; nginx's keepalive_timeout is the same.
KEPT_ALIVE = 75.0
#: Seconds for a connection to come about: a lost SYN is sent again after 1 and after 3 (RFC 6298).
CONNECT = 5.0
#: Bytes of a reply.
REPLY_LIMIT = 1 << 20
CLOSED = "the client is closed"
OVERSIZED = "oversized reply"
#: Bytes that are read at a time.  asyncio's own 256 KiB come from mmap(2) and go back to it for
#: each reply, which takes longer than to read it.
_READ = 32 << 10
# RFC 9110, 15.2: other responses follow these.
_INTERIM = frozenset({100, 102, 103})
#: How many of these may come.
MAX_INTERIM = 8
#: The price of a piece of content (`pace`), and how many of its bytes are one unit more.
_PIECE, _PER_UNIT = 50, 100
# This machine's own lack, not the server's fault: of descriptors, which others give back, or else.
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_LOCAL = frozenset({errno.EADDRNOTAVAIL})


class BadReplyError(Exception):
    """What a server said is no reply to the question; the text says why."""


class NotKeptError(Exception):
    """A reply can't be kept here, which no other server can help; the text says why."""


class Response:
    """What a server said: the status, header fields (names without case), and the content.

    The content is read once, with `read` or `pieces`; a coding of it is not undone.
    """

    __slots__ = ("_content", "_limit", "_taken", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], content: Any, limit: int) -> None:
        self.status = status
        self.headers = headers
        self._content = content
        self._limit = limit
        self._taken = False

    @property
    def size(self) -> int | None:
        """The bytes of the content, if the server says so beforehand."""
        # What is no number aiohttp has refused.
        length = self.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else None

    @property
    def complete(self) -> bool:
        """Whether all of it has been read."""
        return self._taken and bool(self._content.at_eof())

    async def read(self) -> bytes:
        """The content as a whole.  Raises BadReplyError beyond the request's limit."""
        parts = [part async for part in self.pieces()]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The content in pieces as they come, each at its turn, with the work of taking it in.

        Raises BadReplyError beyond the request's limit.
        """
        from smtpd_filters.runtime.pace import pace  # asyncio is loaded by now

        self._taken = True
        size = self.size
        if size is not None and size > self._limit:
            raise BadReplyError(OVERSIZED)
        admit = pace().admit
        taken = 0
        while part := await self._content.readany():
            taken += len(part)
            if taken > self._limit:
                raise BadReplyError(OVERSIZED)
            await admit(_PIECE + len(part) // _PER_UNIT)
            yield part

    def __repr__(self) -> str:
        return f"<response {self.status}>"


class Request:
    """What is asked: a POST of `body` to `path`; a GET if there is no body.

    `size` is the body's in bytes if that is known beforehand; without it the body is sent in HTTP's
    chunks. `limit` is how many bytes a reply may have. When there is a good one, `trouble` says of
    the servers that were asked before why theirs was none.
    """

    __slots__ = ("body", "headers", "limit", "path", "size", "trouble")

    def __init__(
        self,
        path: str,
        headers: Iterable[tuple[str, str]],
        body: Body | None,
        *,
        size: int | None = None,
        limit: int = REPLY_LIMIT,
    ) -> None:
        self.path = path
        self.headers = tuple(headers)
        self.body = body
        self.size = size
        self.limit = limit
        self.trouble = ""


class Trouble(Value):
    """Why a try came to nothing; `final` if no further one can do better."""

    __match_args__ = ("failure", "cause", "final")
    __slots__ = __match_args__

    def __init__(self, failure: Failure, cause: str, *, final: bool = False) -> None:
        self.failure = failure
        self.cause = cause
        self.final = final


class Endpoint:
    """Where a server is: `url` is ``http://HOST[:PORT][/PATH]`` or the path of a unix socket.

    `label` is how it is called in logs. Raises ValueError if it is neither.
    """

    __slots__ = ("base", "host", "label", "path", "socket")

    def __init__(self, url: str) -> None:
        self.socket = self.path = ""
        path = url.removeprefix("unix:")
        if path.startswith("/"):
            if "\0" in path or len(os.fsencode(path)) > 107:
                # unix(7): sun_path is 108 bytes with the final null.
                raise ValueError(f"no path of a socket: {url!r}")
            self.socket = self.label = path
            self.host = "localhost"
            self.base = "http://localhost"
            return
        from urllib.parse import urlsplit  # setup's business, when aiohttp is loaded anyway

        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            raise ValueError(f"neither http://HOST:PORT nor the path of a socket: {url!r}")
        odd = any(c.isspace() or not c.isprintable() for c in url) or not url.isascii()
        if odd or parts.query or parts.fragment or set("@,") & set(parts.netloc):
            raise ValueError(f"not the address of a server: {url!r}")
        self.host = parts.netloc
        self.path = parts.path.rstrip("/")
        self.base = f"{parts.scheme}://{self.host}"
        self.label = self.base + self.path


class Host:
    """A server and the connections to it, which are made when they are first needed."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        import asyncio

        try:
            import aiohttp
            from aiohttp.client_reqrep import ClientRequest
            from aiohttp.http import HttpProcessingError, StreamWriter

            from .intake import Intake
        except ImportError as error:
            raise ConfigError(f"aiohttp is needed to ask {endpoint.label}: {error}") from None
        self.endpoint = endpoint
        self.turns = asyncio.Semaphore(connections)
        self.aiohttp = aiohttp
        self.writer = StreamWriter
        self._request = ClientRequest
        self._intake = Intake
        self._no_http = HttpProcessingError
        self._connector: aiohttp.BaseConnector | None = None
        self._place: Any = None
        self._times = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)
        self._closed = False
        #: The loop that the connections are of, once there is one.
        self.loop: Any = None
        #: A connection that broke, and one that did not come about, which is a case of the first.
        self.broken = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError)
        self.unconnected = aiohttp.ClientConnectorError
        self._heads: dict[str, str] = {}

    async def connect(self) -> Any:
        """A connection of aiohttp's, kept or new."""
        connector = self._connector
        if connector is None:
            if self._closed:
                raise BadReplyError(CLOSED)
            connector = self._connector = self._connections()
        return await connector.connect(self._place, [], self._times)

    def _connections(self) -> Any:
        """The pool; to be called where the loop runs.  What bounds it is `turns`."""
        from asyncio import get_running_loop
        from functools import partial

        from yarl import URL  # aiohttp's

        aiohttp: Any = self.aiohttp
        self.loop = get_running_loop()
        # What says where to connect to is a request to aiohttp. Nothing else of it is used.
        self._place = self._request("POST", URL(self.endpoint.base), loop=self.loop)
        path = self.endpoint.socket
        kind, where = (aiohttp.UnixConnector, (path,)) if path else (aiohttp.TCPConnector, ())
        connector: Any = kind(*where, limit=0, keepalive_timeout=KEPT_ALIVE)
        vars(connector)["_factory"] = partial(self._intake, self.loop)  # what makes a connection
        return connector

    def head(self, method: str, path: str) -> str:
        """The first lines of a request, the same for each of a path."""
        key = method + path
        head = self._heads.get(key)
        if head is None:
            where = f"{self.endpoint.path}{path} HTTP/1.1\r\nHost: {self.endpoint.host}\r\n"
            head = self._heads[key] = f"{method} {where}"
        return head

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        connector, self._connector = self._connector, None
        if connector is not None:
            await connector.close()

    def trouble(self, error: Exception, *, replied: bool) -> Trouble:
        """Say what an exception of aiohttp's or the system's means."""
        aiohttp = self.aiohttp
        unreachable = Failure.UNREACHABLE
        if isinstance(error, aiohttp.ClientConnectorError):
            # One of a certificate has something else in its place.
            return _unconnected(getattr(error, "certificate_error", None) or error.os_error)
        if isinstance(error, aiohttp.ClientPayloadError) or (replied and self._is_lost(error)):
            return Trouble(unreachable, "reply cut short")
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return Trouble(unreachable, "closed the connection")
        if isinstance(error, OSError):  # some of aiohttp's are
            return Trouble(unreachable, _reason(error, "connection lost"))
        if isinstance(error, self._no_http):
            return Trouble(Failure.BROKEN, "a reply that is no HTTP")
        return Trouble(Failure.BROKEN, f"{type(error).__name__}: {error}"[:200])

    def _is_lost(self, error: Exception) -> bool:
        """Whether the connection is, rather than our own code wrong."""
        return isinstance(error, (*self.broken, OSError, self._no_http))


class Exchange:
    """One request and its reply over one connection."""

    __slots__ = ("_host", "_request", "replied", "source_failed")

    def __init__(self, host: Host, request: Request) -> None:
        self._host = host
        self._request = request
        #: Whether a reply has begun.
        self.replied = False
        #: Why the body could not be read.
        self.source_failed = ""

    async def run(self, read: Callable[[Response], Awaitable[T]]) -> T:
        """Return what `read` makes of the reply.

        Raises BadReplyError, and whatever aiohttp and `read` raise.
        """
        host, request = self._host, self._request
        connection = await host.connect()
        while connection.protocol.kept and not connection.protocol.fresh:
            connection.close()  # such as a 408 (RFC 9110, 15.5.9) to who has said nothing for long
            connection = await host.connect()
        response: Response | None = None
        sending: asyncio.Task[None] | None = None
        try:
            protocol = connection.protocol
            protocol.kept = False
            protocol.transport.max_size = _READ
            protocol.set_response_params(
                read_until_eof=True, auto_decompress=False, read_bufsize=_READ
            )
            body = request.body
            if body is None:
                protocol.transport.write(self._head(None))
            elif isinstance(body, bytes):
                protocol.transport.write(self._head(len(body)) + body)
            else:
                sending = host.loop.create_task(self._send(protocol, body))
            response = await self._begun(protocol)
            return await read(response)
        finally:
            complete = response is not None and response.complete
            if complete and protocol.idle and (sending is None or sending.done()):
                protocol.kept = True
                connection.release()
            else:
                if sending is not None:
                    sending.cancel()
                    # aiohttp tells whoever waits to go on that the connection broke: nobody does.
                    if waiter := getattr(protocol, "_drain_waiter", None):
                        waiter.cancel()
                # What is left of this exchange would be taken for the next one. And what a server
                # that hangs has not read would keep the socket open for ever.
                if connection.transport is not None:
                    connection.transport.abort()
                connection.close()

    async def _begun(self, protocol: Any) -> Response:
        """Wait for the header of the reply."""
        for _ in range(MAX_INTERIM + 1):
            said, content = await protocol.read()
            if said.code not in _INTERIM:
                break
        else:
            raise BadReplyError(f"more than {MAX_INTERIM} interim responses")
        self.replied = True
        response = Response(said.code, said.headers, content, self._request.limit)
        if response.size is not None and "Transfer-Encoding" not in said.headers:
            protocol.plain = 0 if content.at_eof() else response.size - content.total_bytes
        return response

    def _head(self, size: int | None) -> bytes:
        request = self._request
        fields = "".join([f"{name}: {value}\r\n" for name, value in request.headers])
        if not fields.count("\r") == fields.count("\n") == len(request.headers):
            raise BadReplyError("not asked: a header field of more than one line")
        if request.body is None:
            head = f"{self._host.head('GET', request.path)}{fields}\r\n"
        else:
            how = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
            head = f"{self._host.head('POST', request.path)}{fields}{how}\r\n\r\n"
        return head.encode("utf-8", "surrogateescape")

    async def _send(self, protocol: Any, body: Callable[[], Iterator[bytes]]) -> None:
        """Send a body while the reply is waited for, which may come before its end."""
        try:
            await self._stream(protocol, body)
        except self._host.broken:
            pass  # who reads finds the same, behind what was said before
        except Exception as error:  # noqa: BLE001  # it is raised where the reply is waited for
            protocol.set_exception(error)

    async def _stream(self, protocol: Any, body: Callable[[], Iterator[bytes]]) -> None:
        """Send a body no faster than it is taken."""
        size = self._request.size
        chunked = size is None
        writer = self._host.writer(protocol, self._host.loop)
        self._write(protocol, self._head(size))
        sent = 0
        for chunk in self._read(body):
            await writer.drain()
            self._write(protocol, b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            sent += len(chunk)
        if chunked:
            self._write(protocol, b"0\r\n\r\n")
        elif sent != size:
            self.source_failed = f"{sent} bytes in place of {size}"
            raise BadReplyError(self.source_failed)

    @staticmethod
    def _write(protocol: Any, data: bytes) -> None:
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "")
        transport.write(data)

    def _read(self, body: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
        try:
            yield from body()
        except Exception as error:
            self.source_failed = str(error) or type(error).__name__
            raise


def _unconnected(why: Exception) -> Trouble:
    """Say why a connection did not come about."""
    number = getattr(why, "errno", None)
    if isinstance(why, gaierror):
        # Without a descriptor the name of a host can't be resolved, whatever that is called.
        number = _shortage() or number
    if number in _SHORT:
        return Trouble(Failure.SHORT, os.strerror(number).lower())
    failure = Failure.LOCAL if number in _LOCAL else Failure.UNREACHABLE
    return Trouble(failure, _reason(why, "cannot connect"))


def _shortage() -> int:
    """The error number with which the system refuses another descriptor; 0 if it gives one."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno or 0
    return 0


def _reason(error: BaseException | None, otherwise: str) -> str:
    """What the system says of a failure, in a few words."""
    number = getattr(error, "errno", None)
    if reason := getattr(error, "verify_message", None):
        return f"bad certificate: {reason}"
    if reason := getattr(error, "reason", None):  # an SSLError's errno is none of the system's
        return f"no TLS: {reason}".lower().replace("_", " ").replace("tls", "TLS")
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return getattr(error, "strerror", None) or otherwise

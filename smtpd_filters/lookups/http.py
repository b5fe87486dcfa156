"""Requests to one of several HTTP servers that do the same, over connections that are kept alive.

1. What is asked comes to the reply, or to `Unavailable` with its cause, within its deadline;
   nothing is raised but cancellation.
2. Servers are asked in the order in which they are given, save those whose circuit is open
   (`breaker`). One that refuses the connection, breaks it or doesn't answer in its time gives way
   to the next, as does one whose reply isn't a good one; when all have failed, those that broke
   off are asked once more after a pause (`retry`).
3. A time-out is not repeated: what took too long once would again, and load is the usual reason.
4. A connection that was kept alive may be closed by the server at the moment of its next use, and
   a restart looks the same: a request that gets no reply at all is sent once more, at once,
   before that counts as a failure. So a request must be one that does no harm when it comes
   twice.
5. Memory is bounded: a body is sent as it is read, a reply ends at its limit, and the requests
   under way at one server are. Waiting for a turn counts against the deadline, not against the
   server.

A request is a POST. The module is cheap to import; making a `Client` imports aiohttp, so that the
first mail doesn't. Causes are for the log, and hold nothing that changes from one request to the
next: they are logged once in an interval.
"""

from __future__ import annotations

import errno
import os
import time

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.breaker import Breaker
from smtpd_filters.lookups.outcome import Unavailable, Value
from smtpd_filters.lookups.retry import Failure, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, Generic, TypeVar

    import aiohttp

    from smtpd_filters.lookups.retry import Ask

    T = TypeVar("T")
    #: A body: at once, or a function that gives it in chunks, anew for each try.
    Body = bytes | Callable[[], Iterator[bytes]]
else:
    T = None
    Generic = {None: object}

#: Requests under way at one server, each of which takes a connection; more have to wait.
CONNECTIONS = 64
#: Seconds for which a connection without a request is kept; nginx's keepalive_timeout is the same.
KEPT_ALIVE = 75.0
#: Seconds for a connection to come about: a lost SYN is sent again after 1 and after 3 (RFC 6298).
CONNECT = 5.0
#: Bytes of a reply.
REPLY_LIMIT = 1 << 20
#: How often each server is asked.
ROUNDS = 2
CLOSED = "the client is closed"
# RFC 9110, 15.2: other responses follow these.
_INTERIM = frozenset({100, 102, 103})
# This machine's own lack, not the server's fault.
_LOCAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


class BadReplyError(Exception):
    """What a server said is no reply to the question; the text says why."""


class Response:
    """What a server said: the status, header fields (names without case), the content as it came.

    A coding of the content is not undone.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"<response {self.status}, {len(self.body)} bytes>"


class Request:
    """What is asked: a POST of `body` to `path`.

    `size` is the body's in bytes if that is known beforehand; without it the body is sent in HTTP's
    chunks. `limit` is how many bytes a reply may have.
    """

    __slots__ = ("body", "headers", "limit", "path", "size")

    def __init__(
        self,
        path: str,
        headers: Iterable[tuple[str, str]],
        body: Body,
        *,
        size: int | None = None,
        limit: int = REPLY_LIMIT,
    ) -> None:
        self.path = path
        self.headers = tuple(headers)
        self.body = body
        self.size = size
        self.limit = limit


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
        odd = any(c.isspace() or not c.isprintable() for c in url)
        if odd or not url.isascii() or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(f"not the address of a server: {url!r}")
        self.host = parts.netloc
        self.path = parts.path.rstrip("/")
        self.base = f"{parts.scheme}://{self.host}"
        self.label = self.base + self.path


class Client:
    """Asks servers. `urls` are as `Endpoint` takes them.

    Times are in seconds: `timeout` for one server to reply, `deadline` for it all. `connections` is
    how many requests may be under way at one server; the others wait. `clock` is any steady clock.

    Raises ConfigError for a url that is none.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout: float,
        deadline: float,
        connections: int = CONNECTIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            endpoints = [Endpoint(url) for url in urls]
        except ValueError as error:
            raise ConfigError(str(error)) from None
        import asyncio

        self.asyncio = asyncio
        self.hosts = [_Host(endpoint, connections) for endpoint in endpoints]
        self._breaker = Breaker([endpoint.label for endpoint in endpoints])
        self._timeout = timeout
        self._deadline = deadline
        self._clock = clock
        self._closed = False

    async def ask(self, request: Request, read: Callable[[Response], T]) -> T | Unavailable:
        """Send a request, and return what `read` makes of the reply, or Unavailable.

        `read` raises BadReplyError for a reply that is none; then the next server is asked.
        """
        if self._closed:
            return Unavailable(CLOSED)
        now = self._clock()
        plan = Plan(
            self._breaker,
            now,
            attempts=ROUNDS,
            timeout=self._timeout,
            deadline=now + self._deadline,
        )
        course = _Course(self, request, read, now + self._deadline)
        while True:
            step = plan.next(self._clock())
            if isinstance(step, Unavailable):
                return step
            said = await course.ask(step)
            if not isinstance(said, Trouble):
                plan.answered()
                return said
            if said.final:
                return Unavailable(said.cause)
            plan.failed(said.failure, said.cause, self._clock())

    async def close(self) -> None:
        """Close the connections; whoever still waits is told Unavailable."""
        self._closed = True
        for host in self.hosts:
            await host.close()

    def left(self, until: float) -> float:
        """The seconds until a point in time."""
        return until - self._clock()

    def may_pass(self, server: int) -> bool:
        """Whether a server failed, and there is another one that didn't."""
        states = [self._breaker.is_open(each) for each in range(len(self.hosts))]
        return states[server] and not all(states)


class _Course(Generic[T]):
    """One request on its course past the servers, until a point in time."""

    __slots__ = ("_client", "_over", "_passed", "_read", "_request", "_resend", "_until")

    def __init__(
        self, client: Client, request: Request, read: Callable[[Response], T], until: float
    ) -> None:
        self._client = client
        self._request = request
        self._read = read
        self._until = until
        #: Servers that are not asked again, and what they did; and those that were not asked.
        self._over: dict[int, str] = {}
        self._passed: set[int] = set()
        #: Whether a request that got no reply at all may be sent again; law 4.
        self._resend = True

    async def ask(self, step: Ask) -> T | Trouble:
        """Ask one server, if it is to be asked."""
        server = step.server
        if server in self._over:
            return Trouble(Failure.LOCAL, self._over[server])
        client = self._client
        if step.pause:
            await client.asyncio.sleep(step.pause)
        host = client.hosts[server]
        if host.turns.locked():
            try:
                async with client.asyncio.timeout(step.timeout):
                    await host.turns.acquire()
            except TimeoutError:
                return Trouble(Failure.LOCAL, "too many requests under way")
            if server not in self._passed and client.may_pass(server):
                # It was found dead by those whose turn it was.
                host.turns.release()
                self._passed.add(server)
                return Trouble(Failure.LOCAL, "passed over")
        else:
            await host.turns.acquire()
        try:
            said = await self._try(host, min(step.timeout, client.left(self._until)))
        finally:
            host.turns.release()
        if isinstance(said, Trouble) and said.failure is Failure.SILENT:
            self._over[server] = said.cause
        return said

    async def _try(self, host: _Host, seconds: float) -> T | Trouble:
        """Ask, twice if the connection breaks without a reply."""
        exchange = _Exchange(host, self._request)
        try:
            async with self._client.asyncio.timeout(seconds):
                try:
                    response = await exchange.run()
                except host.broken as error:
                    if isinstance(error, host.unconnected) or not self._may_resend(exchange):
                        raise
                    exchange = _Exchange(host, self._request)
                    response = await exchange.run()
            return self._read(response)
        except TimeoutError:
            return Trouble(Failure.SILENT, "timeout")
        except BadReplyError as error:
            return Trouble(Failure.BROKEN, str(error))
        except Exception as error:  # noqa: BLE001  # law 1
            if exchange.source_failed:
                return Trouble(Failure.LOCAL, exchange.source_failed, final=True)
            return host.trouble(error, replied=exchange.replied)

    def _may_resend(self, exchange: _Exchange) -> bool:
        """Whether what failed may be tried again at once: the first time that this is asked."""
        resend, self._resend = self._resend, False
        return resend and not (exchange.replied or exchange.source_failed)


class _Host:
    """A server and the connections to it, which are made when they are first needed."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        import asyncio

        try:
            import aiohttp
            from aiohttp.client_reqrep import ClientRequest
            from aiohttp.http import HttpProcessingError, StreamWriter
        except ImportError as error:
            raise ConfigError(f"aiohttp is needed to ask {endpoint.label}: {error}") from None
        self.endpoint = endpoint
        self.turns = asyncio.Semaphore(connections)
        self.aiohttp = aiohttp
        self.writer = StreamWriter
        self._request = ClientRequest
        self._no_http = HttpProcessingError
        self._connector: aiohttp.BaseConnector | None = None
        self._place: Any = None
        self._times = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)
        self._closed = False
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

        from yarl import URL  # aiohttp's

        aiohttp: Any = self.aiohttp
        # What says where to connect to is a request to aiohttp. Nothing else of it is used.
        self._place = self._request("POST", URL(self.endpoint.base), loop=get_running_loop())
        path = self.endpoint.socket
        kind, where = (aiohttp.UnixConnector, (path,)) if path else (aiohttp.TCPConnector, ())
        return kind(*where, limit=0, keepalive_timeout=KEPT_ALIVE)

    def head(self, path: str) -> str:
        """The first lines of a request, the same for each of a path."""
        head = self._heads.get(path)
        if head is None:
            head = f"POST {self.endpoint.path}{path} HTTP/1.1\r\nHost: {self.endpoint.host}\r\n"
            self._heads[path] = head
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
            number = getattr(error.os_error, "errno", None)
            failure = Failure.LOCAL if number in _LOCAL else unreachable
            return Trouble(failure, _reason(error.os_error, "cannot connect"))
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


class _Exchange:
    """One request and its reply over one connection."""

    __slots__ = ("_host", "_request", "replied", "source_failed")

    def __init__(self, host: _Host, request: Request) -> None:
        self._host = host
        self._request = request
        #: Whether a reply has begun.
        self.replied = False
        #: Why the body could not be read.
        self.source_failed = ""

    async def run(self) -> Response:
        """Raises BadReplyError, and whatever aiohttp raises."""
        host, request = self._host, self._request
        connection = await host.connect()
        whole = False
        try:
            protocol = connection.protocol
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            body = request.body
            if isinstance(body, bytes):
                protocol.transport.write(self._head(len(body)) + body)
            else:
                await self._stream(protocol, body)
            said, content = await protocol.read()
            while said.code in _INTERIM:
                said, content = await protocol.read()
            self.replied = True
            response = Response(said.code, said.headers, await self._body(said.headers, content))
            whole = True
        finally:
            if whole:
                connection.release()
            else:
                # What is left of this exchange would be taken for the next one. And what a server
                # that hangs has not read would keep the socket open for ever.
                if connection.transport is not None:
                    connection.transport.abort()
                connection.close()
        return response

    def _head(self, size: int | None) -> bytes:
        request = self._request
        fields = "".join([f"{name}: {value}\r\n" for name, value in request.headers])
        if not fields.count("\r") == fields.count("\n") == len(request.headers):
            raise BadReplyError("not asked: a header field of more than one line")
        how = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
        head = f"{self._host.head(request.path)}{fields}{how}\r\n\r\n"
        return head.encode("utf-8", "surrogateescape")

    async def _stream(self, protocol: Any, body: Callable[[], Iterator[bytes]]) -> None:
        """Send a body no faster than it is taken."""
        from asyncio import get_running_loop

        size = self._request.size
        chunked = size is None
        writer = self._host.writer(protocol, get_running_loop())
        self._write(protocol, self._head(size))
        sent = 0
        for chunk in self._read(body):
            self._write(protocol, b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            await writer.drain()
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

    async def _body(self, headers: Mapping[str, str], content: Any) -> bytes:
        limit = self._request.limit
        length = headers.get("Content-Length", "")
        # What is no number aiohttp has refused.
        if not length.isdecimal() or int(length) <= limit:
            if content.is_eof() and content.total_bytes <= limit:
                # It is all there: most replies come in one piece.
                whole: bytes = content.read_nowait()
                return whole
            parts: list[bytes] = []
            size = 0
            async for part in content.iter_any():
                parts.append(part)
                size += len(part)
                if size > limit:
                    break
            else:
                return parts[0] if len(parts) == 1 else b"".join(parts)
        raise BadReplyError("oversized reply")


def _reason(error: BaseException | None, otherwise: str) -> str:
    """What the system says of a failure, in a few words."""
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return getattr(error, "strerror", None) or otherwise

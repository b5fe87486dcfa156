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
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, TypeVar

    import aiohttp

    from smtpd_filters.lookups.retry import Ask

    T = TypeVar("T")
    #: A body: at once, or a function that gives it in chunks, anew for each try.
    Body = bytes | Callable[[], Iterator[bytes]]

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

    `label` is how it is called in logs: without a password. Raises ValueError if it is neither.
    """

    __slots__ = ("base", "label", "socket")

    def __init__(self, url: str) -> None:
        self.socket = ""
        path = url.removeprefix("unix:")
        if path.startswith("/"):
            if "\0" in path or len(os.fsencode(path)) > 107:
                # unix(7): sun_path is 108 bytes with the final null.
                raise ValueError(f"no path of a socket: {url!r}")
            self.socket = self.label = path
            self.base = "http://localhost"
            return
        from urllib.parse import urlsplit  # setup's business, when aiohttp is loaded anyway

        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            raise ValueError(f"neither http://HOST:PORT nor the path of a socket: {url!r}")
        if parts.query or parts.fragment or any(c.isspace() or not c.isprintable() for c in url):
            raise ValueError(f"no address of a server: {url!r}")
        self.base = url.rstrip("/")
        self.label = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


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

        self._asyncio = asyncio
        self._hosts = [_Host(endpoint, connections) for endpoint in endpoints]
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
        try:
            async with self._asyncio.timeout(self._deadline):
                return await self._follow(plan, request, read)
        except TimeoutError:
            return Unavailable(plan.cause("deadline passed"))

    async def close(self) -> None:
        """Close the connections; whoever still waits is told Unavailable."""
        self._closed = True
        for host in self._hosts:
            await host.close()

    async def _follow(
        self, plan: Plan, request: Request, read: Callable[[Response], T]
    ) -> T | Unavailable:
        """Do what the plan says until there is a reply or nothing left to do."""
        # Servers that are not asked again, and what they did; and those that were not asked.
        over: dict[int, str] = {}
        passed: set[int] = set()
        resend = True
        while True:
            step = plan.next(self._clock())
            if isinstance(step, Unavailable):
                return step
            if step.server in over:
                plan.failed(Failure.LOCAL, over[step.server], self._clock())
                continue
            if step.pause:
                await self._asyncio.sleep(step.pause)
            host = self._hosts[step.server]
            full = host.turns.locked()
            async with host.turns:
                if full and step.server not in passed and self._may_pass(step.server):
                    # It was found dead by those who had the turns.
                    passed.add(step.server)
                    plan.failed(Failure.LOCAL, "passed over", self._clock())
                    continue
                said, resend = await self._try(host, step, request, read, resend=resend)
            if not isinstance(said, Trouble):
                plan.answered()
                return said
            if said.final:
                return Unavailable(said.cause)
            if said.failure is Failure.SILENT:
                over[step.server] = said.cause
            plan.failed(said.failure, said.cause, self._clock())

    def _may_pass(self, server: int) -> bool:
        """Whether a server failed, and there is another one that didn't."""
        states = [self._breaker.is_open(each) for each in range(len(self._hosts))]
        return states[server] and not all(states)

    async def _try(
        self,
        host: _Host,
        step: Ask,
        request: Request,
        read: Callable[[Response], T],
        *,
        resend: bool,
    ) -> tuple[T | Trouble, bool]:
        """Ask one server, twice if it breaks off without a reply and `resend` allows it.

        Returns what came of it, and whether that is still allowed.
        """
        exchange = _Exchange(host, request)
        try:
            async with self._asyncio.timeout(step.timeout):
                try:
                    response = await exchange.run()
                except host.broken as error:
                    came_about = not isinstance(error, host.unconnected)
                    if not (resend and came_about) or exchange.replied or exchange.source_failed:
                        raise
                    resend = False
                    exchange = _Exchange(host, request)
                    response = await exchange.run()
            return read(response), resend
        except TimeoutError:
            return Trouble(Failure.SILENT, "timeout"), resend
        except BadReplyError as error:
            return Trouble(Failure.BROKEN, str(error)), resend
        except Exception as error:  # noqa: BLE001  # law 1
            if exchange.source_failed:
                return Trouble(Failure.LOCAL, exchange.source_failed, final=True), resend
            return host.trouble(error, replied=exchange.replied), resend


class _Host:
    """A server and the connections to it, which are made when they are first needed."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        import asyncio

        try:
            import aiohttp
        except ImportError as error:
            raise ConfigError(f"aiohttp is needed to ask {endpoint.label}: {error}") from None
        self.endpoint = endpoint
        self.turns = asyncio.Semaphore(connections)
        self._aiohttp = aiohttp
        self._session: aiohttp.ClientSession | None = None
        self._closed = False
        #: A connection that broke, and one that did not come about, which is a case of the first.
        self.broken = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
        self.unconnected = aiohttp.ClientConnectorError
        self._urls: dict[str, Any] = {}

    def session(self) -> aiohttp.ClientSession:
        """The connections; to be called where the loop runs."""
        if self._session is None:
            if self._closed:
                raise BadReplyError(CLOSED)
            aiohttp = self._aiohttp
            # The number of connections is bounded by turns.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(
                    self.endpoint.socket, limit=0, keepalive_timeout=KEPT_ALIVE
                )
                if self.endpoint.socket
                else aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE),
                # Of ours, the plan's, only the first is left to aiohttp.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type"),
                headers={"User-Agent": "smtpd-filters"},
            )
        return self._session

    def url(self, path: str) -> Any:
        """The address of a path, made once."""
        url = self._urls.get(path)
        if url is None:
            from yarl import URL  # aiohttp's

            url = self._urls[path] = URL(self.endpoint.base + path)
        return url

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def trouble(self, error: Exception, *, replied: bool) -> Trouble:
        """Say what an exception of aiohttp's or the system's means."""
        aiohttp = self._aiohttp
        unreachable = Failure.UNREACHABLE
        if isinstance(error, aiohttp.ClientConnectorError):
            number = getattr(error.os_error, "errno", None)
            failure = Failure.LOCAL if number in _LOCAL else unreachable
            return Trouble(failure, _reason(error.os_error, "cannot connect"))
        if isinstance(error, aiohttp.ClientPayloadError) or replied:
            return Trouble(unreachable, "reply cut short")
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return Trouble(unreachable, "closed the connection")
        if isinstance(error, aiohttp.ClientOSError | OSError):
            return Trouble(unreachable, _reason(error, "connection lost"))
        if isinstance(error, aiohttp.ClientResponseError):
            return Trouble(Failure.BROKEN, "a reply that is no HTTP")
        return Trouble(Failure.BROKEN, f"{type(error).__name__}: {error}"[:200])


class _Exchange:
    """One request and its reply over one connection."""

    __slots__ = ("_host", "_request", "_sent", "replied", "source_failed")

    def __init__(self, host: _Host, request: Request) -> None:
        self._host = host
        self._request = request
        #: Whether the whole body has been handed over.
        self._sent = False
        #: Whether a reply has begun.
        self.replied = False
        #: Why the body could not be read.
        self.source_failed = ""

    async def run(self) -> Response:
        """Raises BadReplyError, and whatever aiohttp raises."""
        request = self._request
        headers = request.headers
        data: Any = request.body
        if isinstance(data, bytes):
            self._sent = True
        else:
            if request.size is not None:
                headers = (*headers, ("Content-Length", str(request.size)))
            data = self._chunks(data)
        response = await self._host.session().post(
            self._host.url(request.path), data=data, headers=headers, allow_redirects=False
        )
        self.replied = True
        whole = False
        try:
            body = await self._body(response)
            whole = self._sent
        finally:
            if whole:
                response.release()
            else:
                # What is left of the body would be taken for the next request.
                response.close()
        return Response(response.status, response.headers, body)

    async def _chunks(self, body: Callable[[], Iterator[bytes]]) -> AsyncIterator[bytes]:
        try:
            for chunk in body():
                yield chunk
        except Exception as error:
            # aiohttp hands it on, or something in its place.
            self.source_failed = str(error) or type(error).__name__
            raise
        self._sent = True

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._request.limit
        length = response.content_length
        if length is not None and length <= limit:
            return await response.read()
        parts: list[bytes] = []
        size = 0
        if length is None:
            async for part in response.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > limit:
                    break
            else:
                return b"".join(parts)
        raise BadReplyError("oversized reply")


def _reason(error: BaseException | None, otherwise: str) -> str:
    """What the system says of a failure, in a few words."""
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return getattr(error, "strerror", None) or otherwise

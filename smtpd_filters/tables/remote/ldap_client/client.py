"""The client of LDAP servers: connections, TLS, binding, fail-over, and searches side by side.

Invariants
----------
*No credentials elsewhere*: referrals are never followed, and a password is sent only after TLS has
begun where it is configured.
*Bounded*: the entries of a search are bounded in number and size.
*A silent connection ends*: after a search without any answer within its time the next one connects
again, to another server if there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING
from urllib.parse import unquote

from smtpd_filters.errors import ConfigError
from smtpd_filters.lookups.failover.breaker import Breaker
from smtpd_filters.lookups.happy_eyeballs import connected
from smtpd_filters.tables.remote.backend import AnswerError, BackendError, release

from . import messages
from .engine import Engine, EngineError
from .messages import Entry, Result, TooLarge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .messages import Search

_CHUNK = 1 << 15
_BUFFER = 1 << 16
#: The size of the values of one search, in bytes: of one that looks up a key, and of a list.
ROOM = 4 << 20
ROOM_OF_LIST = 256 << 20
#: Bytes of memory of a value or an attribute beside its text.
_OBJECT = 64
#: Results with which another server may be asked.
_BUSY = frozenset({51, 52, 80})
_PORTS = {"ldap": 389, "ldaps": 636}


class Server:
    """A server: `ldap://HOST[:PORT]`, `ldaps://`, `ldapi://PATH` with %2F, or a bare host.

    Raises ConfigError if the text is none of these.
    """

    __slots__ = ("host", "path", "port", "text", "tls")

    def __init__(self, text: str) -> None:
        self.text = text
        scheme, separator, rest = text.partition("://")
        if not separator:
            scheme, rest = "ldap", text
        self.tls = scheme == "ldaps"
        self.host = self.path = ""
        self.port = _PORTS.get(scheme, 0)
        rest = rest.rstrip("/")
        if scheme == "ldapi":
            self.path = unquote(rest)
            if self.path[:1] != "/":
                raise ConfigError(f"expected ldapi://%2FPATH, not {text[:80]!r}")
            return
        from smtpd_filters.settings import ENDPOINT

        if scheme not in _PORTS:
            raise ConfigError(f"expected ldap://, ldaps:// or ldapi://, not {text[:80]!r}")
        try:
            self.host, self.port = ENDPOINT(self.port).parse(rest)
        except ValueError as error:
            raise ConfigError(str(error)) from None


class Account:
    """How a client identifies itself: by name and password, as the user of its process, or not."""

    __slots__ = ("external", "name", "password")

    def __init__(self, name: str = "", password: str = "", *, external: bool = False) -> None:
        self.name = name
        self.password = password
        self.external = external


class ConnectionFailedError(Exception):
    """A server can't be used now; the text is the cause."""


class _Request:
    __slots__ = ("done", "entries", "most", "room")

    def __init__(self, most: int, room: int) -> None:
        self.entries: list[Entry] = []
        self.most = most
        self.room = room
        self.done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()


class _Connection:
    """An open connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._engine = Engine()
        self._requests: dict[int, _Request] = {}
        self._reading: asyncio.Task[None] | None = None
        self.closed = ""
        self.heard = 0.0

    async def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        """Begin TLS (RFC 4511 section 4.14). Raises ConnectionFailedError."""
        self._writer.write(messages.start_tls(self._engine.number()))
        result = None
        while result is None:
            data = await self._reader.read(_CHUNK)
            if not data:
                raise ConnectionFailedError("closed the connection")
            for message in self._engine.receive(data):
                if isinstance(message, Result):
                    result = message
        if result.code:
            raise ConnectionFailedError(f"StartTLS: {result.reason}")
        if not self._engine.is_between:
            # Somebody in between may have added what would count as sent within TLS.
            raise ConnectionFailedError("StartTLS: more than a response before TLS")
        await self._writer.start_tls(context, server_hostname=host)

    def begin(self) -> None:
        """Begin to read."""
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def bind(self, account: Account) -> None:
        """Identify. Raises ConnectionFailedError, or BackendError if the server refuses."""
        if not (account.external or account.name):
            return  # LDAP version 3 needs no bind for an anonymous client
        number = self._engine.number()
        if account.external:
            data = messages.bind_external(number)
        else:
            data = messages.bind(number, account.name.encode(), account.password.encode())
        result = await self._exchange(number, data, _Request(0, 0))
        if result.code in _BUSY:
            raise ConnectionFailedError(result.reason)
        if result.code:
            raise BackendError(f"bind: {result.reason}")

    async def search(
        self, search: Search, most: int, room: int, page: int = 0, cookie: bytes = b""
    ) -> tuple[list[Entry], Result]:
        """Return at most so many entries, and the result."""
        request = _Request(most, room)
        number = self._engine.number()
        data = search.encode(number, page, cookie)
        return request.entries, await self._exchange(number, data, request)

    async def _exchange(self, number: int, data: bytes, request: _Request) -> Result:
        if self.closed:
            self._engine.close(number)
            raise ConnectionFailedError(self.closed)
        self._requests[number] = request
        self._writer.write(data)
        try:
            return await request.done
        except asyncio.CancelledError:
            if not self.closed:
                self._writer.write(messages.abandon(self._engine.unused(), number))
            raise
        finally:
            self._engine.close(number)
            del self._requests[number]

    async def _read(self) -> None:
        cause = "closed the connection"
        try:
            while data := await self._reader.read(_CHUNK):
                self.heard = asyncio.get_running_loop().time()
                for message in self._engine.receive(data):
                    self._dispatch(message)
                await asyncio.sleep(0)  # others have their turn, however much there is to read
        except EngineError as error:
            cause = str(error)
        except OSError as error:
            cause = error.strerror or str(error) or type(error).__name__
        except asyncio.CancelledError:
            cause = "the connection was closed"
            raise
        finally:
            self._end(cause)

    def _dispatch(self, message: object) -> None:
        if isinstance(message, Result):
            request = self._requests.get(message.number)
            if request is not None and not request.done.done():
                request.done.set_result(message)
        elif isinstance(message, Entry):
            request = self._requests.get(message.number)
            if request is None or request.done.done():
                return
            request.room -= sum(
                len(value) + _OBJECT for values in message.attributes.values() for value in values
            )
            request.room -= _OBJECT * len(message.attributes)
            if len(request.entries) >= request.most or request.room < 0:
                self._fail(message.number, "more entries than a search may have")
                return
            request.entries.append(message)
        elif isinstance(message, TooLarge):
            self._fail(message.number, message.cause)

    def _fail(self, number: int, cause: str) -> None:
        """Fail a request alone, and drop what still arrives for it."""
        self._engine.close(number)
        request = self._requests.get(number)
        if request is not None and not request.done.done():
            request.done.set_exception(AnswerError(cause))

    def _end(self, cause: str) -> None:
        self.closed = self.closed or cause
        for request in self._requests.values():
            if not request.done.done():
                request.done.set_exception(ConnectionFailedError(cause))
        self._writer.close()

    def close(self) -> None:
        """Close the connection; pending requests fail."""
        if not self.closed:
            with contextlib.suppress(Exception):
                self._writer.write(messages.unbind(self._engine.unused()))
        if self._reading is not None:
            self._reading.cancel()
        self._end("the connection was closed")

    async def wait_closed(self) -> None:
        """Wait until it is closed; never raise."""
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._writer.wait_closed()


class Client:
    """Searches on the first server that answers; `timeout` is for a search, in seconds."""

    def __init__(
        self,
        servers: Sequence[Server],
        account: Account,
        *,
        timeout: float,
        context: ssl.SSLContext | None = None,
        starts_tls: bool = False,
    ) -> None:
        self._servers = servers
        self._account = account
        self._timeout = timeout
        self._context = context
        self._starts_tls = starts_tls
        self._breaker = Breaker([each.text for each in servers])
        self._connections: dict[int, _Connection] = {}
        self._connecting: dict[int, asyncio.Task[_Connection | Exception]] = {}

    async def search(
        self, search: Search, most: int, room: int = ROOM
    ) -> tuple[list[Entry], Result]:
        """Return at most so many entries, and the result. Raises BackendError."""
        loop = asyncio.get_running_loop()
        cause = ""
        for index in self._breaker.order(loop.time()):
            server = self._servers[index].text
            started = loop.time()
            try:
                async with asyncio.timeout(self._timeout / len(self._servers)):
                    found = await self._search_at(index, search, most, room)
            except TimeoutError:
                cause = f"{server}: no answer"
                self._give_up(index, started)
            except ConnectionFailedError as error:
                cause = f"{server}: {error}"
            except asyncio.CancelledError:
                self._give_up(index, started)
                raise
            else:
                self._breaker.answered(index)
                return found
            self._breaker.silent(index, loop.time())
        raise BackendError(cause)

    async def _search_at(
        self, index: int, search: Search, most: int, room: int
    ) -> tuple[list[Entry], Result]:
        used = index in self._connections
        connection = await self._connected(index)
        try:
            found = await connection.search(search, most, room)
        except ConnectionFailedError:
            if not used:
                raise
            # The server has ended a connection that was idle.
            connection = await self._connected(index)
            found = await connection.search(search, most, room)
        if found[1].code in _BUSY:
            raise ConnectionFailedError(found[1].reason)
        return found

    async def pages(self, search: Search, page: int, most: int, seconds: float) -> list[Entry]:
        """Return all entries, asked for page by page. Raises BackendError."""
        entries: list[Entry] = []
        cause = ""
        loop = asyncio.get_running_loop()
        for index in self._breaker.order(loop.time()):
            await release(entries)
            try:
                async with asyncio.timeout(seconds / len(self._servers)):
                    connection = await self._connected(index)
                    await self._pages_at(connection, search, page, most, entries)
            except TimeoutError:
                cause = "no answer"
                self._give_up(index, 0.0)
            except ConnectionFailedError as error:
                cause = str(error)
            except BackendError:
                await release(entries)
                raise
            else:
                self._breaker.answered(index)
                return entries
            cause = f"{self._servers[index].text}: {cause}"
            self._breaker.silent(index, loop.time())
        raise BackendError(cause)

    async def _pages_at(
        self,
        connection: _Connection,
        search: Search,
        page: int,
        most: int,
        entries: list[Entry],
    ) -> None:
        cookie, room = b"", ROOM_OF_LIST
        while True:
            found, result = await connection.search(search, page + 1, room, page, cookie)
            if result.code in _BUSY:
                raise ConnectionFailedError(result.reason)
            if result.code:
                raise BackendError(result.reason)
            entries += found
            if len(entries) > most:
                raise BackendError(f"more than {most} entries")
            cookie = result.cookie
            if not cookie:
                return

    def _give_up(self, index: int, started: float) -> None:
        """Close a connection that has said nothing since then."""
        connection = self._connections.get(index)
        if connection is not None and connection.heard <= started:
            self._connections.pop(index).close()

    async def _connected(self, index: int) -> _Connection:
        connection = self._connections.get(index)
        if connection is not None and not connection.closed:
            return connection
        task = self._connecting.get(index)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._connect(index))
            self._connecting[index] = task
        result = await asyncio.shield(task)
        if isinstance(result, Exception):
            raise type(result)(*result.args)
        return result

    async def _connect(self, index: int) -> _Connection | Exception:
        """Open a connection; return it, or what went wrong."""
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._open(self._servers[index])
                connection.begin()
                await connection.bind(self._account)
        except (TimeoutError, ConnectionFailedError, EngineError, BackendError, OSError) as error:
            if connection is not None:
                connection.close()
            return _failure(error)
        except asyncio.CancelledError:
            if connection is not None:
                connection.close()
            raise
        else:
            self._connections[index] = connection
            return connection
        finally:
            self._connecting.pop(index, None)

    async def _open(self, server: Server) -> _Connection:
        if server.path:
            streams = await asyncio.open_unix_connection(server.path, limit=_BUFFER)
            return _Connection(*streams)
        sock = await connected(server.host, server.port)
        try:
            streams = await asyncio.open_connection(
                sock=sock,
                limit=_BUFFER,
                ssl=self._context if server.tls else None,
                server_hostname=server.host if server.tls else None,
            )
        except BaseException:
            sock.close()
            raise
        connection = _Connection(*streams)
        if self._starts_tls and not server.tls and self._context is not None:
            try:
                await connection.start_tls(self._context, server.host)
            except BaseException:
                connection.close()
                raise
        return connection

    async def aclose(self) -> None:
        """Close everything; never raise. It can be used again, in another event loop."""
        tasks = list(self._connecting.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._connecting.clear()
        while self._connections:
            _, connection = self._connections.popitem()
            connection.close()
            await connection.wait_closed()


def _failure(error: Exception) -> Exception:
    """Return the error to raise for one of a connection, without details that change."""
    if isinstance(error, BackendError | ConnectionFailedError):
        return error
    if isinstance(error, TimeoutError):
        return ConnectionFailedError("no answer")
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "verify_message", "") or error.reason or "failed"
        return ConnectionFailedError(f"TLS: {reason}")
    if isinstance(error, OSError):
        return ConnectionFailedError(error.strerror or str(error) or type(error).__name__)
    return ConnectionFailedError(str(error))

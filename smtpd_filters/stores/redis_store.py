"""A store on Redis or Valkey, shared by exchangers: one server, Sentinel or Cluster.

A request is one round trip: a script applies its operations (`redis_script`).

Invariants
----------
*No late replies*: a command is never cancelled while its reply is due, since redis-py before 4.5.5
then gives that reply to the next command (CVE-2023-28858, CVE-2023-28859; Debian 12 has 4.3.4). A
caller that gives up leaves its command to the socket's timeout.
*Repeated once*: a request whose connection broke is sent again, as after a restart of the server.
So it may be applied twice: a counter may count one too many, and an `Add` may find its own entry.
*Passed over*: a server that hasn't replied three times in a row is asked by one request in
`SET_BACK` seconds; all others are unavailable at once, so that a dead server doesn't cost each
session a timeout. An error is a reply.
*Node by node*: the nodes of a cluster fail alone. A request for one neither waits for another nor
is passed over because of it.
*Bounded*: at most `CONNECTIONS` connections to a server, and `MAX_PENDING` requests that wait for
one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.lookups.retry import SILENCES
from smtpd_filters.runtime.counters import COUNTERS, INVALID, LOCAL, PASSED_OVER, TIMEOUT

from .damage import Damage
from .operations import Get
from .redis_script import decode, encode, script
from .store import CLOSED, Store, StoreUnavailableError
from .trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from .address import Address
    from .operations import Entry, Operation

CONNECTIONS = 32
MAX_PENDING = 2048
#: Seconds between two requests to a server that has failed three times in a row. A fail-over of
#: Sentinel takes about as long.
SET_BACK = 5.0
#: Servers that are remembered: more than a cluster has.
MAX_SERVERS = 2048
#: Keys that `scan` reads at a time.
PAGE = 256
#: Seconds for closing the connections.
LAST = 2.0


class RedisStore(Store):
    """A store on the servers of an address, connected when it is first asked.

    `timeout` is for a request, in seconds. `prefix` precedes all keys. `certificates` is a file of
    certificates that the server's is checked against, with TLS; "" is the system's. `read_password`
    returns the password that is valid now, after a failure. `note` takes a text for the log.
    `set_back` is for how long a server is passed over, in seconds.

    Raises ConfigError if redis-py is missing.
    """

    kind = "redis"

    def __init__(  # noqa: PLR0913  # settings, given by name
        self,
        address: Address,
        *,
        timeout: float,
        note: Callable[[str], object] = str,
        password: str = "",
        read_password: Callable[[], str] | None = None,
        prefix: str = "smtpd-filters:",
        certificates: str = "",
        connections: int = CONNECTIONS,
        set_back: float = SET_BACK,
    ) -> None:
        self.label = address.label
        self.one_place = address.scheme != "cluster"
        self._damage = Damage(self.label, note)
        if self.one_place:
            self._trouble = Trouble(self.label, note)
        self._timeout = timeout
        self._prefix = prefix.encode()
        self._script = script()
        try:
            from . import redis_client
        except ImportError as error:
            raise ConfigError(f"{self.label}: requires redis-py: {error}") from None
        self._redis = redis_client
        self._connections = redis_client.Connections(
            address,
            # A command may need a connection and then a reply.
            timeout=timeout / 2,
            password=password,
            read_password=read_password,
            certificates=certificates,
        )
        self._places = connections
        self._set_back = set_back
        #: By name: the nodes of a cluster; "" is the only server, or a cluster not yet known.
        self._servers: dict[str, _Server] = {}
        self._closed = False
        self._commands: set[asyncio.Task[Any]] = set()
        COUNTERS.watch(self.kind, self)

    def circuits(self) -> Iterator[tuple[str, bool]]:
        """Yield the label of each server that has keys now, and whether it is passed over."""
        for name in self._connections.servers():
            server = self._servers.get(name)
            yield self._label(name), server is not None and server.is_open

    def _label(self, name: str) -> str:
        return f"{self.label}: {name}" if name else self.label

    async def _apply(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        keys = [self._prefix + operation.key for operation in operations]
        arguments = [each for operation in operations for each in encode(operation)]
        results = await self._within_timeout(keys, arguments)
        try:
            *results, damaged = results
            if damaged:
                self.damaged(operations[damaged - 1].key)
            return [
                decode(operation, result)
                for operation, result in zip(operations, results, strict=True)
            ]
        except (TypeError, ValueError, IndexError, OverflowError):
            raise self._unavailable("invalid result") from None

    async def _within_timeout(self, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        """Run the script within the timeout; raise UnavailableError if that fails."""
        if self._closed:
            raise UnavailableError(CLOSED)
        server = self._server(keys[0])
        now = time.monotonic()
        if server.is_open:
            if now < server.next_try:
                self._connections.look_again()
                raise server.unavailable("failed repeatedly, passed over for now", PASSED_OVER)
            server.next_try = now + self._set_back  # this request tries it
        if server.waiting >= MAX_PENDING:
            raise server.unavailable("too many requests are pending", LOCAL)
        attempt = _Attempt(server, now, self._timeout)
        # A task of its own, which is not cancelled (*No late replies*).
        command = asyncio.create_task(self._run(attempt, keys, arguments))
        self._commands.add(command)
        command.add_done_callback(self._commands.discard)
        command.add_done_callback(attempt.ended)
        try:
            done, _ = await asyncio.wait({command}, timeout=self._timeout)
        finally:
            attempt.is_over = True
        if not done:
            attempt.settle(replied=False)
            raise server.unavailable(f"no answer within {self._timeout:g} s", TIMEOUT)
        try:
            return command.result()
        # redis-py raises many, and foreign ones; also CancelledError, where nobody has cancelled.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # as said
            cause = self._redis.cause(error)
            raise server.unavailable(cause, self._redis.failure(cause)) from None

    def _server(self, key: bytes) -> _Server:
        """Return the server that has a key."""
        name = self._connections.server(key)
        found = self._servers.get(name)
        if found is None:
            if len(self._servers) >= MAX_SERVERS:
                self._servers = {"": self._servers[""]} if "" in self._servers else {}
            found = self._servers[name] = _Server(
                self._label(name), self._places, self._set_back, self._redis.REPLIES
            )
        return found

    async def _run(self, attempt: _Attempt, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        server = attempt.server
        server.waiting += 1
        try:
            async with server.places:
                if attempt.is_over:
                    return None  # and nothing has been sent
                attempt.is_sent = True
                try:
                    return await self._evaluate(keys, arguments)
                except self._redis.BROKEN:
                    if attempt.is_over:
                        raise
                    return await self._evaluate(keys, arguments)  # *Repeated once*
        finally:
            server.waiting -= 1

    async def _evaluate(self, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        script, words = self._connections.script, (len(keys), *keys, *arguments)
        try:
            return await script(keys[0], "EVALSHA", self._script.digest, *words)
        except self._redis.NoScriptError:
            return await script(keys[0], "EVAL", self._script.source, *words)

    def _unavailable(self, cause: str, failure: str = INVALID) -> UnavailableError:
        return StoreUnavailableError(f"{self.label}: {cause}", failure)

    async def scan(self, prefix: bytes) -> AsyncIterator[tuple[bytes, Entry]]:
        """Iterate over entries."""
        if self._closed:
            raise UnavailableError(CLOSED)
        seen: set[bytes] = set()
        try:
            async for keys in self._connections.scan(self._prefix + prefix, PAGE):
                new = [key.removeprefix(self._prefix) for key in keys if not key.endswith(b"+")]
                found = [key for key in new if key not in seen and self._is_key(key)]
                seen.update(found)
                entries = await asyncio.gather(*(self.ask(Get(key)) for key in found))
                for key, entry in zip(found, entries, strict=True):
                    if entry is not None:
                        yield key, entry
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            raise self._unavailable(self._redis.cause(error)) from None

    async def _group_keys(self, prefix: bytes) -> AsyncIterator[bytes]:
        if self._closed:
            raise UnavailableError(CLOSED)
        seen: set[bytes] = set()
        try:
            async for keys in self._connections.scan(self._prefix + prefix, PAGE):
                for key in keys:
                    if key.endswith(b"+") and key not in seen:
                        seen.add(key)
                        yield key.removeprefix(self._prefix).removesuffix(b"+")
        except Exception as error:  # noqa: BLE001  # as above
            raise self._unavailable(self._redis.cause(error)) from None

    async def aclose(self) -> None:
        """Close the connections, after the commands that are pending."""
        self._closed = True
        if self._commands:
            await asyncio.wait(self._commands, timeout=self._timeout)
        await self._connections.close(LAST)


class _Server:
    """A server: whether it is passed over, and the requests that wait for it."""

    def __init__(
        self, label: str, places: int, set_back: float, replies: tuple[type[Exception], ...]
    ) -> None:
        self.label = label
        #: Of one connection each.
        self.places = asyncio.Semaphore(places)
        self._set_back = set_back
        self.waiting = 0
        #: Exceptions that are replies.
        self.replies = replies
        self.next_try = 0.0
        self._failures = 0

    @property
    def is_open(self) -> bool:
        """Whether it is passed over."""
        return self._failures >= SILENCES

    def count(self, began: float, *, replied: bool) -> None:
        """Count a request by whether the server has replied in time."""
        self._failures = 0 if replied else self._failures + 1
        if self.is_open:
            self.next_try = max(self.next_try, began + self._set_back)

    def unavailable(self, cause: str, failure: str) -> UnavailableError:
        return StoreUnavailableError(f"{self.label}: {cause}", failure)


class _Attempt:
    """A request to a server, counted once, also if its caller has been cancelled."""

    def __init__(self, server: _Server, began: float, timeout: float) -> None:
        self.server = server
        #: Whether its caller has gone.
        self.is_over = False
        self.is_sent = False
        self._began = began
        self._timeout = timeout
        self._is_settled = False

    def settle(self, *, replied: bool) -> None:
        """Count it by whether the server has replied in time."""
        if not self._is_settled:
            self._is_settled = True
            self.server.count(self._began, replied=replied)

    def ended(self, command: asyncio.Task[Any]) -> None:
        """Count it by how its command ended."""
        replied = False
        if not command.cancelled():
            error = command.exception()
            replied = error is None or isinstance(error, self.server.replies)
        if self.is_sent:
            self.settle(replied=replied and time.monotonic() - self._began <= self._timeout)

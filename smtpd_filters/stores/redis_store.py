"""A store on Redis or Valkey, shared by exchangers: one server, Sentinel or Cluster.

A request is one round trip: a script applies its operations (`redis_script`).

Invariants
----------
*No late replies*: a command is never cancelled while its reply is due, since redis-py before 4.5.5
then gives that reply to the next command (CVE-2023-28858, CVE-2023-28859; Debian 12 has 4.3.4). A
caller that gives up leaves its command to the socket's timeout.
*Repeated once*: a request whose connection broke is sent again, as after a restart of the server.
So it may be applied twice: a counter may count one too many, and an `Add` may find its own entry.
*Passed over*: a server that has failed three times in a row is asked by one request in
`SET_BACK` seconds; all others are unavailable at once, so that a dead server doesn't cost each
session a timeout.
*Bounded*: at most `CONNECTIONS` connections, and `MAX_PENDING` requests that wait for one.
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from .address import Address
    from .operations import Entry, Operation

CONNECTIONS = 32
MAX_PENDING = 2048
#: Seconds between two requests to a server that has failed three times in a row. A fail-over of
#: Sentinel takes about as long.
SET_BACK = 5.0
#: Keys that `scan` reads at a time.
PAGE = 256
#: Seconds for closing the connections.
LAST = 2.0


class RedisStore(Store):
    """A store on the servers of an address, connected when it is first asked.

    `timeout` is for a request, in seconds. `prefix` precedes all keys. `certificates` is a file of
    certificates that the server's is checked against, with TLS; "" is the system's. `note` takes a
    text for the log.

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
        prefix: str = "smtpd-filters:",
        certificates: str = "",
        connections: int = CONNECTIONS,
    ) -> None:
        self.label = address.label
        self.one_place = address.scheme != "cluster"
        self._damage = Damage(self.label, note)
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
            certificates=certificates,
        )
        self._places = asyncio.Semaphore(connections)
        self._waiting = 0
        self._failures = 0
        self._next_try = 0.0
        self._closed = False
        self._commands: set[asyncio.Task[Any]] = set()
        COUNTERS.watch(self.kind, self)

    def circuits(self) -> Iterator[tuple[str, bool]]:
        """Yield its label, and whether it is passed over."""
        yield self.label, self._failures >= SILENCES

    async def _apply(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        keys = [self._prefix + operation.key for operation in operations]
        arguments = [each for operation in operations for each in encode(operation)]
        results = await self._within_timeout(keys, arguments)
        if type(results) is not list:  # a long string would be taken apart into its bytes
            raise self._unavailable("invalid result")
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
        now = time.monotonic()
        if self._failures >= SILENCES:
            if now < self._next_try:
                raise self._unavailable("failed repeatedly, passed over for now", PASSED_OVER)
            self._next_try = now + SET_BACK  # this request tries it
        if self._waiting >= MAX_PENDING:
            raise self._unavailable("too many requests are pending", LOCAL)
        # A task of its own, which is not cancelled (*No late replies*).
        command = asyncio.create_task(self._run(keys, arguments))
        self._commands.add(command)
        command.add_done_callback(self._ended)
        done, _ = await asyncio.wait({command}, timeout=self._timeout)
        if not done:
            self._failed(now)
            raise self._unavailable(f"no answer within {self._timeout:g} s", TIMEOUT)
        try:
            results = command.result()
        except Exception as error:  # noqa: BLE001  # redis-py raises many, and foreign ones
            self._failed(now)
            cause = self._redis.cause(error)
            raise self._unavailable(cause, self._redis.failure(cause)) from None
        self._failures = 0
        return results

    def _ended(self, command: asyncio.Task[Any]) -> None:
        self._commands.discard(command)
        if not command.cancelled():
            command.exception()  # its caller may have given up

    async def _run(self, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        self._waiting += 1
        try:
            async with self._places:
                try:
                    return await self._evaluate(keys, arguments)
                except self._redis.BROKEN:
                    return await self._evaluate(keys, arguments)  # *Repeated once*
        finally:
            self._waiting -= 1

    async def _evaluate(self, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        command = self._connections.command
        try:
            return await command("EVALSHA", self._script.digest, len(keys), *keys, *arguments)
        except self._redis.NoScriptError:
            return await command("EVAL", self._script.source, len(keys), *keys, *arguments)

    def _failed(self, now: float) -> None:
        self._failures += 1
        if self._failures >= SILENCES:
            self._next_try = max(self._next_try, now + SET_BACK)

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

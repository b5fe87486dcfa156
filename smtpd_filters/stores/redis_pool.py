"""The connections to one server, or to the master that sentinels name, by redis-py.

Invariants
----------
*Ends*: a command ends within a limit even where redis-py waits for something without one. Its
connection is not used again, since a reply may still be due.
*Own reply*: each command is sent with a nonce, which comes back as the last result of a script, or
as the reply to a PING that follows any other command. A reply without its nonce belongs to another
command, since a server or a proxy has sent one reply too many; the connections are not used again.
redis-py 5 to 7 don't notice such a reply, others do only if it came before the next command was
sent. An error counts without a nonce: at worst a request fails.
*Renewed*: after `FAILURES` commands without a reply, one after the other, the next ones use new
connections, whatever the state of the old ones, which have the certificates of when they were made.
The old ones are closed after their last command.
*Another master*: a server that takes no writes may have been a master until now, and its place may
have another one by now: behind a proxy, a name or sentinels. So a command that it refuses is sent
once more, on a new connection. A server that stays as it is gets one in `INTERVAL` seconds.
*Another password*: connections that fail are replaced at once if the password has changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from redis import exceptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: As many as let `redis_store` pass a server over.
FAILURES = 3
#: Seconds for closing connections.
LAST = 2.0
#: Seconds between two renewals because a server takes no writes.
INTERVAL = 1.0
#: The text of the error for a reply without its nonce.
FOREIGN = "reply to another command"

#: A nonce is different from those of other processes, whose replies a proxy may mix up with ours.
_ORIGIN = os.urandom(8).hex().encode()
_NUMBERS = itertools.count()


class ForeignReplyError(exceptions.ConnectionError):
    """The reply to another command; the connection has to be replaced, as if it were broken."""

    def __init__(self) -> None:
        super().__init__(FOREIGN)


class Pool:
    """Connections that `connect` makes: clients of redis-py, the first of which gets the commands.

    `limit` is for a command, in seconds: more than the timeouts of all its steps. `password`
    returns the password that new ones get.
    """

    def __init__(
        self,
        connect: Callable[[], Sequence[Any]],
        limit: float,
        password: Callable[[], str] = str,
    ) -> None:
        self._connect = connect
        self._limit = limit
        self._password = password
        self._current = self._connected()
        self._closing: set[asyncio.Task[None]] = set()
        #: When the connections were last renewed because the server takes no writes.
        self._refused = -INTERVAL

    async def command(self, *words: Any, asking: bool = False) -> Any:
        """Return the reply to a command; with `asking`, one that a node was named for once (ASK).

        Raises redis-py's exceptions, and TimeoutError after the limit.
        """
        return await self._ask(_reply, words, asking=asking)

    async def script(self, *words: Any, asking: bool = False) -> list[Any]:
        """Return the results of a script: the reply to EVAL or EVALSHA without its nonce.

        The nonce is the script's last argument, and has to be its last result.
        """
        results: list[Any] = await self._ask(_results, words, asking=asking)
        return results

    async def _ask(self, how: Callable[..., Any], words: Sequence[Any], *, asking: bool) -> Any:
        clients = self._current
        try:
            return await self._command(clients, how, words, asking=asking)
        except exceptions.ResponseError as error:
            if not takes_no_writes(error):
                raise
            now = time.monotonic()
            if clients is self._current:
                if now - self._refused < INTERVAL:
                    raise
                self._refused = now
                self._renew(clients)
        # *Another master*; the server has applied nothing.
        return await self._command(self._current, how, words, asking=asking)

    async def _command(
        self,
        clients: _Clients,
        how: Callable[..., Any],
        words: Sequence[Any],
        *,
        asking: bool,
    ) -> Any:
        clients.pending += 1
        try:
            async with asyncio.timeout(self._limit):
                reply = await how(clients.all[0], words, asking=asking)
        except exceptions.ResponseError:  # a reply as well
            clients.failures = 0
            raise
        except Exception as error:
            clients.failures += 1
            if (
                clients.failures >= FAILURES
                or _is_unusable(error)
                or clients.password != self._password()
            ):
                self._renew(clients)
            raise
        else:
            clients.failures = 0
            return reply
        finally:
            clients.pending -= 1
            if clients.retired and not clients.pending:
                self._close(clients)

    def _connected(self) -> _Clients:
        password = self._password()
        return _Clients(self._connect(), password)

    def retire(self) -> None:
        """Close the connections after the last command; the pool is not used any more."""
        self._retire(self._current)

    def _renew(self, clients: _Clients) -> None:
        """Use others from now on; these are closed after their last command."""
        if clients is self._current:
            self._current = self._connected()
        self._retire(clients)

    def _retire(self, clients: _Clients) -> None:
        clients.retired = True
        if not clients.pending:
            self._close(clients)

    def _close(self, clients: _Clients) -> None:
        task = asyncio.create_task(clients.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the connections; never raise."""
        await self._current.close()
        if self._closing:
            await asyncio.wait(self._closing, timeout=LAST)


class _Clients:
    """Clients of redis-py that were made together, and the number of their pending commands."""

    def __init__(self, clients: Sequence[Any], password: str) -> None:
        self.all = clients
        self.password = password
        self.pending = 0
        self.failures = 0
        self.retired = False

    async def close(self) -> None:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(LAST):
                for client in self.all:
                    await client.connection_pool.disconnect()
                    # `close` until redis-py 5.0.1
                    await (getattr(client, "aclose", None) or client.close)()


def takes_no_writes(error: exceptions.ResponseError) -> bool:
    """Return whether a server is not a master, or one that is cut off from its replicas.

    Redis 6 has the error of a command within that of the script.
    """
    text = str(error)
    return isinstance(error, _NO_MASTER) or any(words in text for words in _NO_WRITES)


_NO_WRITES = ("READONLY", "NOREPLICAS", "MASTERDOWN")
#: redis-py drops the code of an error that it has a class for.
_NO_MASTER = (exceptions.ReadOnlyError, exceptions.MasterDownError)


def _is_unusable(error: Exception) -> bool:
    """Return whether a connection must not be used again, though redis-py would.

    After `Pool`'s limit, since a reply may be due; redis-py has a TimeoutError of its own. After a
    reply to another command. And with redis-py 4.3 after a failed handshake on a unix socket: the
    connection stays open, without password, and in database 0.
    """
    if isinstance(error, ForeignReplyError):
        return True
    if isinstance(error, exceptions.ConnectionError):
        return bool(error.args) and isinstance(error.args[0], Exception)
    return isinstance(error, TimeoutError)


def _nonce() -> bytes:
    return b"%b-%x" % (_ORIGIN, next(_NUMBERS))


async def _reply(client: Any, words: Sequence[Any], *, asking: bool) -> Any:
    nonce = _nonce()
    # As bytes: redis-py replaces the reply to "PING".
    reply, echo = await _replies(client, [words, (b"PING", nonce)], asking=asking)
    if isinstance(reply, Exception):
        raise reply
    if echo != nonce and not _is_denied(echo):
        raise ForeignReplyError  # *Own reply*
    return reply


async def _results(client: Any, words: Sequence[Any], *, asking: bool) -> list[Any]:
    nonce = _nonce()
    if asking:
        (results,) = await _replies(client, [(*words, nonce)], asking=True)
    else:
        results = await client.execute_command(*words, nonce)
    if isinstance(results, Exception):
        raise results
    if type(results) is not list or results[-1:] != [nonce]:
        raise ForeignReplyError  # *Own reply*
    return results[:-1]


async def _replies(client: Any, commands: Sequence[Sequence[Any]], *, asking: bool) -> list[Any]:
    """Return the replies to commands on one connection; errors are among them."""
    async with client.pipeline(transaction=False) as pipeline:
        if asking:  # for the next command of the connection
            pipeline.execute_command("ASKING")
        for words in commands:
            pipeline.execute_command(*words)
        replies = await pipeline.execute(raise_on_error=False)
    return list(replies[-len(commands) :])


def _is_denied(echo: Any) -> bool:
    """Return whether the user has no permission for PING: that is the reply to PING as well."""
    return isinstance(echo, exceptions.NoPermissionError) and "'ping'" in str(echo)

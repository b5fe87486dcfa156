"""Connections by redis-py, from 4.3 (Debian 12) on: the only module that imports it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Any

from redis import __version__, exceptions
from redis import asyncio as redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from smtpd_filters.runtime.counters import INVALID, TIMEOUT, UNREACHABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .address import Address

__all__ = ["BROKEN", "Connections", "NoScriptError", "cause", "failure"]

#: A connection that broke, or could not be made. A timeout is not among them.
BROKEN = (exceptions.ConnectionError, ConnectionError)

#: RESP2, as with redis-py before 5.0. With RESP3 its version 8 uses connections again that have
#: replies which nobody has asked for, and each later request gets that of another.
_PROTOCOL = {"protocol": 2} if int(__version__.partition(".")[0]) >= 5 else {}

#: The settings of a server that are those of its sentinels as well. A client without `retry` tries
#: a dead sentinel for longer than a request may take.
_OF_SENTINELS = {"socket_timeout", "socket_connect_timeout", "retry", "protocol"}


class Connections:
    """The connections to the servers of an address; they are made when they are needed."""

    def __init__(
        self, address: Address, *, timeout: float, password: str, certificates: str
    ) -> None:
        settings: dict[str, Any] = {
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),  # `redis_store` repeats
            "username": address.username or None,
            "password": password or None,
        }
        settings |= _PROTOCOL
        if address.tls:
            settings |= {"ssl": True, "ssl_ca_certs": certificates or None}
        #: What redis-py forgets to close: the clients of sentinels, the first nodes of a cluster.
        self._others: list[Any] = []
        self._client = self._connect(address, settings)
        self.command = self._client.execute_command

    def _connect(self, address: Address, settings: dict[str, Any]) -> Any:
        if address.scheme == "unix":
            return redis.Redis(unix_socket_path=address.path, db=address.db, **settings)
        if address.scheme == "cluster":
            nodes = [ClusterNode(host, port) for host, port in address.hosts]
            client = RedisCluster(startup_nodes=nodes, **settings)
            client.set_response_callback("CLUSTER SLOTS", _checked)
            self._others += nodes
            return client
        if address.scheme == "sentinel":
            # The sentinels have passwords of their own, if any.
            own = {name: settings[name] for name in settings.keys() & _OF_SENTINELS}
            untyped: Any = Sentinel
            sentinel = untyped(list(address.hosts), sentinel_kwargs=own, **settings)
            self._others += sentinel.sentinels
            return sentinel.master_for(address.master, db=address.db)
        ((host, port),) = address.hosts
        return redis.Redis(host=host, port=port, db=address.db, **settings)

    async def scan(self, prefix: bytes, count: int) -> AsyncIterator[list[bytes]]:
        """Iterate over the keys with a prefix, a page at a time; a key may occur twice."""
        pattern = b"".join(
            b"\\%c" % byte if byte in b"*?[]\\^" else b"%c" % byte for byte in prefix
        )
        nodes: list[dict[str, Any]] = [{}]
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()
            nodes = [{"target_nodes": node} for node in self._client.get_primaries()]
        for where in nodes:
            cursor: Any = 0
            while True:
                cursor, keys = await self.command(
                    "SCAN", cursor, "MATCH", pattern + b"*", "COUNT", count, **where
                )
                if isinstance(cursor, dict):  # of a cluster: by node
                    (cursor,) = cursor.values()
                yield list(keys)
                if int(cursor) == 0:
                    break

    async def close(self, seconds: float) -> None:
        """Close all of them within some seconds; never raise."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(seconds):
                for client in (self._client, *self._others):
                    if (pool := getattr(client, "connection_pool", None)) is not None:
                        await pool.disconnect()
                    if isinstance(client, ClusterNode):
                        await client.disconnect()
                    else:  # `close` until redis-py 5.0.1
                        await (getattr(client, "aclose", None) or client.close)()


#: Slots of a cluster (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
_SLOTS = 16384


def _checked(response: Any, **_: Any) -> Any:
    """Return a reply to CLUSTER SLOTS; raise ValueError for a slot that no cluster has.

    redis-py counts through the slots of a range, however many there are, and the loop stands still.
    """
    if any(not 0 <= int(slot) < _SLOTS for each in response for slot in each[:2]):
        raise ValueError("no slot of a cluster")
    return response


def cause(error: BaseException) -> str:
    """Return a cause for the log, without details that differ between requests."""
    text = str(error)
    # An error in the handshake is a plain ConnectionError, with the server's text.
    for words, meaning in _TEXTS:
        if words in text:
            return meaning
    for kind, meaning in _KINDS:
        if isinstance(error, kind):
            return _reason(error) if meaning is _LOST else meaning
    return "invalid reply"  # such as a number without digits: the parser's own errors differ


def _reason(error: BaseException) -> str:
    """Return why a connection failed: what the system said, if redis-py has it."""
    within: BaseException | None = error
    for _ in range(_MAX_CAUSES):  # they may go round in a circle
        if within is None:
            break
        if isinstance(within, socket.gaierror):
            return _UNKNOWN_HOST
        if isinstance(within, OSError):
            # Of several addresses that failed, asyncio's error has only the text.
            text = str(within)
            for number in _REASONS:
                if within.errno == number or f"[Errno {number}]" in text:
                    return _REASONS[number]
        within = within.__cause__ or within.__context__
    return _LOST


def failure(text: str) -> str:
    """Return how a cause is counted: one of `counters.FAILURES`."""
    return _COUNTED.get(text, INVALID)


#: Errors that are looked at, from one to its cause.
_MAX_CAUSES = 8
_TIMEOUT, _LOST = "timeout", "connection failed or lost"
_NO_CLUSTER, _NO_MASTER = "the cluster is unreachable", "no sentinel knows the master"
_UNKNOWN_HOST = "unknown host"
#: By the number of the system's error.
_REASONS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EACCES: "permission denied",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network is unreachable",
    errno.ENOENT: "no such file or directory",
}
_COUNTED = {
    _TIMEOUT: TIMEOUT,
    **dict.fromkeys((_LOST, _UNKNOWN_HOST, _NO_CLUSTER, _NO_MASTER), UNREACHABLE),
    **dict.fromkeys(_REASONS.values(), UNREACHABLE),
}
_REJECTED = "authentication failed (--store-password-file)"
_NEEDLESS = "has no password for this user, but one is given (--store-password-file)"
#: By words of the server's error; the first one is used.
_TEXTS = (
    ("WRONGPASS", _REJECTED),
    ("NOAUTH", _REJECTED),
    ("username-password pair", _REJECTED),
    ("Authentication required", _REJECTED),
    ("already authenticated", _REJECTED),
    ("without any password configured", _NEEDLESS),
    ("no password is set", _NEEDLESS),
    ("NOPERM", "denies access to this user"),
    ("maxmemory", "out of memory (maxmemory)"),
    ("MISCONF", "cannot save its data, so it accepts none"),
    ("loading the dataset", "is loading its data"),
    ("read only replica", "is a read-only replica"),
    ("NOREPLICAS", "has too few replicas"),
    ("MASTERDOWN", "is a replica without its master"),
    ("CLUSTERDOWN", "the cluster is down"),
    # redis-py 4.3 fails to describe a timeout on a unix socket.
    ("has no attribute 'host'", "timeout"),
)
#: By the type of the error, the special ones first.
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.AuthenticationError, _REJECTED),
    (exceptions.BusyLoadingError, "is loading its data"),
    (exceptions.ReadOnlyError, "is a read-only replica"),
    (exceptions.RedisClusterException, _NO_CLUSTER),
    (exceptions.ClusterDownError, "the cluster is down"),
    (exceptions.ClusterError, _NO_CLUSTER),
    (MasterNotFoundError, _NO_MASTER),
    (exceptions.TimeoutError, _TIMEOUT),
    (asyncio.TimeoutError, _TIMEOUT),
    (exceptions.ConnectionError, _LOST),
    (OSError, _LOST),
    (exceptions.ResponseError, "replies with an error"),
)

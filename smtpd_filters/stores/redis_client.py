"""What this project uses of redis-py, from 4.3 (Debian 12) on: the only module that imports it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from redis import asyncio as redis
from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .address import Address

__all__ = ["BROKEN", "ERRORS", "NoScriptError", "cause", "close", "connect", "scan"]

#: A connection that broke, or could not be made. A timeout is not among them.
BROKEN = (exceptions.ConnectionError, ConnectionError)
#: Whatever may be raised for a command.
ERRORS = (
    exceptions.RedisError,
    exceptions.RedisClusterException,
    OSError,
    asyncio.TimeoutError,
    ssl.SSLError,
    EOFError,
)


def connect(address: Address, *, timeout: float, password: str, certificates: str) -> Any:
    """Return a client for an address; it connects at its first command."""
    settings: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),  # `redis_store` repeats
        "username": address.username or None,
        "password": password or None,
    }
    if address.tls:
        settings |= {"ssl": True, "ssl_ca_certs": certificates or None}
    if address.scheme == "unix":
        return redis.Redis(unix_socket_path=address.path, db=address.db, **settings)
    if address.scheme == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        return RedisCluster(startup_nodes=nodes, **settings)
    if address.scheme == "sentinel":
        # The sentinels have passwords of their own, if any.
        quick = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        untyped: Any = Sentinel
        sentinel = untyped(list(address.hosts), sentinel_kwargs=quick, **settings)
        return sentinel.master_for(address.master, db=address.db)
    ((host, port),) = address.hosts
    return redis.Redis(host=host, port=port, db=address.db, **settings)


def cause(error: BaseException) -> str:
    """Return a cause for the log, without details that differ between requests."""
    text = str(error)
    # An error in the handshake is a plain ConnectionError, with the server's text.
    for words, meaning in _TEXTS:
        if words in text:
            return meaning
    for kind, meaning in _KINDS:
        if isinstance(error, kind):
            return meaning
    return type(error).__name__


_PASSWORD = "authentication failed (--store-password-file)"
#: By words of the server's error; the first one is used.
_TEXTS = (
    ("WRONGPASS", _PASSWORD),
    ("NOAUTH", _PASSWORD),
    ("username-password pair", _PASSWORD),
    ("Authentication required", _PASSWORD),
    ("already authenticated", _PASSWORD),
    ("NOPERM", "denies access to this user"),
    ("maxmemory", "out of memory (maxmemory)"),
    ("MISCONF", "cannot save its data, so it accepts none"),
    ("loading the dataset", "is loading its data"),
    ("read only replica", "is a read-only replica"),
    ("NOREPLICAS", "has too few replicas"),
    ("MASTERDOWN", "is a replica without its master"),
    ("CLUSTERDOWN", "the cluster is down"),
)
#: By the type of the error, the special ones first.
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.AuthenticationError, _PASSWORD),
    (exceptions.BusyLoadingError, "is loading its data"),
    (exceptions.ReadOnlyError, "is a read-only replica"),
    (exceptions.RedisClusterException, "the cluster is unreachable"),
    (MasterNotFoundError, "no sentinel knows the master"),
    (exceptions.TimeoutError, "timeout"),
    (asyncio.TimeoutError, "timeout"),
    (exceptions.ConnectionError, "connection failed or lost"),
    (OSError, "connection failed or lost"),
)


async def scan(client: Any, prefix: bytes, count: int) -> AsyncIterator[list[bytes]]:
    """Iterate over the keys with a prefix, a page at a time; a key may occur twice."""
    pattern = b"".join(b"\\%c" % byte if byte in b"*?[]\\^" else b"%c" % byte for byte in prefix)
    if isinstance(client, RedisCluster):
        await client.initialize()
        nodes: list[dict[str, Any]] = [{"target_nodes": node} for node in client.get_primaries()]
    else:
        nodes = [{}]
    for where in nodes:
        cursor: Any = 0
        while True:
            answer = await client.execute_command(
                "SCAN", cursor, "MATCH", pattern + b"*", "COUNT", count, **where
            )
            cursor, keys = answer
            if isinstance(cursor, dict):  # of a cluster: by node
                (cursor,) = cursor.values()
            yield list(keys)
            if int(cursor) == 0:
                break


async def close(client: Any, seconds: float) -> None:
    """Close the connections of a client within some seconds; never raise."""
    aclose = getattr(client, "aclose", None) or client.close  # `close` until redis-py 5.0.1
    with contextlib.suppress(*ERRORS, RuntimeError):
        async with asyncio.timeout(seconds):
            await aclose()
            pool = getattr(client, "connection_pool", None)
            if pool is not None:
                await pool.disconnect()

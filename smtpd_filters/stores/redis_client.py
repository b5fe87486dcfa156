"""Connections by redis-py, from 4.3 (Debian 12) on, and what its exceptions mean.

Only this module, `redis_cluster`, `redis_pool`, `redis_sentinel` and `redis_tls` know redis-py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Any

from redis import __version__, exceptions
from redis import asyncio as redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from smtpd_filters.runtime.counters import INVALID, TIMEOUT, UNREACHABLE

from .redis_cluster import IN_CIRCLES, MOVING, NO_NODE, Cluster, NoClusterError
from .redis_pool import FOREIGN, Pool
from .redis_sentinel import NoMasterError, Sentinels
from .redis_tls import sharing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from .address import Address
    from .redis_cluster import Place

__all__ = ["BROKEN", "REPLIES", "Connections", "NoScriptError", "cause", "failure"]

#: A connection that broke, or could not be made. A timeout is not among them.
BROKEN = (exceptions.ConnectionError, ConnectionError)
#: A reply of a server that works: it rejects this command.
REPLIES = (exceptions.ResponseError,)

#: RESP2, as with redis-py before 5.0. With RESP3 its version 8 uses connections again that have
#: replies which nobody has asked for, and each later request gets that of another.
_PROTOCOL = {"protocol": 2} if int(__version__.partition(".")[0]) >= 5 else {}

#: A command takes less than so many timeouts: looking for the master, connecting, the replies of a
#: handshake, sending, and the reply. It is cancelled then (`redis_pool`).
STEPS = 10

#: The settings of a server that are not those of its sentinels.
_OF_SERVERS = {"username", "password", "connection_class"}


class Connections:
    """The connections to the servers of an address; they are made when they are needed.

    `timeout` is for a step of a command, such as connecting or the reply, in seconds.
    `read_password` returns the password that is valid now.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout: float,
        password: str,
        certificates: str,
        read_password: Callable[[], str] | None = None,
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
            # By default redis-py 4.3 doesn't compare the certificate's name.
            settings |= {"ssl_check_hostname": True, "ssl_ca_certs": certificates or None}
            base = SentinelManagedSSLConnection if address.scheme == "sentinel" else SSLConnection
            settings["connection_class"] = sharing(base, certificates)
        limit = STEPS * timeout

        def current() -> str:
            """Return the password that new connections get."""
            if read_password is not None:
                settings["password"] = read_password() or None
            return settings["password"] or ""

        self._cluster = self._pool = None
        if address.scheme == "cluster":

            def node(place: Place) -> Pool:
                return Pool(lambda: [_client(place, settings)], limit, current)

            self._cluster = Cluster(address.hosts, node)
        else:
            self._pool = Pool(lambda: _clients(address, settings), limit, current)

    def server(self, key: bytes) -> str:
        """Return the name of the node that has a key, if it is known; "" without a cluster."""
        if self._cluster is None or (node := self._cluster.node(key)) is None:
            return ""
        return _name(node)

    def servers(self) -> Sequence[str]:
        """Return the names of the nodes that have keys, if they are known; "" without a cluster."""
        masters = () if self._cluster is None else self._cluster.known_masters()
        return [_name(node) for node in masters] or [""]

    async def command(self, key: bytes, *words: Any) -> Any:
        """Return the reply to a command, from the server that has the key."""
        if self._cluster is not None:
            return await self._cluster.command(key, *words)
        assert self._pool is not None  # noqa: S101  # one of the two is there
        return await self._pool.command(*words)

    async def script(self, key: bytes, *words: Any) -> list[Any]:
        """Return the results of a script, from the server that has the key.

        `words` are those of EVAL or EVALSHA; a nonce is added (`Pool.script`).
        """
        if self._cluster is not None:
            return await self._cluster.script(key, *words)
        assert self._pool is not None  # noqa: S101  # as above
        return await self._pool.script(*words)

    def look_again(self) -> None:
        """Find out in the background whether another server of a cluster has the keys by now."""
        if self._cluster is not None:
            self._cluster.look_again()

    async def scan(self, prefix: bytes, count: int) -> AsyncIterator[list[bytes]]:
        """Iterate over the keys with a prefix, a page at a time; a key may occur twice."""
        pattern = b"".join(
            b"\\%c" % byte if byte in b"*?[]\\^" else b"%c" % byte for byte in prefix
        )
        pools = [self._pool]
        if self._cluster is not None:
            pools = [self._cluster.pool(node) for node in await self._cluster.masters()]
        for pool in pools:
            assert pool is not None  # noqa: S101  # as above
            cursor: Any = 0
            while True:
                cursor, keys = await pool.command(
                    "SCAN", cursor, "MATCH", pattern + b"*", "COUNT", count
                )
                yield list(keys)
                if int(cursor) == 0:
                    break

    async def close(self, seconds: float) -> None:
        """Close all of them within some seconds; never raise."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(seconds):
                await (self._cluster or self._pool).close()  # type: ignore[union-attr]


def _name(node: Place) -> str:
    return f"{node[0]}:{node[1]}"


def _clients(address: Address, settings: dict[str, Any]) -> list[Any]:
    """Return a client of redis-py for the commands, and those that it uses itself."""
    if address.scheme == "unix":
        return [redis.Redis(unix_socket_path=address.path, db=address.db, **settings)]
    if address.scheme == "sentinel":
        sentinels = _sentinels(address, settings)
        return [sentinels.master_for(address.master, db=address.db), *sentinels.clients]
    (place,) = address.hosts
    return [_client(place, settings | {"db": address.db})]


def _sentinels(address: Address, settings: dict[str, Any]) -> Any:
    """Return the sentinels: with TLS as the master, and with its password if they have one."""
    own = {name: settings[name] for name in settings.keys() - _OF_SERVERS}
    ways: list[dict[str, Any]] = [{}]
    if address.tls and not address.plain_sentinels:
        own["connection_class"] = sharing(SSLConnection, settings["ssl_ca_certs"] or "")
    elif address.tls:
        own = {name: own[name] for name in own if not name.startswith("ssl_")}
    if settings["password"] and not (address.tls and address.plain_sentinels):
        users = dict.fromkeys((settings["username"], None))
        logins = [{"username": user, "password": settings["password"]} for user in users]
        ways = [*logins, *ways]
    return Sentinels(
        address.hosts,
        ways,
        lambda place, way: _client(place, {**own, **way}),
        lambda error: cause(error) in _LOGIN,
        settings,
    )


def _client(place: Place, settings: dict[str, Any]) -> Any:
    host, port = place
    return redis.Redis(connection_pool=redis.ConnectionPool(host=host, port=port, **settings))


def cause(error: BaseException) -> str:
    """Return a cause for the log, without details that differ between requests."""
    text = str(error)
    # An error in the handshake is a plain ConnectionError, with the server's text.
    for words, meaning in _TEXTS:
        if words in text:
            return meaning
    for kind, meaning in _KINDS:
        if isinstance(error, kind):
            if meaning in {_NO_MASTER, _NO_CLUSTER} and error.__cause__ is not None:
                why = cause(error.__cause__)
                return f"{meaning}: {why}" if meaning is _NO_MASTER or why in _LOGIN else meaning
            return _reason(error) if meaning is _LOST else meaning
    return "invalid reply"  # such as a number without digits: the parser's own errors differ


def _reason(error: BaseException) -> str:
    """Return why a connection failed: what the system said, if redis-py has it."""
    within: BaseException | None = error
    for _ in range(_MAX_CAUSES):  # they may go round in a circle
        if within is None:
            break
        text = str(within)
        if "ALERT_CERTIFICATE_REQUIRED" in text:  # as OpenSSL calls that of TLS 1.3
            return _NO_OWN
        if isinstance(within, socket.gaierror):
            return _UNKNOWN_HOST
        if isinstance(within, ssl.SSLCertVerificationError):
            return f"{_CERTIFICATE}: {within.verify_message.rstrip('.')}"
        if isinstance(within, OSError):
            # Of several addresses that failed, asyncio's error has only the text.
            for number in _REASONS:
                if within.errno == number or f"[Errno {number}]" in text:
                    return _REASONS[number]
        if isinstance(within, ConnectionResetError):
            return _REASONS[errno.ECONNRESET]  # asyncio's own has no number
        within = within.__cause__ or within.__context__
    return _LOST


def failure(text: str) -> str:
    """Return how a cause is counted: one of `counters.FAILURES`."""
    return _COUNTED.get(text.partition(": ")[0], INVALID)


#: Errors that are looked at, from one to its cause.
_MAX_CAUSES = 8
_TIMEOUT, _LOST = "timeout", "connection failed or lost"
_NO_CLUSTER, _NO_MASTER = "the cluster is unreachable", "no sentinel knows the master"
_UNKNOWN_HOST, _CERTIFICATE = "unknown host", "the certificate is not accepted"
#: By the number of the system's error.
_REASONS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EACCES: "permission denied",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network is unreachable",
    errno.ENOENT: "no such file or directory",
}
_REJECTED = "authentication failed (--store-password-file)"
_NO_OWN = "requires certificates of clients (tls-auth-clients), and filters have none"
_DENIED = "denies access to this user"
_TOO_MANY = "has too many clients (maxclients)"
_NEEDLESS = "has no password for this user, but one is given (--store-password-file)"
_COUNTED = {
    _TIMEOUT: TIMEOUT,
    **dict.fromkeys((_LOST, _UNKNOWN_HOST, _NO_CLUSTER, _NO_MASTER, _TOO_MANY), UNREACHABLE),
    **dict.fromkeys(_REASONS.values(), UNREACHABLE),
}
#: Causes that are about the user or the password.
_LOGIN = {_REJECTED, _NEEDLESS, _DENIED}
#: By words of the server's error; the first one is used.
_TEXTS = (
    ("WRONGPASS", _REJECTED),
    ("NOAUTH", _REJECTED),
    ("username-password pair", _REJECTED),
    ("Authentication required", _REJECTED),
    ("already authenticated", _REJECTED),
    ("without any password configured", _NEEDLESS),
    ("no password is set", _NEEDLESS),
    ("NOPERM", _DENIED),
    # Within a script: Redis 7.0's error, and that of Redis 7.2 and Valkey.
    ("The user executing the script can't", _DENIED),
    ("ACL failure in script", _DENIED),
    ("max number of clients", _TOO_MANY),
    ("maxmemory", "out of memory (maxmemory)"),
    ("MISCONF", "cannot save its data, so it accepts none"),
    ("loading the dataset", "is loading its data"),
    ("read only replica", "is a read-only replica"),
    ("NOREPLICAS", "has too few replicas"),
    ("MASTERDOWN", "is a replica without its master"),
    ("CLUSTERDOWN", "the cluster is down"),
    ("cluster support disabled", "is not a node of a cluster"),
    (NO_NODE, NO_NODE),
    (IN_CIRCLES, IN_CIRCLES),
    (MOVING, MOVING),
    (FOREIGN, FOREIGN),
    # redis-py 4.3 fails to describe a timeout on a unix socket.
    ("has no attribute 'host'", "timeout"),
)
#: By the type of the error, the special ones first.
_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.AuthenticationError, _REJECTED),
    (exceptions.BusyLoadingError, "is loading its data"),
    (exceptions.ReadOnlyError, "is a read-only replica"),
    (exceptions.NoPermissionError, _DENIED),
    (exceptions.MasterDownError, "is a replica without its master"),
    (NoClusterError, _NO_CLUSTER),
    (exceptions.ClusterDownError, "the cluster is down"),
    (NoMasterError, _NO_MASTER),
    (exceptions.TimeoutError, _TIMEOUT),
    (asyncio.TimeoutError, _TIMEOUT),
    (exceptions.ConnectionError, _LOST),
    (OSError, _LOST),
    (exceptions.ResponseError, "replies with an error"),
)

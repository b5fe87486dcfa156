"""TCP connections to a host with several addresses, tried side by side (RFC 8305).

asyncio's own `happy_eyeballs_delay` loses the system's error numbers if more than one address
fails, and it has no timeout for an address.

Invariants
----------
*One silent address costs little*: the next address is tried after `DELAY` seconds, or as soon as
the one before it has failed.
*Nothing left behind*: every socket but the returned one is closed, also if the caller is cancelled.
*One cause*: the error is that of the first address that failed other than by a timeout, so that it
doesn't depend on which was faster.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from functools import lru_cache
from typing import TYPE_CHECKING

from smtpd_filters.sandbox.needs import packed_address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeAlias

    #: The family of an address, and the address as `socket` takes it.
    Place: TypeAlias = tuple[int, Any]

#: Seconds until the next address is tried as well: the "Connection Attempt Delay" of RFC 8305
#: section 8.
DELAY = 0.25
#: Seconds to establish a connection to one address of a host: a lost SYN is sent again after 1 and
#: after 3 (RFC 6298).
CONNECT = 5.0
_PENDING = frozenset({errno.EINPROGRESS, errno.EALREADY})


async def connected(
    host: str,
    port: int,
    *,
    delay: float = DELAY,
    limit: float = CONNECT,
    seconds: float | None = None,
) -> socket.socket:
    """Return a socket connected to one of the addresses of a host. Raises OSError.

    In seconds, `delay` is the time until the next address is tried as well, `limit` the time for
    each address, and `seconds` the time for all of it, None for any.
    """
    # The number of an interface may change.
    places: Sequence[Place] = (_numeric if "%" in host else _known)(host, port)
    if places:  # without a timeout but that of the address
        return await _connect(*places[0], limit if seconds is None else min(limit, seconds))
    async with asyncio.timeout(seconds):
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        places = interleaved([(int(family), place) for family, _, _, _, place in found])
        if len(places) == 1:  # without a task of its own
            return await _connect(*places[0], limit)
        return await _first(places, delay, limit)


def _numeric(host: str, port: int) -> tuple[Place, ...]:
    """Return an address as a place, without a thread, which a sandbox may not allow.

    It is empty for a name.
    """
    if packed_address(host) is None:
        return ()
    numeric = socket.AI_NUMERICHOST
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric)
    return tuple((int(family), place) for family, _, _, _, place in found)


_known = lru_cache(maxsize=256)(_numeric)


def connected_in(host: str, port: int, seconds: float) -> socket.socket:
    """Return the same where no event loop runs, as a blocking socket with this timeout.

    Raises OSError.
    """
    if packed_address(host) is not None:  # without a loop, which takes descriptors
        return socket.create_connection((host, port), seconds)

    sock = asyncio.run(connected(host, port, seconds=seconds))
    sock.settimeout(seconds)
    return sock


def interleaved(places: Sequence[Place]) -> list[Place]:
    """Return distinct addresses, of each family in turn (RFC 8305 section 4).

    The first one stays the first: the system sorts them (RFC 6724).
    """
    families: dict[int, list[Place]] = {}
    for place in dict.fromkeys(places):
        families.setdefault(place[0], []).append(place)
    turns = itertools.zip_longest(*families.values())
    return [place for turn in turns for place in turn if place is not None]


async def _connect(family: int, place: Any, limit: float) -> socket.socket:  # as socket's
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003  # its only parameter
        if not _connected_at_once(sock, place):
            async with asyncio.timeout(limit):
                await _established(sock, place)
    except OSError as error:
        sock.close()
        if error.errno is None:  # the timeout
            raise
        # Without asyncio's text, which has the address.
        raise OSError(error.errno, os.strerror(error.errno)) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _connected_at_once(sock: socket.socket, place: Any) -> bool:
    """Begin to connect; return whether the connection is established. Raises OSError.

    The kernel has established one to a server on this machine by the second call, which is cheaper
    than a turn of the event loop.
    """
    code = sock.connect_ex(place)
    if code == errno.EINPROGRESS:
        code = sock.connect_ex(place)
    if code in _PENDING:
        return False
    if code and code != errno.EISCONN:  # the BSDs' for a connection that is established
        raise OSError(code, os.strerror(code))
    return True


async def _established(sock: socket.socket, place: Any) -> None:  # as socket's
    """Wait until a connection is established. Raises OSError."""
    try:
        await asyncio.get_running_loop().sock_connect(sock, place)
    except OSError as error:
        # The BSDs' if it has been established since the call before.
        if error.errno != errno.EISCONN:
            raise


async def _first(places: Sequence[Place], delay: float, limit: float) -> socket.socket:
    """Return the first connection that is established. Raises OSError."""
    attempts: list[asyncio.Task[socket.socket]] = []
    try:
        for place in places:
            attempts.append(asyncio.create_task(_connect(*place, limit)))
            if won := await _winner(attempts, delay):
                return won
        while not all(attempt.done() for attempt in attempts):
            if won := await _winner(attempts, None):
                return won
    finally:
        await _drop(attempts)
    raise _cause(attempts)


async def _winner(
    attempts: list[asyncio.Task[socket.socket]], seconds: float | None
) -> socket.socket | None:
    """Wait for the next attempt to end; remove and return the one that has succeeded."""
    pending = [attempt for attempt in attempts if not attempt.done()]
    if pending:
        await asyncio.wait(pending, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for attempt in attempts:
        if attempt.done() and attempt.exception() is None:
            attempts.remove(attempt)
            return attempt.result()
    return None


async def _drop(attempts: Sequence[asyncio.Task[socket.socket]]) -> None:
    """End all attempts and close the sockets of those that have succeeded."""
    for attempt in attempts:
        attempt.cancel()
        attempt.add_done_callback(_close)  # also if this is cancelled
    await asyncio.gather(*attempts, return_exceptions=True)
    for attempt in attempts:
        _close(attempt)  # the callbacks may run a turn of the loop later


def _close(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def _cause(attempts: Sequence[asyncio.Task[socket.socket]]) -> BaseException:
    """Return why all attempts failed."""
    errors = [error for attempt in attempts if (error := attempt.exception()) is not None]
    others = [error for error in errors if not isinstance(error, TimeoutError)]
    return next(iter(others or errors), ConnectionError("no address"))

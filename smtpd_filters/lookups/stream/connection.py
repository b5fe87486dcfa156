"""A connection to a server over TCP or a unix socket, as an exchange with it reads and writes.

Invariants
----------
*Bounded*: reading from the socket is paused while more than `HIGH` bytes are unread, and a read
has a limit. Data is sent no faster than the server reads it.
*Paced*: each read, and each chunk sent, is charged to the pace of all look-ups (`pace`), so that a
server that sends much, or in tiny pieces, doesn't delay others.
*Early*: a reply that arrives before the whole request is sent is not lost, even if the server
closes the connection without reading the rest.
*Whole*: a connection is used again only if its exchange calls `keep`, everything was sent, and
nothing arrived since; otherwise it is aborted at once.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from typing import TYPE_CHECKING

from smtpd_filters.lookups.failover.failures import OVERSIZED, BadReplyError, NotKeptError
from smtpd_filters.lookups.happy_eyeballs import connected
from smtpd_filters.runtime.pace import pace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.runtime.pace import Pace

    from .address import Address

#: Bytes per read: asyncio's own buffer of 256 KiB is mapped and unmapped (mmap(2)) for each reply.
READ = 16 << 10
#: Unread bytes above which reading is paused.
HIGH = 64 << 10
#: Seconds between attempts to connect to a unix socket whose queue is full, at most.
QUEUE_FULL = 0.2
#: Units of work (`pace`) for a read and for a chunk, and bytes for one additional unit of each.
_READ, _PER_UNIT, _CHUNK, _SENT_PER_UNIT = 10, 100, 20, 1000

#: Linux's option for acknowledging at once; the kernel forgets it after a while.
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", 0)
#: The other end has closed its side; FreeBSD and OpenBSD report POLLHUP then.
_HUNG_UP = getattr(select, "POLLRDHUP", 0)


class UnconnectedError(Exception):
    """A connection could not be established; `cause` is the system's error."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class LostError(Exception):
    """The server has ended the connection; `cause` is the system's error, None for a plain end."""

    def __init__(self, cause: BaseException | None = None) -> None:
        super().__init__(str(cause or "closed the connection"))
        self.cause = cause


class Connection(asyncio.BufferedProtocol):
    """One connection. Its methods are for one task at a time; a second one may write."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(READ))
        self._data = bytearray()
        #: Whether all data has arrived, the connection is lost, and why.
        self._ended = self._lost = False
        self._error: BaseException | None = None
        #: Whether reading is paused; whether the transport has as much to send as it should.
        self._paused = self._full = False
        self._waiting: list[asyncio.Future[None]] = []
        self._transport: asyncio.Transport
        self._pace: Pace
        self._tcp = False
        self._poll: select.poll | None = None
        self._kept = self._idle = False
        #: Whether anything has arrived in this exchange.
        self.replied = False
        #: When it was opened, by the loop's clock.
        self.opened = 0.0

    # -- the exchange ------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Send data; wait while the server reads slower than this. Raises LostError."""
        while self._transport.is_closing() and not self._lost:
            await self._change()
        if self._lost:
            raise LostError(self._error)
        self._transport.write(data)
        await self._pace.admit(_CHUNK + len(data) // _SENT_PER_UNIT)
        while self._full and not self._lost:
            await self._change()

    async def send(self, chunks: Iterable[bytes]) -> bool:
        """Send a request in chunks, each made when the one before has gone.

        Return False as soon as the server has replied or ended the connection before the last
        chunk; its reply is to be read then, since it need not read the rest (*Early*). Raises
        NotKeptError if a chunk can't be made.
        """
        source = iter(chunks)
        admit = self._pace.admit
        while True:
            try:
                chunk = next(source, None)
            except Exception as error:  # noqa: BLE001  # the spool's, or a bug
                raise NotKeptError(str(error) or type(error).__name__) from None
            if chunk is None:
                return True
            # After a failed write asyncio ends the connection in the next turn of the loop.
            while self._transport.is_closing() and not self._ended:
                await self._change()
            # Also what the loop has not read yet, or a reply to nothing would be that to the end.
            if self._ended or self.unread:
                return False
            self._transport.write(chunk)
            await admit(_CHUNK + len(chunk) // _SENT_PER_UNIT)
            while self._full and not (self._data or self._ended):
                await self._change()

    @property
    def ended(self) -> bool:
        """Whether the server has ended its side of the connection."""
        return self._ended

    def write_eof(self) -> None:
        """Half-close the connection: the server reads to the end of what was sent."""
        if not self._lost:
            self._transport.write_eof()

    async def read(self, limit: int = HIGH) -> bytes:
        """Return the next bytes, at most `limit`, as soon as there are any; b"" at the end.

        Raises LostError if the connection broke.
        """
        while not self._data:
            if self._ended:
                if self._error is not None:
                    raise LostError(self._error)
                return b""
            await self._change()
        return await self._take(min(len(self._data), limit))

    async def read_to_end(self, limit: int) -> bytes:
        """Return everything up to the end of the connection.

        Raises BadReplyError if that is more than `limit` bytes, and LostError if it broke.
        """
        parts = []
        while part := await self.read():
            limit -= len(part)
            if limit < 0:
                raise BadReplyError(OVERSIZED)
            parts.append(part)
        return b"".join(parts)

    def keep(self) -> None:
        """Let the client use the connection again: the exchange is complete."""
        self._kept = True

    # -- the client --------------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        """Whether the connection can be used again: kept, with nothing unsent or unread."""
        if self._lost or self._ended or self._data or not self._kept:
            return False
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    @property
    def unread(self) -> bool:
        """Whether data has arrived that was not read. The end of the connection is not data."""
        if self._data:
            return True
        if self._ended or self._paused:
            return False
        if self._poll is None:
            self._poll = select.poll()
            number = self._transport.get_extra_info("socket").fileno()
            self._poll.register(number, select.POLLIN | _HUNG_UP)
        return any(bits == select.POLLIN for _, bits in self._poll.poll(0))

    def acknowledge(self) -> None:
        """Acknowledge data from the server at once from now on, as long as the system does so.

        A server that writes several small packets in a row waits up to 40 ms for the first one to
        be acknowledged (RFC 896, RFC 1122 section 4.2.3.2), unless it has set TCP_NODELAY.
        """
        if _QUICK_ACK and self._tcp:
            link = self._transport.get_extra_info("socket")
            link.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    def end(self, data: bytes = b"") -> None:
        """Send last data and close the connection, at once if the server doesn't read it."""
        if not self._lost:
            self._transport.write(data)
            if self._transport.get_write_buffer_size():
                self.abort()
            self._transport.close()

    def begin(self) -> None:
        """Begin an exchange."""
        self._kept = self._idle = self.replied = False

    def rest(self) -> None:
        """End an exchange: whatever arrives from now on ends the connection."""
        self._idle = True

    def abort(self) -> None:
        """Close the connection at once, without sending what is left."""
        self._transport.abort()

    # -- asyncio's calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # of a stream socket
        self._transport = transport
        self._pace = pace()
        self._tcp = transport.get_extra_info("socket").family != socket.AF_UNIX
        self.opened = asyncio.get_running_loop().time()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio has no hint
        """Return the buffer to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Add the bytes read into the buffer."""
        if self._idle:
            self.abort()
            return
        self.replied = True
        self._data += self._buffer[:nbytes]
        if len(self._data) > HIGH and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Note the end of the server's data; the exchange or the client closes the connection."""
        self._ended = True
        self._wake()
        if self._idle:
            self.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end of the connection, after all data that arrived before it (*Early*).

        A failed write ends asyncio's reading, though the server's reply may have arrived: the
        socket is still open here.
        """
        if exc is not None and not self._ended and not self._idle:
            self._read_rest()
        self._error = exc if not self._ended else None
        self._ended = self._lost = True
        self._wake()

    def _read_rest(self) -> None:
        number = self._transport.get_extra_info("socket").fileno()
        while len(self._data) <= 2 * HIGH:
            try:
                data = os.read(number, READ)
            except OSError:
                return
            if not data:
                return
            self.replied = True
            self._data += data

    def pause_writing(self) -> None:
        """Note that the server reads slower than this sends."""
        self._full = True

    def resume_writing(self) -> None:
        """Note that the server has read."""
        self._full = False
        self._wake()

    # -- waiting -------------------------------------------------------------------------------

    async def _take(self, size: int) -> bytes:
        data = bytes(memoryview(self._data)[:size])
        del self._data[:size]
        if self._paused and len(self._data) <= HIGH >> 1:
            self._resume()
        await self._pace.admit(_READ + size // _PER_UNIT)
        return data

    def _resume(self) -> None:
        self._paused = False
        if not self._lost:
            self._transport.resume_reading()

    async def _change(self) -> None:
        """Wait until anything has changed."""
        change = asyncio.get_running_loop().create_future()
        self._waiting.append(change)
        await change

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():  # cancelled
                change.set_result(None)


async def connect(address: Address) -> Connection:
    """Return a new connection to a server. Raises UnconnectedError."""
    try:
        if address.path:
            return await over(await _connect_unix(address.path))
        return await _connect_tcp(address.host, address.port)
    except OSError as error:
        raise UnconnectedError(error) from None


async def over(sock: socket.socket) -> Connection:
    """Return a connection over a unix socket that is connected."""
    loop = asyncio.get_running_loop()
    return (await loop.create_unix_connection(Connection, sock=sock))[1]


async def _connect_unix(path: str) -> socket.socket:
    """Connect to a unix socket; wait while the server's queue of connections is full.

    connect(2) gives EAGAIN then, which asyncio takes for a connection in progress.
    """
    pause = 0.01
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # noqa: FBT003  # its only parameter
            sock.connect(path)
        except BlockingIOError:
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
        await asyncio.sleep(pause)
        pause = min(2 * pause, QUEUE_FULL)


async def _connect_tcp(host: str, port: int) -> Connection:
    """Connect to the first address of a host that answers."""
    sock = await connected(host, port)
    try:
        return (await asyncio.get_running_loop().create_connection(Connection, sock=sock))[1]
    except BaseException:
        sock.close()
        raise

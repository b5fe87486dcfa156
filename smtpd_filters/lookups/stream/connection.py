"""A connection to a server over TCP or a unix socket, as an exchange with it reads and writes.

It watches its socket itself: with a transport and a protocol of asyncio, a connection that is used
once costs a third more.

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
import select
import socket
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING

from smtpd_filters.lookups.failover.failures import OVERSIZED, BadReplyError, NotKeptError
from smtpd_filters.lookups.happy_eyeballs import connected
from smtpd_filters.runtime.pace import pace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .address import Address

#: Bytes per read: a buffer of 256 KiB, as asyncio's, is mapped and unmapped (mmap(2)) each time.
READ = 16 << 10
#: Unread bytes above which reading is paused, and unsent ones above which the exchange waits.
HIGH = 64 << 10
#: Seconds between attempts to connect to a unix socket whose queue is full, at most.
QUEUE_FULL = 0.2
#: Units of work (`pace`) for a read and for a chunk, and bytes for one additional unit of each.
_READ, _PER_UNIT, _CHUNK, _SENT_PER_UNIT = 10, 100, 20, 1000

#: Linux's option for acknowledging at once; the kernel forgets it after a while.
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", 0)
#: Linux's flag for data that is sent in one segment with what follows, such as the end.
_MORE = getattr(socket, "MSG_MORE", 0)
#: What a call on the socket raises if it is to be repeated.
_AGAIN = (BlockingIOError, InterruptedError)


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


class Connection:
    """One connection over a socket, which is connected and doesn't block, and is closed with it.

    Its methods are for one task at a time; a second one may write.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._number = sock.fileno()
        self._tcp = sock.family != socket.AF_UNIX
        if self._tcp:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        #: What has arrived and was not read, and what was written and not sent.
        self._data = bytearray()
        self._unsent = bytearray()
        #: Whether all data has arrived, the connection is lost, and why.
        self._ended = self._lost = False
        self._error: BaseException | None = None
        #: Whether reading is paused; whether more is unsent than should be; whether nothing follows
        #: what is unsent.
        self._paused = self._full = self._finished = False
        self._waiting: list[asyncio.Future[None]] = []
        self._pace = pace()
        self._poll: select.poll | None = None
        self._kept = self._idle = False
        #: Whether anything has arrived in this exchange; whether it began before all was sent.
        self.replied = self.early = False
        #: When it was opened, by the loop's clock.
        self.opened = self._loop.time()
        self._loop.add_reader(self._number, self._readable)

    # -- the exchange ------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Send data; wait while the server reads slower than this. Raises LostError."""
        if self._lost:
            raise LostError(self._error)
        self._send(data)
        work = _CHUNK + len(data) // _SENT_PER_UNIT
        if not self._pace.take(work):
            await self._pace.queue(work)
        while self._full and not self._lost:
            await self._change()

    async def send(self, chunks: Iterable[bytes]) -> bool:
        """Send a request in chunks, each made when the one before has gone.

        Return False as soon as the server has replied or ended the connection before the last
        chunk; its reply is to be read then, since it need not read the rest (*Early*). The last
        chunks may still be unsent at the end: `early` says whether a reply came before. Raises
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
            # Also what the loop has not read yet, or a reply to nothing would be that to the end.
            if self._ended or self.unread:
                return False
            self._send(chunk)
            await admit(_CHUNK + len(chunk) // _SENT_PER_UNIT)
            while self._full and not (self._data or self._ended):
                await self._change()

    @property
    def ended(self) -> bool:
        """Whether the server has ended its side of the connection."""
        return self._ended

    def write_eof(self) -> None:
        """Half-close the connection: the server reads to the end of what was sent."""
        self._finished = True
        if not (self._unsent or self._lost):
            self._finish()

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
        data = self._take(limit)
        work = _READ + len(data) // _PER_UNIT
        if not self._pace.take(work):
            await self._pace.queue(work)
        return data

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
        if self._ended or self._data or self._unsent or not self._kept:
            return False
        poll = select.poll()
        poll.register(self._number, select.POLLIN)
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
            self._poll.register(self._number, select.POLLIN)
        return bool(self._poll.poll(0)) and self._peek()

    def acknowledge(self) -> None:
        """Acknowledge data from the server at once from now on, as long as the system does so.

        A server that writes several small packets in a row waits up to 40 ms for the first one to
        be acknowledged (RFC 896, RFC 1122 section 4.2.3.2), unless it has set TCP_NODELAY.
        """
        if _QUICK_ACK and self._tcp and not self._lost:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    def end(self, data: bytes = b"") -> None:
        """Send last data and close the connection, at once if the server doesn't read it."""
        if data and not (self._unsent or self._lost):
            with suppress(OSError):
                self._socket.send(data, _MORE)
        self.abort()

    def begin(self) -> None:
        """Begin an exchange."""
        self._kept = self._idle = self.replied = self.early = False

    def rest(self) -> None:
        """End an exchange: whatever arrives from now on ends the connection."""
        self._idle = True

    def abort(self) -> None:
        """Close the connection at once, without sending what is left."""
        if not self._lost:
            self._close()

    # -- the socket --------------------------------------------------------------------------

    def _readable(self) -> None:
        """Take the data that has arrived."""
        try:
            data = self._socket.recv(READ)
            self._data += data
        except _AGAIN:
            return
        except (OSError, MemoryError) as error:
            # Nothing more is read: an error comes after all data, and without memory a piece of it
            # would be missing.
            self._error = error
            self._close()
            return
        if self._idle:
            self._close()
        elif data:
            if not self.replied:
                self.replied, self.early = True, bool(self._unsent)
            if len(self._data) > HIGH:
                self._paused = True
                self._loop.remove_reader(self._number)
            self._wake()
        else:  # the exchange or the client closes the connection
            self._ended = True
            self._loop.remove_reader(self._number)
            self._wake()

    def _peek(self) -> bool:
        """Return whether data can be received before the end, or before an error."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except _AGAIN:
            return False
        except OSError as error:
            self._lose(error)  # the system reports it once
            return False

    def _send(self, data: bytes) -> None:
        """Send data, what the socket doesn't take as soon as it does."""
        if self._lost:
            return
        if not self._unsent:
            try:
                sent = self._socket.send(data)
            except _AGAIN:
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            if sent == len(data):
                return
            self._unsent += data[sent:]  # first, since `_close` relies on it
            self._loop.add_writer(self._number, self._writable)
        else:
            self._unsent += data
        self._full = len(self._unsent) > HIGH

    def _writable(self) -> None:
        """Send what the socket takes of what is unsent."""
        unsent = self._unsent
        try:
            del unsent[: self._socket.send(unsent)]
        except _AGAIN:
            return
        except (OSError, MemoryError) as error:  # without memory it would be sent twice
            self._lose(error)
            return
        if not unsent:
            self._loop.remove_writer(self._number)
            if self._finished:
                self._finish()
        if self._full and len(unsent) <= HIGH >> 2:
            self._full = False
            self._wake()

    def _finish(self) -> None:
        with suppress(OSError):  # if the server has reset the connection, reading will say so
            self._socket.shutdown(socket.SHUT_WR)

    def _lose(self, error: BaseException) -> None:
        """Note that sending has failed, after all data that arrived before that (*Early*)."""
        if not self._ended:
            if not self._idle:
                self._read_rest()
            self._error = error
        self._close()

    def _read_rest(self) -> None:
        with suppress(OSError, MemoryError):
            while len(self._data) <= 2 * HIGH and (data := self._socket.recv(READ)):
                if not self.replied:
                    self.replied = self.early = True
                self._data += data

    def _close(self) -> None:
        self._ended = self._lost = True
        self._loop.remove_reader(self._number)
        if self._unsent:
            self._loop.remove_writer(self._number)
            self._unsent.clear()
        self._socket.close()
        self._wake()

    # -- waiting -------------------------------------------------------------------------------

    def _take(self, limit: int) -> bytes:
        """Return what has arrived, at most so much, which is no longer kept."""
        data = self._data
        if len(data) <= limit:
            taken = bytes(data)
            data.clear()
        else:
            taken = bytes(memoryview(data)[:limit])
            del data[:limit]
        if self._paused and len(data) <= HIGH >> 1:
            self._resume()
        return taken

    def _resume(self) -> None:
        self._paused = False
        if not self._ended:
            self._loop.add_reader(self._number, self._readable)

    def _change(self) -> asyncio.Future[None]:
        """Return a future that is done when anything has changed."""
        change = self._loop.create_future()
        self._waiting.append(change)
        return change

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            if not change.done():  # cancelled
                change.set_result(None)


async def connect(address: Address, seconds: float | None = None) -> Connection:
    """Return a new connection to a server within so many seconds. Raises UnconnectedError."""
    try:
        if address.path:
            return over(await _connect_unix(address.path, seconds))
        return over(await connected(address.host, address.port, seconds=seconds))
    except OSError as error:
        raise UnconnectedError(error) from None


def over(sock: socket.socket) -> Connection:
    """Return a connection over a socket, which is closed if that fails. Raises OSError."""
    try:
        return Connection(sock)
    except BaseException:
        sock.close()
        raise


async def _connect_unix(path: str, seconds: float | None) -> socket.socket:
    """Connect to a unix socket; wait while the server's queue of connections is full.

    connect(2) gives EAGAIN then, which asyncio takes for a connection in progress.
    """
    clock = asyncio.get_running_loop().time
    until = inf if seconds is None else clock() + seconds
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
        left = until - clock()
        if left <= 0:
            raise TimeoutError
        await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, QUEUE_FULL)

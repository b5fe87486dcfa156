"""The receiving side of a connection, between asyncio's transport and aiohttp's protocol.

aiohttp's connectors are subclassed by their documented method `connect`, and each connection gets
an `Intake` in front of aiohttp's protocol (`asyncio.BaseTransport.set_protocol`). The `Intake`
calls only the methods of that protocol that `asyncio.Protocol` defines.

Invariants
----------
*Fresh*: a kept connection is used again only if nothing arrived since the last byte of the last
reply: neither in the same read nor later, and nothing is in the system's buffer. That is checked
again just before the first byte of the request is sent, which may be a turn of the loop later. Any
byte without a pending request closes the connection.
*Paced*: data that is expensive to parse (header lines, responses, chunks of one byte) is passed to
the parser in pieces, at the pace of all look-ups (`pace`), however many connections are readable
at once.
*Bounded*: reading from a connection is paused while more than `HIGH` bytes of its reply are unread,
and the connection is closed if the reply's header, with all interim responses, is longer than
`HEAD`.
*In order*: nothing is lost or reordered; the end of a connection is passed on after all data.

Importing this module imports aiohttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from contextvars import ContextVar

import aiohttp

from smtpd_filters.runtime.pace import pace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

    from .connection import Exchange

#: Bytes per read: a record of TLS (RFC 8446 section 5.1). asyncio's own buffer of 256 KiB is
#: mapped and unmapped (mmap(2)) for each reply, which takes longer than reading the reply.
READ = 16 << 10
#: Bytes of a header. aiohttp limits fields (128 of 8 KiB each), but not interim responses.
HEAD = 64 << 10
#: Unread bytes above which reading is paused.
HIGH = 64 << 10
#: aiohttp's own such limit, higher than all that an `Intake` lets pass, so that only one applies.
UNLIMITED = 1 << 30
#: The smallest piece in bytes; and the units of work above which a piece is divided.
PIECE, _EXPENSIVE = 1 << 10, 600
#: Units of work for a line, and bytes for one additional unit. A response of 18 bytes, two lines,
#: takes 15 microseconds; a chunk of 6 bytes, two lines, takes 1.6.
_LINE, _PER_UNIT, _PLAIN_PER_UNIT = 6, 64, 1024
_LENGTH = b"\r\ncontent-length:"
OVERSIZED_HEAD = "oversized response header"

#: The exchange of the running task, for `connect`.
current: ContextVar[Exchange] = ContextVar("current")


class Intake(asyncio.BufferedProtocol):
    """One connection; `exchange` is the pending one, None while the connection is kept."""

    def __init__(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        self.transport = transport
        self.exchange: Exchange | None = None
        self._protocol = protocol
        self._buffer = memoryview(bytearray(READ))
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._pace = pace()
        #: Data that has been read but not parsed; and whether the transport may have more of it.
        self._unparsed = b""
        self._full = False
        #: The size of the piece that is queued in `pace`; 0 if none is.
        self._queued = 0
        #: Parsed bytes that the exchange hasn't read yet.
        self._unread = 0
        #: Bytes of content of a known length that follow, which are cheap to parse.
        self._plain = 0
        #: Whether any of the reply has been parsed; and whether only the last byte is held back.
        self._parsed = self._holds_last = False
        #: Whether it has had an exchange before this one.
        self._kept = False
        self._paused = False
        self._end: tuple[Exception | None] | None = None
        self._lost = False

    # -- exchanges -----------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Whether the connection is closed, or is being closed."""
        return self._lost or self.transport.is_closing()

    @property
    def fresh(self) -> bool:
        """Whether the connection is open and nothing arrived since the last reply (*Fresh*)."""
        return not (self.closing or self._unparsed or self._poll.poll(0))

    def begin(self, exchange: Exchange, connection: Connection) -> None:
        """Begin an exchange, whose request is about to be sent."""
        self.exchange = exchange
        self._unread = self._plain = 0
        self._kept, self._parsed = self._parsed, False
        exchange.intake = self
        connection.add_callback(self._released)

    def before_sending(self) -> None:
        """Close a kept connection if anything arrived since the exchange began (*Fresh*)."""
        if self._kept and not self.fresh:
            self.abort()

    def _released(self) -> None:
        """End the exchange: aiohttp has the whole reply and may keep the connection, or gave up."""
        exchange, self.exchange = self.exchange, None
        if exchange is None or not exchange.sent or self._has_unsent:
            # The server would read the rest of the request as part of the next one.
            self.abort()
        if self._end is not None:
            asyncio.get_running_loop().call_soon(self._advance)

    @property
    def _has_unsent(self) -> bool:
        return not self.closing and self.transport.get_write_buffer_size() > 0

    def abort(self) -> None:
        """Close the connection at once."""
        self._unless_lost(self.transport.abort)

    def expect(self, size: int) -> None:
        """Treat the next `size` bytes as content of a known length."""
        self._plain = size

    def taken(self) -> None:
        """Resume reading: the exchange has read everything that was parsed."""
        self._unread = 0
        if self._queued:
            self._pause()  # aiohttp may have resumed it
        elif self._paused:
            self._resume()

    # -- asyncio's calls -----------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio has no hint
        """Return the buffer to read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Process the bytes read into the buffer."""
        if self.exchange is None:
            self.abort()
            return
        self._full = nbytes == READ
        self._unparsed += bytes(self._buffer[:nbytes])
        self._holds_last = False
        if not self._queued:
            self._advance()

    def eof_received(self) -> bool | None:
        """Pass the end of the server's data on."""
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass the end of the connection on, after all data before it."""
        self._lost = True
        self._end = (exc,)
        if self.exchange is None or not (self._queued or self._holds_last):
            self._advance()

    def pause_writing(self) -> None:
        """Pass the call on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass the call on."""
        self._protocol.resume_writing()

    # -- parsing -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Parse the data that was read, or as much as the pace of this turn admits."""
        while self._unparsed and self.exchange is not None and not self.exchange.refused:
            if self._holds_last:
                return
            size, work = self._piece()
            if not self._pace.take(work):
                self._queued = size
                self._pace.queue(work).add_done_callback(self._admitted)
                self._pause()
                return
            self._parse(size)
        if self._unparsed or (self._full and self.exchange is None):
            # Data follows the reply, or may follow it.
            self._unparsed = b""
            self.abort()
        if self._end is not None:
            (exc,), self._end = self._end, None
            self._protocol.connection_lost(exc)
        elif self._unread > HIGH:
            self._pause()
        elif self._paused:
            self._resume()

    def _piece(self) -> tuple[int, int]:
        """Return the size of the next piece in bytes, and its units of work."""
        left = self._unparsed
        size = len(left)
        if self._plain:
            size = min(size, self._plain)
            return size, 1 + size // _PLAIN_PER_UNIT
        while True:
            work = 1 + _LINE * left.count(b"\n", 0, size) + size // _PER_UNIT
            if work <= _EXPENSIVE or size <= PIECE:
                return size, work
            size = max(size >> 1, PIECE)

    def _admitted(self, _: asyncio.Future[None]) -> None:
        size, self._queued = self._queued, 0
        if self.exchange is not None:
            self._parse(size)
        if not self._holds_last:
            self._advance()

    def _parse(self, size: int) -> None:
        """Pass a piece to aiohttp, except for the last byte that was read.

        That byte is passed in the next turn. By then aiohttp has released the connection if the
        reply ended before that byte; if it has not, no data follows the reply.
        """
        left = self._unparsed
        if size < len(left):
            self._feed(left[:size])
            self._unparsed = left[size:]
        elif not self._parsed and _is_whole_reply(left):
            self._feed(left)
            self._unparsed = b""
        else:
            if size > 1:
                self._feed(left[:-1])
            self._unparsed = left[-1:]
            self._holds_last = True
            asyncio.get_running_loop().call_soon(self._finish)

    def _finish(self) -> None:
        """Pass the last byte to aiohttp."""
        exchange = self.exchange
        if self._holds_last and exchange is not None and not exchange.refused:
            last, self._unparsed = self._unparsed, b""
            self._feed(last)
        self._holds_last = False
        self._advance()

    def _feed(self, piece: bytes) -> None:
        size = len(piece)
        exchange = self.exchange
        if exchange is not None and not exchange.replied:
            exchange.early = not exchange.sent or self._has_unsent
        self._parsed = True
        self._unread += size
        if self._plain:
            self._plain = max(self._plain - size, 0)
        self._protocol.data_received(piece)
        exchange = self.exchange
        if exchange is not None and not exchange.replied and self._unread > HEAD:
            exchange.refused = OVERSIZED_HEAD
            self.abort()

    def _pause(self) -> None:
        self._paused = True
        self._unless_lost(self.transport.pause_reading)

    def _resume(self) -> None:
        self._paused = False
        self._unless_lost(self.transport.resume_reading)

    def _unless_lost(self, call: Callable[[], None]) -> None:
        """Call a method of the transport, unless the connection is lost."""
        if not self._lost:
            # asyncio's transport for TLS lacks its protocol after a second `close`.
            with contextlib.suppress(AttributeError):
                call()


class _Watching(aiohttp.BaseConnector):
    """A connector whose connections have an `Intake` each, and are fresh."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's name
    ) -> Connection:
        """Return a connection, kept or new."""
        while True:
            connection = await super().connect(req, traces, timeout)
            if _begin(connection):
                return connection
            # Such as a 408 (RFC 9110 section 15.5.9) to a client that has been idle for long.
            connection.close()


class TCPConnector(_Watching, aiohttp.TCPConnector):
    """A connector to a host."""


class UnixConnector(_Watching, aiohttp.UnixConnector):
    """A connector to the path of a socket."""


def _is_whole_reply(data: bytes) -> bool:
    """Return whether data is certainly one whole reply and nothing else, the usual case.

    RFC 9112 section 6.3: the Content-Length of a final response without a Transfer-Encoding is its
    length. Any other form is left to aiohttp's parser.
    """
    end = data.find(b"\r\n\r\n") + 4
    head = data[:end].lower()
    lines = head.count(b"\r\n")
    if not head.startswith(b"http/1.1 200 ") or b"transfer-encoding" in head:
        return False
    if head.count(_LENGTH) != 1 or head.count(b"\r") != lines or head.count(b"\n") != lines:
        return False
    at = head.find(_LENGTH) + len(_LENGTH)
    length = head[at : head.find(b"\r", at)].strip(b" \t")
    return length.isdigit() and len(length) < 10 and end + int(length) == len(data)


def _begin(connection: Connection) -> bool:
    """Begin the current exchange over a connection; return False if the connection isn't fresh."""
    transport = connection.transport
    if transport is None:
        return True  # a new one that is closed already, which aiohttp detects
    intake = transport.get_protocol()
    if not isinstance(intake, Intake):
        if transport.get_extra_info("socket").fileno() < 0:
            return True  # the same; over TLS aiohttp is called later
        assert isinstance(intake, asyncio.Protocol)  # noqa: S101  # aiohttp's
        intake = Intake(transport, intake)
        transport.set_protocol(intake)
    elif not intake.fresh:
        return False
    intake.begin(current.get(), connection)
    return True

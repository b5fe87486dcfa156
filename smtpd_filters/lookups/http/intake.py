"""What comes over a connection of aiohttp's, on its way to aiohttp's parser.

1. What costs the parser much (header lines, responses, chunks of a byte) comes to it in pieces, at
   the pace of all look-ups (`pace`), however many connections are readable at once and however
   much the transport reads, which for TLS is 256 KiB.  Content of a known length costs little and
   comes at once.
2. Nothing is lost or comes in another order. A connection from which something waits is not read;
   its end comes after what waits.
3. A connection that was used before is `fresh` if nothing came over it since, not even what the
   system has and nobody has read yet.

Importing it imports aiohttp.
"""

from __future__ import annotations

import select

from aiohttp.client_proto import ResponseHandler

from smtpd_filters.runtime.pace import pace

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

#: Bytes of a piece.
PIECE = 1 << 10
#: Units of work for a line, and bytes for one unit more. A response of 18 bytes, two lines, takes
#: 15 microseconds, a chunk of 6 bytes, two lines, takes 1.6.
_LINE, _PER_UNIT = 6, 64


class Intake(ResponseHandler):
    """One connection. `plain` is how many bytes come next that are content of a known length."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.plain = 0
        #: Whether it is kept after a whole exchange, for the next one.
        self.kept = False
        self._pace = pace()
        self._left = bytearray()
        #: Bytes for which a place in the queue is held.
        self._queued = 0
        self._parsing = False
        self._end: tuple[BaseException | None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be parsed."""
        return not self._left

    @property
    def fresh(self) -> bool:
        """Whether nothing has come since the last reply, nor the end."""
        transport = self.transport
        if self.should_close or self._left or transport is None or transport.is_closing():
            return False
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def data_received(self, data: bytes) -> None:
        """Take in what was read; aiohttp calls it with nothing to go on with what it held back."""
        if not data:
            super().data_received(data)
            return
        if self.kept:
            self.force_close()  # the parser keeps part of a line to itself
        self._left += data
        if not self._queued:
            self._go_on()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Take in the end, after what came before."""
        self._end = (exc,)
        if not self._queued:
            self._go_on()

    def close(self) -> None:
        """Close the connection: nobody wants what waits, and its end has not to wait for that."""
        super().close()
        self._give_up()

    def abort(self) -> None:
        """Cut off the connection: the same."""
        super().abort()
        self._give_up()

    def _give_up(self) -> None:
        if self._end is not None and not self._queued:
            self._go_on()

    def resume_reading(self, *args: bool, **named: bool) -> None:
        """Read on; aiohttp calls it for each chunk that is taken, whether it held back or not."""
        if self._reading_paused:
            super().resume_reading(*args, **named)
            if self._queued:
                self._pause_transport()
            elif not self._parsing:  # a response has ended in the midst of a piece
                self._go_on()

    def _go_on(self) -> None:
        """Parse what has come, or as much of it as this turn has room for."""
        left = self._left
        while left and self._is_read():
            if self._reading_paused:
                return  # until aiohttp's reader has taken what it has
            size = min(len(left), self.plain or PIECE)
            lines = 0 if self.plain else left.count(b"\n", 0, size)
            work = 0 if self.plain else 1 + _LINE * lines + size // _PER_UNIT
            if work and not self._pace.take(work):
                self._queued = size
                self._pace.queue(work).add_done_callback(self._admitted)
                self._pause_transport()
                return
            self._parse(size)
        left.clear()
        if self._end is not None:
            (exc,), self._end = self._end, None
            super().connection_lost(exc)
        elif self.transport is not None and not self._is_held():
            self.transport.resume_reading()

    def _admitted(self, _: asyncio.Future[None]) -> None:
        size, self._queued = self._queued, 0
        if self._is_read():
            self._parse(size)
        self._go_on()

    def _parse(self, size: int) -> None:
        piece = bytes(self._left[:size])
        del self._left[:size]
        self.plain = max(self.plain - size, 0)
        self._parsing = True
        try:
            super().data_received(piece)
        finally:
            self._parsing = False

    def _is_read(self) -> bool:
        """Whether somebody still wants what comes."""
        return self.transport is not None and self.exception() is None

    def _is_held(self) -> bool:
        """Whether aiohttp itself does not want to read on now."""
        return self._reading_paused or getattr(self, "_buffer_paused", False)

    def _pause_transport(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

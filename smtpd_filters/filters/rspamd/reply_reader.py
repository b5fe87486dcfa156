"""The reader of Rspamd's replies: it collects the JSON up to a limit and spools a new body.

Invariants
----------
*Bounded*: the JSON of all replies being read takes at most `SMALL` bytes each, or `MAX_JSON` for
`LARGE` of them; only one piece of a new body is in memory.
*Nothing left*: the new body of a failed reply is discarded.
*Whole*: no verdict counts that comes before the daemon had the whole message, and no new body whose
end is that of the connection, which may be a part of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smtpd_filters.lookups.http import BadReplyError, NotKeptError
from smtpd_filters.message import SpoolError
from smtpd_filters.runtime.pace import pace

from .reply import MAX_JSON, Reply, ReplyError, offset, parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from smtpd_filters.lookups.http import Response
    from smtpd_filters.lookups.http.zstd import Codec
    from smtpd_filters.message import Body

    #: Returns the next piece of a reply, empty at its end.
    Piece = Callable[[], Awaitable[bytes]]

#: Bytes of JSON above which a reply is large, and how many large replies are read at a time:
#: parsing one takes ten times its size in memory.
SMALL = 64 << 10
LARGE = 2
#: Bytes of JSON parsed per unit of work (`pace`), and the units for a piece of a new body.
_PER_UNIT, _PIECE = 100, 50
OVERSIZED = "oversized reply"
EARLY = "replied before it had the whole message"


class ReplyReader:
    """The reader of replies; one for all messages of a filter."""

    def __init__(self, codec: Codec | None) -> None:
        self._codec = codec
        self._large = asyncio.Semaphore(LARGE)

    async def read(self, response: Response, new_body: Callable[[], Body], limit: int) -> Reply:
        """Return the daemon's reply; `limit` is how many bytes it may have when decompressed.

        Raises BadReplyError for an invalid reply, and NotKeptError if the spool fails.
        """
        try:
            end = _end(response)
            piece = self._plain(response, limit)
            if piece is None:
                piece, size = response.piece, response.size
                if end is None and size is not None and size <= SMALL:  # the usual case
                    return _parsed(response, await response.read())
                if size is not None:
                    _check(end, size)
            return await self._take(_Parts(end, new_body), piece, response)
        except (ReplyError, ValueError) as error:
            raise BadReplyError(str(error)) from None
        except SpoolError as error:
            raise NotKeptError(str(error)) from None

    def _plain(self, response: Response, limit: int) -> Piece | None:
        """Return a function for the decompressed content; None if it isn't compressed."""
        coding = response.headers.get("Compression") or response.headers.get("Content-Encoding")
        if not coding:
            return None
        if self._codec is None or coding.lower() != "zstd":
            raise ReplyError("a reply in an unrequested encoding")
        pieces = self._codec.decompress(response.pieces(), limit)
        return lambda: _paced(pieces)

    async def _take(self, parts: _Parts, next_piece: Piece, response: Response) -> Reply:
        holds = False
        try:
            while piece := await next_piece():
                parts.take(piece)
                if parts.size > SMALL and not holds:
                    holds = await self._large.acquire()
            parts.close()
            if holds:
                await pace().admit(parts.size // _PER_UNIT)
            reply = _parsed(response, b"".join(parts.json))
        except BaseException:
            parts.discard()
            raise
        finally:
            if holds:
                self._large.release()
        reply.block = parts.body
        return reply


def _end(response: Response) -> int | None:
    """Return where the JSON ends and a new body begins; None without one. Raises ReplyError."""
    where = response.headers.get("Message-Offset")
    if where is None:
        return None
    if not response.delimited:
        raise ReplyError("a new body without its length")
    return offset(where)


def _parsed(response: Response, data: bytes) -> Reply:
    """Parse a reply, unless it was too early. Raises ReplyError."""
    reply = parse(response.status, data)
    if response.early:
        raise ReplyError(EARLY)
    return reply


async def _paced(pieces: AsyncIterator[bytes]) -> bytes:
    """Return the next decompressed piece, which is larger than one received, at the pace."""
    async for piece in pieces:
        await pace().admit(_PIECE + len(piece) // _PER_UNIT)
        if piece:
            return piece
    return b""


class _Parts:
    """The JSON and the new body; `end` is the offset of the body, None without one."""

    __slots__ = ("_end", "_new_body", "body", "json", "size")

    def __init__(self, end: int | None, new_body: Callable[[], Body]) -> None:
        self._end = end
        self._new_body = new_body
        self.json: list[bytes] = []
        #: Bytes of the JSON so far.
        self.size = 0
        self.body: Body | None = None

    def take(self, piece: bytes) -> None:
        """Add the next piece. Raises ReplyError and SpoolError."""
        if self.body is None:
            head = piece if self._end is None else piece[: self._end - self.size]
            self.json.append(head)
            self.size += len(head)
            _check(None, self.size)
            piece = piece[len(head) :]
        if piece:
            if self.body is None:
                self.body = self._new_body()
            self.body.write(piece)

    def close(self) -> None:
        """Finish, after the last piece. Raises ReplyError and SpoolError."""
        _check(self._end, self.size)
        if self._end is not None:
            self.body = self.body or self._new_body()
            self.body.close()

    def discard(self) -> None:
        """Discard the new body, if any."""
        if self.body is not None:
            self.body.discard()


def _check(end: int | None, size: int) -> None:
    """Raise ReplyError if the JSON doesn't end within `size` bytes, or is too large."""
    if end is not None and end > size:
        raise ReplyError("message offset outside of the reply")
    if (size if end is None else end) > MAX_JSON:
        raise ReplyError(OVERSIZED)

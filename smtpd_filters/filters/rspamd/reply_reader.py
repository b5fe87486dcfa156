"""A reply of rspamd as it comes: its JSON within bounds, a new body straight into the spool.

Invariants
----------
*Bounded*: of all replies that are read at a time, JSON takes at most `SMALL` bytes each, or
`MAX_JSON` for the `LARGE` ones that may be larger; of a new body a piece is in memory.
*Nothing left*: a new body that comes to nothing is discarded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from smtpd_filters.lookups.http import BadReplyError, NotKeptError
from smtpd_filters.message import SpoolError
from smtpd_filters.runtime.pace import pace

from .reply import MAX_JSON, Reply, ReplyError, offset, parse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from smtpd_filters.lookups.http import Response
    from smtpd_filters.lookups.http.zstd import Codec
    from smtpd_filters.message import Body

#: Bytes of JSON beyond which a reply is one of the large ones, and how many of these there are at a
#: time: each takes ten times its size while it is parsed.
SMALL = 64 << 10
LARGE = 2
#: Bytes of JSON whose parsing is a unit of work (`pace`), and what a piece of a new body costs.
_PER_UNIT, _PIECE = 100, 50
OVERSIZED = "oversized reply"


class Intake:
    """Reads replies; one for all messages of a filter."""

    def __init__(self, codec: Codec | None) -> None:
        self._codec = codec
        self._large = asyncio.Semaphore(LARGE)

    async def read(self, response: Response, new_body: Callable[[], Body], limit: int) -> Reply:
        """What the daemon says; `limit` is how many bytes its reply may have without a coding.

        Raises BadReplyError if that is no verdict, and NotKeptError.
        """
        try:
            where = response.headers.get("Message-Offset")
            end = None if where is None else offset(where)
            pieces = self._plain(response, limit)
            if pieces is None:
                pieces = response.pieces()
                if response.size is not None:
                    _check(end, response.size)
            return await self._take(_Parts(end, new_body), pieces, response.status)
        except (ReplyError, ValueError) as error:
            raise BadReplyError(str(error)) from None
        except SpoolError as error:
            raise NotKeptError(str(error)) from None

    def _plain(self, response: Response, limit: int) -> AsyncIterator[bytes] | None:
        """The content without its coding; None if it has none."""
        coding = response.headers.get("Compression") or response.headers.get("Content-Encoding")
        if not coding:
            return None
        if self._codec is None or coding.lower() != "zstd":
            raise ReplyError("a reply in a coding that was not asked for")
        return _paced(self._codec.decompress(response.pieces(), limit))

    async def _take(self, parts: _Parts, pieces: AsyncIterator[bytes], status: int) -> Reply:
        holds = False
        try:
            async for piece in pieces:
                parts.take(piece)
                if parts.size > SMALL and not holds:
                    holds = await self._large.acquire()
            parts.close()
            if holds:
                await pace().admit(parts.size // _PER_UNIT)
            reply = parse(status, b"".join(parts.json))
        except BaseException:
            parts.discard()
            raise
        finally:
            if holds:
                self._large.release()
        reply.block = parts.body
        return reply


async def _paced(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces that are more than what came: each is a piece of work."""
    async for piece in pieces:
        await pace().admit(_PIECE + len(piece) // _PER_UNIT)
        yield piece


class _Parts:
    """The JSON and the new body; `end` is where the first ends, None if it is all."""

    __slots__ = ("_end", "_new_body", "body", "json", "size")

    def __init__(self, end: int | None, new_body: Callable[[], Body]) -> None:
        self._end = end
        self._new_body = new_body
        self.json: list[bytes] = []
        #: Bytes of the JSON so far.
        self.size = 0
        self.body: Body | None = None

    def take(self, piece: bytes) -> None:
        """Take the next piece.  Raises ReplyError and SpoolError."""
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
        """There is no more.  Raises ReplyError and SpoolError."""
        _check(self._end, self.size)
        if self._end is not None:
            self.body = self.body or self._new_body()
            self.body.close()

    def discard(self) -> None:
        """Free the new body."""
        if self.body is not None:
            self.body.discard()


def _check(end: int | None, size: int) -> None:
    """Whether the JSON of a reply of so many bytes ends within it, and is not too large."""
    if end is not None and end > size:
        raise ReplyError("message offset outside of the reply")
    if (size if end is None else end) > MAX_JSON:
        raise ReplyError(OVERSIZED)

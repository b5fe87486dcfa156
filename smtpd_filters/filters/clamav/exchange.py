"""The exchanges with clamd, over a connection each.

clamd answers a size limit in the middle of the message and closes the connection: `send` notes
that, and the reply is read all the same. It may be followed by a reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtpd_filters.lookups.stream import BadReplyError
from smtpd_filters.lookups.stream.connection import LostError

from .protocol import LONGEST, PING, ReplyError, framed, is_whole, verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.scanning.intake import Content


def scan(content: Content) -> Callable[[Connection], Awaitable[str]]:
    """Return the exchange that scans a message; its result is that of `protocol.verdict`."""

    async def exchange(connection: Connection) -> str:
        whole = await connection.send(framed(content.chunks()))
        reply = await _read(connection)
        try:
            found = verdict(reply)
        except ReplyError as error:
            raise BadReplyError(str(error)) from None
        if not found and (connection.early or not whole):
            # Whatever was scanned, it wasn't this message.
            raise BadReplyError("replied before it had the whole message")
        return found

    return exchange


async def ping(connection: Connection) -> None:
    """Complete if clamd is alive."""
    await connection.write(PING)
    reply = await _read(connection)
    if reply != b"PONG\0":
        raise BadReplyError("no PONG")


async def _read(connection: Connection) -> bytes:
    """Return a reply with its end. Raises LostError if the connection ends before."""
    reply = bytearray()
    while not is_whole(reply):
        piece = await connection.read(LONGEST)
        if not piece:
            raise LostError
        reply += piece
        if len(reply) > LONGEST:
            raise BadReplyError("oversized reply")
    return bytes(reply)

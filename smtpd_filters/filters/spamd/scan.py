"""The request to spamd for one message, and the exchange with a daemon.

The message is sent as a mail file has it: with lines that end in LF, and below a Return-Path with
the sender of the envelope, from which SpamAssassin takes it, among others for SPF. smtpd's own
Received is in the message already; SpamAssassin knows its form.

Invariants
----------
*One header*: SpamAssassin ends the header at a line that begins with two hyphens, and at the fourth
that isn't a field. What follows would be body to it: no rule would see a From there, and it would
leave a client's own X-Spam fields in its reply. So such lines are the values of a field.
*Repeatable*: a request may be sent to several daemons, one after another.
*Bounded*: a large message is read, and compressed, as it is sent.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from smtpd_filters.addresses.mailbox import path
from smtpd_filters.lookups.spamd import ReplyError, request, safe_user
from smtpd_filters.lookups.stream import BadReplyError, NotKeptError
from smtpd_filters.lookups.stream.connection import HIGH, LostError
from smtpd_filters.message import SpoolError
from smtpd_filters.runtime.pace import pace

from .reply import ReplyReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.message import Body
    from smtpd_filters.scanning.intake import Content
    from smtpd_filters.session import Session

    from .reply import Reply

#: Characters of an address that are sent: RFC 5321 section 4.5.3.1.3 allows 256 octets for a path.
_LONGEST = 512
#: spamc's (zlib's default): higher levels take much longer and save little on mail.
_LEVEL = 6
#: Bytes compressed for each unit of work (`pace`): some 30 MB/s.
_PER_UNIT = 30
#: Bytes compressed at a time.
_STEP = 16 << 10
#: Bytes of a header block that are parsed at a time: each is a unit of work if it is a line of its
#: own. And the bytes of a body that are a unit.
_LINES, _PER_PARSED = 4 << 10, 50


# The beginning of a line that SpamAssassin takes neither for a field nor for its continuation.
_INVALID = re.compile(rb"\n(?=--|(?![ \t\n]|[!-9;-~]++[ \t]*+:).)")
#: The field whose value it becomes.
_FIELD = b"\nX-Invalid: "


def valid(text: bytes) -> bytes:
    """Return a header block, a text of `Headers`, as it is sent (*One header*).

    Of several such lines in a row the first begins the field, and the others continue it.
    """
    made, at = bytearray(), 0
    for match in _INVALID.finditer(text):  # `sub` would keep an object for each line
        between = text[at : match.start()]
        made += between
        made += b"\n " if at and b"\n" not in between else _FIELD
        at = match.end()
    if not at:
        return text
    made += text[at:]
    return bytes(made)


class Scan:
    """The request for one message."""

    def __init__(  # noqa: PLR0913  # one for each part of the request
        self,
        command: str,
        content: Content,
        session: Session,
        sent: bytes,
        *,
        user: str,
        new_body: Callable[[], Body] | None,
    ) -> None:
        """Make a request.

        command: SYMBOLS, HEADERS or PROCESS. sent: the lines of the message's header block, each
        after a line feed. user: the user whose preferences apply, or "". new_body: creates the body
        of a new message, if it is wanted.
        """
        self._command = command
        self._content = content
        self._top = return_path(session)
        self._sent = sent
        self._user = user
        self._new_body = new_body
        #: The bytes of the compressed message; None if it isn't compressed.
        self._compressed: int | None = None

    async def compress(self) -> None:
        """Compress the message when it is sent. spamd needs its size in advance."""
        packer = zlib.compressobj(_LEVEL)
        size = 0
        for chunk in _split(self._plain()):
            size += len(packer.compress(chunk))
            await pace().admit(len(chunk) // _PER_UNIT)
        self._compressed = size + len(packer.flush())

    async def exchange(self, connection: Connection) -> Reply:
        """Send the request and return the reply.

        Raises BadReplyError, NotKeptError, and LostError.
        """
        size = len(self._top) + self._content.size
        reader = ReplyReader(self._command, self._sent, size, self._new_body)
        try:
            whole = await self._send(connection, size)
            await _receive(connection, reader, whole=whole)
            return reader.close()
        except BaseException as error:
            reader.discard()
            if isinstance(error, ReplyError):
                raise BadReplyError(str(error)) from None
            if isinstance(error, SpoolError):
                raise NotKeptError(str(error)) from None
            raise

    async def _send(self, connection: Connection, size: int) -> bool:
        """Send the request; return False if the daemon replied before the end of it."""
        head = request(
            self._command,
            size if self._compressed is None else self._compressed,
            user=self._user,
            compressed=self._compressed is not None,
        )
        if not await connection.send(self._chunks(head)):
            return False
        # Without it spamd waits for more if the message doesn't end in a line end.
        connection.write_eof()
        return True

    def _plain(self) -> Iterator[bytes]:
        yield self._top
        yield from self._content.chunks()

    def _chunks(self, head: bytes) -> Iterator[bytes]:
        yield head
        if self._compressed is None:
            yield from self._plain()
            return
        packer = zlib.compressobj(_LEVEL)
        for chunk in _split(self._plain()):
            # Empty while zlib collects: then the connection only charges the pace.
            yield packer.compress(chunk)
        yield packer.flush()


async def _receive(connection: Connection, reader: ReplyReader, *, whole: bool) -> None:
    """Read the reply to its end; only an error may come before the `whole` message was sent."""
    admit = pace().admit
    while data := await connection.read(_LINES if reader.in_header else HIGH):
        await admit(len(data) if reader.in_header else len(data) // _PER_PARSED)
        reader.feed(data)
    if not connection.replied:
        raise LostError
    if connection.early or not whole:
        # Whatever was scanned, it wasn't this message.
        raise ReplyError("replied before it had the whole message")


async def ping(connection: Connection) -> None:
    """Ask a daemon whether it is there, for `Client`. Raises BadReplyError or LostError."""
    await connection.write(b"PING SPAMC/1.5\r\n\r\n")
    reply = await connection.read_to_end(1 << 10)
    if b" PONG" not in reply:
        raise BadReplyError("no answer to a ping")


def return_path(session: Session) -> bytes:
    """Return the field with the sender of the envelope; empty if smtpd has reported none."""
    tx = session.tx
    if tx is None or tx.sender is None:
        return b""
    sender = str(path(tx.sender).completed(session.server_name))
    safe = "".join(c if c.isprintable() and c not in "<>" else "?" for c in _text(sender))
    return f"Return-Path: <{safe[:_LONGEST]}>\n".encode()


def recipient(session: Session, form: str) -> str:
    """Return the only recipient as a user's name, or "".

    `form` is "no", "address" or "local", for the part before the "@". In lower case, as smtpd
    delivers.
    """
    tx = session.tx
    if form == "no" or tx is None or len(tx.recipients) != 1:
        return ""
    address = path(tx.recipients[0]).completed(session.server_name)
    return safe_user(_text(address.local if form == "local" else str(address)).lower())


def _text(text: str) -> str:
    """Replace bytes that aren't UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for at in range(0, len(chunk), _STEP):
            yield chunk[at : at + _STEP]

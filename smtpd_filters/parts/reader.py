"""The reading of a message by `smtpd_filters.mime`, which does no input or output itself.

Invariants
----------
*In steps*: the body is read block by block within the budget of the event loop.
*Bounded*: decoded archives are in the spool of all messages, and released in any case.
"""

from __future__ import annotations

from functools import partial

from smtpd_filters.mime.limits import BLOCK, TEXTS
from smtpd_filters.mime.scanner import Scanner
from smtpd_filters.runtime.pace import pace, paced
from smtpd_filters.settings.quoting import quote

from .part import described

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from smtpd_filters.message import Message
    from smtpd_filters.mime.content import Content, FieldSeen, Hash

    from .part import Parts

#: The price in units of a block of the body (`runtime.pace`); that of the lines and parts in it is
#: charged with the next block (`Content.work`).
_BLOCK = 40


class Storage:
    """Bytes in the spool, as `smtpd_filters.mime` needs them. Raises SpoolError."""

    __slots__ = ("_body", "_store")

    def __init__(self, message: Message) -> None:
        # The spool is only reached by a body, whose store takes any bytes in blocks.
        self._body = message.new_body()
        self._store = self._body.store

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._store.size

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if data:
            self._store.append_block(data)

    def read(self, at: int, size: int) -> bytes:
        """Return at most `size` bytes from an offset; empty at the end or for an invalid one."""
        return self._store.read(at, size) if 0 <= at < self._store.size else b""

    def discard(self) -> None:
        """Release the bytes."""
        self._body.discard()


async def read_parts(message: Message, *, keep_texts: int = 0, digest: str = "") -> Parts:
    """Read the parts of a message, as the mail programs of its recipients would show them.

    It reads the message as edited so far, in steps between which other sessions are served. No
    message makes it fail: look at `Parts.cut`. Raises SpoolError if the body can't be read.

    With `keep_texts` the texts are in `Part.texts` and `Part.shown`, at most this many bytes of
    the message, and no more than 4 MiB; look at `Parts.texts_cut`. A hostile message has them take
    32 times as much memory.

    With `digest`, the name of an algorithm of `hashlib` such as "sha256", the digests of the parts
    are in `Part.digest`. Raises ValueError for a name of none, or of one without a fixed length.

    Python's `email` is no substitute: it follows one reading of a broken message, so that a sender
    can hide an attachment from it, raises exceptions for some messages, and blocks other sessions.
    """
    keep_texts = min(keep_texts, TEXTS)
    new_hash = _hashes(digest) if digest else None
    content, _ = await read_content(message, keep_texts=keep_texts, new_hash=new_hash)
    return await paced(described(content, keep_texts))


def _hashes(name: str) -> Callable[[], Hash]:
    """Return a function that makes hashes; raise ValueError for an unusable algorithm."""
    import hashlib  # few filters need it

    try:
        fixed = hashlib.new(name).digest_size
    except ValueError:  # unknown, or not in this OpenSSL
        fixed = 0
    if not fixed:
        raise ValueError(f"digest: no algorithm of a fixed length: {quote(name)}")
    return partial(hashlib.new, name)


async def read_content(
    message: Message,
    take: Callable[[FieldSeen], Awaitable[object]] | None = None,
    *,
    keep_texts: int = 0,
    new_hash: Callable[[], Hash] | None = None,
) -> tuple[Content, int]:
    """Read a message; return what is in it, and its size. Raises SpoolError.

    `take` gets each field of the parts, in their order. With `keep_texts` the parts have their
    texts, so many bytes together. With `new_hash` they have hashes of their contents.
    """
    headers = message.headers
    scanner = Scanner(
        headers.each_line(),
        lambda: Storage(message),
        keep_fields=take is not None,
        keep_texts=keep_texts,
        new_hash=new_hash,
    )
    size = len(headers.text()) + 1
    admit = pace().admit
    content = scanner.content
    try:
        for block in message.body(BLOCK):
            size += len(block)
            for piece in scanner.pieces(block):
                await admit(_BLOCK + content.work)
                content.work = 0
                scanner.feed(piece)
                if take is not None:
                    await _hand_over(content, take)
            for work in scanner.work():
                await admit(work)
        scanner.close()
        if take is not None:
            await _hand_over(content, take)
        for work in scanner.work():
            await admit(work)
    finally:
        scanner.discard()
    return content, size


async def _hand_over(content: Content, take: Callable[[FieldSeen], Awaitable[object]]) -> None:
    fields, content.fields = content.fields, []
    for each in fields:
        await take(each)

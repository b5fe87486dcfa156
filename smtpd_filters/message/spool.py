"""A whole message, held until a filter has judged it.

The law:
1. What comes back is what was fed, byte for byte, unless it was edited: the header as `headers`
   was, the body as `replace_body` was told.
2. Memory is bounded: the header block by that of `head`, the body by the limit above which it goes
   to a temporary file, whatever is read back by the size of a chunk.
3. A full disk is a `SpoolError`, never half a message: after one the message can only be
   discarded.

How it works. The lines of the header are kept until the first empty line; from there on each fed
list is written as one block. The spool holds the wire form, dot-stuffed, every line ended by a
line feed (which no line contains), so that sending back an untouched body costs a read and a
split. Readers keep their own place in the spool and may be interleaved.
"""

from __future__ import annotations

import io
from itertools import chain

from smtpd_filters.message.dots import stuff, stuff_block, unstuff, unstuff_block
from smtpd_filters.message.head import Head
from smtpd_filters.message.headers import Headers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO, BinaryIO

    from _typeshed import WriteableBuffer

# What a body may take in memory. Most mail is smaller, and fifty messages that are not take 12 MiB
# at once. A file costs hardly more: what is read back soon never leaves the page cache.
MEMORY_LIMIT = 1 << 18
# What is read back at a time; measured, sizes from 32 to 256 KiB were equal for reads from smtpd.
CHUNK = 1 << 16


class SpoolError(Exception):
    """The message could not be kept, or not be read back; the text says why."""


class Message:
    """A message: its header block, to be edited, and its body, to be read or replaced.

    The runtime makes it, feeds it, closes it at the end of data and discards it when the
    transaction is over; a policy has it in between. Whatever touches the body raises `SpoolError`
    when the file system fails, and ValueError before `close`.
    """

    __slots__ = (
        "_blank",
        "_closed",
        "_former",
        "_head",
        "_headers",
        "_limit",
        "_spool",
    )

    def __init__(self, *, limit: int = MEMORY_LIMIT) -> None:
        self._limit = limit
        self._head = Head()
        # None until the end of the header has been seen.
        self._headers: Headers | None = None
        # Whether an empty line stands between the header block and what is in the spool.
        self._blank = False
        self._spool = _Spool(limit)
        # Bodies that were replaced, each with its `_blank`, as long as that may be undone.
        self._former: list[tuple[_Spool, bool]] = []
        self._closed = False

    def feed(self, lines: list[bytes]) -> None:
        """Take the next lines as they are on the wire, without the lone dot that ends them."""
        if self._closed:
            raise ValueError("the message is complete")
        if self._headers is None:
            behind = self._head.feed(lines)
            if behind is None:
                return
            blank = behind[0] == b""
            self._end_head(blank=blank)
            lines = behind[1:] if blank else behind
        if lines:
            self._spool.write(b"\n".join([*lines, b""]))

    def close(self) -> None:
        """Nothing more is to come: the message may be read from here on."""
        if self._headers is None:
            self._end_head(blank=False)
        self._closed = True
        self._spool.flush()

    def discard(self) -> None:
        """Free what the message takes, whatever state it is in. It can't be used any more."""
        self._closed = True
        self._head = Head()
        self._headers = Headers()
        self._forget()
        self._spool.close("the message was discarded")

    def snapshot(self) -> tuple[tuple[list[bytes], bool], int]:
        """What `restore` takes to undo the edits made from here on."""
        return self.headers.snapshot(), len(self._former)

    def restore(self, before: tuple[tuple[list[bytes], bool], int]) -> None:
        """Be as at the time of the snapshot."""
        headers, replaced = before
        self.headers.restore(headers)
        while len(self._former) > replaced:
            self._spool.close("the new body was given up")
            self._spool, self._blank = self._former.pop()

    def revert(self) -> None:
        """Forget every edit."""
        self.restore((([], False), 0))
        self._headers = Headers(unstuff(self._head.lines))

    @property
    def headers(self) -> Headers:
        """The header block; edits go out with the message."""
        if self._headers is None:
            raise ValueError("the header block is not complete")
        return self._headers

    @property
    def size(self) -> int:
        """The bytes of the message as it is now, each line end counted as one.

        The body is read through for it: a stuffed dot is not part of the message.
        """
        return sum(map(len, self.iter_bytes()))

    def body(self, chunk_bytes: int = CHUNK, *, crlf: bool = False) -> Iterator[bytes]:
        """The body as it was before dot-stuffing, in chunks of whole lines that end in LF.

        A chunk is longer than `chunk_bytes` only by less than a line. With `crlf` lines end in
        CRLF, as in RFC 5322. Of a message without an empty line the body is empty, unless its
        header block was cut (see `head`): then it is what lies past that.
        """
        blocks = map(unstuff_block, self._ready().blocks(chunk_bytes))
        return (block.replace(b"\n", b"\r\n") for block in blocks) if crlf else blocks

    def iter_bytes(self, chunk_bytes: int = CHUNK, *, crlf: bool = False) -> Iterator[bytes]:
        """The whole message: the header block as it is now, the empty line, the body.

        Not dot-stuffed; otherwise as `body`.
        """
        body = self.body(chunk_bytes, crlf=crlf)
        head = self.headers.lines()
        if self._blank:
            head.append(b"")
        end = b"\r\n" if crlf else b"\n"
        heads = (end.join([*batch, b""]) for batch in _batches(head, chunk_bytes))
        return chain(heads, body)

    def open(self, *, crlf: bool = False) -> BinaryIO:
        """The whole message, as `iter_bytes` gives it, as a file to read from (not to seek in)."""
        return io.BufferedReader(_Reader(self.iter_bytes(crlf=crlf)))

    def replace_body(self, data: bytes | Iterable[bytes]) -> None:
        """Put another body behind the header block.

        `data` is not dot-stuffed; its lines end in LF or CRLF, and it may come in chunks cut
        anywhere, made from `body()` if need be; a line is gathered whole. When it fails the old
        body stays.
        """
        self._ready()
        spool = _Spool(self._limit)
        try:
            for block in _whole_lines([data] if isinstance(data, bytes) else data):
                spool.write(stuff_block(block))
            spool.flush()
        except BaseException:
            spool.close("the new body was given up")
            raise
        self._former.append((self._spool, self._blank))
        self._spool = spool
        self._blank = True

    def wire_lines(self, chunk_bytes: int = CHUNK) -> Iterator[list[bytes]]:
        """The whole message as it goes back: dot-stuffed lines, in lists of about `chunk_bytes`.

        A header block and a body that weren't edited are the very lines that were fed. What was
        edited can't be undone any more.
        """
        self._forget()
        blocks = self._ready().blocks(chunk_bytes)
        head = stuff(self.headers.lines()) if self.headers.changed else self._head.lines
        if self._blank:
            head = [*head, b""]
        return chain(_batches(head, chunk_bytes), map(_split, blocks))

    def _forget(self) -> None:
        """Let go of the bodies that were replaced."""
        while self._former:
            self._former.pop()[0].close("the body was replaced")

    def _ready(self) -> _Spool:
        if not self._closed:
            raise ValueError("the message is not complete")
        self._spool.check()
        return self._spool

    def _end_head(self, *, blank: bool) -> None:
        self._blank = blank
        self._headers = Headers(unstuff(self._head.lines))


class _Spool:
    """Whole lines, each ended by a line feed, in memory up to the limit and on disk past it."""

    __slots__ = ("_failure", "_file", "_limit", "_on_disk", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # tempfile's SpooledTemporaryFile does the same in several times the time.
        self._file: IO[bytes] = io.BytesIO()
        self._on_disk = False
        self._size = 0
        self._failure = ""

    def check(self) -> None:
        if self._failure:
            raise SpoolError(self._failure)

    def write(self, block: bytes) -> None:
        self.check()
        self._size += len(block)
        try:
            if self._size > self._limit and not self._on_disk:
                self._move()
            self._file.write(block)
        except OSError as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """Bring out a full disk now rather than while the message is sent back."""
        self.check()
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def blocks(self, chunk_bytes: int) -> Iterator[bytes]:
        """What was written, in blocks of whole lines."""
        at = 0
        # A list, so that a line of many chunks isn't copied once for each.
        pieces: list[bytes] = []
        while at < self._size:
            chunk = self._read(at, chunk_bytes)
            at += len(chunk)
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                pieces.append(chunk)
                continue
            pieces.append(chunk[:cut])
            yield b"".join(pieces)
            pieces = [chunk[cut:]]

    def close(self, reason: str) -> None:
        self._failure = reason
        try:
            self._file.close()
        except OSError:
            pass  # what could not be flushed; the file is closed all the same

    def _move(self) -> None:
        """Go on on disk."""
        from tempfile import TemporaryFile  # few messages need one

        held = self._file
        self._file = TemporaryFile()  # noqa: SIM115  see close()
        self._on_disk = True
        held.seek(0)
        self._file.write(held.read())

    def _read(self, at: int, size: int) -> bytes:
        # A reader may have been left half-way when the spool was closed.
        self.check()
        try:
            self._file.seek(at)
            chunk = self._file.read(size)
        except OSError as error:
            raise self._failed(error) from error
        if not chunk:
            raise self._failed(EOFError("it ends too early"))
        return chunk

    def _failed(self, error: Exception) -> SpoolError:
        reason = getattr(error, "strerror", None) or str(error)
        self._failure = f"cannot spool the message: {reason}"
        return SpoolError(self._failure)


class _Reader(io.RawIOBase):
    """A file made of chunks, none of them empty."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        chunk = self._rest or next(self._chunks, b"")
        size = min(len(view), len(chunk))
        view[:size] = chunk[:size]
        self._rest = chunk[size:]
        return size


def _batches(lines: list[bytes], chunk_bytes: int) -> Iterator[list[bytes]]:
    if sum(map(len, lines)) + len(lines) <= chunk_bytes:
        if lines:
            yield lines
        return
    batch: list[bytes] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line) + 1
        if size >= chunk_bytes:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def _split(block: bytes) -> list[bytes]:
    lines = block.split(b"\n")
    lines.pop()  # behind the last line feed
    return lines


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Put chunks that are cut anywhere into blocks of whole lines, each ended by LF."""
    pieces: list[bytes] = []
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            pieces.append(chunk)
            continue
        pieces.append(chunk[:cut])
        yield b"".join(pieces).replace(b"\r\n", b"\n")
        pieces = [chunk[cut:]]
    rest = b"".join(pieces)
    if rest:
        yield rest + b"\n"

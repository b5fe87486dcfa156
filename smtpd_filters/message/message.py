"""A message while a filter judges it: collected, read, edited, sent back.

Invariants
----------
Byte for byte
    What goes back is what came, unless it was edited: the header as `headers` was, the body as
    `replace_body` was told.
Bounded
    Lines are kept in a `Spool`, those of an edited header block as well.  The header block is held
    as lines only from the time at which it is asked for to the time at which it is released, and
    nothing is read back in larger pieces than a chunk.
One header block
    The block ends before the first empty line, or at `Spool.header`: what lies beyond is body, and
    `Headers.cut` is true.  It is cut in front of a field, so that what a filter appends does not
    take over the continuation lines of the field before it.
Never half a message
    When the file system fails, whatever touches the message raises `SpoolError`, and it can only be
    discarded.

The store holds the wire form, dot-stuffed, header and body in one, so that an unedited message is
sent back from it as it is.
"""

from __future__ import annotations

import io
from itertools import accumulate, chain, takewhile

from smtpd_filters.protocol.long_lines import break_line

from .dots import stuff, stuff_block, unstuff, unstuff_block
from .headers import Headers
from .spool import CHUNK, LINE_COST, Spool, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from _typeshed import WriteableBuffer

    from .headers import Snapshot

_WHITE = (b" ", b"\t")
#: Bytes of a line of a new body without a line end, beyond which it is broken.
_LONGEST = 1 << 16


class Body:
    """A body that is to replace another one, written piece by piece; see `Message.new_body`."""

    __slots__ = ("_pieces", "_size", "store")

    def __init__(self, spool: Spool) -> None:
        self.store = Store(spool)
        #: The beginning of a line.
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Take the next piece, cut anywhere; lines end in LF or CRLF and are not dot-stuffed.

        Raises SpoolError when it can't be kept.
        """
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._begin(data)
            return
        block = b"".join([*self._pieces, data[:cut]])
        self._pieces, self._size = [], 0
        self.store.append_block(stuff_block(block.replace(b"\r\n", b"\n")))
        self._begin(data[cut:])

    def close(self) -> None:
        """End the last line, if it has no line end.  Raises SpoolError."""
        if self._size:
            last, self._pieces, self._size = b"".join(self._pieces), [], 0
            self.store.append_block(stuff_block(last + b"\n"))
        self.store.check()

    def discard(self) -> None:
        """Give it up."""
        self._pieces = []
        self.store.discard("the new body was given up")

    def _begin(self, data: bytes) -> None:
        if not data:
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _LONGEST:
            # smtpd takes no such line: it would be broken on its way back, all of it at once.
            *lines, last = break_line(b"".join(self._pieces), header=False)
            self._pieces, self._size = [last], len(last)
            self.store.append_block(stuff_block(b"\n".join([*lines, b""])))


class Message:
    """A message: its header block, to be edited, and its body, to be read or replaced.

    The runtime creates it, feeds it, closes it at the end of data and discards it when the
    transaction is over; a policy has it in between.  Whatever touches the body raises `SpoolError`
    when the file system fails, and ValueError before `close`.
    """

    __slots__ = (
        "_at",
        "_blank",
        "_body",
        "_body_at",
        "_closed",
        "_former",
        "_head",
        "_head_at",
        "_head_lines",
        "_head_size",
        "_header_seen",
        "_headers",
        "_row",
        "_spool",
        "_store",
        "_too_long",
    )

    def __init__(self, spool: Spool | None = None) -> None:
        self._spool = spool = spool or Spool()
        self._store = Store(spool)
        #: The header block: how many lines and bytes of the store it is, so far.
        self._head_lines = self._head_size = 0
        #: Its end has been seen, or its limit has been passed.
        self._header_seen = self._too_long = False
        self._headers: Headers | None = None
        #: Where the body is, and from which byte on; whether an empty line stands before it.
        self._body, self._body_at, self._blank = self._store, 0, False
        #: Bodies that were replaced, as long as that may be undone.
        self._former: list[tuple[Store, int, bool]] = []
        self._closed = False
        #: The header as it is sent, if it is not the store's, and how many bytes of it have been.
        self._head: Store | None = None
        self._head_at = 0
        #: What has been sent of the body: bytes, and lines of a store that is still small.
        self._at = self._row = 0

    # -- coming in -----------------------------------------------------------------------

    def feed(self, lines: list[bytes]) -> None:
        """Take the next lines as they are on the wire, without the lone dot that ends them.

        Raises SpoolError when they can't be kept.
        """
        if self._closed:
            raise ValueError("the message is complete")
        size = sum(map(len, lines)) + len(lines)
        if not self._header_seen:
            self._mind_header(lines, size)
        self._store.append(lines, size)

    def _mind_header(self, lines: list[bytes], size: int) -> None:
        if b"" in lines:
            end = lines.index(b"")
            size = sum(map(len, lines[:end])) + end
            self._header_seen = self._blank = True
        else:
            end = len(lines)
        self._head_lines += end
        self._head_size += size
        if self.header_cost > self._spool.header:
            self._header_seen = self._too_long = True
            self._blank = False

    def close(self) -> None:
        """Nothing more is to come.  Raises SpoolError if something could not be kept."""
        self._header_seen = self._closed = True
        self._store.check()

    @property
    def header_seen(self) -> bool:
        """Whether the header block is complete."""
        return self._header_seen

    @property
    def header_cost(self) -> int:
        """What the header block takes in memory as lines, in bytes."""
        return self._head_size + LINE_COST * self._head_lines

    @property
    def stored(self) -> int:
        """The bytes of the message as it came, so far, dot-stuffed."""
        return self._store.size

    def discard(self) -> None:
        """Free what the message takes, whatever state it is in.  It can't be used any more."""
        self._header_seen = self._closed = True
        self._headers = Headers()
        self._drop_head()
        self._forget()
        self._body.discard()
        self._store.discard()

    # -- judged --------------------------------------------------------------------------

    def snapshot(self) -> tuple[Snapshot, int]:
        """What `restore` takes to undo the edits made from here on."""
        return self.headers.snapshot(), len(self._former)

    def restore(self, before: tuple[Snapshot, int]) -> None:
        """Restore a snapshot."""
        headers, replaced = before
        self.headers.restore(headers)
        while len(self._former) > replaced:
            self._body.discard("the new body was given up")
            self._body, self._body_at, self._blank = self._former.pop()

    def revert(self) -> None:
        """Undo every edit."""
        while self._former:
            self._body.discard("the new body was given up")
            self._body, self._body_at, self._blank = self._former.pop()
        self._headers = None

    @property
    def headers(self) -> Headers:
        """The header block; edits go out with the message.

        Raises ValueError before its end has been seen.
        """
        if self._headers is None:
            if not self._header_seen:
                raise ValueError("the header block is not complete")
            self._headers = self._read_headers()
        return self._headers

    def _read_headers(self) -> Headers:
        store = self._store
        store.check()
        lines = store.lines
        if lines is not None:
            lines = lines[: self._head_lines]
        else:
            lines = _split(store.read(0, self._head_size))
        if self._too_long:
            self._cut(lines)
        self._body_at = self._head_size + self._blank
        return Headers(unstuff(lines), cut=self._too_long)

    def _cut(self, lines: list[bytes]) -> None:
        """Take what is beyond the limit out of a header block."""
        each = 1 + LINE_COST
        sizes = accumulate(map(len, lines))
        costs = (size + each * count for count, size in enumerate(sizes, 1))
        keep = sum(1 for _ in takewhile(self._spool.header.__ge__, costs))
        if keep < len(lines):
            while keep and lines[keep].startswith(_WHITE):
                keep -= 1
        del lines[keep:]
        self._head_lines = keep
        self._head_size = sum(map(len, lines)) + keep

    @property
    def size(self) -> int:
        """The bytes of the message as it is now, each line end counted as one.

        The body is read through for it: a stuffed dot is not part of the message.
        """
        return sum(map(len, self.iter_bytes()))

    def body(self, chunk_bytes: int = CHUNK, *, crlf: bool = False) -> Iterator[bytes]:
        """The body as it was before dot-stuffing, in chunks of whole lines that end in LF.

        A chunk is longer than `chunk_bytes` only if it is one line.  With `crlf` lines end in CRLF,
        as in RFC 5322.  Of a message without an empty line the body is empty, unless its header
        block was cut (`Headers.cut`): then it is what lies beyond.
        """
        self._ready()
        blocks = map(unstuff_block, _blocks(self._body, self._body_at, chunk_bytes))
        return (block.replace(b"\n", b"\r\n") for block in blocks) if crlf else blocks

    def iter_bytes(
        self, chunk_bytes: int = CHUNK, *, crlf: bool = False, head: list[bytes] | None = None
    ) -> Iterator[bytes]:
        """The whole message: the header block as it is now, the empty line, the body.

        Not dot-stuffed; otherwise as `body`. `head` are lines in the place of the header block.
        """
        self._ready()
        body = self.body(chunk_bytes, crlf=crlf)
        head = self.headers.lines() if head is None else list(head)
        if self._blank:
            head.append(b"")
        end = b"\r\n" if crlf else b"\n"
        heads = (end.join([*batch, b""]) for batch in _batches(head, chunk_bytes))
        return chain(heads, body)

    def open(self, *, crlf: bool = False) -> BinaryIO:
        """The whole message, as `iter_bytes` gives it, as a file to read from (not to seek in)."""
        return io.BufferedReader(_Reader(self.iter_bytes(crlf=crlf)))

    def new_body(self) -> Body:
        """A body to be written, then put behind the header block by `replace_body`.

        For one that comes from elsewhere and may be large: write it as it comes.
        """
        return Body(self._spool)

    def replace_body(self, data: bytes | Iterable[bytes] | Body) -> None:
        """Put another body behind the header block.

        `data` is not dot-stuffed; its lines end in LF or CRLF, and it may come in chunks cut
        anywhere, made from `body()` if need be.  A line of more than 64 KiB is broken.  When it
        fails the old body stays.  Raises SpoolError, and what `data` raises.
        """
        self._ready()
        new = data if isinstance(data, Body) else self.new_body()
        try:
            if not isinstance(data, Body):
                for piece in _pieces(data) if isinstance(data, bytes) else data:
                    new.write(piece)
            new.close()
        except BaseException:
            new.discard()
            raise
        self._former.append((self._body, self._body_at, self._blank))
        self._body, self._body_at, self._blank = new.store, 0, True

    # -- going back ----------------------------------------------------------------------

    def release(self) -> None:
        """Judging is over: from now on `drain` gives the message as it goes back.

        What was edited can't be undone any more.  Lines may still be fed, unless it was closed.
        Raises SpoolError.
        """
        store = self._store
        store.check()
        headers, self._headers = self._headers, None
        replaced = self._body is not store
        lines = None
        if headers is not None and headers.changed:
            lines = stuff(headers.lines())
        elif replaced:
            lines = self._raw_header()
        if lines is not None:
            if self._blank:
                lines.append(b"")
            if lines:
                self._head = Store(self._spool)
                self._head.append(lines, sum(map(len, lines)) + len(lines))
            self._at = self._body_at
            self._row = self._head_lines + self._blank
        if replaced:
            self._forget()

    def _raw_header(self) -> list[bytes]:
        lines = self._store.lines
        if lines is not None:
            return lines[: self._head_lines]
        return _split(self._store.read(0, self._head_size))

    def drain(self) -> list[bytes]:
        """The next lines that go back, dot-stuffed, of bounded size and number.

        There are none when everything that was fed has been drained.  Raises SpoolError.
        """
        if self._head is not None:
            return self._drain_head(self._head)
        body = self._body
        small = body.lines
        if small is not None:
            rows, self._row = small[self._row :], len(small)
            self._at = body.size
            return rows
        rows, self._at = body.rows(self._at)
        return rows

    def _drain_head(self, head: Store) -> list[bytes]:
        """The next lines of the header; with those of a small body, if both are small."""
        rows = head.lines
        if rows is None:
            rows, self._head_at = head.rows(self._head_at)
            if self._head_at < head.size:
                return rows
        self._drop_head()
        small = self._body.lines
        if small is None:
            return rows
        rows = rows + small[self._row :]
        self._at, self._row = self._body.size, len(small)
        return rows

    @property
    def drained(self) -> bool:
        """Whether everything that was fed has been drained."""
        if self._head is not None:
            return False
        small = self._body.lines
        return self._at >= self._body.size if small is None else self._row >= len(small)

    def _drop_head(self) -> None:
        """Free the header that has been sent."""
        if self._head is not None:
            self._head.discard()
            self._head = None

    def _forget(self) -> None:
        """Free the bodies that were replaced; the first is in the store of the message itself."""
        for store, _, _ in self._former:
            store.discard("the body was replaced")
        self._former = []

    def _ready(self) -> None:
        if not self._closed:
            raise ValueError("the message is not complete")
        self._store.check()
        if self._headers is None:
            self._headers = self._read_headers()


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


def _blocks(store: Store, at: int, chunk_bytes: int) -> Iterator[bytes]:
    while block := store.block(at, chunk_bytes):
        at += len(block)
        yield block


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


def _pieces(data: bytes) -> Iterator[bytes]:
    """Bytes in pieces that are copied at little cost."""
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]


def _split(block: bytes) -> list[bytes]:
    lines = block.split(b"\n")
    lines.pop()  # behind the last line feed
    return lines

"""A message on its way through a filter: collected, read, edited, and sent back.

The store holds the wire form, dot-stuffed, header and body together, so that an unedited message is
sent back from it unchanged.

Invariants
----------
*Byte for byte*: the message is sent back as received, except for edits of `headers`, the argument
of `replace_body` and the end of a header block that was cut, or ended by `end_header`.
*Bounded*: lines are kept in a `Spool`, including those of an edited header block. The header block
is held as `Headers` only from the first access to `headers` until `release`, and the store is never
read in larger pieces than a chunk.
*One header block*: the block ends before the first empty line, or at `Spool.header`; then the rest
is body, and `Headers.cut` is true. If a filter read such a message, it is sent with an empty line
there, so that the rest, which no filter has read as fields, is body for its recipient, too. It is
cut before a field, so that a field that a filter appends doesn't take over continuation lines.
*Never half a message*: after a failure of the file system every use of the message raises
`SpoolError`, and it can only be discarded.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from itertools import chain

from .body import Body
from .dots import unstuff_block
from .headers import Headers
from .spool import CHUNK, LINE_COST, SMALL, Spool, Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from _typeshed import WriteableBuffer

    from .headers import Snapshot

_WHITE = (b" ", b"\t")


class Message:
    """A message with a header block that can be edited, and a body that can be read or replaced.

    The runtime creates it, feeds it, closes it at the end of data and discards it after the
    transaction; a policy uses it in between. Methods that access the body raise `SpoolError` if the
    file system fails, and ValueError before `close`.
    """

    __slots__ = (
        "_at",
        "_blank",
        "_body",
        "_body_at",
        "_closed",
        "_head",
        "_head_at",
        "_head_lines",
        "_head_size",
        "_header_seen",
        "_headers",
        "_replaced",
        "_row",
        "_spool",
        "_store",
        "_too_long",
        "unmarked",
    )

    def __init__(self, spool: Spool | None = None) -> None:
        self._spool = spool = spool or Spool()
        self._store = Store(spool)
        #: The lines and bytes of the store that belong to the header block so far.
        self._head_lines = self._head_size = 0
        #: Whether its end has been seen; whether it exceeded the limit.
        self._header_seen = self._too_long = False
        self._headers: Headers | None = None
        #: The snapshot that `begin_mark` took; None without a mark.
        self.unmarked: tuple[Snapshot, int] | None = None
        #: The store of the body, and its offset there; whether an empty line precedes the body.
        self._body, self._body_at, self._blank = self._store, 0, False
        #: Replaced bodies, while the replacement can be undone.
        self._replaced: list[tuple[Store, int, bool]] = []
        self._closed = False
        #: The header to send, if it isn't the store's, and the number of its bytes already sent.
        self._head: Store | None = None
        self._head_at = 0
        #: How much of the body has been sent: bytes, or lines of a store that is still small.
        self._at = self._row = 0

    # -- receiving -----------------------------------------------------------------------

    def feed(self, lines: list[bytes]) -> None:
        """Add lines in wire form, without the lone dot that ends the data.

        Raises SpoolError if they can't be stored.
        """
        if self._closed:
            raise ValueError("the message is complete")
        size = sum(map(len, lines)) + len(lines)
        if not self._header_seen:
            self._track_header(lines, size)
        self._store.append(lines, size)

    def _track_header(self, lines: list[bytes], size: int) -> None:
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
        """Mark the message as complete. Raises SpoolError if a line could not be stored."""
        self._header_seen = self._closed = True
        self._store.check()

    @property
    def header_seen(self) -> bool:
        """Whether the header block is complete."""
        return self._header_seen

    @property
    def header_cost(self) -> int:
        """The memory that the header block uses as lines, in bytes."""
        return self._head_size + LINE_COST * self._head_lines

    @property
    def stored(self) -> int:
        """The bytes received so far, dot-stuffed."""
        return self._store.size

    def discard(self) -> None:
        """Release the message's resources, in any state; it can't be used afterwards."""
        self._header_seen = self._closed = True
        self._headers, self.unmarked = Headers(), None
        self._drop_head()
        self._release_replaced()
        self._body.discard()
        self._store.discard()

    # -- reading and editing -------------------------------------------------------------

    @property
    def replaced(self) -> int:
        """How many times the body has been replaced."""
        return len(self._replaced)

    def snapshot(self) -> tuple[Snapshot, int]:
        """Return a snapshot for `restore`, which undoes later edits."""
        return self.headers.snapshot(), len(self._replaced)

    def restore(self, before: tuple[Snapshot, int]) -> None:
        """Restore a snapshot."""
        headers, count = before
        self.headers.restore(headers)
        self._undo_bodies(count)

    def begin_mark(self) -> None:
        """Note that further edits mark the message as junk, before MARKED is returned.

        A chain that gives points instead undoes only these; without this call it undoes all edits
        of the filter.
        """
        self.unmarked = self.snapshot()

    def differs(self, before: tuple[Snapshot, int]) -> bool:
        """Return whether the message differs from a snapshot."""
        headers, count = before
        return len(self._replaced) > count or self.headers.differs(headers)

    def revert(self) -> None:
        """Undo every edit."""
        self._undo_bodies(0)
        self._headers = None

    def _undo_bodies(self, count: int) -> None:
        """Undo the replacements of the body after the first `count`."""
        while len(self._replaced) > count:
            self._body.discard("the new body was discarded")
            self._body, self._body_at, self._blank = self._replaced.pop()

    @property
    def headers(self) -> Headers:
        """The header block; edits are sent with the message.

        Raises ValueError before the end of the block has been seen.
        """
        if self._headers is None:
            if not self._header_seen:
                raise ValueError("the header block is not complete")
            self._headers = self._read_headers()
        return self._headers

    def _read_headers(self) -> Headers:
        text = self._raw_header()
        if self._too_long:
            text = self._cut(text)
        self._body_at = self._head_size + self._blank
        return Headers.of_text(text.replace(b"\n.", b"\n"), cut=self._too_long)  # unstuffed

    @property
    def _ended(self) -> bool:
        """Whether an empty line follows the header block that is read and sent."""
        return self._blank or self._too_long

    def _raw_header(self) -> bytes:
        """Return the header block as it was received, as a text of `Headers`."""
        self._store.check()
        lines = self._store.lines
        if lines is not None:
            return b"\n".join([b"", *lines[: self._head_lines]])
        block = self._store.read(0, self._head_size)
        return _joined(b"\n", memoryview(block)[:-1]) if block else b""

    def _cut(self, text: bytes) -> bytes:
        """Return the whole fields of a header block that are within the limit."""
        end = bisect_right(
            range(len(text) + 1),
            self._spool.header,
            key=lambda size: size + LINE_COST * text.count(b"\n", 0, size),
        )
        if end > len(text):
            end = len(text)
        else:
            end = text.rfind(b"\n", 0, end)
            while end > 0 and text.startswith(_WHITE, end + 1):
                end = text.rfind(b"\n", 0, end)
        self._head_size = end
        self._head_lines = text.count(b"\n", 0, end)
        return text[:end]

    @property
    def size(self) -> int:
        """The bytes of the message as it is now, each line end counted as one.

        This reads the whole body, since stuffed dots don't count.
        """
        return sum(map(len, self.iter_bytes()))

    def body(self, chunk_bytes: int = CHUNK, *, crlf: bool = False) -> Iterator[bytes]:
        """Yield the body without dot-stuffing, in chunks of whole lines that end in LF.

        A chunk is longer than `chunk_bytes` only if it is a single line. With `crlf` lines end in
        CRLF, as in RFC 5322. A message without an empty line has an empty body, unless its header
        block was cut (`Headers.cut`): then the rest of the message is the body.
        """
        self._ready()
        row = self._first_row()
        blocks = map(unstuff_block, _blocks(self._body, self._body_at, row, chunk_bytes))
        return (block.replace(b"\n", b"\r\n") for block in blocks) if crlf else blocks

    def iter_bytes(
        self,
        chunk_bytes: int = CHUNK,
        *,
        crlf: bool = False,
        head: list[bytes] | bytes | None = None,
    ) -> Iterator[bytes]:
        """Yield the whole message: the header block as it is now, the empty line, the body.

        The form is that of `body`, not dot-stuffed. `head` replaces the header block; it is its
        lines, or a text in the form of `Headers.text`.
        """
        self._ready()
        body = self.body(chunk_bytes, crlf=crlf)
        heads = _batches(self._header(head), chunk_bytes)
        if crlf:
            heads = (batch.replace(b"\n", b"\r\n") for batch in heads)
        return chain(heads, body)

    def _header(self, head: list[bytes] | bytes | None) -> bytes:
        """Return the header block and the empty line, as lines with their line feeds."""
        if head is None:
            head = self.headers.text()
        elif not isinstance(head, bytes):
            head = b"\n".join([b"", *head])
        return _block(head, blank=self._ended)

    def small(self, head: list[bytes] | bytes | None = None) -> bytes | None:
        """Return what `iter_bytes` yields in one piece, or None if that is not small.

        A message of less than 16 KiB is small, with some room for each line.
        """
        self._ready()
        rows = self._body.lines
        if rows is None:
            return None
        rows = rows[self._first_row() :]
        # `head` is not dot-stuffed.
        body = unstuff_block(b"\n".join([*rows, b""])) if rows else b""
        return self._header(head) + body

    def _first_row(self) -> int:
        """Return the number of lines before the body in its store."""
        return self._head_lines + self._blank if self._body is self._store else 0

    def open(self, *, crlf: bool = False) -> BinaryIO:
        """Return the whole message, as from `iter_bytes`, as a readable file without `seek`."""
        return io.BufferedReader(_Reader(self.iter_bytes(crlf=crlf)))

    def new_body(self) -> Body:
        """Return an empty body to write to, and then to pass to `replace_body`.

        It is meant for a body that arrives in pieces and may be large.
        """
        return Body(self._spool)

    def replace_body(self, data: bytes | Iterable[bytes] | Body) -> None:
        """Replace the body.

        `data` is not dot-stuffed; its lines end in LF or CRLF, and it may be chunks split anywhere,
        including ones derived from `body()`. A line of more than 64 KiB is broken. On failure the
        old body stays, and a `Body` is discarded. Raises SpoolError, and any exception of `data`.
        """
        new = data if isinstance(data, Body) else self.new_body()
        try:
            self._ready()
            if not isinstance(data, Body):
                for piece in _pieces(data) if isinstance(data, (bytes, bytearray)) else data:
                    new.write(piece)
            new.close()
        except BaseException:
            new.discard()
            raise
        self._take_body(new.store)

    def end_header(self, rest: bytes) -> Iterator[int]:
        """End the header block before its last lines, which become the beginning of the body.

        `rest` is these lines, as a text of `Headers`. An empty line is added in front of them.
        This is done in steps; it yields the bytes of each before it. On failure nothing changes.
        Raises SpoolError.
        """
        self._ready()
        headers = self.headers
        new = Store(self._spool)
        try:
            yield len(rest)
            new.append_block(_block(rest.replace(b"\n.", b"\n.."), blank=self._ended))
            for block in _blocks(self._body, self._body_at, self._first_row(), CHUNK):
                yield len(block)
                new.append_block(block)
            self._store.check()  # the message may have been discarded between two steps
        except BaseException:
            new.discard()
            raise
        headers.replace_text(headers.text().removesuffix(rest))
        self._take_body(new)

    def _take_body(self, new: Store) -> None:
        """Replace the body by a store, which must not be a list of lines."""
        self._replaced.append((self._body, self._body_at, self._blank))
        self._body, self._body_at, self._blank = new, 0, True

    # -- sending back --------------------------------------------------------------------

    def release(self, *, end_header: bool = True) -> None:
        """End reading and editing; from now on `drain` returns the message to send back.

        Edits can't be undone any more. More lines may be fed unless the message was closed. Without
        `end_header` a header block that was cut is ended only if it was edited. Raises SpoolError.
        """
        store = self._store
        store.check()
        headers, self._headers, self.unmarked = self._headers, None, None
        replaced = self._body is not store
        text = None
        if headers is not None and (headers.changed or (self._too_long and end_header)):
            text = headers.text().replace(b"\n.", b"\n..")  # stuffed
        elif replaced:
            text = self._raw_header()
        del headers
        if text is not None:
            if text or self._ended:
                self._head = Store(self._spool)
                _store(self._head, text, blank=self._ended)
            self._at = self._body_at
            self._row = self._head_lines + self._blank
        if replaced:
            self._release_replaced()

    def drain(self) -> list[bytes]:
        """Return the next lines to send back, dot-stuffed, bounded in size and number.

        The result is empty if everything that was fed has been drained. Raises SpoolError.
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
        """Return the next lines of the header, followed by the body if both are small."""
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
        """Release the header that has been sent."""
        if self._head is not None:
            self._head.discard()
            self._head = None

    def _release_replaced(self) -> None:
        """Release the replaced bodies; the first is in the store of the message itself."""
        for store, _, _ in self._replaced:
            store.discard("the body was replaced")
        self._replaced = []

    def _ready(self) -> None:
        if not self._closed:
            raise ValueError("the message is not complete")
        self._store.check()
        if self._headers is None:
            self._headers = self._read_headers()


class _Reader(io.RawIOBase):
    """A readable file made of non-empty chunks."""

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


def _blocks(store: Store, at: int, row: int, chunk_bytes: int) -> Iterator[bytes]:
    """Yield the lines of a store in blocks, from an offset, which is that of a line."""
    rows = store.lines
    if rows is not None and store.size - at <= chunk_bytes:
        # The store stays a list: as such it is sent back without being split again.
        if row < len(rows):
            yield b"\n".join([*rows[row:], b""])
        return
    while block := store.block(at, chunk_bytes):
        at += len(block)
        yield block


def _block(text: bytes, *, blank: bool) -> bytes:
    """Return the lines of a text of `Headers`, and with `blank` an empty one, as a block."""
    if not text:
        return b"\n" * blank
    return _joined(memoryview(text)[1:], b"\n\n" if blank else b"\n")


def _joined(*parts: bytes | memoryview) -> bytes:
    """Return parts in one: a slice of a large text would be a copy more."""
    return b"".join(parts)


def _store(store: Store, text: bytes, *, blank: bool) -> None:
    """Put the lines of a text of `Headers`, and with `blank` an empty one, into a new store."""
    count = text.count(b"\n") + blank
    size = len(text) + blank
    if size + LINE_COST * count > SMALL:
        store.append_block(_block(text, blank=blank))
    else:
        lines = text.split(b"\n")
        del lines[0]
        if blank:
            lines.append(b"")
        store.append(lines, size)


def _batches(block: bytes, chunk_bytes: int) -> Iterator[bytes]:
    """Yield pieces of whole lines of about a size."""
    at = 0
    while at < len(block):
        end = block.find(b"\n", at + chunk_bytes - 1) + 1 or len(block)
        yield block[at:end] if end - at < len(block) else block
        at = end


def _pieces(data: bytes) -> Iterator[bytes]:
    """Yield data in pieces that are cheap to copy."""
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]

"""A scanner of a message that streams by: parts, their names, their types by content.

`feed` takes the body in pieces of whole lines, at most `limits.BLOCK` each, and `work` looks into
archives that have ended; the result is `content`.

Invariants
----------
*One pass*: the scanner holds no content but a piece of each open part, the texts that it was asked
for, and archives, which are in the storage of `Content`.
*Union*: where programs disagree (two boundaries, an encoded multipart, a part behind the closing
boundary), the parts of all readings are found, and an oddity is noted.
"""

from __future__ import annotations

import re
from collections import deque

from .archives import inspect
from .content import Content
from .description import CONTENT, ENCODING, FIELD, PARSED, Description
from .leaf import Leaf
from .levels import Level, Levels
from .limits import DEPTH, HEADER, PARAMETERS, TEXT
from .names import extension

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .content import Hash, Part, Storage

_DASHES = re.compile(rb"\n[ \t]*+--")
_BARE = re.compile(rb"\r(?!\n)")
_DASHES_FIRST = re.compile(rb"[ \t]*+--")
#: Units of work for the header block of a part, and for a line that may be a delimiter.
_PART, _LINE = 120, 4
#: Bytes that hold the names of `PARSED`.
_NAME = 32
#: Delimiters in a block above which it is cut, and the bytes of a piece.
_DENSE, _PIECE = 40, 512
#: Files that mail programs open as messages, whatever their types.
_MESSAGE_FILES = frozenset({"eml", "mht", "mhtml", "nws"})


class _Lines:
    """A cutter of pieces into whole lines, for a scanner of decoded content."""

    __slots__ = ("_rest", "_scan")

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._rest = b""

    def write(self, data: bytes) -> None:
        data = self._rest + data
        cut = data.rfind(b"\n") + 1
        if not cut and len(data) < HEADER:
            self._rest = data
            return
        self._rest = data[cut:] if cut else b""
        self._scan.feed(data[:cut] if cut else data)

    def drop(self) -> None:
        self._scan.drop()

    def close(self) -> None:
        if self._rest:
            self._scan.feed(self._rest + b"\n")
        self._scan.close()


class Scan:
    """A scan of one message or entity, which begins with its header block unless it has `fields`.

    `raw` tells whether offsets are those of the message's body, `nested` whether this is in an
    attached message, `outer` is the part that this was decoded from.
    """

    def __init__(  # noqa: PLR0913  # options, given by name
        self,
        content: Content,
        archives: deque[tuple[Part, Storage]],
        *,
        depth: int = 0,
        raw: bool = True,
        nested: bool = False,
        fields: list[bytes] | None = None,
        outer: Part | None = None,
    ) -> None:
        self.content = content
        self._archives = archives
        self._outer = outer
        self._depth, self._raw, self._nested = depth, raw, nested
        self._levels = Levels(content)
        #: Attached messages that haven't ended, and multiparts that programs may show as a file,
        #: each with the number of levels around it.
        self._messages: list[tuple[int, Part]] = []
        self._leaf: Leaf | None = None
        #: The multipart that has no delimiter so far, which drops it.
        self._undelimited: Part | None = None
        self._inner: _Lines | None = None
        self._in_header = True
        self._fields = list(map(bytearray, fields or ()))
        #: Lines at the end of a header block that may be the beginning of the content.
        self._spilled = bytearray()
        self._header_size = 0
        self._header_at = -1
        self._offset = 0
        #: The block that is read, if it has bare carriage returns.
        self._original = b""
        if fields is not None:
            self._begin_entity()

    def feed(self, block: bytes) -> None:
        """Scan a piece of the body: whole lines that end in LF, not dot-stuffed."""
        if self.content.full:
            self._offset += len(block)
            return
        lines, delimiters = block.count(b"\n"), block.count(b"\n--")
        self.content.work += lines + (_LINE + self._levels.cost) * delimiters
        if b"\r" in block:
            # Programs end a line there; offsets stay those of the message.
            lines_only, bare = _BARE.subn(b"\n", block)
            if bare:
                self.content.odd("bare carriage return")
                self._original, block = block, lines_only
        at, end = 0, len(block)
        while at < end:
            at = self._header(block, at) if self._in_header else self._body(block, at)
        self._offset += end
        self._original = b""

    def close(self) -> None:
        """End the message."""
        if self._in_header:
            self._begin_entity(self._offset)
        self._end_leaf(self._offset)
        self._end_messages(-1, self._offset)
        self._levels.close(0)

    def drop(self) -> None:
        """Release what is stored of open parts."""
        if self._leaf is not None:
            self._leaf.discard()
        if self._inner is not None:
            self._inner.drop()

    # -- header blocks of parts ----------------------------------------------------------

    def _header(self, block: bytes, at: int) -> int:
        """Read lines of a header block; return where it stopped."""
        end = len(block)
        while at < end:
            line_end = block.find(b"\n", at) + 1 or end
            line = block[at:line_end].rstrip(b"\r\n")
            if self._original[line_end - 1 : line_end] == b"\r":
                # To other programs the field goes on, and the block has no end here.
                self.content.cut_off("bare carriage return")
            if not line.rstrip():
                if line:
                    self.content.odd("blanks in the line that ends a header block")
                self._begin_entity(self._offset + line_end)
                return line_end
            if line.lstrip(b" \t").startswith(b"--"):
                level = self._levels.crossed(line)
                if level is not None:
                    self._begin_entity(self._offset + at)
                    self._cross(level, at, line_end)
                    return line_end
            self._head_line(line)
            at = line_end
            if self._header_size > HEADER:
                self.content.cut_off("header block of a part too long")
                self._begin_entity(self._offset + at)
                return at
        return at

    def _head_line(self, line: bytes) -> None:
        self._header_size += len(line) + 1
        fields = self._fields
        if line.startswith((b" ", b"\t")) and fields:
            if len(fields[-1]) < PARAMETERS or self._keeps:
                fields[-1] += b"\n" + line
            elif fields[-1][:_NAME].lower().startswith(PARSED):
                self.content.cut_off("parameters of a part too long")
        elif FIELD.match(line):
            # The lines before it are in the header, if anything.
            self._spilled = bytearray()
            if fields and not self._keeps and fields[-1][:8].lower() != CONTENT:
                fields[-1] = bytearray(line)  # a header block may have 16,000 fields
            else:
                fields.append(bytearray(line))
        elif fields or self._levels:
            # Programs ignore the line, or end the header before it.
            self.content.odd("line in a header block that isn't a field")
            self._spilled += line + b"\n"

    # -- entities ------------------------------------------------------------------------

    @property
    def _keeps(self) -> bool:
        """Whether the fields of this entity are kept."""
        return self.content.keep_fields and bool(self._levels or self._depth)

    def _begin_entity(self, at: int = 0) -> None:
        """Begin what a header block describes; its content is at this offset."""
        self.content.work += _PART
        self._in_header = False
        self._header_size = 0
        fields = list(map(bytes, self._fields))
        if self._keeps:
            for raw in fields:
                self.content.keep(raw, nested=self._nested)
        said = Description(self.content, fields)
        if self._depth >= DEPTH and (said.is_multipart or said.is_message):
            self.content.cut_off("too many levels")
            said.types = ("application/octet-stream",)
        if said.is_multipart:
            self._begin_multipart(said, at)
        elif said.is_message:
            self._begin_message(said, at)
        else:
            self._begin_leaf(said, at)
        self._fields, self._spilled = [], bytearray()

    def _begin_multipart(self, said: Description, at: int) -> None:
        found = said.boundaries()
        if said.encoding:
            # The encoded reading: what isn't a part by the raw one is decoded, and read again.
            self.content.odd("encoded multipart")
            leaf = self._read_decoded(said.encoding, said.fields, at)
            if leaf is not None:
                kind = leaf.part.type
                self._describe(leaf.part, said, at)
                leaf.part.type, leaf.part.types = kind, ()
        else:
            self._begin_undelimited(said, at, certain=said.certain and len(found) == 1)
        self._levels.push(Level(found, self._depth, nested=self._nested))
        self._depth += 1

    def _begin_undelimited(self, said: Description, at: int, *, certain: bool) -> None:
        """Begin what programs show of a multipart in which they find no delimiter: a file or text.

        The first delimiter drops it, unless it has a name or is a message, and not all programs are
        `certain` to find that.
        """
        self.content.work += _PART
        part = self.content.add(self._depth)
        if part is None:
            return
        self._describe(part, said, at)
        if self._raw:
            self._messages.append((len(self._levels), part))
        if certain or not (part.names or said.is_message):
            self._undelimited = part
        if not (part.names or said.is_message):
            part.type, part.types = "", ()
        self._open_leaf(part, "", as_message=said.is_message)

    def _read_decoded(self, encoding: str, fields: list[bytes], at: int) -> Leaf | None:
        part = self.content.add(self._depth)
        if part is None:
            return None
        part.type = "multipart/encoded" if fields else "message/rfc822"
        part.outer = self._outer
        if self._raw:
            part.start, part.body = self._header_at, at
        kept = [each for each in fields if not each.lower().startswith(ENCODING)]
        scan = self._inner_scan(kept or None, part, nested=self._nested or not fields)
        self._inner = lines = _Lines(scan)
        self._leaf = Leaf(self.content, part, encoding, self._ended, lines.write)
        return self._leaf

    def _inner_scan(self, fields: list[bytes] | None, part: Part, *, nested: bool) -> Scan:
        """Return a scan of the decoded content of a part."""
        return Scan(
            self.content,
            self._archives,
            depth=self._depth + 1,
            raw=False,
            nested=nested,
            fields=fields,
            outer=part,
        )

    def _begin_message(self, said: Description, at: int) -> None:
        if said.encoding:
            leaf = self._read_decoded(said.encoding, [], at)
            if leaf is not None:
                self._describe(leaf.part, said, at)
                leaf.part.traits.add("message")
            return
        part = self.content.add(self._depth)
        if part is not None:
            self._describe(part, said, at)
            part.traits.add("message")
            if self._raw:
                self._messages.append((len(self._levels), part))
        self._in_header = True
        self._nested = True
        self._depth += 1
        self._header_at = at

    def _begin_leaf(self, said: Description, at: int) -> None:
        part = self.content.add(self._depth)
        if part is None:
            self._leaf = None
            return
        self._describe(part, said, at)
        self._open_leaf(part, said.encoding)

    def _open_leaf(self, part: Part, encoding: str, *, as_message: bool = False) -> None:
        """Begin to read a content, which is a message as well by its name or `as_message`."""
        inner = None
        as_message = as_message or any(extension(each) in _MESSAGE_FILES for each in part.names)
        if as_message and self._depth >= DEPTH:
            self.content.cut_off("too many levels")
        elif as_message:
            self._inner = _Lines(self._inner_scan(None, part, nested=True))
            inner = self._inner.write
        self._leaf = Leaf(
            self.content, part, encoding, self._ended, inner, delimited=bool(self._levels)
        )
        if self._spilled:
            self._leaf.write(bytes(self._spilled))

    def _describe(self, part: Part, said: Description, at: int) -> None:
        """Fill in what the fields say of a part, and where it is."""
        said.fill_in(part)
        part.outer = part.outer or self._outer
        if self._raw:
            part.start, part.body = self._header_at, at

    # -- bodies --------------------------------------------------------------------------

    def _body(self, block: bytes, at: int) -> int:
        """Read up to the next delimiter or the end; return where it stopped."""
        if not self._levels:
            self._emit(block[at:])
            return len(block)
        start, end = at, len(block)
        adopts = self._levels.adopts
        while at < end:
            if _DASHES_FIRST.match(block, at):
                found = at
            else:
                match = _DASHES.search(block, at)
                if match is None:
                    break
                found = match.start() + 1
            line_end = block.find(b"\n", found) + 1 or end
            line = block[found:line_end]
            if adopts:
                adopts = not self._levels.adopt(line)
            level = self._levels.crossed(line)
            if level is not None:
                plain = self._is_plain(level, block, found, line_end)
                self._emit(block[start:found])
                self._cross(level, found, line_end, plain=plain)
                return line_end
            at = line_end
        self._emit(block[start:])
        return end

    def _emit(self, data: bytes) -> None:
        if self._leaf is not None and data:
            self._leaf.write(data)

    def _cross(self, found: tuple[int, bool], start: int, end: int, *, plain: bool = False) -> None:
        """Cross a delimiter whose line is there in the block; `plain` as by `_is_plain`."""
        number, closing = found
        if plain:
            self._drop_undelimited()
        self._end_leaf(self._offset + start)
        self._end_messages(number, self._offset + start)
        level = self._levels.back_to(number)
        self._depth = level.depth + 1
        self._nested = level.nested
        if closing:
            level.closed = True
            return
        if level.closed:
            self.content.odd("part behind the closing boundary")
            level.closed = False
        self._in_header = True
        self._header_size = 0
        self._fields = []
        self._header_at = self._offset + end

    def _is_plain(self, found: tuple[int, bool], block: bytes, start: int, end: int) -> bool:
        """Return whether all programs see that the innermost multipart has a delimiter."""
        number, closing = found
        line, original = block[start:end], self._original
        return (
            number == len(self._levels) - 1
            and not closing
            and line.startswith(b"--")
            and self._levels.declares(line[2:].rstrip())
            and b"\r" not in {original[start - 1 : start], original[end - 1 : end]}
        )

    def _drop_undelimited(self) -> None:
        """Drop what was read as the content of a multipart that has a delimiter after all."""
        part, self._undelimited = self._undelimited, None
        if part is None:
            return
        self.drop()
        self._leaf = self._inner = None
        parts = self.content.parts
        self.content.drop_texts(parts[part.number :])
        del parts[part.number :]
        if self._raw:
            self._messages.pop()

    def _end_leaf(self, at: int) -> None:
        leaf, self._leaf = self._leaf, None
        self._undelimited = None
        if leaf is None:
            return
        leaf.close()
        if self._inner is not None:
            inner, self._inner = self._inner, None
            inner.close()
        if self._raw and leaf.part.body >= 0:
            leaf.part.end = at

    def _end_messages(self, number: int, at: int) -> None:
        """End the attached messages in the levels above this number."""
        while self._messages and self._messages[-1][0] > number:
            self._messages.pop()[1].end = at

    def _ended(self, part: Part, store: Storage) -> None:
        self._archives.append((part, store))


class Scanner(Scan):
    """A scanner of one message with this header block; `storage` makes places for archives.

    With `keep_fields` the fields of parts and attached messages are in `Content.fields`, and of
    texts `keep_texts` bytes are in `Part.kept`. With `new_hash` each part has a hash.
    """

    def __init__(
        self,
        head: Iterable[bytes],
        storage: Callable[[], Storage],
        *,
        keep_fields: bool = False,
        keep_texts: int = 0,
        new_hash: Callable[[], Hash] | None = None,
    ) -> None:
        content = Content(
            storage,
            new_hash,
            keep_fields=keep_fields,
            text_left=TEXT,
            keeps_texts=keep_texts > 0,
            kept_left=keep_texts,
        )
        super().__init__(content, deque())
        for line in head:
            self._head_line(line)
        self._begin_entity()

    def pieces(self, block: bytes) -> Iterator[bytes]:
        """Cut a block for `feed` where it may hold many parts: a part takes 0.1 ms."""
        lower = block.lower()
        dense = block.count(b"\n--") > _DENSE or b"message" in lower or b"multipart" in lower
        if self._inner is None and not dense:
            yield block
            return
        at = 0
        while at < len(block):
            end = block.rfind(b"\n", at, at + _PIECE) + 1 or block.find(b"\n", at) + 1
            yield block[at : end or len(block)]
            at = end or len(block)

    def work(self) -> Iterator[int]:
        """Look into the archives that have ended; yield the units of work of each step.

        A unit is about a microsecond, as in `runtime.pace`.
        """
        while self._archives:
            part, store = self._archives.popleft()
            try:
                yield from inspect(store, part, self.content)
            finally:
                store.discard()

    def discard(self) -> None:
        """Release what is stored; the scanner can't be used afterwards."""
        self.drop()
        while self._archives:
            self._archives.popleft()[1].discard()

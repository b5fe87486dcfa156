"""A header block as a milter sees it, and its edits to the byte.

An MTA hides its own Received field from milters: it isn't sent, and not counted by changes. It is
counted by insertions, since their index refers to the message as delivered. smtpd's field is the
first Received, unless there is none. Marks for junk (`X-Spam`) above it are those of smtpd and its
filters; they are hidden and left alone as well, but not counted by insertions: index 1 is below the
Received field. So is the first line of an mbox file, if the client has sent one without
continuation lines. What a milter inserts above is an ordinary field for the milters behind it.

Invariants
----------
*To the byte*: a valid value is written as it came: its folds, its 8-bit, its leading space.
*Header block intact*: a value that could end the block, begin another field, or exceed a line is
made safe by the function that the caller gives.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left

from .answers import AddHeader, ChangeHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .answers import HeaderEdit

# RFC 5322 section 2.2, and section 4.5 for white space before the colon: a field after a line feed,
# its name, and its value with its folds.
_NAMED = rb"\n(%b)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)"
_WHOLE = re.compile(_NAMED % rb"[!-9;-~]++")
_KEY = re.compile(rb"[!-9;-~]++")
_NAME = re.compile(rb"[!-9;-~]{1,900}+")
# Printable ASCII, 8-bit and TAB.
_TEXT = re.compile(rb"[\t -~\x80-\xff]*+")
_WHITE = (b" ", b"\t")
_FOLDS = (b"\n ", b"\n\t")
_MARK, _RECEIVED = b"x-spam", b"received"
#: The first line of an mbox file (RFC 4155), which smtpd delivers below its own field.
_MBOX = re.compile(rb"\nFrom [^\n]*+")
#: What milters see, smtpd's own Received, and marks above it.
_VISIBLE, _OWN, _MARKING = range(3)
#: Bytes of a line without its end: RFC 5322 section 2.1.1.
_LINE = 998


class EditedHeaders:
    """A header block, given as a text: its raw lines, each after a line feed.

    `safe` makes lines of a name and a value that can't be written as they are. The block ends
    before the first line that is neither a field nor its continuation; `rest` has the lines from
    there on, which are body to a milter.
    """

    def __init__(self, text: bytes, safe: Callable[[str, bytes], list[bytes]]) -> None:
        self._safe = safe
        self.changed = False
        #: The number of fields.
        self._count = 0
        #: Where smtpd's own field begins, or -1, and where the marks above it do.
        self._own = -1
        self._marks = array("L")
        end = self._read(text)
        self._text, self.rest = text[:end], text[end:]

    def _read(self, text: bytes) -> int:
        """Find smtpd's own fields; return where the rest begins."""
        at = 0
        on_top = True  # nothing of the client's own header has been read yet
        marks = array("L")
        while at < len(text):
            if match := _WHOLE.match(text, at):
                key = match[1].lower()
                if self._own < 0 and key == _RECEIVED:
                    self._own, self._marks = at, marks
                elif self._own < 0 and key == _MARK:
                    marks.append(at)
                on_top = on_top and key in {_RECEIVED, _MARK}
                self._count += 1
            else:
                match = _MBOX.match(text, at) if on_top else None
                if match is None or text.startswith(_FOLDS, match.end()):
                    break  # folds of such a line are content that the line would hide
                on_top = False
            at = match.end()
        return at

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """The bytes of the block, without the rest."""
        return len(self._text)

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the name and the value of each field that milters see.

        The value is everything behind the colon, with LF for each line break.
        """
        for match, state in self._fields():
            if state == _VISIBLE:
                yield match[1], match[2]

    def _fields(self) -> Iterator[tuple[re.Match[bytes], int]]:
        """Yield each field, and whether milters see it."""
        own, marks = self._own, iter(self._marks)
        mark = next(marks, -1)
        for match in _WHOLE.finditer(self._text):
            state = _VISIBLE
            if match.start() == mark:
                state, mark = _MARKING, next(marks, -1)
            elif match.start() == own:
                state = _OWN
            yield match, state

    def text(self) -> bytes:
        """Return the raw lines of the block as it is now, with the rest, each after a line feed."""
        return self._text + self.rest

    def drop_rest(self) -> None:
        """Drop the rest, because the body is replaced."""
        if self.rest:
            self.rest = b""
            self.changed = True

    def apply(self, edit: HeaderEdit, *, leading_space: bool) -> None:
        """Apply an edit. Raises ValueError for an invalid name of a field.

        leading_space: the value has its own white space behind the colon.
        """
        if isinstance(edit, ChangeHeader):
            self._change(edit, leading_space=leading_space)
            return
        new = self._field(edit.name, edit.value, leading_space=leading_space)
        at = len(self._text) if isinstance(edit, AddHeader) else self._place(edit.index)
        self._splice(at, at, new)
        self._count += 1

    def _place(self, index: int) -> int:
        """Return the position with so many fields above it, marks aside; 0 is the very top."""
        if not index:
            return 0
        for match, state in self._fields():
            if state != _MARKING:
                if not index:
                    return match.start()
                index -= 1
        return len(self._text)

    def _change(self, edit: ChangeHeader, *, leading_space: bool) -> None:
        left = max(edit.index, 1)
        for begin, end in self._named(edit.name):
            left -= 1
            if left:
                continue
            new = b""
            if edit.value:
                new = self._field(edit.name, edit.value, leading_space=leading_space)
            else:
                self._count -= 1
            self._splice(begin, end, new)
            return
        if edit.value:
            self.apply(AddHeader(edit.name, edit.value), leading_space=leading_space)

    def _named(self, name: bytes) -> Iterator[tuple[int, int]]:
        """Yield where the fields of a name that milters see begin and end."""
        # To compile a pattern costs more than to find that there is no such field.
        if not _KEY.fullmatch(name) or b"\n" + name.lower() not in self._text.lower():
            return
        for match in re.finditer(_NAMED % re.escape(name), self._text, re.IGNORECASE):
            at = match.start()
            mark = bisect_left(self._marks, at)
            if at != self._own and self._marks[mark : mark + 1] != array("L", (at,)):
                yield match.span()

    def _splice(self, begin: int, end: int, new: bytes) -> None:
        """Replace a part of the text that has none of smtpd's own fields."""
        text, grown = self._text, len(new) - (end - begin)
        self._text = b"".join([text[:begin], new, text[end:]])
        if self._own >= begin:
            self._own += grown
        self._marks = array("L", (at + grown if at >= begin else at for at in self._marks))
        self.changed = True

    def _field(self, name: bytes, value: bytes, *, leading_space: bool) -> bytes:
        """Return the lines of a field, each after a line feed."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"invalid header field name: {name[:80]!r}")
        value = value.replace(b"\r\n", b"\n").rstrip(b"\n")
        head = name + (b":" if leading_space else b": ")
        first, *rest = value.split(b"\n")
        lines = [head + first, *rest]
        if not _valid(lines):
            lines = self._safe(name.decode("ascii"), value)
        return b"\n".join([b"", *lines])


def _valid(lines: list[bytes]) -> bool:
    """Whether lines form one field as they are."""
    first, *rest = lines
    if len(first) > _LINE or not _TEXT.fullmatch(first):
        return False
    return all(
        len(line) <= _LINE and line.startswith(_WHITE) and line.strip() and _TEXT.fullmatch(line)
        for line in rest
    )

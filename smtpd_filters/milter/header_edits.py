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

from .answers import AddHeader, ChangeHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .answers import HeaderEdit

# RFC 5322 section 2.2, and section 4.5 for white space before the colon.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_NAME = re.compile(rb"[!-9;-~]{1,900}+")
# Printable ASCII, 8-bit and TAB.
_TEXT = re.compile(rb"[\t -~\x80-\xff]*+")
_WHITE = (b" ", b"\t")
_MARK, _RECEIVED = b"x-spam", b"received"
#: The start of an mbox file's first line (RFC 4155), which smtpd delivers below its own field.
_MBOX = b"From "
#: Bytes of a line without its end: RFC 5322 section 2.1.1.
_LINE = 998


class _Entry:
    """A field: its lines, its name in lower case, and whether milters see it."""

    __slots__ = ("colon", "key", "lines", "name", "state")

    def __init__(self, lines: list[bytes], name: bytes, colon: int, state: int) -> None:
        self.lines = lines
        self.name = name
        self.key = name.lower()
        #: Where the value begins in the first line.
        self.colon = colon
        self.state = state


_VISIBLE, _OWN, _MARKING = range(3)


class EditedHeaders:
    """A header block, given as raw lines without line ends.

    `safe` makes lines of a name and a value that can't be written as they are. The block ends
    before the first line that is neither a field nor its continuation; `rest` are the lines from
    there on, which are body to a milter.
    """

    def __init__(self, lines: Iterable[bytes], safe: Callable[[str, bytes], list[bytes]]) -> None:
        self._safe = safe
        self.changed = False
        self._entries: list[_Entry] = []
        self.rest: list[bytes] = []
        self._read(lines)
        self._hide()

    def _read(self, lines: Iterable[bytes]) -> None:
        entries, rest = self._entries, self.rest
        for line in lines:
            if rest:
                rest.append(line)
            elif line.startswith(_MBOX) and not _FIELD.match(line) and self._at_top():
                entries.append(_Entry([line], b"", 0, _MARKING))
            elif entries and not entries[-1].colon and line.startswith(_WHITE):
                rest += [*entries.pop().lines, line]  # content that the line would hide
            elif entries and line.startswith(_WHITE):
                entries[-1].lines.append(line)
            elif match := _FIELD.match(line):
                entries.append(_Entry([line], match[1], match.end(), _VISIBLE))
            else:
                rest.append(line)

    def _at_top(self) -> bool:
        """Whether nothing of the client's own header has been read yet."""
        return all(each.key in {_RECEIVED, _MARK} for each in self._entries)

    def _hide(self) -> None:
        """Find smtpd's own fields."""
        for at, entry in enumerate(self._entries):
            if entry.key == _RECEIVED:
                entry.state = _OWN
                for above in self._entries[:at]:
                    if above.key == _MARK:
                        above.state = _MARKING
                return

    def __len__(self) -> int:
        return len(self._entries)

    def fields(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the name and the value of each field that milters see.

        The value is everything behind the colon, with LF for each line break.
        """
        for entry in list(self._entries):
            if entry.state == _VISIBLE:
                lines = entry.lines
                yield entry.name, b"\n".join([lines[0][entry.colon :], *lines[1:]])

    def lines(self) -> list[bytes]:
        """Return the raw lines of the block as it is now, with the rest."""
        return [*(line for entry in self._entries for line in entry.lines), *self.rest]

    def drop_rest(self) -> None:
        """Drop the rest, because the body is replaced."""
        if self.rest:
            self.rest = []
            self.changed = True

    def apply(self, edit: HeaderEdit, *, leading_space: bool) -> None:
        """Apply an edit. Raises ValueError for an invalid name of a field.

        leading_space: the value has its own white space behind the colon.
        """
        if isinstance(edit, ChangeHeader):
            self._change(edit, leading_space=leading_space)
            return
        new = self._entry(edit.name, edit.value, leading_space=leading_space)
        if isinstance(edit, AddHeader):
            self._entries.append(new)
        else:
            self._entries.insert(self._place(edit.index), new)
        self.changed = True

    def _place(self, index: int) -> int:
        """Return the position with so many fields above it, marks aside; 0 is the very top."""
        if not index:
            return 0
        for at, entry in enumerate(self._entries):
            if entry.state != _MARKING:
                if not index:
                    return at
                index -= 1
        return len(self._entries)

    def _change(self, edit: ChangeHeader, *, leading_space: bool) -> None:
        key, left = edit.name.lower(), max(edit.index, 1)
        for at, entry in enumerate(self._entries):
            if entry.key == key and entry.state == _VISIBLE:
                left -= 1
                if left:
                    continue
                if edit.value:
                    new = self._entry(edit.name, edit.value, leading_space=leading_space)
                    self._entries[at] = new
                else:
                    del self._entries[at]
                self.changed = True
                return
        if edit.value:
            self._entries.append(self._entry(edit.name, edit.value, leading_space=leading_space))
            self.changed = True

    def _entry(self, name: bytes, value: bytes, *, leading_space: bool) -> _Entry:
        if not _NAME.fullmatch(name):
            raise ValueError(f"invalid header field name: {name[:80]!r}")
        value = value.replace(b"\r\n", b"\n").rstrip(b"\n")
        head = name + (b":" if leading_space else b": ")
        first, *rest = value.split(b"\n")
        lines = [head + first, *rest]
        if not _valid(lines):
            lines = self._safe(name.decode("ascii"), value)
        return _Entry(lines, name, len(name) + 1, _VISIBLE)


def _valid(lines: list[bytes]) -> bool:
    """Whether lines form one field as they are."""
    first, *rest = lines
    if len(first) > _LINE or not _TEXT.fullmatch(first):
        return False
    return all(
        len(line) <= _LINE and line.startswith(_WHITE) and line.strip() and _TEXT.fullmatch(line)
        for line in rest
    )

"""The header block: found fields, and edits that touch nothing else.

The law:
1. What isn't edited keeps its bytes and its place, whatever it is. Lines that are no field (a
   "From " line, text where a header should be, a continuation of nothing) are kept as opaque
   entries: never found, never counted, never lost.
2. An edit touches whole fields. A new field never takes over the continuation lines of another.
3. Names match case-insensitively. Counting is over fields, from the top, and starts at 1 for the
   nth of a name (as in smfi_chgheader) and at 0 for a place in the block (as in smfi_insheader).

How it works. The block stays a plain list of lines until something asks for a field; adding at
the top or the bottom doesn't. Then it is parsed once into entries, each with its raw lines.
"""

from __future__ import annotations

import re

from smtpd_filters.message.folding import field_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import overload

# RFC 5322 section 2.2, and 4.5 for the white space that old software puts before the colon.
# Possessive, since a line without a colon can't match after backtracking either.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_WHITE = (b" ", b"\t")


class Field:
    """One field as it stands in the block."""

    __match_args__ = ("name", "value")
    __slots__ = ("_colon", "_lines", "key", "name")

    def __init__(self, lines: list[bytes]) -> None:
        match = _FIELD.match(lines[0])
        # An opaque entry has the empty name, which nothing finds.
        self.name = match[1].decode("ascii") if match else ""
        self.key = self.name.lower()
        self._colon = match.end() if match else 0
        self._lines = lines

    @property
    def lines(self) -> tuple[bytes, ...]:
        """The raw lines, without line ends."""
        return tuple(self._lines)

    @property
    def value(self) -> str:
        """The value, unfolded, without surrounding white space, decoded but for encoded-words.

        What isn't UTF-8 is kept as surrogate escapes.
        """
        # RFC 5322 section 2.2.3: unfolding takes away the line breaks and nothing else.
        value = b"".join(self._lines)[self._colon :].strip(b" \t")
        return value.decode("utf-8", "surrogateescape")

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.value!r})"


class Headers:
    """A header block that can be searched and edited.

    Values that go in are folded and made safe (see `smtpd_filters.message.folding`); whatever
    adds or replaces a field raises ValueError for a name that is none.
    """

    __slots__ = ("_changed", "_entries", "_lines")

    def __init__(self, lines: Iterable[bytes] = ()) -> None:
        self._lines = list(lines)
        self._entries: list[Field] | None = None
        self._changed = False

    @classmethod
    def parse(cls, lines: Iterable[bytes]) -> Headers:
        """Take raw lines without line ends and dot-stuffing, up to the empty line. Never raises."""
        return cls(lines)

    @property
    def changed(self) -> bool:
        """Whether any edit was made."""
        return self._changed

    def snapshot(self) -> tuple[list[bytes], bool]:
        """What `restore` takes to undo the edits made from here on."""
        return self.lines(), self._changed

    def restore(self, before: tuple[list[bytes], bool]) -> None:
        """Be as at the time of the snapshot."""
        lines, self._changed = before
        self._lines = list(lines)
        self._entries = None

    def lines(self) -> list[bytes]:
        """The raw lines of the block as it is now."""
        if self._entries is None:
            return list(self._lines)
        return [line for entry in self._entries for line in entry.lines]

    def __iter__(self) -> Iterator[Field]:
        return iter([entry for entry in self._parsed() if entry.name])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self._find(name))

    if TYPE_CHECKING:

        @overload
        def get(self, name: str) -> str | None: ...
        @overload
        def get(self, name: str, default: str) -> str: ...

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of the first field of that name (see `Field.value`)."""
        for field in self._find(name):
            return field.value
        return default

    def get_all(self, name: str) -> list[str]:
        """The values of all fields of that name, from the top."""
        return [field.value for field in self._find(name)]

    def names(self) -> list[str]:
        """The name of each field, as it is written, from the top."""
        return [field.name for field in self]

    def prepend(self, name: str, value: str | bytes) -> None:
        """Add a field at the top of the block."""
        new = field_lines(name, value)
        self._changed = True
        if self._entries is not None:
            # Opaque lines that begin with white space are one entry, and only at the top.
            entries = self._entries
            at = 1 if entries and entries[0].lines[0].startswith(_WHITE) else 0
            entries.insert(at, Field(new))
            return
        # Continuation lines that continue nothing would continue the new field.
        at = 0
        while at < len(self._lines) and self._lines[at].startswith(_WHITE):
            at += 1
        self._lines[at:at] = new

    def append(self, name: str, value: str | bytes) -> None:
        """Add a field at the bottom of the block."""
        new = field_lines(name, value)
        self._changed = True
        if self._entries is not None:
            self._entries.append(Field(new))
        else:
            self._lines += new

    def insert(self, index: int, name: str, value: str | bytes) -> None:
        """Add a field before the one that has `index` fields above it.

        Past the last, it goes to the bottom; a negative index counts from the end, as for
        `list.insert`. Of several fields inserted at one index the last stands highest: insert them
        in reverse to keep their order.
        """
        new = Field(field_lines(name, value))
        entries = self._parsed()
        entries.insert(_place(entries, index), new)
        self._changed = True

    def replace(self, name: str, value: str | bytes, nth: int = 1, *, add: bool = False) -> bool:
        """Put a new field where the nth field of that name stands; from the end if negative.

        True if there was one. If not, nothing happens, or with `add` the field goes to the
        bottom. Raises ValueError if `nth` is 0.
        """
        if not nth:
            raise ValueError("fields of a name are counted from 1, or from -1 upwards")
        new = field_lines(name, value)
        found = self._find(name)
        if abs(nth) <= len(found):
            entries = self._parsed()
            old = found[nth - 1 if nth > 0 else nth]
            entries[entries.index(old)] = Field(new)
            self._changed = True
            return True
        if add:
            self.append(name, value)
        return False

    def remove(self, name: str, nth: int | Iterable[int] = 0) -> int:
        """Remove the nth field of that name, from the end if negative; 0 means all of them.

        Several numbers are all counted over the fields as they are before the call. Returns how
        many fields were removed.
        """
        found = self._find(name)
        chosen: set[Field] = set()
        for number in (nth,) if isinstance(nth, int) else nth:
            if number == 0:
                chosen.update(found)
            elif abs(number) <= len(found):
                chosen.add(found[number - 1 if number > 0 else number])
        if chosen:
            self._entries = [entry for entry in self._parsed() if entry not in chosen]
            self._changed = True
        return len(chosen)

    def _find(self, name: str) -> list[Field]:
        key = name.lower()
        return [field for field in self if field.key == key]

    def _parsed(self) -> list[Field]:
        entries = self._entries
        if entries is None:
            entries = []
            lines: list[bytes] = []
            for line in self._lines:
                if lines and line.startswith(_WHITE):
                    lines.append(line)
                else:
                    lines = [line]
                    entries.append(Field(lines))
            self._entries = entries
            self._lines = []
        return entries


def _place(entries: list[Field], index: int) -> int:
    """Return where the field stands that has `index` fields above it, counted as in a list.

    Walked from the end that is near: a header block may be long, and fields added many.
    """
    if index < 0:
        for at in range(len(entries) - 1, -1, -1):
            if entries[at].name:
                index += 1
                if not index:
                    return at
        index = 0
    for at, entry in enumerate(entries):
        if entry.name:
            if not index:
                return at
            index -= 1
    return len(entries)

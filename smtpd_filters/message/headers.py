"""The header block: found fields, and edits that touch nothing else.

Invariants
----------
Untouched lines
    What isn't edited keeps its bytes and its place, whatever it is.  Lines that are no field (a
    "From " line, text where a header should be, a continuation of nothing) are kept as opaque
    entries: never found, never counted, never lost.
Whole fields
    An edit touches whole fields.  A new field never takes over the continuation lines of another.
Counting
    Names match case-insensitively.  Counting is over fields, from the top, and starts at 1 for the
    nth of a name (as in smfi_chgheader) and at 0 for a place in the block (as in smfi_insheader).
Linear time
    A block may have 16,000 fields.  Finding fields by name, adding them at the top or the bottom
    and removing all of a name walks over its lines in C and creates no object for each of them;
    what has to part the block into fields does so once.
"""

from __future__ import annotations

import re

from .folding import field_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeAlias, overload

    #: The lines or the entries of a block, and whether it was changed.
    Snapshot: TypeAlias = tuple[list[bytes], list["Field"] | None, bool]

# RFC 5322 section 2.2, and 4.5 for the white space that old software puts before the colon.
# Possessive, since a line without a colon can't match after backtracking either.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_NAME = re.compile(rb"[!-9;-~]++")
_WHITE = (b" ", b"\t")
# What stands behind the name of a field that is removed: the rest of its lines.
_REST = rb"[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+"
#: How often all fields of a name are removed by a walk over the block, before it is parted.
_WALKS = 8


class Field:
    """One field as it stands in the block.  It never changes."""

    __match_args__ = ("name", "value")
    __slots__ = ("_key", "_lines", "_name_end", "_value_at")

    def __init__(self, lines: bytes | list[bytes]) -> None:
        #: A line on its own is kept without a list: a block may have 16,000 fields.
        self._lines = lines
        self._key: str | None = None
        #: Where in the first line the name ends (0: it is no field) and the value begins.  Looked
        #: for when it is needed first: most fields are never looked at.
        self._name_end = -1
        self._value_at = 0

    def _continue(self, line: bytes) -> None:
        """Take a further line, while the block is parted."""
        if isinstance(self._lines, bytes):
            self._lines = [self._lines]
        self._lines.append(line)

    @property
    def _first(self) -> bytes:
        lines = self._lines
        return lines if isinstance(lines, bytes) else lines[0]

    def _parsed(self) -> int:
        """Where the name ends; 0 if it is no field."""
        end = self._name_end
        if end < 0:
            match = _FIELD.match(self._first)
            end = self._name_end = match.end(1) if match else 0
            self._value_at = match.end() if match else 0
        return end

    @property
    def name(self) -> str:
        """The name as it is written; "" for lines that are no field."""
        end = self._parsed()
        return self._first[:end].decode("ascii") if end else ""

    @property
    def key(self) -> str:
        """The name in lower case."""
        key = self._key
        if key is None:
            key = self._key = self.name.lower()
        return key

    @property
    def lines(self) -> tuple[bytes, ...]:
        """The raw lines, without line ends."""
        lines = self._lines
        return (lines,) if isinstance(lines, bytes) else tuple(lines)

    @property
    def value(self) -> str:
        """The value, unfolded, without surrounding white space, decoded but for encoded-words.

        What isn't UTF-8 is kept as surrogate escapes.
        """
        self._parsed()
        return _value(self.lines, self._value_at)

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.value!r})"


class Headers:
    """A header block that can be searched and edited.

    Values that go in are folded and made safe (see `smtpd_filters.message.folding`); whatever
    adds or replaces a field raises ValueError for an invalid name.

    `cut` is true if the block was longer than is looked at, so that fields may stand beyond its
    end: a check that relies on a field being absent, or on having seen all of a name, has to look
    at it.
    """

    __slots__ = ("_changed", "_entries", "_gone", "_index", "_lines", "_text", "_walks", "cut")

    def __init__(self, lines: Iterable[bytes] = (), *, cut: bool = False) -> None:
        #: The block as lines, until something has to part it into entries; and these lines in lower
        #: case, as one text to be searched, each behind a line feed.
        self._lines = list(lines)
        self._text = b""
        self._entries: list[Field] | None = None
        #: Of the entries: which have been removed, and the others by their names in lower case;
        #: None where one has been added since.
        self._gone: set[Field] = set()
        self._index: dict[str, list[Field] | None] = {}
        self._changed = False
        self._walks = 0
        self.cut = cut

    @classmethod
    def parse(cls, lines: Iterable[bytes]) -> Headers:
        """Take raw lines without line ends and dot-stuffing, up to the empty line; never raises."""
        return cls(lines)

    @property
    def changed(self) -> bool:
        """Whether any edit was made."""
        return self._changed

    def snapshot(self) -> Snapshot:
        """What `restore` takes to undo the edits made from here on."""
        if self._entries is None:
            return list(self._lines), None, self._changed
        return [], list(self._settled()), self._changed

    def restore(self, before: Snapshot) -> None:
        """Restore a snapshot."""
        lines, entries, self._changed = before
        self._lines = list(lines)
        self._text = b""
        self._set_entries(None if entries is None else list(entries))

    def lines(self) -> list[bytes]:
        """The raw lines of the block as it is now."""
        if self._entries is None:
            return list(self._lines)
        return _lines_of(self._settled())

    def replace_lines(self, lines: Iterable[bytes]) -> None:
        """Put other raw lines in the place of all; they must be those of one block."""
        self._lines = list(lines)
        self._text = b""
        self._set_entries(None)
        self._changed = True

    def __iter__(self) -> Iterator[Field]:
        return iter([entry for entry in self._parsed() if entry.key])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    if TYPE_CHECKING:

        @overload
        def get(self, name: str) -> str | None: ...
        @overload
        def get(self, name: str, default: str) -> str: ...

    def get(self, name: str, default: str | None = None) -> str | None:
        """The value of the first field of that name (see `Field.value`)."""
        for value in self._values(name):
            return value
        return default

    def get_all(self, name: str) -> list[str]:
        """The values of all fields of that name, from the top."""
        return list(self._values(name))

    def fields(self, name: str) -> list[Field]:
        """All fields of that name, from the top."""
        return list(self._find(name))

    def names(self) -> list[str]:
        """The name of each field, as it is written, from the top."""
        return [field.name for field in self]

    def prepend(self, name: str, value: str | bytes) -> None:
        """Add a field at the top of the block."""
        new = field_lines(name, value)
        self._changed = True
        if self._entries is not None:
            # Opaque lines that begin with white space are one entry, and only at the top.
            entries = self._settled()
            at = 1 if entries and entries[0]._first.startswith(_WHITE) else 0  # noqa: SLF001
            self._insert(at, Field(new), name)
            return
        # Continuation lines that continue nothing would continue the new field.
        at = 0
        while at < len(self._lines) and self._lines[at].startswith(_WHITE):
            at += 1
        self._lines[at:at] = new
        self._text = b""

    def append(self, name: str, value: str | bytes) -> None:
        """Add a field at the bottom of the block."""
        new = field_lines(name, value)
        self._changed = True
        if self._entries is not None:
            self._insert(len(self._settled()), Field(new), name)
        else:
            self._lines += new
            self._text = b""

    def insert(self, index: int, name: str, value: str | bytes) -> None:
        """Add a field before the one that has `index` fields above it.

        Past the last, it goes to the bottom; a negative index counts from the end, as for
        `list.insert`. Of several fields inserted at one index the last stands highest: insert them
        in reverse to keep their order.
        """
        new = Field(field_lines(name, value))
        self._insert(_place(self._parsed(), index), new, name)
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
            entries = self._settled()
            old = found[nth - 1 if nth > 0 else nth]
            at = entries.index(old)
            entries[at] = Field(new)
            found[found.index(old)] = entries[at]
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
        if nth == 0 and self._entries is None and self._walks < _WALKS:
            return self._remove_all(name)
        found = self._find(name)
        chosen: set[Field] = set()
        for number in (nth,) if isinstance(nth, int) else nth:
            if number == 0:
                chosen.update(found)
            elif abs(number) <= len(found):
                chosen.add(found[number - 1 if number > 0 else number])
        if chosen:
            self._gone |= chosen
            self._index[name.lower()] = [field for field in found if field not in chosen]
            self._changed = True
        return len(chosen)

    # -- by name -------------------------------------------------------------------------

    def _values(self, name: str) -> Iterator[str]:
        if self._entries is not None:
            for field in self._find(name):
                yield field.value
            return
        lines = self._lines
        for at, colon in self._places(name):
            end = at + 1
            while end < len(lines) and lines[end].startswith(_WHITE):
                end += 1
            yield _value(lines[at:end], colon)

    def _places(self, name: str) -> list[tuple[int, int]]:
        """The lines that begin fields of that name, and where their values begin."""
        key = self._key(name)
        if not key:
            return []
        text = self._searchable()
        found = []
        number, before = 0, 0
        at = text.find(key)
        while at >= 0:
            number += text.count(b"\n", before, at)
            before = at
            match = _FIELD.match(self._lines[number])
            if match and match.end(1) == len(key) - 1:
                found.append((number, match.end()))
            at = text.find(key, at + 1)
        return found

    def _remove_all(self, name: str) -> int:
        """Remove all fields of that name without parting the block."""
        key = self._key(name)
        if not key or key not in self._searchable():
            return 0
        text = b"\n".join([b"", *self._lines])
        kept, count = re.subn(re.escape(key) + _REST, b"", text, flags=re.IGNORECASE)
        if count:
            self._lines = kept.split(b"\n")[1:]
            self._text = b""
            self._changed = True
            self._walks += 1
        return count

    def _key(self, name: str) -> bytes:
        """What the fields of that name begin with in `_searchable`; empty if there can be none."""
        try:
            key = name.lower().encode("ascii")
        except UnicodeEncodeError:
            return b""
        return b"\n" + key if _NAME.fullmatch(key) else b""

    def _searchable(self) -> bytes:
        """The lines in lower case, as one text, each behind a line feed."""
        if not self._text:
            self._text = b"\n".join([b"", *self._lines]).lower()
        return self._text

    def _find(self, name: str) -> list[Field]:
        """The fields of that name; the block is parted only if there are any."""
        key = name.lower()
        if not key or (self._entries is None and not self._places(name)):
            return []
        entries = self._parsed()
        if not self._index:
            self._index = _by_name(entries)
        found = self._index.get(key, [])
        if found is None:
            found = self._index[key] = [field for field in entries if field.key == key]
        return found

    # -- as entries ----------------------------------------------------------------------

    def _parsed(self) -> list[Field]:
        if self._entries is None:
            entries: list[Field] = []
            for line in self._lines:
                if entries and line.startswith(_WHITE):
                    entries[-1]._continue(line)  # noqa: SLF001  # of one module
                else:
                    entries.append(Field(line))
            self._set_entries(entries)
            self._lines = []
            self._text = b""
        return self._settled()

    def _set_entries(self, entries: list[Field] | None) -> None:
        self._entries = entries
        self._gone = set()
        self._index = {}

    def _settled(self) -> list[Field]:
        """The entries without those that were removed: many removals cost one walk."""
        entries = self._entries
        assert entries is not None  # noqa: S101  # asked for where there are any
        if self._gone:
            gone = self._gone
            self._entries = entries = [entry for entry in entries if entry not in gone]
            self._gone = set()
        return entries

    def _insert(self, at: int, new: Field, name: str) -> None:
        self._settled().insert(at, new)
        if self._index:
            self._index[name.lower()] = None


def _by_name(entries: list[Field]) -> dict[str, list[Field] | None]:
    index: dict[str, list[Field]] = {}
    for entry in entries:
        if key := entry.key:
            index.setdefault(key, []).append(entry)
    return index  # type: ignore[return-value]  # whose values may become None


def _lines_of(entries: list[Field]) -> list[bytes]:
    found: list[bytes] = []
    for entry in entries:
        lines = entry._lines  # noqa: SLF001  # of one module
        if isinstance(lines, bytes):
            found.append(lines)
        else:
            found += lines
    return found


def _value(lines: Iterable[bytes], colon: int) -> str:
    # RFC 5322 section 2.2.3: unfolding takes away the line breaks and nothing else.
    value = b"".join(lines)[colon:].strip(b" \t")
    return value.decode("utf-8", "surrogateescape")


def _place(entries: list[Field], index: int) -> int:
    """Return where the field stands that has `index` fields above it, counted as in a list.

    Walked from the end that is near: a header block may be long, and fields added many.
    """
    if index < 0:
        for at in range(len(entries) - 1, -1, -1):
            if entries[at].key:
                index += 1
                if not index:
                    return at
        index = 0
    for at, entry in enumerate(entries):
        if entry.key:
            if not index:
                return at
            index -= 1
    return len(entries)

"""The header block of a message: look-up of fields, and edits that preserve everything else.

Invariants
----------
*Untouched lines*: everything outside an edit keeps its bytes and its place. Lines that aren't
fields (a "From " line, text in place of a header, a continuation line without a field) are kept as
opaque entries, which are never found and never counted.
*Whole fields*: an edit affects whole fields. A new field never takes over the continuation lines
of another.
*Counting*: names match case-insensitively. Fields are counted from the top, starting at 1 for the
nth of a name (as in smfi_chgheader) and at 0 for a place in the block (as in smfi_insheader).
*Linear time*: a block may have 16,000 fields. Finding fields by name, adding them at the top or
bottom, and removing all of a name scans the lines in C and creates no object for each. Other
operations split the block into fields once.
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

# RFC 5322 section 2.2, and section 4.5 for white space before the colon. Possessive, since
# backtracking can't make a line without a colon match.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_NAME = re.compile(rb"[!-9;-~]++")
_WHITE = (b" ", b"\t")
# The lines of a field after its name.
_REST = rb"[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+"
#: How often the fields of a name are removed by a scan of the block before it is split instead.
_WALKS = 8


class Field:
    """One field of a header block; immutable."""

    __match_args__ = ("name", "value")
    __slots__ = ("_key", "_lines", "_name_end", "_value_at")

    def __init__(self, lines: bytes | list[bytes]) -> None:
        #: A single line is kept without a list: a block may have 16,000 fields.
        self._lines = lines
        self._key: str | None = None
        #: Where in the first line the name ends (0: not a field) and the value begins. Found on
        #: first use: most fields are never read.
        self._name_end = -1
        self._value_at = 0

    def _continue(self, line: bytes) -> None:
        """Add a continuation line while the block is being split."""
        if isinstance(self._lines, bytes):
            self._lines = [self._lines]
        self._lines.append(line)

    @property
    def _first(self) -> bytes:
        lines = self._lines
        return lines if isinstance(lines, bytes) else lines[0]

    def _parsed(self) -> int:
        """Return where the name ends, or 0 if this isn't a field."""
        end = self._name_end
        if end < 0:
            match = _FIELD.match(self._first)
            end = self._name_end = match.end(1) if match else 0
            self._value_at = match.end() if match else 0
        return end

    @property
    def name(self) -> str:
        """The name as it is written; "" for lines that aren't a field."""
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
        """The value, unfolded and without surrounding white space; encoded-words aren't decoded.

        Bytes that aren't UTF-8 become surrogate escapes.
        """
        self._parsed()
        return _value(self.lines, self._value_at)

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.value!r})"


class Headers:
    """A header block that can be searched and edited.

    New values are folded and made safe (see `smtpd_filters.message.folding`); methods that add or
    replace a field raise ValueError for an invalid name.

    `cut` is true if the block exceeded the limit, so that there may be fields beyond its end. A
    check that requires a field to be absent, or all fields of a name, has to check `cut`.
    """

    __slots__ = ("_changed", "_entries", "_index", "_lines", "_removed", "_text", "_walks", "cut")

    def __init__(self, lines: Iterable[bytes] = (), *, cut: bool = False) -> None:
        #: The block as lines, until it has to be split into entries; and the same lines in lower
        #: case, each after a line feed, as one text to search.
        self._lines = list(lines)
        self._text = b""
        self._entries: list[Field] | None = None
        #: The removed entries; and the other entries by name in lower case, or None for a name to
        #: which an entry has been added since.
        self._removed: set[Field] = set()
        self._index: dict[str, list[Field] | None] = {}
        self._changed = False
        self._walks = 0
        self.cut = cut

    @classmethod
    def parse(cls, lines: Iterable[bytes]) -> Headers:
        """Parse raw lines without line ends and dot-stuffing up to the empty line. Never raises."""
        return cls(lines)

    @property
    def changed(self) -> bool:
        """Whether any edit was made."""
        return self._changed

    def snapshot(self) -> Snapshot:
        """Return a snapshot for `restore`, which undoes later edits."""
        if self._entries is None:
            return list(self._lines), None, self._changed
        return [], list(self._current()), self._changed

    def restore(self, before: Snapshot) -> None:
        """Restore a snapshot."""
        lines, entries, self._changed = before
        self._lines = list(lines)
        self._text = b""
        self._set_entries(None if entries is None else list(entries))

    def differs(self, before: Snapshot) -> bool:
        """Return whether the block differs from a snapshot."""
        if not self._changed:
            return False
        lines, entries, _ = before
        return self.lines() != (lines if entries is None else _lines_of(entries))

    def lines(self) -> list[bytes]:
        """Return the raw lines of the block as it is now."""
        if self._entries is None:
            return list(self._lines)
        return _lines_of(self._current())

    def replace_lines(self, lines: Iterable[bytes]) -> None:
        """Replace all raw lines; the new ones must form one block."""
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
        """Return the value of the first field of that name (see `Field.value`)."""
        for value in self._values(name):
            return value
        return default

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields of that name, from the top."""
        return list(self._values(name))

    def fields(self, name: str) -> list[Field]:
        """Return all fields of that name, from the top."""
        return list(self._find(name))

    def names(self) -> list[str]:
        """Return the name of each field, as it is written, from the top."""
        return [field.name for field in self]

    def prepend(self, name: str, value: str | bytes) -> None:
        """Add a field at the top of the block."""
        new = field_lines(name, value)
        self._changed = True
        if self._entries is not None:
            # Opaque lines that begin with white space can only be the first entry.
            entries = self._current()
            at = 1 if entries and entries[0]._first.startswith(_WHITE) else 0  # noqa: SLF001
            self._insert(at, Field(new), name)
            return
        # Continuation lines without a field would become part of the new one.
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
            self._insert(len(self._current()), Field(new), name)
        else:
            self._lines += new
            self._text = b""

    def insert(self, index: int, name: str, value: str | bytes) -> None:
        """Add a field before the one that has `index` fields above it.

        Beyond the last field, it is added at the bottom; a negative index counts from the end, as
        in `list.insert`. Of several fields inserted at the same index the last is highest: insert
        them in reverse to keep their order.
        """
        new = Field(field_lines(name, value))
        self._insert(_place(self._parsed(), index), new, name)
        self._changed = True

    def replace(self, name: str, value: str | bytes, nth: int = 1, *, add: bool = False) -> bool:
        """Replace the nth field of that name, from the end if negative; return whether it exists.

        If it doesn't, nothing happens, or with `add` the field is added at the bottom. Raises
        ValueError if `nth` is 0.
        """
        if not nth:
            raise ValueError("nth must not be 0: fields are counted from 1, or from -1 upwards")
        new = field_lines(name, value)
        found = self._find(name)
        if abs(nth) <= len(found):
            entries = self._current()
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

        Several numbers all refer to the fields before the call. Returns the number of fields
        removed.
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
            self._removed |= chosen
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
        """Return the first line of each field of that name, and where its value begins."""
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
        """Remove all fields of that name without splitting the block."""
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
        """Return the beginning of that name's fields in `_searchable`; empty if it is invalid."""
        try:
            key = name.lower().encode("ascii")
        except UnicodeEncodeError:
            return b""
        return b"\n" + key if _NAME.fullmatch(key) else b""

    def _searchable(self) -> bytes:
        """Return the lines in lower case as one text, each after a line feed."""
        if not self._text:
            self._text = b"\n".join([b"", *self._lines]).lower()
        return self._text

    def _find(self, name: str) -> list[Field]:
        """Return the fields of that name; the block is split only if there are any."""
        key = name.lower()
        if not key or (self._entries is None and not self._places(name)):
            return []
        if not self._index:
            self._index = _by_name(self._parsed())
        found = self._index.get(key, [])
        if found is None:
            found = self._index[key] = [field for field in self._parsed() if field.key == key]
        return found

    # -- as entries ----------------------------------------------------------------------

    def _parsed(self) -> list[Field]:
        if self._entries is None:
            entries: list[Field] = []
            for line in self._lines:
                if entries and line.startswith(_WHITE):
                    entries[-1]._continue(line)  # noqa: SLF001  # same module
                else:
                    entries.append(Field(line))
            self._set_entries(entries)
            self._lines = []
            self._text = b""
        return self._current()

    def _set_entries(self, entries: list[Field] | None) -> None:
        self._entries = entries
        self._removed = set()
        self._index = {}

    def _current(self) -> list[Field]:
        """Return the entries without removed ones, so that many removals cost one scan."""
        entries = self._entries
        assert entries is not None  # noqa: S101  # the callers have split the block
        if self._removed:
            removed = self._removed
            self._entries = entries = [entry for entry in entries if entry not in removed]
            self._removed = set()
        return entries

    def _insert(self, at: int, new: Field, name: str) -> None:
        self._current().insert(at, new)
        if self._index:
            self._index[name.lower()] = None


def _by_name(entries: list[Field]) -> dict[str, list[Field] | None]:
    index: dict[str, list[Field]] = {}
    for entry in entries:
        if key := entry.key:
            index.setdefault(key, []).append(entry)
    return index  # type: ignore[return-value]  # its values may become None


def _lines_of(entries: list[Field]) -> list[bytes]:
    found: list[bytes] = []
    for entry in entries:
        lines = entry._lines  # noqa: SLF001  # same module
        if isinstance(lines, bytes):
            found.append(lines)
        else:
            found += lines
    return found


def _value(lines: Iterable[bytes], colon: int) -> str:
    # RFC 5322 section 2.2.3: unfolding removes the line breaks and nothing else.
    value = b"".join(lines)[colon:].strip(b" \t")
    return value.decode("utf-8", "surrogateescape")


def _place(entries: list[Field], index: int) -> int:
    """Return the position of the field that has `index` fields above it, counted as in a list.

    The search starts at the nearer end: a block may be long, and many fields may be added.
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

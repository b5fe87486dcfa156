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
*Linear time*: a block may have 16,000 fields. Finding, adding, replacing and removing fields
scans the text of the block in C. Iterating over all fields, and many edits, split it into fields
once.
*Small*: a block that wasn't split is one text. An object for each line would take ten times the
memory of a short line.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice

from .folding import field_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from typing import TypeAlias, overload

    #: The text or the entries of a block, and whether it was changed.
    Snapshot: TypeAlias = tuple[bytes, list["Field"] | None, bool]

# RFC 5322 section 2.2, and section 4.5 for white space before the colon. Possessive, since
# backtracking can't make a line without a colon match.
_FIELD = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_NAME = re.compile(rb"[!-9;-~]++")
_WHITE = (b" ", b"\t")
# A field after a line feed: its name, and its value with the continuation lines.
_WHOLE = re.compile(rb"\n([!-9;-~]++)[ \t]*+:([^\n]*+(?:\n[ \t][^\n]*+)*+)")
_LINE = re.compile(rb"\n([^\n]*+)")
# An entry after a line feed. Only the first may begin with white space.
_ENTRY = re.compile(rb"\n([^\n]*+(?:\n[ \t][^\n]*+)*+)")
# Continuation lines without a field, at the top.
_STRAY = re.compile(rb"(?:\n[ \t][^\n]*+)*+")
#: How many fields are found for edits of the text before the block is split instead: each takes
#: a quarter of a microsecond. And bytes of the text whose copies take as long as a field.
_WALKED, _COPIED = 1 << 16, 1 << 8


class Field:
    """One field of a header block; immutable."""

    __match_args__ = ("name", "value")
    __slots__ = ("_key", "_name_end", "_raw", "_value_at")

    def __init__(self, raw: bytes) -> None:
        #: The lines, separated by line feeds.
        self._raw = raw
        self._key: str | None = None
        #: Where the name ends (0: not a field) and the value begins. Found on first use: most
        #: fields are never read.
        self._name_end = -1
        self._value_at = 0

    def _parsed(self) -> int:
        """Return where the name ends, or 0 if this isn't a field."""
        end = self._name_end
        if end < 0:
            match = _FIELD.match(self._raw)
            end = self._name_end = match.end(1) if match else 0
            self._value_at = match.end() if match else 0
        return end

    @property
    def name(self) -> str:
        """The name as it is written; "" for lines that aren't a field."""
        end = self._parsed()
        return self._raw[:end].decode("ascii") if end else ""

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
        return tuple(self._raw.split(b"\n"))

    @property
    def value(self) -> str:
        """The value, unfolded and without surrounding white space; encoded-words aren't decoded.

        Bytes that aren't UTF-8 become surrogate escapes.
        """
        self._parsed()
        return _value(self._raw[self._value_at :])

    def __repr__(self) -> str:
        return f"Field({self.name!r}, {self.value!r})"


class Headers:
    """A header block that can be searched and edited.

    New values are folded and made safe (see `smtpd_filters.message.folding`); methods that add or
    replace a field raise ValueError for an invalid name.

    `cut` is true if the block exceeded the limit. What is beyond it is body, also for the
    recipient. A check of what the sender wrote, such as a signature, has to check `cut`.
    """

    __slots__ = ("_changed", "_entries", "_index", "_lower", "_removed", "_text", "_walked", "cut")

    def __init__(self, lines: Iterable[bytes] = (), *, cut: bool = False) -> None:
        #: The lines, each after a line feed, until the block has to be split into entries; and the
        #: same in lower case, to search.
        self._text = b"\n".join((b"", *lines)) if lines else b""
        self._lower = b""
        self._entries: list[Field] | None = None
        #: The removed entries; and the other entries by name in lower case, or None for a name to
        #: which an entry has been added since.
        self._removed: set[Field] = set()
        self._index: dict[str, list[Field] | None] = {}
        self._changed = False
        self._walked = 0
        self.cut = cut

    @classmethod
    def parse(cls, lines: Iterable[bytes]) -> Headers:
        """Parse raw lines without line ends and dot-stuffing up to the empty line. Never raises."""
        return cls(lines)

    @classmethod
    def of_text(cls, text: bytes, *, cut: bool = False) -> Headers:
        """Create a block from its raw lines as one text, each after a line feed. Never raises."""
        made = cls((), cut=cut)
        made._text = text
        return made

    @property
    def changed(self) -> bool:
        """Whether any edit was made."""
        return self._changed

    def snapshot(self) -> Snapshot:
        """Return a snapshot for `restore`, which undoes later edits."""
        if self._entries is None:
            return self._text, None, self._changed
        return b"", list(self._current()), self._changed

    def restore(self, before: Snapshot) -> None:
        """Restore a snapshot."""
        text, entries, self._changed = before
        self._set_text(text)
        if entries is not None:
            self._set_entries(list(entries))

    def differs(self, before: Snapshot) -> bool:
        """Return whether the block differs from a snapshot."""
        if not self._changed:
            return False
        text, entries, _ = before
        return self.text() != (text if entries is None else _text_of(entries))

    def lines(self) -> list[bytes]:
        """Return the raw lines of the block as it is now.

        The list may take ten times the memory of `text`.
        """
        return self.text().split(b"\n")[1:]

    def text(self) -> bytes:
        """Return the raw lines of the block as it is now as one text, each after a line feed."""
        return self._text if self._entries is None else _text_of(self._current())

    def each_line(self) -> Iterator[bytes]:
        """Yield the lines that `lines` lists; don't edit in between."""
        return (match[1] for match in _LINE.finditer(self.text()))

    def replace_lines(self, lines: Iterable[bytes]) -> None:
        """Replace all raw lines; the new ones must form one block."""
        self.replace_text(b"\n".join([b"", *lines]))

    def replace_text(self, text: bytes) -> None:
        """Replace all raw lines by those of a text, each after a line feed."""
        self._set_text(text)
        self._changed = True

    def __iter__(self) -> Iterator[Field]:
        return iter([entry for entry in self._parsed() if entry.key])

    def __len__(self) -> int:
        if self._entries is None:
            return sum(1 for _ in fields_in(self._text))
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
        return next(self.values(name), default)

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields of that name, from the top."""
        return list(self.values(name))

    def values(self, name: str) -> Iterator[str]:
        """Return an iterator of the values that `get_all` lists; don't edit in between."""
        if self._entries is None:
            return (_value(match[2]) for match in self._matches(name))
        return (field.value for field in self._find(name))

    def fields(self, name: str) -> list[Field]:
        """Return all fields of that name, from the top."""
        return list(self.each(name))

    def each(self, name: str) -> Iterator[Field]:
        """Return an iterator of the fields that `fields` lists; don't edit in between."""
        if self._entries is None:
            return (Field(match[0][1:]) for match in self._matches(name))
        return iter(self._find(name))

    def names(self) -> list[str]:
        """Return the name of each field, as it is written, from the top."""
        if self._entries is None:
            return [match[1].decode("ascii") for match in fields_in(self._text)]
        return [field.name for field in self]

    def prepend(self, name: str, value: str | bytes) -> None:
        """Add a field at the top of the block."""
        new = field_lines(name, value)
        self._changed = True
        if self._entries is not None:
            # Opaque lines that begin with white space can only be the first entry.
            entries = self._current()
            at = 1 if entries and entries[0]._raw.startswith(_WHITE) else 0  # noqa: SLF001
            self._insert(at, _field(new), name)
            return
        # Continuation lines without a field would become part of the new one.
        at = 0
        if self._text[1:2] in _WHITE and (stray := _STRAY.match(self._text)):
            at = stray.end()
        self._splice(at, at, new)

    def append(self, name: str, value: str | bytes) -> None:
        """Add a field at the bottom of the block."""
        new = field_lines(name, value)
        self._changed = True
        if self._entries is not None:
            self._insert(len(self._current()), _field(new), name)
        else:
            self._splice(len(self._text), len(self._text), new)

    def insert(self, index: int, name: str, value: str | bytes) -> None:
        """Add a field before the one that has `index` fields above it.

        Beyond the last field, it is added at the bottom; a negative index counts from the end, as
        in `list.insert`. Of several fields inserted at the same index the last is highest: insert
        them in reverse to keep their order.
        """
        new = field_lines(name, value)
        if self._entries is None and self._walked < _WALKED:
            at = self._place_in_text(index)
            self._splice(at, at, new)
        else:
            self._insert(_place(self._parsed(), index), _field(new), name)
        self._changed = True

    def replace(self, name: str, value: str | bytes, nth: int = 1, *, add: bool = False) -> bool:
        """Replace the nth field of that name, from the end if negative; return whether it exists.

        If it doesn't, nothing happens, or with `add` the field is added at the bottom. Raises
        ValueError if `nth` is 0.
        """
        if not nth:
            raise ValueError("nth must not be 0: fields are counted from 1, or from -1 upwards")
        new = field_lines(name, value)
        if self._edits_text(name):
            replaced = self._replace_in_text(name, new, nth)
        else:
            found = self._find(name)
            replaced = abs(nth) <= len(found)
            if replaced:
                entries = self._current()
                old = found[nth - 1 if nth > 0 else nth]
                at = entries.index(old)
                entries[at] = _field(new)
                found[found.index(old)] = entries[at]
        if replaced:
            self._changed = True
        elif add:
            self.append(name, value)
        return replaced

    def remove(self, name: str, nth: int | Iterable[int] = 0) -> int:
        """Remove the nth field of that name, from the end if negative; 0 means all of them.

        Several numbers all refer to the fields before the call. Returns the number of fields
        removed.
        """
        numbers = (nth,) if isinstance(nth, int) else nth
        if self._edits_text(name):
            return self._remove_from_text(name, numbers)
        found = self._find(name)
        chosen = {found[number - 1] for number in _chosen(numbers, len(found))}
        if chosen:
            self._removed |= chosen
            self._index[name.lower()] = [field for field in found if field not in chosen]
            self._changed = True
        return len(chosen)

    # -- by name, in the text ------------------------------------------------------------

    def _matches(self, name: str) -> Iterator[re.Match[bytes]]:
        """Return an iterator of the fields of that name."""
        if not self._lower:
            self._lower = self._text.lower()
        return fields_named(self._text, self._lower, name)

    def _edits_text(self, name: str) -> bool:
        """Return whether fields of that name are edited in the text: if there are none, always."""
        if self._entries is not None:
            return False
        return self._walked < _WALKED or next(self._matches(name), None) is None

    def _count(self, name: str) -> int:
        """Return the number of fields of that name, for an edit of the text."""
        count = sum(1 for _ in self._matches(name))
        if count:
            self._walk(count)
        return count

    def _walk(self, count: int) -> None:
        """Count an edit of the text that finds so many fields."""
        self._walked += count + 1 + len(self._text) // _COPIED

    def _place_in_text(self, index: int) -> int:
        """Return where the field begins that has `index` fields above it, as `_place` does."""
        if index < 0:
            index = max(len(self) + index, 0)
        above, end = 0, len(self._text)
        for match in fields_in(self._text):
            if above == index:
                end = match.start()
                break
            above += 1
        self._walk(above)
        return end

    def _replace_in_text(self, name: str, lines: list[bytes], nth: int) -> bool:
        count = self._count(name)
        if abs(nth) > count:
            return False
        match = next(islice(self._matches(name), nth - 1 if nth > 0 else count + nth, None))
        self._splice(match.start(), match.end(), lines)
        return True

    def _remove_from_text(self, name: str, numbers: Iterable[int]) -> int:
        chosen = _chosen(numbers, self._count(name))
        if not chosen:
            return 0
        text, kept, at = self._text, bytearray(), 0
        for number, match in enumerate(self._matches(name), 1):
            if number in chosen:
                kept += text[at : match.start()]
                at = match.end()
        kept += text[at:]
        self._set_text(bytes(kept))
        self._changed = True
        return len(chosen)

    def _splice(self, start: int, end: int, lines: list[bytes]) -> None:
        """Replace a part of the text by lines."""
        text = self._text
        self._set_text(b"\n".join([text[:start], *lines]) + text[end:])

    def _set_text(self, text: bytes) -> None:
        self._text, self._lower = text, b""
        if self._entries is not None:
            self._entries = None
            self._removed = set()
            self._index = {}

    # -- as entries ----------------------------------------------------------------------

    def _find(self, name: str) -> list[Field]:
        """Return the entries of that name."""
        key = name.lower()
        if not self._index:
            self._index = _by_name(self._parsed())
        found = self._index.get(key, [])
        if found is None:
            found = self._index[key] = [field for field in self._parsed() if field.key == key]
        return found

    def _parsed(self) -> list[Field]:
        if self._entries is None:
            self._set_entries([Field(match[1]) for match in _ENTRY.finditer(self._text)])
        return self._current()

    def _set_entries(self, entries: list[Field]) -> None:
        self._set_text(b"")
        self._entries = entries

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


def fields_in(text: bytes) -> Iterator[re.Match[bytes]]:
    """Return an iterator of the fields of a text of `Headers`, from the top.

    A match is a field after a line feed; its groups are the name, and the value with its folds.
    """
    return _WHOLE.finditer(text)


def fields_named(text: bytes, lower: bytes, name: str) -> Iterator[re.Match[bytes]]:
    """Yield the fields of a name, as `fields_in` does; `lower` is the text in lower case."""
    key = _key(name)
    at = lower.find(key) if key else -1
    while at >= 0:
        match = _WHOLE.match(text, at)
        if match and match.end(1) - at == len(key):
            yield match
            at = match.end() - 1
        at = lower.find(key, at + 1)


# The names that filters look for are few.
@lru_cache(maxsize=128)
def _key(name: str) -> bytes:
    """Return the beginning of the fields of a name in lower case; empty if it is invalid."""
    key = name.lower().encode("utf-8", "surrogatepass")
    return b"\n" + key if _NAME.fullmatch(key) else b""


def _by_name(entries: list[Field]) -> dict[str, list[Field] | None]:
    index: dict[str, list[Field]] = {}
    for entry in entries:
        if key := entry.key:
            index.setdefault(key, []).append(entry)
    return index  # type: ignore[return-value]  # its values may become None


def _text_of(entries: list[Field]) -> bytes:
    return b"\n".join([b"", *(entry._raw for entry in entries)])  # noqa: SLF001  # same module


def _field(lines: list[bytes]) -> Field:
    return Field(b"\n".join(lines))


def _chosen(numbers: Iterable[int], count: int) -> Collection[int]:
    """Return which of so many fields are meant: from 1, or from -1 upwards; 0 is all of them."""
    every = range(1, count + 1)
    if isinstance(numbers, range) and numbers.step == 1 and numbers.start > 0:
        return range(numbers.start, min(numbers.stop, count + 1))
    chosen = set()
    for number in numbers:
        if not number:
            return every
        if abs(number) <= count:
            chosen.add(number if number > 0 else count + 1 + number)
    return chosen


def _value(raw: bytes) -> str:
    # RFC 5322 section 2.2.3: unfolding removes the line breaks and nothing else.
    value = raw.replace(b"\n", b"").strip(b" \t")
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

"""The result of reading a message: its parts, and where programs would disagree about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .limits import HEAD, MEMBERS, PARTS, UNPACKED
from .signatures import TEXTUAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    class Storage(Protocol):
        """Bytes that are written once and read anywhere."""

        @property
        def size(self) -> int:
            """The number of bytes."""

        def write(self, data: bytes) -> None:
            """Append bytes."""

        def read(self, at: int, size: int) -> bytes:
            """Return at most `size` bytes from an offset; empty at the end."""

        def discard(self) -> None:
            """Release the bytes."""

    class Hash(Protocol):
        """A hash of bytes, as of `hashlib`."""

        def update(self, data: bytes, /) -> object:
            """Add bytes."""

        def hexdigest(self) -> str:
            """Return the digest of what was added."""


@dataclass(slots=True)
class Member:
    """A file in an archive: its names by all readings, its kind (`signatures`), its level."""

    names: tuple[str, ...]
    kind: str = ""
    depth: int = 1


class Entry(NamedTuple):
    """A header in an archive of which only headers are read; without names if it is no file's.

    `cost` is the work to read it, in units of about a microsecond. Without names, it counts as
    `unpacked` bytes, so that the number of headers has a limit.
    """

    names: tuple[str, ...] = ()
    encrypted: bool = False
    cost: int = 20
    unpacked: int = HEAD


@dataclass(slots=True)
class Part:
    """A part of a message that isn't a container of parts, or an attached message.

    `start`, `body` and `end` are offsets in the body of the message: of its header block, of its
    content, and of the line behind it; `start` is -1 for the message's own content, and all are -1
    for parts in encoded ones, which are in `outer`. `kind` is the type by content.
    """

    number: int
    depth: int
    type: str = ""
    types: tuple[str, ...] = ()
    encoding: str = ""
    disposition: str = ""
    charset: str = ""
    charsets: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    kind: str = ""
    size: int = 0
    start: int = -1
    body: int = -1
    end: int = -1
    head: bytes = b""
    #: Some of `encrypted`, `macros`, `message` (an attached one), and `unreadable` (an archive with
    #: contents that were not read, even if their names were).
    traits: set[str] = field(default_factory=set)
    members: list[Member] = field(default_factory=list)
    outer: Part | None = field(default=None, repr=False, compare=False)
    #: The decoded content of a text, as far as `Content.kept_left` allows.
    kept: list[bytes] = field(default_factory=list, repr=False, compare=False)
    #: The hash of the decoded content, if `Content.new_hash` makes any.
    hash: Hash | None = field(default=None, repr=False, compare=False)

    @property
    def attached(self) -> bool:
        """Whether a program would offer it as a file rather than show it as the text."""
        shown = self.is_text and self.kind in TEXTUAL
        return bool(self.names) or self.disposition == "attachment" or not shown

    @property
    def is_text(self) -> bool:
        """Whether it is declared as text, or not at all."""
        return not self.type or self.type.startswith("text/")


@dataclass(slots=True)
class FieldSeen:
    """A header field of a part: its raw lines, and whether it is in an attached message."""

    raw: bytes
    nested: bool


@dataclass(slots=True)
class Content:
    """What was found in a message, and what is left of its limits.

    `storage` makes a place for the decoded bytes of an archive, `new_hash` the hash of a part.
    """

    storage: Callable[[], Storage]
    new_hash: Callable[[], Hash] | None = None
    parts: list[Part] = field(default_factory=list)
    #: Where programs disagree, or where a limit was reached: a text for each, without repeats.
    oddities: dict[str, None] = field(default_factory=dict)
    #: Fields of parts and attached messages, if `keep_fields`; the caller takes them out after each
    #: piece, since a message may consist of them.
    fields: list[FieldSeen] = field(default_factory=list)
    keep_fields: bool = False
    #: Whether there are too many parts; what follows is not read.
    full: bool = False
    members_left: int = MEMBERS
    bytes_left: int = UNPACKED
    text_left: int = 0
    #: Whether texts are kept, how many bytes of them still may be, and whether some were left out.
    keeps_texts: bool = False
    kept_left: int = 0
    kept_cut: bool = False
    #: Whether a limit on parts, levels, header blocks or names kept something from being read.
    cut: bool = False
    #: Units of work (about a microsecond) for lines and parts since the caller set it to 0.
    work: int = 0

    @property
    def ambiguous(self) -> bool:
        """Whether programs would disagree about the message, or it is beyond a limit."""
        return bool(self.oddities)

    def odd(self, what: str) -> None:
        """Note an oddity."""
        self.oddities[what] = None

    def cut_off(self, what: str) -> None:
        """Note an oddity that kept a part or a name from being read."""
        self.cut = True
        self.odd(what)

    def add(self, depth: int) -> Part | None:
        """Return a new part; None if there are too many."""
        if len(self.parts) >= PARTS:
            self.cut_off("too many parts")
            self.full = True
            return None
        part = Part(len(self.parts), depth)
        if self.new_hash is not None:
            part.hash = self.new_hash()
        self.parts.append(part)
        return part

    def keep_text(self, part: Part, data: bytes) -> None:
        """Keep a piece of a text."""
        if len(data) > self.kept_left:
            self.kept_cut = True
            data = data[: self.kept_left]
        self.kept_left -= len(data)
        if data:
            part.kept.append(data)

    def drop_texts(self, parts: Iterable[Part]) -> None:
        """Make room for other texts: these are no parts after all."""
        for part in parts:
            self.text_left += len(part.head)
            self.kept_left += sum(map(len, part.kept))

    def keep(self, raw: bytes, *, nested: bool) -> None:
        """Keep a field for checks of the fields of parts."""
        if self.keep_fields:
            self.fields.append(FieldSeen(raw, nested))

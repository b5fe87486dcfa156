"""The multiparts that are open at a place of a message, and their delimiters."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .content import Content


class Level:
    """A multipart that is open: its delimiters, and whether the closing one has been seen.

    Without `boundaries` the first line with two dashes declares it.
    """

    __slots__ = ("boundaries", "closed", "depth", "nested")

    def __init__(self, boundaries: list[bytes], depth: int, *, nested: bool) -> None:
        self.boundaries = boundaries
        self.closed = False
        self.depth = depth
        self.nested = nested


class Levels:
    """The open multiparts from the outermost on, with an index of their delimiters."""

    __slots__ = ("_content", "_index", "_levels", "_starts")

    def __init__(self, content: Content) -> None:
        self._content = content
        self._levels: list[Level] = []
        #: The number of the level of each boundary, and the boundaries.
        self._index: dict[bytes, int] = {}
        self._starts: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def adopts(self) -> bool:
        """Whether the innermost one declares no boundary."""
        return not self._levels[-1].boundaries

    def declares(self, boundary: bytes) -> bool:
        """Return whether this is a boundary of the innermost one."""
        return boundary in self._levels[-1].boundaries

    @property
    def cost(self) -> int:
        """The units of work to compare a line with all delimiters."""
        return len(self._starts) // 12

    def push(self, level: Level) -> None:
        """Open a multipart."""
        self._levels.append(level)
        self._reindex()

    def back_to(self, number: int) -> Level:
        """End those within the one of this number, and return that."""
        self.close(number + 1)
        if len(self._levels) > number + 1:
            del self._levels[number + 1 :]
            self._reindex()
        return self._levels[number]

    def close(self, number: int) -> None:
        """Note if one from this number on has no end."""
        if any(not each.closed for each in self._levels[number:]):
            self._content.odd("no closing boundary")

    def adopt(self, line: bytes) -> bool:
        """Take the boundary of a multipart that declares none from a line; return whether it has.

        The line begins with two dashes.
        """
        text = line.strip()[2:].strip()
        if not text or text in self._index:
            return False
        self._levels[-1].boundaries.append(text)
        self._reindex()
        return True

    def crossed(self, line: bytes) -> tuple[int, bool] | None:
        """Return the level of a delimiter, and whether it is the closing one; None if it isn't."""
        text = line.rstrip()
        plain = text.lstrip()
        name = plain[2:]
        index = self._index
        found: tuple[int, bool] | None = None
        if name in index:
            found = index[name], False
        elif name.endswith(b"--") and name[:-2] in index:
            found = index[name[:-2]], True
        elif name.startswith(self._starts):
            found = self._prefix(name)
        if found is not None and plain != text:
            self._content.odd("indented boundary")
        return found

    def _prefix(self, name: bytes) -> tuple[int, bool] | None:
        """Find a boundary with which a line begins, followed by a blank or dashes."""
        longest = max((each for each in self._starts if name.startswith(each)), key=len)
        rest = name[len(longest) :]
        if not rest.startswith((b" ", b"\t", b"--")):
            return None
        self._content.odd("text behind a boundary")
        return self._index[longest], rest.startswith(b"--")

    def _reindex(self) -> None:
        self._index = {
            boundary: number
            for number, level in enumerate(self._levels)
            for boundary in level.boundaries
        }
        self._starts = tuple(self._index)

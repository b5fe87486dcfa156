"""Tables of regular expressions, which `ere` parses and `automaton` matches."""

from __future__ import annotations

from .source import KEY_MAX
from .table import Content, Table, checked_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .automaton import Automaton

# Positions in one automaton: a compromise between short integers and few automata.
_GROUP_SIZE = 1024
# Cached sets of all automata of a table: about 1 KB each, with its steps.
MEMORY = 2048
# Units of work (see `source.STEP`) for adding a byte of a pattern, or a position.
_WORK = 100


class _Patterns(Content):
    __slots__ = ("_cost", "_entries", "_groups")

    memory = MEMORY

    def __init__(self, size: int) -> None:
        super().__init__(size)
        # Imported here: filters without such a table don't load these modules, and one whose table
        # is empty at first must not load them later, when an upgrade may have replaced them.
        from . import automaton, ere  # noqa: F401

        self._entries: list[str] = []
        # The automata, each with the number of its first entry.
        self._groups: list[tuple[int, Automaton]] = []
        self._cost = 0

    def add(self, text: str) -> int:
        from .automaton import TOTAL_MAX, Automaton
        from .ere import parse

        pattern = _lower(checked_key(text)).removeprefix("(?i)")
        node = parse(pattern.encode("utf-8", "surrogateescape"))
        if not self._groups or self._groups[-1][1].size + node.size > _GROUP_SIZE:
            self._groups.append((len(self._entries), Automaton()))
        automaton = self._groups[-1][1]
        self._cost += automaton.add(node)
        if self._cost > TOTAL_MAX:
            raise ValueError(f"table takes more than {TOTAL_MAX} operations a byte")
        self._entries.append(text)
        return _WORK * (len(pattern) + node.size)

    def finish(self) -> Iterator[None]:
        for _, automaton in self._groups:
            automaton.finish(max(1, self.memory // len(self._groups)))
            yield

    def find(self, key: str) -> str | None:
        if len(key) > KEY_MAX:
            return None
        text = _lower(key)
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            # A surrogate that isn't an escaped byte, which UTF-7 can write.
            data = text.encode("utf-8", "replace")
        if len(data) <= KEY_MAX:
            for number, automaton in self._groups:
                found = automaton.match(data)
                if found is not None:
                    return self._entries[number + found]
        return None

    def release(self) -> Iterator[None]:
        while self._groups:
            self._groups.pop()[1].release()
            yield

    def __len__(self) -> int:
        return len(self._entries)


class RegexTable(Table):
    """A list of POSIX extended regular expressions; an entry covers every key that it matches in.

    As in smtpd: entries and keys are converted to lower case first, so matching ignores case (a
    leading `(?i)` is allowed and has no effect); a dot matches any byte. Unlike in smtpd, matching
    also ignores the case of letters beyond ASCII, and their composed and decomposed forms are equal
    (NFC).

    As in smtpd, no entry covers a key of more than 1,023 bytes (in UTF-8), whatever its pattern. If
    a match means a refusal and the key is a client's, such as the value of a field, refuse a longer
    one as well. The names that `read_parts` returns are never as long.

    `match` returns the first matching entry of the table.
    """

    __slots__ = ()
    _content: _Patterns
    contents = _Patterns
    service = "regex"


def _lower(text: str) -> str:
    """Convert all letters to lower case and compose them."""
    if text.isascii():
        return text.lower()
    from unicodedata import normalize  # rarely needed

    return normalize("NFC", text).lower()

"""Tables of regular expressions; how they are matched is in `ere` and `automaton`."""

from __future__ import annotations

from smtpd_filters.tables.source import KEY_MAX, Source
from smtpd_filters.tables.table import Table, short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.tables.automaton import Automaton

# Positions in one automaton: the integers stay short, and few automata are run.
_GROUP_SIZE = 1024


class RegexTable(Table):
    """A list of POSIX extended regular expressions; an entry covers a key it matches anywhere in.

    As in smtpd: entries and keys are lower-cased first, so that case makes no difference (a
    leading `(?i)` is allowed and changes nothing); a dot is any byte; a key of more than 1,023
    bytes is covered by nothing. Other than in smtpd, letters beyond ASCII have no case either, and
    composed and decomposed ones are the same (NFC).

    `match` returns the first entry of the table that matches.
    """

    __slots__ = ("_entries", "_groups")
    _entries: list[str]
    # Automata, each with the number of its first entry.
    _groups: list[tuple[int, Automaton]]

    def _load(self, source: Source) -> None:
        # Here, not above: filters that have no regular expressions start without.
        from smtpd_filters.tables.automaton import MEMORY, TOTAL_MAX, Automaton
        from smtpd_filters.tables.ere import parse

        entries: list[str] = []
        groups: list[tuple[int, Automaton]] = []
        cost = 0

        def add(text: str) -> None:
            nonlocal cost
            pattern = _lower(short(text)).removeprefix("(?i)")
            node = parse(pattern.encode("utf-8", "surrogateescape"))
            if not groups or groups[-1][1].size + node.size > _GROUP_SIZE:
                groups.append((len(entries), Automaton()))
            automaton = groups[-1][1]
            cost += automaton.add(node)
            if cost > TOTAL_MAX:
                raise ValueError(f"table takes more than {TOTAL_MAX} operations a byte")
            entries.append(text)

        source.texts(add)
        for _, automaton in groups:
            automaton.finish(max(1, MEMORY // len(groups)))
        self._entries, self._groups = entries, groups

    def _find(self, key: str) -> str | None:
        if len(key) > KEY_MAX:
            return None
        try:
            text = _lower(key).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # a surrogate that stands for no byte
            return None
        if len(text) <= KEY_MAX:
            for number, automaton in self._groups:
                found = automaton.match(text)
                if found is not None:
                    return self._entries[number + found]
        return None

    def __len__(self) -> int:
        return len(self._entries)


def _lower(text: str) -> str:
    """Lower-case any letters, and compose them."""
    if text.isascii():
        return text.lower()
    from unicodedata import normalize  # only for this

    return normalize("NFC", text).lower()

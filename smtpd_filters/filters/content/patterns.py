"""Regular expressions of rules: many patterns matched at once, in steps.

Invariants
----------
*Linear*: see `smtpd_filters.tables.automaton`; nothing backtracks.
*In steps*: a match yields often enough, however much a byte costs, and so does composing a text.
"""

from __future__ import annotations

from unicodedata import normalize

from smtpd_filters.tables.automaton import Automaton
from smtpd_filters.tables.ere import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from smtpd_filters.tables.ere import Node

#: Positions in one automaton, and cached sets of all, as in `smtpd_filters.tables.patterns`.
_GROUP, _MEMORY = 1024, 2048
#: Operations a byte of all patterns together: a byte for which nothing is cached takes 0.2 ms.
COST_MAX = 2000
#: Operations between two yields, of which one takes 0.1 us.
_STEP_OPERATIONS = 50_000
#: Characters that are composed together, since normalisation takes quadratic time (0.1 ms for these
#: in the worst case), and how many of them without an ASCII character, which marks don't join.
_BLOCK, _LEAST = 256, 128


class Patterns:
    """Patterns that are matched together: `add` each, then `finish`."""

    __slots__ = ("_count", "_groups")

    def __init__(self) -> None:
        #: The automata, each with the number of its first pattern and its cost.
        self._groups: list[tuple[Automaton, int, int]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, node: Node) -> int:
        """Add a pattern and return its number; raise ValueError if it costs too much."""
        if not self._groups or self._groups[-1][0].size + node.size > _GROUP:
            self._groups.append((Automaton(), self._count, 0))
        automaton, first, cost = self._groups.pop()
        cost += automaton.add(node)
        self._groups.append((automaton, first, cost))
        if sum(cost for _, _, cost in self._groups) > COST_MAX:
            raise ValueError(f"the patterns take more than {COST_MAX} operations a byte together")
        self._count += 1
        return self._count - 1

    def finish(self) -> None:
        """Prepare for `matches`."""
        for automaton, _, _ in self._groups:
            automaton.finish(max(1, _MEMORY // len(self._groups)))

    def matches(self, key: bytes) -> Generator[int, None, set[int]]:
        """Return the numbers of the patterns that match; yields units of work (`runtime.pace`)."""
        found: set[int] = set()
        for automaton, first, cost in self._groups:
            size = max(16, min(4096, _STEP_OPERATIONS // cost))
            each = min(size, len(key)) // 16 + 1
            steps = automaton.matches(key, size)
            try:
                while True:
                    yield each + next(steps) * cost // 10
            except StopIteration as end:
                found.update(first + number for number in end.value)
        return found


def folded(text: str) -> bytes:
    """Return a text as it is matched regardless of case: in lower case, composed, as UTF-8."""
    steps = folding(text)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: bytes = end.value
        return found


def folding(text: str) -> Generator[int, None, bytes]:
    """Do as `folded`, in steps; yields units of work (`runtime.pace`)."""
    if text.isascii():
        return text.lower().encode()
    blocks = []
    at = 0
    while at < len(text):
        end = min(at + _BLOCK, len(text))
        if end < len(text):
            end = next((e for e in range(end, at + _LEAST, -1) if text[e].isascii()), end)
        blocks.append(normalize("NFC", text[at:end]))
        yield (end - at) // 2
        at = end
    return "".join(blocks).lower().encode("utf-8", "replace")


def posix(pattern: str) -> Node:
    """Parse a POSIX extended regular expression for `folded` keys; raise ValueError."""
    return parse(folded(pattern.removeprefix("(?i)")))

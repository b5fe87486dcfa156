"""Many regular expressions as one automaton, without backtracking.

The law:

1. A key is read once, a byte at a time; a byte costs at most `cost` operations on integers,
   whatever the key and whatever the patterns. No key can make a match explode.
2. What it costs is known when the table is loaded, and bounded there (`COST_MAX`, `TOTAL_MAX`).

How it works. Write out the repeats of a pattern and number the places where it takes a byte: its
positions (Glushkov's construction). A set of positions is an integer with a bit for each. Reading
a byte takes every position that is active to those that may follow, and keeps what accepts the
byte: `follow(active) & accepting[byte]`. Nearly all of `follow` is "the next position" (one
shift) and "the same again" (one mask); what is left are rules "if any of these is active, those
become active", one for each joint of the pattern, not one for each pair of positions.

Reached sets are remembered with the steps between them, so that after a few keys most bytes cost
one look-up in a dict. The memory for that is bounded, too: when it is full, it starts anew.

Anchors take no byte; they decide in which of four places something may match nothing, hence what
can come first at the start of the key, and what can come last at its end.
"""

from __future__ import annotations

from bisect import bisect_right

from .ere import Anchor, Bytes, Choice, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .ere import Node, Repeat

# The places of an empty match in a key, as bits: within, at the start, at the end, and an empty
# key, which is start and end at once.
_WITHIN, _START, _END, _EMPTY = 1, 2, 4, 8
_ANYWHERE = _WITHIN | _START | _END | _EMPTY

# Operations a byte, of one pattern and of a table. One was measured at 0.1 µs: 255 bytes that
# nothing is remembered of cost one pattern at most 8 ms and a table 0.2 s.
COST_MAX = 300
TOTAL_MAX = 8000
_BASE_COST = 4


class _Part:
    """A piece of a pattern, by the positions that it can begin and end with.

    `first` and `last` hold within a key, `first_at_start` and `last_at_end` where anchors hold;
    `null` has the places where the piece may match nothing.
    """

    __slots__ = ("first", "first_at_start", "last", "last_at_end", "null")

    def __init__(self, null: int, positions: int = 0) -> None:
        self.null = null
        self.first = self.first_at_start = self.last = self.last_at_end = positions


class _State(dict[int, "_State"]):
    """A reached set: the step for each byte, filled in as it is asked for."""

    __slots__ = ("automaton", "ends", "follows", "hits")

    def __init__(self, automaton: Automaton, reached: int) -> None:
        self.automaton = automaton
        self.hits = reached & automaton.last
        self.ends = reached & automaton.last_at_end
        self.follows = automaton.follow(reached) | automaton.first

    def __missing__(self, byte: int) -> _State:
        state = self.automaton.state(self.follows & self.automaton.accepting[byte])
        self[byte] = state
        return state


class Automaton:
    """Patterns that are matched together. `add` them, then `finish`, then `match`."""

    __slots__ = (
        "_begin", "_bounds", "_loops", "_memory", "_next", "_null", "_rules", "_sets", "_start",
        "_states", "accepting", "first", "last", "last_at_end", "size",
    )  # fmt: skip

    def __init__(self) -> None:
        self.size = 0
        self.first = self.last = self.last_at_end = 0
        self._begin = 0  # first, where the key begins
        self._next = 0  # positions that are followed by the one after them
        self._loops = 0  # positions that are followed by themselves
        self._rules: list[tuple[int, int]] = []
        self._sets: dict[int, int] = {}
        self._bounds: list[int] = []
        self._null: list[int] = []
        self._memory = 0
        self._states: dict[int, _State] = {}
        self.accepting: list[int] = []

    def add(self, node: Node) -> int:
        """Add a pattern and say what it costs: operations a byte.

        Raises ValueError if that is more than `COST_MAX`.
        """
        before = len(self._rules) - (0 if self._bounds else _BASE_COST)
        self._bounds.append(self.size)
        whole = self._part(node)
        self.first |= whole.first
        self.last |= whole.last
        self.last_at_end |= whole.last_at_end
        self._begin |= whole.first_at_start
        self._null.append(whole.null)
        if (cost := len(self._rules) - before) > COST_MAX:
            raise ValueError(f"pattern takes {cost} operations a byte, more than {COST_MAX}")
        return cost

    def finish(self, memory: int) -> None:
        """Make ready to match, remembering at most that many sets."""
        self._memory = memory
        self.accepting = [0] * 256
        for members, positions in self._sets.items():
            for byte in range(members.bit_length()):
                if members >> byte & 1:
                    self.accepting[byte] |= positions
        self._start = _State(self, 0)
        self._start.follows = self._begin

    def match(self, key: bytes) -> int | None:
        """Find the first pattern that matches somewhere in the key: its number, or None."""
        places = _START | _END if key else _EMPTY
        found = next((i for i, null in enumerate(self._null) if null & places), None)
        hits = 0
        state = self._start
        for byte in key:
            state = state[byte]
            hits |= state.hits
        hits |= state.ends
        if not hits:
            return found
        lowest = bisect_right(self._bounds, (hits & -hits).bit_length() - 1) - 1
        return lowest if found is None else min(lowest, found)

    def follow(self, reached: int) -> int:
        """Give the positions that can come behind those reached."""
        follows = (reached & self._next) << 1 | reached & self._loops
        for sources, targets in self._rules:
            if reached & sources:
                follows |= targets
        return follows

    def state(self, reached: int) -> _State:
        """Give the state of a reached set, remembered or new."""
        state = self._states.get(reached)
        if state is None:
            if len(self._states) >= self._memory:
                self._forget()
            state = self._states[reached] = _State(self, reached)
        return state

    def release(self) -> None:
        """Free what is remembered; nothing is matched any more."""
        if self._memory:
            self._forget()

    def _forget(self) -> None:
        # The steps make circles of states: without them, nothing waits for the garbage collector.
        for state in self._states.values():
            state.clear()
        self._states.clear()
        self._start.clear()

    def _part(self, node: Node) -> _Part:
        match node:
            case Bytes(members):
                position = 1 << self.size
                self.size += 1
                self._sets[members] = self._sets.get(members, 0) | position
                return _Part(0, position)
            case Anchor(at_end):
                return _Part(_END | _EMPTY if at_end else _START | _EMPTY)
            case Sequence(parts):
                whole = self._part(parts[0])
                for part in parts[1:]:
                    whole = self._joined(whole, self._part(part))
                return whole
            case Choice(parts):
                return self._choice([self._part(part) for part in parts])
            case _:
                return self._repeat(node)

    def _choice(self, parts: list[_Part]) -> _Part:
        whole = _Part(0)
        for part in parts:
            whole.null |= part.null
            whole.first |= part.first
            whole.first_at_start |= part.first_at_start
            whole.last |= part.last
            whole.last_at_end |= part.last_at_end
        return whole

    def _repeat(self, node: Repeat) -> _Part:
        low, high = node.low, node.high
        if high == 0:
            return _Part(_ANYWHERE)
        copies = [self._part(node.body) for _ in range(max(low, 1) if high is None else high)]
        whole = copies.pop()
        if high is None:
            self._rule(whole.last, whole.first)
        # x{2,4} is xx(x(x)?)?: in this order each copy leads to the next one only.
        for number in range(len(copies), 0, -1):
            if number >= low:
                whole.null = _ANYWHERE
            whole = self._joined(copies.pop(), whole)
        if not low:
            whole.null = _ANYWHERE
        return whole

    def _joined(self, one: _Part, two: _Part) -> _Part:
        self._rule(one.last, two.first)
        whole = _Part(one.null & two.null)
        whole.first = one.first | (two.first if one.null & _WITHIN else 0)
        whole.first_at_start = one.first_at_start | (two.first_at_start if one.null & _START else 0)
        whole.last = two.last | (one.last if two.null & _WITHIN else 0)
        whole.last_at_end = two.last_at_end | (one.last_at_end if two.null & _END else 0)
        return whole

    def _rule(self, sources: int, targets: int) -> None:
        if not sources or not targets:
            return  # an anchor on one side: nothing leads across it
        if not sources & (sources - 1) and targets in (sources, sources << 1):
            if targets == sources:
                self._loops |= sources
            else:
                self._next |= sources
            return
        self._rules.append((sources, targets))

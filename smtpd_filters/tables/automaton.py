"""An automaton that matches many regular expressions at once, without backtracking.

Invariants
----------
*Linear*: a key is read once, byte by byte; each byte takes at most as many integer operations as
`add` returned for the patterns, whatever the key.
*Bounded*: that number is known when a table is loaded, and limited (`COST_MAX`, `TOTAL_MAX`).

How it works. Write out the repeats of a pattern and number the places where it consumes a byte:
its positions (Glushkov's construction). A set of positions is an integer with one bit each.
Reading a byte replaces the active positions by those that may follow them and accept the byte:
`follow(active) & accepting[byte]`. Nearly all of `follow` is "the next position" (one shift) and
"the same again" (one mask). The rest are rules "if any of these is active, those become active",
one for each junction of the pattern rather than for each pair of positions.

Reached sets and the steps between them are cached, so that after a few keys most bytes cost one
look-up in a dict. The cache is bounded: when it is full, it is emptied.

Anchors consume no byte. They restrict where in the key a part may match the empty string, and so
which positions can be first at the start of the key and last at its end.
"""

from __future__ import annotations

from bisect import bisect_right

from .ere import Anchor, Bytes, Choice, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from .ere import Node, Repeat

# The places of an empty match, as bits: inside a key, at its start, at its end, and in an empty
# key, which is both.
_WITHIN, _START, _END, _EMPTY = 1, 2, 4, 8
_ANYWHERE = _WITHIN | _START | _END | _EMPTY

# Operations a byte, of one pattern and of a table. One takes 0.1 µs (measured): 255 bytes for
# which nothing is cached cost one pattern at most 8 ms and a table 0.2 s.
COST_MAX = 300
TOTAL_MAX = 8000
_BASE_COST = 4


class _Part:
    """A part of a pattern, described by the positions that it can begin and end with.

    `first` and `last` apply inside a key, `first_at_start` and `last_at_end` where anchors match;
    `null` are the places where the part can match the empty string.
    """

    __slots__ = ("first", "first_at_start", "last", "last_at_end", "null")

    def __init__(self, null: int, positions: int = 0) -> None:
        self.null = null
        self.first = self.first_at_start = self.last = self.last_at_end = positions


class _State(dict[int, "_State"]):
    """A reached set: a dict of the next state for each byte, filled on demand."""

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
    """Patterns that are matched together: call `add` for each, then `finish`, then `match`."""

    __slots__ = (
        "_begin", "_bounds", "_loops", "_memory", "_next", "_null", "_rules", "_sets", "_start",
        "_states", "accepting", "first", "last", "last_at_end", "made", "size",
    )  # fmt: skip

    def __init__(self) -> None:
        self.size = 0
        #: The number of sets that were not cached.
        self.made = 0
        self.first = self.last = self.last_at_end = 0
        self._begin = 0  # `first` at the start of the key
        self._next = 0  # positions that the next position may follow
        self._loops = 0  # positions that may follow themselves
        self._rules: list[tuple[int, int]] = []
        self._sets: dict[int, int] = {}
        self._bounds: list[int] = []
        self._null: list[int] = []
        self._memory = 0
        self._states: dict[int, _State] = {}
        self.accepting: list[int] = []

    def add(self, node: Node) -> int:
        """Add a pattern and return its cost in operations a byte.

        Raises ValueError if the cost exceeds `COST_MAX`.
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
        """Prepare for `match`, with a cache of at most `memory` sets."""
        self._memory = memory
        self.accepting = [0] * 256
        for members, positions in self._sets.items():
            for byte in range(members.bit_length()):
                if members >> byte & 1:
                    self.accepting[byte] |= positions
        self._start = _State(self, 0)
        self._start.follows = self._begin

    def match(self, key: bytes) -> int | None:
        """Return the number of the first pattern that matches in the key, or None."""
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

    def matches(self, key: bytes, size: int) -> Generator[int, None, set[int]]:
        """Return the numbers of all patterns that match in the key.

        Yields after each `size` bytes the number of sets that were not cached.
        """
        places = _START | _END if key else _EMPTY
        found = {number for number, null in enumerate(self._null) if null & places}
        hits = 0
        state = self._start
        for at in range(0, len(key), size):
            before = self.made
            for byte in key[at : at + size]:
                state = state[byte]
                hits |= state.hits
            yield self.made - before
        hits |= state.ends
        while hits:
            lowest = hits & -hits
            number = bisect_right(self._bounds, lowest.bit_length() - 1) - 1
            found.add(number)
            end = self._bounds[number + 1] if number + 1 < len(self._bounds) else self.size
            hits = hits >> end << end
        return found

    def follow(self, reached: int) -> int:
        """Return the positions that can follow those reached."""
        follows = (reached & self._next) << 1 | reached & self._loops
        for sources, targets in self._rules:
            if reached & sources:
                follows |= targets
        return follows

    def state(self, reached: int) -> _State:
        """Return the state of a reached set, cached or new."""
        state = self._states.get(reached)
        if state is None:
            self.made += 1
            if len(self._states) >= self._memory:
                self._forget()
            state = self._states[reached] = _State(self, reached)
        return state

    def release(self) -> None:
        """Empty the cache; `match` must not be called afterwards."""
        if self._memory:
            self._forget()

    def _forget(self) -> None:
        # The steps are reference cycles: broken here, they need no garbage collection.
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
        # x{2,4} is xx(x(x)?)?: built from the end, each copy leads only to the next one.
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
            return  # an anchor on one side has no positions
        if not sources & (sources - 1) and targets in (sources, sources << 1):
            if targets == sources:
                self._loops |= sources
            else:
                self._next |= sources
            return
        self._rules.append((sources, targets))

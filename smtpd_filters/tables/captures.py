"""A matcher of one regular expression that returns what its groups have matched.

`automaton` says in linear time which expression of a table matches; this finds what is in the
parentheses of that one. It keeps one thread for each instruction of the pattern, in the order in
which a matcher that backtracks would try them (R. Cox, "Regular Expression Matching: the Virtual
Machine Approach"). Of several ways to match, that of Perl is returned: the leftmost, then the first
alternative and the longest repeat, or the shortest of a lazy one.

Invariants
----------
*Bounded*: each instruction is visited once at each place of the key, so a match takes at most the
product of the two sizes; a pattern has at most `SIZE_MAX` instructions.
"""

from __future__ import annotations

from .ere import Anchor, Bytes, Choice, Group, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from .ere import Node, Repeat

#: Instructions of a program. With a key of 320 bytes, the longest of addresses, a match takes 30 ms
#: in the worst case.
SIZE_MAX = 200
_CHAR, _FORK, _SAVE, _START, _END, _MATCH = range(6)
#: Instructions visited in a step, of which one takes about 0.3 us.
_STEP = 3000


class Captures:
    """The groups of a pattern, which `ere.parse` or a dialect of it has parsed.

    With `whole` the pattern has to match the whole key. Raises ValueError for a pattern of more
    than `limit` instructions.
    """

    __slots__ = ("_code", "_limit", "_whole", "groups", "steps")

    def __init__(self, node: Node, *, whole: bool = False, limit: int = SIZE_MAX) -> None:
        #: Instructions with one or two operands.
        self._code: list[tuple[int, int, int]] = []
        self._limit = limit
        self._whole = whole
        #: The instructions visited by the last match.
        self.steps = 0
        #: The number of groups.
        self.groups = 0
        self._emit(Group(node, 0))
        if whole:
            self._add(_END)
        self._add(_MATCH)

    @property
    def size(self) -> int:
        """The number of instructions."""
        return len(self._code)

    def match(self, key: bytes) -> list[tuple[int, int]] | None:
        """Return where the whole match and each group begin and end, or None.

        A group that took no part is at (-1, -1).
        """
        steps = self.search(key)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            found: list[tuple[int, int]] | None = end.value
            return found

    def search(self, key: bytes) -> Generator[int, None, list[tuple[int, int]] | None]:
        """Do as `match`, in steps; yield the work of each (`runtime.pace`)."""
        best: dict[int, int] | None = None
        threads: list[tuple[int, dict[int, int]]] = []
        self.steps = step = 0
        code, length = self._code, len(key)
        for at in range(length + 1):
            ready: list[tuple[int, dict[int, int]]] = []
            seen: set[int] = set()
            if best is None and (at == 0 or not self._whole):
                threads.append((0, {}))
            self._follow(threads, at, length, ready, seen)
            threads = []
            byte = 1 << key[at] if at < length else 0
            for place, saved in ready:
                kind, members, _ = code[place]
                if kind == _MATCH:
                    best = saved
                    break  # threads behind it have a lower priority
                if members & byte:
                    threads.append((place + 1, saved))
            step += len(seen) + 1
            if step > _STEP:
                self.steps += step
                yield step // 2
                step = 0
            if not threads and (best is not None or self._whole):
                break
        self.steps += step
        if best is None:
            return None
        slots = range(0, 2 * self.groups + 2, 2)
        return [(best.get(slot, -1), best.get(slot + 1, -1)) for slot in slots]

    def _follow(
        self,
        threads: list[tuple[int, dict[int, int]]],
        at: int,
        length: int,
        ready: list[tuple[int, dict[int, int]]],
        seen: set[int],
    ) -> None:
        """Add the threads that these lead to without reading a byte, in order."""
        code = self._code
        stack = threads[::-1]
        while stack:
            place, saved = stack.pop()
            if place in seen:
                continue
            seen.add(place)
            kind, one, two = code[place]
            if kind == _FORK:
                if two >= 0:
                    stack.append((two, saved))
                stack.append((one, saved))
            elif kind == _SAVE:
                stack.append((place + 1, {**saved, one: at}))
            elif kind in (_START, _END):
                if at == (0 if kind == _START else length):
                    stack.append((place + 1, saved))
            else:
                ready.append((place, saved))

    # -- the program -------------------------------------------------------------------------

    def _add(self, kind: int, one: int = 0, two: int = -1) -> int:
        if len(self._code) >= self._limit:
            raise ValueError(f"a pattern with groups has at most {self._limit} parts")
        self._code.append((kind, one, two))
        return len(self._code) - 1

    def _emit(self, node: Node) -> None:
        match node:
            case Group():
                self.groups = max(self.groups, node.number)
                self._add(_SAVE, 2 * node.number)
                self._emit(node.parts[0])
                self._add(_SAVE, 2 * node.number + 1)
            case Bytes(members):
                self._add(_CHAR, members)
            case Anchor(at_end):
                self._add(_END if at_end else _START)
            case Sequence(parts):
                for part in parts:
                    self._emit(part)
            case Choice(parts):
                self._choice(parts)
            case _:
                self._repeat(node)

    def _choice(self, parts: list[Node]) -> None:
        jumps = []
        for part in parts[:-1]:
            fork = self._add(_FORK)
            self._emit(part)
            jumps.append(self._add(_FORK))
            self._code[fork] = (_FORK, fork + 1, len(self._code))
        self._emit(parts[-1])
        for jump in jumps:
            self._code[jump] = (_FORK, len(self._code), -1)

    def _repeat(self, node: Repeat) -> None:
        for _ in range(node.low):
            self._emit(node.body)
        forks = []
        if node.high is None:
            forks.append(self._add(_FORK))
            self._emit(node.body)
            self._add(_FORK, forks[0])
        else:
            for _ in range(node.high - node.low):
                forks.append(self._add(_FORK))
                self._emit(node.body)
        end = len(self._code)
        for fork in forks:
            self._code[fork] = (_FORK, end, fork + 1) if node.lazy else (_FORK, fork + 1, end)

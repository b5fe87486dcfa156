"""A matcher of one regular expression that returns what its groups have matched.

`automaton` says in linear time which expression of a table matches; this tells what is in the
parentheses of that one.

Invariants
----------
*Bounded*: a state, which is an instruction and a place in the key, is tried once, so a match takes
at most the product of the two sizes; a pattern has at most `SIZE_MAX` instructions.

How it works. The pattern becomes a program that is run depth first, as a backtracking matcher does.
Without back-references, what follows a state doesn't depend on how it was reached: one that has
failed fails again. Of several ways to match, that of Perl is returned: the leftmost, then the first
alternative and the longest repeat.
"""

from __future__ import annotations

from .ere import Anchor, Bytes, Choice, Group, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .ere import Node, Repeat

#: Instructions of a program. With a key of 320 bytes, the longest of addresses, a match takes 30 ms
#: in the worst case.
SIZE_MAX = 200
_BYTE, _FORK, _JUMP, _SAVE, _BEGIN, _END, _DONE = range(7)


class Captures:
    """The groups of a pattern, which `ere.parse` has parsed.

    With `whole` the pattern has to match the whole key. Raises ValueError if the pattern is too
    large.
    """

    __slots__ = ("_program", "_whole", "groups", "steps")

    def __init__(self, node: Node, *, whole: bool) -> None:
        self._program: list[tuple[int, int, int]] = []
        self._whole = whole
        #: The states of the last match.
        self.steps = 0
        #: The number of groups.
        self.groups = 0
        self._add(node)
        if whole:
            self._emit(_END)
        self._emit(_DONE)

    @property
    def size(self) -> int:
        """The number of instructions."""
        return len(self._program)

    def match(self, key: bytes) -> list[tuple[int, int]] | None:
        """Return where the whole match and each group begin and end, or None.

        A group that took no part is at (-1, -1).
        """
        tried: set[int] = set()
        found = None
        for start in range(1 if self._whole else len(key) + 1):
            if (found := self._run(key, start, tried)) is not None:
                break
        self.steps = len(tried)
        return found

    def _run(  # noqa: C901  # one branch for each instruction
        self, key: bytes, start: int, tried: set[int]
    ) -> list[tuple[int, int]] | None:
        program, length = self._program, len(key)
        width = len(program)
        saved: dict[int, int] = {}
        # What is left to try: an instruction and a place, or a slot and its earlier value to put
        # back first.
        left: list[tuple[int, int, int]] = [(0, start, -1)]
        while left:
            at, place, slot = left.pop()
            if slot >= 0:
                saved[slot] = place
                continue
            while True:
                state = place * width + at
                if state in tried:
                    break
                tried.add(state)
                kind, first, second = program[at]
                if kind == _BYTE:
                    if place >= length or not first >> key[place] & 1:
                        break
                    place += 1
                    at += 1
                elif kind == _FORK:
                    left.append((second, place, -1))
                    at = first
                elif kind == _JUMP:
                    at = first
                elif kind == _SAVE:
                    left.append((0, saved.get(first, -1), first))
                    saved[first] = place
                    at += 1
                elif kind in (_BEGIN, _END):
                    if place != (0 if kind == _BEGIN else length):
                        break
                    at += 1
                else:
                    slots = range(2, 2 * self.groups + 2, 2)
                    return [
                        (start, place),
                        *((saved.get(slot, -1), saved.get(slot + 1, -1)) for slot in slots),
                    ]
        return None

    def _emit(self, kind: int, first: int = 0, second: int = 0) -> int:
        if len(self._program) >= SIZE_MAX:
            raise ValueError(f"a pattern with groups has at most {SIZE_MAX} parts")
        self._program.append((kind, first, second))
        return len(self._program) - 1

    def _add(self, node: Node) -> None:
        match node:
            case Bytes(members):
                self._emit(_BYTE, members)
            case Anchor(at_end):
                self._emit(_END if at_end else _BEGIN)
            case Group():
                self.groups = max(self.groups, node.number)
                self._emit(_SAVE, 2 * node.number)
                self._add(node.parts[0])
                self._emit(_SAVE, 2 * node.number + 1)
            case Sequence(parts):
                for part in parts:
                    self._add(part)
            case Choice(parts):
                self._choice(parts)
            case _:
                self._repeat(node)

    def _choice(self, parts: list[Node]) -> None:
        jumps = []
        for part in parts[:-1]:
            fork = self._emit(_FORK)
            self._add(part)
            jumps.append(self._emit(_JUMP))
            self._program[fork] = (_FORK, fork + 1, len(self._program))
        self._add(parts[-1])
        for jump in jumps:
            self._program[jump] = (_JUMP, len(self._program), 0)

    def _repeat(self, node: Repeat) -> None:
        for _ in range(node.low):
            self._add(node.body)
        if node.high is None:
            fork = self._emit(_FORK)
            self._add(node.body)
            self._emit(_JUMP, fork)
            self._program[fork] = (_FORK, fork + 1, len(self._program))
            return
        forks = []
        for _ in range(node.high - node.low):
            forks.append(self._emit(_FORK))
            self._add(node.body)
        for fork in forks:
            self._program[fork] = (_FORK, fork + 1, len(self._program))

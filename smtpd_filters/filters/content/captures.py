"""The groups of a pattern in a key, found without backtracking.

The machine keeps one thread for each place of the pattern, in the order in which a matcher that
backtracks would try them (R. Cox, "Regular Expression Matching: the Virtual Machine Approach").
"""

from __future__ import annotations

from smtpd_filters.tables.ere import Anchor, Bytes, Choice, Group, Repeat, Sequence

from .dialects import Lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from smtpd_filters.tables.ere import Node

#: Places of a pattern whose groups are used: the work for each byte.
PLACES = 500
_CHAR, _SPLIT, _SAVE, _START, _END, _MATCH = range(6)
#: Threads run between two yields, of which one takes about 0.3 us.
_STEP = 3000


class Captures:
    """The program of a pattern. Raises ValueError if it is too large."""

    __slots__ = ("_code",)

    def __init__(self, node: Node) -> None:
        #: Instructions with one or two operands.
        self._code: list[tuple[int, int, int]] = []
        self._emit(Group(node, 0))
        self._add(_MATCH)
        if len(self._code) > PLACES:
            raise ValueError(
                f"the pattern is too large to use its groups: {len(self._code)} places"
            )

    def _add(self, kind: int, one: int = 0, two: int = 0) -> int:
        if len(self._code) <= PLACES:
            self._code.append((kind, one, two))
        return len(self._code) - 1

    def _emit(self, node: Node) -> None:
        match node:
            case Group():
                self._add(_SAVE, 2 * node.number)
                self._emit(node.parts[0])
                self._add(_SAVE, 2 * node.number + 1)
            case Bytes(members):
                self._add(_CHAR, members)
            case Anchor(at_end):
                self._add(_END if at_end else _START)
            case Sequence(parts=parts):
                for part in parts:
                    self._emit(part)
            case Choice(parts=parts):
                self._choice(parts)
            case _:
                self._repeat(node)

    def _choice(self, parts: list[Node]) -> None:
        jumps = []
        for part in parts[:-1]:
            split = self._add(_SPLIT)
            self._emit(part)
            jumps.append(self._add(_SPLIT))
            self._code[split] = (_SPLIT, split + 1, len(self._code))
        self._emit(parts[-1])
        for jump in jumps:
            self._code[jump] = (_SPLIT, len(self._code), -1)

    def _repeat(self, node: Repeat) -> None:
        for _ in range(node.low):
            self._emit(node.body)
        lazy = isinstance(node, Lazy)
        if node.high is None:
            split = self._add(_SPLIT)
            self._emit(node.body)
            self._add(_SPLIT, split, -1)
            self._fork(split, split + 1, lazy=lazy)
            return
        splits = []
        for _ in range(node.high - node.low):
            splits.append(self._add(_SPLIT))
            self._emit(node.body)
        for split in splits:
            self._fork(split, split + 1, lazy=lazy)

    def _fork(self, split: int, body: int, *, lazy: bool) -> None:
        end = len(self._code)
        self._code[split] = (_SPLIT, end, body) if lazy else (_SPLIT, body, end)

    def groups(self, key: bytes) -> Generator[int, None, dict[int, bytes]]:
        """Return the text of each group that took part in the match; yields units of work."""
        best: dict[int, int] = {}
        threads: list[tuple[int, dict[int, int]]] = []
        work = 0
        for at in range(len(key) + 1):
            ready: list[tuple[int, dict[int, int]]] = []
            seen: set[int] = set()
            for place, saved in threads:
                self._follow(place, saved, at, len(key), ready, seen)
            if not best:
                self._follow(0, {}, at, len(key), ready, seen)
            threads = []
            byte = 1 << key[at] if at < len(key) else 0
            for place, saved in ready:
                kind, members, _ = self._code[place]
                if kind == _MATCH:
                    best = saved
                    break  # threads behind it have a lower priority
                if members & byte:
                    threads.append((place + 1, saved))
            work += len(seen) + 1
            if work > _STEP:
                yield work // 2
                work = 0
            if best and not threads:
                break
        return {
            slot // 2: key[start : best[slot + 1]]
            for slot, start in best.items()
            if not slot % 2 and slot + 1 in best
        }

    def _follow(  # noqa: PLR0913  # the state of the machine
        self,
        place: int,
        saved: dict[int, int],
        at: int,
        size: int,
        ready: list[tuple[int, dict[int, int]]],
        seen: set[int],
    ) -> None:
        """Add the threads that a place leads to without reading a byte, in order."""
        stack = [(place, saved)]
        while stack:
            place, saved = stack.pop()
            if place in seen:
                continue
            seen.add(place)
            kind, one, two = self._code[place]
            if kind == _SPLIT:
                if two >= 0:
                    stack.append((two, saved))
                stack.append((one, saved))
            elif kind == _SAVE:
                stack.append((place + 1, {**saved, one: at}))
            elif kind == _START:
                if at == 0:
                    stack.append((place + 1, saved))
            elif kind == _END:
                if at == size:
                    stack.append((place + 1, saved))
            else:
                ready.append((place, saved))

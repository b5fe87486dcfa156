"""The order in which programs display a text with directional characters.

A text may declare that a part of it runs from right to left: `<RLO>gro.elpmaxe@ssob` is displayed
as `boss@example.org`. `display_orders` returns such a text in display order, by the Unicode
Bidirectional Algorithm (UAX #9); docs/decisions/display-order.md explains why.

The algorithm is simplified: numbers (`EN` and `AN`) are one class, their terminators and bracket
pairs have none, and characters are not mirrored.

Invariants
----------
*Total*: no text raises an exception.
*Bounded*: the time grows with the length of the text. Embeddings nest up to the algorithm's limit.
"""

from __future__ import annotations

import re
from itertools import groupby

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# UAX #9 section 3.3.2, BD2.
_DEPTH_MAX = 125
# The number of pieces between embeddings in which to look for the direction of an isolate.
_LOOK_AHEAD = 16
# The characters that can reorder letters: the marks ALM and RLM, embeddings, overrides, isolates.
_DIRECTED = re.compile("[\u061c\u200f\u202a\u202b\u202d\u202e\u2066-\u2068]")
_EXPLICIT = re.compile("([\u202a-\u202e\u2066-\u2069])")
# Bidi_Class B: the characters that end a paragraph, and with it all embeddings.
_SEPARATOR = re.compile("([\n\r\x1c-\x1e\x85\u2029])")
# The delimiters of a name or an address, which programs display apart from the rest of the field.
_AROUND = re.compile(r'(["<>(),;:]+)')
_POP, _FIRST_STRONG, _POP_ISOLATE = "\u202c", "\u2068", "\u2069"
# Direction, and whether it is an override; of isolates, the direction.
_EMBEDDINGS = {"\u202a": (0, ""), "\u202b": (1, ""), "\u202d": (0, "L"), "\u202e": (1, "R")}
_ISOLATES = {"\u2066": 0, "\u2067": 1}
_OPENING = frozenset({*_ISOLATES, _FIRST_STRONG})
# Left, right, number, part of the character before; others are neutral.
_LEFT, _RIGHT, _NUMBER, _NEUTRAL, _ATTACHED = "L", "R", "E", "N", "-"
_CLASSES = {
    **dict.fromkeys(("R", "AL"), _RIGHT),
    **dict.fromkeys(("EN", "AN"), _NUMBER),
    **dict.fromkeys(("NSM", "BN"), _ATTACHED),
    "L": _LEFT,
}
# Bidi_Class ES and CS: one such character between two numbers belongs to them.
_BETWEEN_NUMBERS = frozenset("+-,./:")


def is_directed(text: str) -> bool:
    """Return whether a text has characters that may reorder its letters."""
    return not text.isascii() and _DIRECTED.search(text) is not None


def display_orders(text: str) -> tuple[str, ...]:
    """Return the display orders of a text that differ from its own.

    Programs display it as a whole or in parts, such as a name, in a paragraph that runs from left
    to right or from right to left. Embeddings are removed; marks and isolates stay.
    """
    pieces = _AROUND.split(text)
    found: dict[str, None] = {}
    for base in (0, 1):
        parts = (_laid_out(each, base) if is_directed(each) else each for each in pieces)
        found["".join(parts)] = found[_laid_out(text, base)] = None
    return tuple(each for each in found if each != text)


def _laid_out(text: str, base: int) -> str:
    return "".join(_paragraph(each, base) for each in _SEPARATOR.split(text))


class _Run:
    """Characters of one class at one embedding level."""

    __slots__ = ("kind", "level", "text")

    def __init__(self, level: int, kind: str, text: str) -> None:
        self.level = level
        self.kind = kind
        self.text = text


def _paragraph(text: str, base: int) -> str:
    embeddings = _Embeddings(base)
    embeddings.read(text)
    runs = embeddings.runs
    for sequence in embeddings.sequences:
        _resolve(runs, sequence, base)
    for run in runs:
        # UAX #9 section 3.3.6, I1 and I2.
        if run.level % 2:
            run.level += run.kind != _RIGHT
        else:
            run.level += {_RIGHT: 1, _NUMBER: 2}.get(run.kind, 0)
    return _reordered(runs, base)


class _Embeddings:
    """The runs of a paragraph at their levels: UAX #9 section 3.3.2.

    `sequences` are the isolating run sequences (BD13), of indexes of runs.
    """

    __slots__ = (
        "_isolates",
        "_over_embeddings",
        "_over_isolates",
        "_stack",
        "_to",
        "runs",
        "sequences",
    )

    def __init__(self, base: int) -> None:
        self.runs: list[_Run] = []
        self.sequences: list[list[int]] = []
        # The current sequence; None at the beginning of another one.
        self._to: list[int] | None = None
        # Level, override, and for an isolate the sequence to resume after it.
        self._stack: list[tuple[int, str, list[int] | None]] = [(base, "", None)]
        self._isolates = self._over_isolates = self._over_embeddings = 0

    def read(self, text: str) -> None:
        """Read a paragraph."""
        pieces = _EXPLICIT.split(text)
        for at, piece in enumerate(pieces):
            if piece in _OPENING:
                ahead = pieces[at + 1 : at + 1 + _LOOK_AHEAD]
                self._isolate(piece, _ISOLATES.get(piece, -1), ahead)
            elif piece == _POP_ISOLATE:
                self._pop_isolate(piece)
            elif piece in _EMBEDDINGS:
                self._embed(*_EMBEDDINGS[piece])
            elif piece == _POP:
                self._pop()
            elif piece:
                override = self._stack[-1][1]
                for kind, part in ((override, piece),) if override else _classified(piece):
                    self._add(kind, part)

    def _add(self, kind: str, piece: str) -> None:
        level = self._stack[-1][0]
        if self._to is None or self.runs[self._to[-1]].level != level:
            self._to = []
            self.sequences.append(self._to)
        self._to.append(len(self.runs))
        self.runs.append(_Run(level, kind, piece))

    def _next_level(self, direction: int) -> int:
        """Return the next level of a direction; 0 if embeddings are too deep (X2 to X5c)."""
        level = self._stack[-1][0]
        level += 1 + (level + 1 + direction) % 2
        too_deep = level > _DEPTH_MAX or self._over_isolates or self._over_embeddings
        return 0 if too_deep else level

    def _embed(self, direction: int, override: str) -> None:
        if level := self._next_level(direction):
            self._stack.append((level, override, None))
        elif not self._over_isolates:
            self._over_embeddings += 1

    def _pop(self) -> None:
        if self._over_isolates:
            return
        if self._over_embeddings:
            self._over_embeddings -= 1
        elif len(self._stack) > 1 and self._stack[-1][2] is None:
            self._stack.pop()

    def _isolate(self, piece: str, direction: int, ahead: Sequence[str]) -> None:
        self._add(self._stack[-1][1] or _NEUTRAL, piece)
        if level := self._next_level(_first_strong(ahead) if direction < 0 else direction):
            self._isolates += 1
            self._stack.append((level, "", self._to))
            self._to = None
        else:
            self._over_isolates += 1

    def _pop_isolate(self, piece: str) -> None:
        if self._over_isolates:
            self._over_isolates -= 1
        elif self._isolates:
            self._isolates -= 1
            self._over_embeddings = 0
            while self._stack[-1][2] is None:
                self._stack.pop()
            self._to = self._stack.pop()[2]
        self._add(self._stack[-1][1] or _NEUTRAL, piece)


def _first_strong(pieces: Sequence[str]) -> int:
    """Return the direction of an isolate's first strong character: UAX #9 section 3.3.1, P2."""
    depth = 0
    for piece in pieces:
        if piece in _OPENING:
            depth += 1
        elif piece == _POP_ISOLATE:
            if not depth:
                break
            depth -= 1
        elif not depth:
            for kind, _ in _classified(piece):
                if kind in {_LEFT, _RIGHT}:
                    return int(kind == _RIGHT)
    return 0


def _classified(text: str) -> Iterator[tuple[str, str]]:
    """Split a text into runs of one class."""
    from unicodedata import bidirectional  # rarely needed

    last = _NEUTRAL
    for name, characters in groupby(text, bidirectional):
        kind = _CLASSES.get(name, _NEUTRAL)
        last = last if kind == _ATTACHED else kind
        yield last, "".join(characters)


def _resolve(runs: Sequence[_Run], sequence: Sequence[int], base: int) -> None:
    """Assign a direction to numbers and neutral characters: UAX #9 sections 3.3.4 and 3.3.5."""
    members = [runs[at] for at in sequence]
    level = members[0].level
    before = runs[sequence[0] - 1].level if sequence[0] else base
    # After an isolate that is never closed comes the paragraph's end (X10).
    is_last = sequence[-1] + 1 == len(runs) or members[-1].text in _OPENING
    after = base if is_last else runs[sequence[-1] + 1].level
    first, last = _direction(max(level, before)), _direction(max(level, after))
    for at in range(1, len(members) - 1):
        kinds = (members[at - 1].kind, members[at + 1].kind)
        if members[at].text in _BETWEEN_NUMBERS and kinds == (_NUMBER, _NUMBER):
            members[at].kind = _NUMBER
    strong = first
    for member in members:
        if member.kind in {_LEFT, _RIGHT}:
            strong = member.kind
        elif member.kind == _NUMBER and strong == _LEFT:
            member.kind = _LEFT
    left = first
    waiting: list[_Run] = []
    for member in [*members, _Run(level, last, "")]:
        if member.kind == _NEUTRAL:
            waiting.append(member)
            continue
        right = _LEFT if member.kind == _LEFT else _RIGHT
        for neutral in waiting:
            neutral.kind = left if left == right else _direction(level)
        waiting.clear()
        left = right


def _direction(level: int) -> str:
    return _RIGHT if level % 2 else _LEFT


def _reordered(runs: Sequence[_Run], base: int) -> str:
    """Return the runs in display order: UAX #9 section 3.4, L2.

    The runs at a level or above it form a node, which runs to the right at even levels.
    """
    stack: list[tuple[int, list[str]]] = [(base, [])]

    def close() -> str:
        level, parts = stack.pop()
        return "".join(reversed(parts) if level % 2 else parts)

    for run in runs:
        while stack[-1][0] > run.level:
            closed = close()
            if stack[-1][0] < run.level:
                stack.append((run.level, []))
            stack[-1][1].append(closed)
        if stack[-1][0] < run.level:
            stack.append((run.level, []))
        stack[-1][1].append(run.text[::-1] if run.level % 2 else run.text)
    while len(stack) > 1:
        closed = close()
        stack[-1][1].append(closed)
    return close()

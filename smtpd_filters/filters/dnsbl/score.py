"""The score of a client, and its bounds while answers are pending.

A score is the sum of the weights of all matching entries, negative ones included. A pending answer
can add at least `low` and at most `high`, the sums of its list's negative and positive weights. So
the bounds of the final score are known.

Invariants
----------
*No needless wait*: a decision waits for an answer only while that can change it (`decided`).
*No guess*: an answer that never arrives leaves the bounds apart. A level that is certain all the
same applies; otherwise the score decides nothing (`certain`).
"""

from __future__ import annotations

#: The levels of action, in order of severity.
NOTHING, JUNK, REJECT, DISCONNECT = range(4)


class Thresholds:
    """The minimum score of each level; None for a level that is not used."""

    __slots__ = ("_steps",)

    def __init__(
        self, junk: int | None = None, reject: int | None = None, disconnect: int | None = None
    ) -> None:
        steps = ((DISCONNECT, disconnect), (REJECT, reject), (JUNK, junk))
        self._steps = tuple((level, score) for level, score in steps if score is not None)

    def level(self, score: int) -> int:
        """Return the most severe level that a score reaches."""
        for level, least in self._steps:
            if score >= least:
                return level
        return NOTHING


class Tally:
    """A score so far, and the bounds of the final score."""

    __slots__ = ("_thresholds", "high", "low", "score")

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self.score = self.low = self.high = 0

    def expect(self, low: int, high: int) -> None:
        """Add a pending answer, with the minimum and maximum of its points."""
        self.low += low
        self.high += high

    def settle(self, low: int, high: int, points: int) -> None:
        """Replace the bounds of a pending answer by its points."""
        self.score += points
        self.low += points - low
        self.high += points - high

    @property
    def level(self) -> int:
        """The level that is certain to be reached."""
        return self._thresholds.level(self.low)

    @property
    def decided(self) -> bool:
        """Whether no pending answer can change the level."""
        return self._thresholds.level(self.high) == self.level

    @property
    def certain(self) -> bool:
        """Whether the level can be applied if no more answers arrive."""
        return self.level > NOTHING or self.decided

"""The sum of what lists say, and when it can be told what will come of it.

The law:

1. A score is the sum of the weights of all entries that match, negative ones included.
2. What an answer that isn't there could add is known: at least `low`, at most `high`, which are the
   sums of a list's negative and of its positive weights.  So it is known between what the score
   will end, and a decision waits for an answer only while that can change it.
3. An answer that will never come leaves that gap.  What is certain even so is done; what isn't, but
   could have been, is nobody's guess (`certain`).
"""

from __future__ import annotations

#: What is done, in the order of severity.
NOTHING, JUNK, REJECT, DISCONNECT = range(4)


class Thresholds:
    """From which score on something is done; None where it never is."""

    __slots__ = ("_steps",)

    def __init__(
        self, junk: int | None = None, reject: int | None = None, disconnect: int | None = None
    ) -> None:
        steps = ((DISCONNECT, disconnect), (REJECT, reject), (JUNK, junk))
        self._steps = tuple((level, score) for level, score in steps if score is not None)

    def level(self, score: int) -> int:
        """Tell what is due at a score: the severest that it reaches."""
        for level, least in self._steps:
            if score >= least:
                return level
        return NOTHING


class Tally:
    """A score on its way: what it is so far, and between what it will end."""

    __slots__ = ("_thresholds", "high", "low", "score")

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self.score = self.low = self.high = 0

    def expect(self, low: int, high: int) -> None:
        """Take note of a list that will be asked, and what it can add at the least and the most."""
        self.low += low
        self.high += high

    def settle(self, low: int, high: int, points: int) -> None:
        """Take in what a list that was expected has added."""
        self.score += points
        self.low += points - low
        self.high += points - high

    @property
    def level(self) -> int:
        """What is due for certain."""
        return self._thresholds.level(self.low)

    @property
    def decided(self) -> bool:
        """Whether no answer that is still out can change what is due."""
        return self._thresholds.level(self.high) == self.level

    @property
    def certain(self) -> bool:
        """Whether something can be done when no more answers come."""
        return self.level > NOTHING or self.decided

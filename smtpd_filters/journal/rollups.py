"""Sums over stories, which the overview is read from: scanning the stories takes seconds a month.

Invariants
----------
*Bounded*: the labels are hours, outcomes, phases, verbs, and names of filters (`reception`); the
reasons of a day are at most `MAX_REASONS`, and the rest counts as one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Any

from .stories import DEFERRED, REFUSED, SMTPD, answer_of
from .wire import COUNT, FILTER, FLAGS, LONGEST, PHASE, REASON, REPLY, TOOK, VERB

if TYPE_CHECKING:
    from .reception import Part

HOUR = 3600
#: Upper limits, in seconds, of the buckets of times that verdicts took; the last has none.
BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0)
#: Filters, and reasons, that are distinguished in a day.
MAX_FILTERS, MAX_REASONS = 200, 2000
OTHER = "other"
#: What is left out of a reason, so that refusals for one reason count as one.
_VARIABLE = re.compile(
    r"[^\s<>()\[\],;:\"@|=]+@[^\s<>()\[\],;:\"@|=]+|"
    # Numbers, addresses and hashes, without the dot or colon behind or ahead of them.
    r"\b(?=[a-fA-F.:]*[0-9])[0-9a-fA-F](?:[0-9a-fA-F.:]*[0-9a-fA-F])?\b"
)
_STATUS = re.compile(r"^([45]\d\d )(\d\.\d{1,3}\.\d{1,3} )?")


class Times:
    """How long verdicts took: their number, the seconds in total, the longest, and a histogram."""

    __slots__ = ("buckets", "count", "longest", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = self.longest = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)

    def add(self, row: list[Any], filters: int = 1) -> None:
        """Add a verdict, or several in one row, which count with their mean.

        A row of several `filters` counts with the share of one.
        """
        count, seconds = row[COUNT], row[TOOK] / 1e6 / filters
        self.count += count
        self.seconds += seconds
        self.longest = max(self.longest, seconds if count == 1 else row[LONGEST] / 1e6 / filters)
        self.buckets[bisect_left(BUCKETS, seconds / count)] += count

    def merge(self, other: Times) -> None:
        """Add the verdicts of another."""
        self.count += other.count
        self.seconds += other.seconds
        self.longest = max(self.longest, other.longest)
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]


class Sums:
    """The sums over some stories.

    `filters` are the names that are distinguished, which grow; those of a day are common to its
    sums.
    """

    def __init__(self, filters: set[str] | None = None) -> None:
        #: By hour (seconds since 1970) and number of the outcome.
        self.outcomes: Counter[tuple[int, int]] = Counter()
        #: By hour, filter, phase and verb (`verb_of`).
        self.verdicts: dict[tuple[int, str, str, str], Times] = {}
        #: By hour, filter, number of the outcome, and reason (`reason_of`).
        self.reasons: Counter[tuple[int, str, int, str]] = Counter()
        self._filters: set[str] = set() if filters is None else filters
        #: The same as `verdicts`, of filters that share a row, by their names: see `settle`.
        self._together: dict[tuple[int, str, str, str], Times] = {}

    def add(self, time: float, story: Part, outcome: int, deciding: list[Any] | None) -> None:
        """Add a story of this time, in seconds since 1970."""
        hour = int(time) // HOUR * HOUR
        self.outcomes[hour, outcome] += 1
        for row in story["w"]:
            if "m" in row[FLAGS]:  # was counted with an earlier message, or the session
                continue
            name = row[FILTER]
            key = hour, name, row[PHASE], verb_of(row)
            filters = name.count(" ") + 1
            found = self.verdicts if filters == 1 else self._together
            times = found.get(key)
            if times is None:
                times = self._times(*key) if filters == 1 else found.setdefault(key, Times())
            times.add(row, filters)
        reason = reason_of(story, outcome, deciding)
        if reason:
            name = self._known(deciding[FILTER]) if deciding is not None else SMTPD
            self.reasons[hour, name, outcome, reason] += 1

    def _times(self, hour: int, name: str, phase: str, verb: str) -> Times:
        """Return the sum of a filter's verdicts."""
        return self.verdicts.setdefault((hour, self._known(name), phase, verb), Times())

    def _known(self, name: str) -> str:
        """Return the name of a filter, or `OTHER` if too many are known."""
        if name not in self._filters:
            if len(self._filters) >= MAX_FILTERS:
                return OTHER
            self._filters.add(name)
        return name

    def settle(self) -> None:
        """Add what filters have together to each of them; `verdicts` is complete then."""
        for (hour, names, phase, verb), times in self._together.items():
            for name in names.split(" "):
                self._times(hour, name, phase, verb).merge(times)
        self._together.clear()

    def merge(self, other: Sums) -> None:
        """Add other sums, which are settled."""
        self.outcomes.update(other.outcomes)
        self.reasons.update(other.reasons)
        for key, times in other.verdicts.items():
            self._times(*key).merge(times)


def verb_of(row: list[Any]) -> str:
    """Return the verb of a verdict, with "/dry" for a dry run and "/failed" after a failure."""
    flags = row[FLAGS]
    return f"{row[VERB]}{'/failed' if 'f' in flags else ''}{'/dry' if 'd' in flags else ''}"


def reason_of(story: Part, outcome: int, deciding: list[Any] | None) -> str:
    """Return why a message was refused or marked, without addresses and numbers."""
    if deciding is not None:
        reason = deciding[REASON] or deciding[REPLY]
    elif outcome in (DEFERRED, REFUSED):
        reason = answer_of(story["a"], outcome, session=story["k"] == "session")
    else:
        return ""
    status = _STATUS.match(reason)
    head = status[0] if status else ""
    return head + _VARIABLE.sub("*", reason[len(head) :])[:100]

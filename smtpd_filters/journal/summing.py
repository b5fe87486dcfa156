"""The sums of a journal's files: read from each file in turn, and added up."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from .records import Overview, Passing
from .rollups import BUCKETS, HOUR
from .stories import OUTCOMES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

#: A number above every hour.
_END = 1 << 62


class OverviewSums:
    """The sums of an overview from `since` to `until`, in at most `steps` steps of whole hours."""

    def __init__(self, since: float, until: float, steps: int) -> None:
        self._since, self._until = since, until
        hours = max(1, int(until - since) // HOUR)
        self._step = HOUR * max(1, -(-hours // max(1, steps)))
        self._start = int(since) // HOUR * HOUR
        starts = [float(at) for at in range(self._start, int(until) + 1, self._step)]
        self._series: dict[float, Counter[str]] = {at: Counter() for at in starts}
        self._acts: dict[float, Counter[str]] = {at: Counter() for at in starts}
        self._totals: Counter[str] = Counter()
        self._verdicts: dict[tuple[str, str, str], Passing] = {}
        self._reasons: Counter[tuple[str, str, str]] = Counter()

    def read(self, connection: sqlite3.Connection) -> None:
        """Add the sums of a file."""
        first, last = self._start, int(self._until)
        for hour, number, n in connection.execute(
            "SELECT hour, outcome, n FROM outcomes WHERE hour >= ? AND hour <= ?", (first, last)
        ):
            self._series[self._begin(hour)][OUTCOMES[number]] += n
            self._totals[OUTCOMES[number]] += n
        for hour, verb, n in connection.execute(
            "SELECT hour, verb, sum(n) FROM verdicts"
            " WHERE hour >= ? AND hour <= ? AND verb <> 'proceed' GROUP BY hour, verb",
            (first, last),
        ):
            self._acts[self._begin(hour)][verb] += n
        for each in passings(connection, first, last):
            key = each.filter, each.phase, each.verb
            self._verdicts.setdefault(key, Passing(*key)).add(each)
        for name, number, reason, n in connection.execute(
            "SELECT filter, outcome, reason, sum(n) FROM reasons"
            " WHERE hour >= ? AND hour <= ? GROUP BY filter, outcome, reason",
            (first, last),
        ):
            self._reasons[name, OUTCOMES[number], reason] += n

    def _begin(self, hour: int) -> float:
        """Return the beginning of the step that an hour is in."""
        return float(self._start + (hour - self._start) // self._step * self._step)

    def overview(self) -> Overview:
        """Return the sums of all files that were read."""
        return Overview(
            self._since,
            self._until,
            self._step,
            tuple((at, dict(counts)) for at, counts in self._series.items()),
            {name: self._totals[name] for name in OUTCOMES},
            tuple((at, dict(counts)) for at, counts in self._acts.items()),
            tuple(sorted(self._verdicts.values(), key=lambda each: (-each.count, each.filter))),
            tuple((*key, n) for key, n in self._reasons.most_common()),
        )


def passings(connection: sqlite3.Connection, first: int = 0, last: int = _END) -> Iterator[Passing]:
    """Yield the sums of a file's verdicts from the first to the last hour."""
    columns = ", ".join(f"sum(b{at})" for at in range(len(BUCKETS) + 1))
    for name, phase, verb, n, seconds, longest, *buckets in connection.execute(
        f"SELECT filter, phase, verb, sum(n), sum(seconds), max(longest), {columns}"  # noqa: S608  # constants
        " FROM verdicts WHERE hour >= ? AND hour <= ? GROUP BY filter, phase, verb",
        (first, last),
    ):
        yield Passing(name, phase, verb, n, seconds, longest, buckets)

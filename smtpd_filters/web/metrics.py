"""Metrics for Prometheus, counted from the journal's sums and from the states of processes.

Invariants
----------
*Monotonic*: counters of messages and verdicts start at zero with the page and only grow: what a
file's sums have gained since the last look is added, and a file that is purged takes nothing away.
Those of look-ups and processes start at zero with the journal.
*Bounded*: labels are outcomes, phases, verdicts, kinds and causes, and names of filters, processes
and the operator's servers, of which the journal keeps a limited number. No address, user or domain
of mail is a label: the page answers who.
*Current*: what processes have now is left out once the journal has stopped.

Names and units follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from threading import Lock
from time import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from smtpd_filters.journal.rollups import BUCKETS
from smtpd_filters.journal.stories import OUTCOMES
from smtpd_filters.runtime.counters import BUCKETS as LOOKUP_BUCKETS
from smtpd_filters.settings import package

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

    from smtpd_filters.journal.query import Journal, Mark
    from smtpd_filters.journal.records import Passing, Totals
    from smtpd_filters.journal.states import States, Times

    L = TypeVar("L", bound=tuple[str, ...])

PREFIX = "smtpd_filters"
#: Series of verdicts and histograms, at most; further ones are left out, and counted.
MOST = 2000
#: Files whose sums are remembered.
MOST_FILES = 16
#: The label of what was only logged.
_DRY, _FAILED = "dry", "failed"
#: The journal's own losses (`journal.service.Service.counts`).
LOSSES = ("invalid", "overflow", "unwritten")


class _Key(NamedTuple):
    filter: str
    phase: str
    verdict: str
    result: str  # "applied", "dry_run" or "failed"


class Counts:
    """What the counters have reached."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.verdicts: dict[_Key, int] = {}
        #: Seconds and buckets by filter and phase.
        self.times: dict[tuple[str, str], tuple[float, list[int]]] = {}
        self.left_out = 0
        self._seen: dict[str, Totals] | None = None
        #: Files whose sums aren't remembered: they were counted, or are from before the start.
        self._known: set[str] = set()

    def look(self, totals: dict[str, Totals], paths: Collection[str] = ()) -> None:
        """Add what the files have gained since the last look; the first look adds nothing.

        `totals` are those of files that were written to; `paths` are all files.
        """
        before = self._seen
        if before is None:
            self._seen, self._known = totals, set(paths) - totals.keys()
            return
        # The clock was set back; what they have gained is not known.
        again = self._known & totals.keys()
        # A file that can't be read for a while is not a new one afterwards.
        kept = {path: each for path, each in before.items() if path not in totals}
        seen = list({**kept, **totals}.items())
        forgotten = {path for path, _ in seen[:-MOST_FILES]}
        self._known = (self._known - again | forgotten) & set(paths)
        self._seen = dict(seen[-MOST_FILES:])
        for path, found in totals.items():
            if path not in again:
                self._add_gain(found, before.get(path))

    def _add_gain(self, found: Totals, old: Totals | None) -> None:
        """Add what a file has more than at an earlier look.

        One that has less is another file of this name: the earlier one was removed.
        """
        if old is not None and any(n > found.outcomes.get(x, 0) for x, n in old.outcomes.items()):
            old = None
        for name, n in found.outcomes.items():
            self.outcomes[name] += max(n - (old.outcomes.get(name, 0) if old else 0), 0)
        known = {_name(each): each for each in old.verdicts} if old else {}
        for each in found.verdicts:
            self._add(each, known.get(_name(each)))

    def _add(self, each: Passing, old: Passing | None) -> None:
        gained = each.count - (old.count if old else 0)
        if gained <= 0:
            return
        verb, *flags = each.verb.split("/")
        result = "failed" if _FAILED in flags else "dry_run" if _DRY in flags else "applied"
        key = _Key(each.filter, each.phase, verb, result)
        place = each.filter, each.phase
        if (key not in self.verdicts or place not in self.times) and len(self.verdicts) >= MOST:
            self.left_out += gained
            return
        self.verdicts[key] = self.verdicts.get(key, 0) + gained
        seconds, buckets = self.times.get(place, (0.0, [0] * (len(BUCKETS) + 1)))
        seconds += max(each.seconds - (old.seconds if old else 0.0), 0.0)
        more = [
            max(new - was, 0)
            for new, was in zip(
                each.buckets, old.buckets if old else [0] * len(buckets), strict=True
            )
        ]
        self.times[place] = seconds, [a + b for a, b in zip(buckets, more, strict=True)]


def _name(each: Passing) -> tuple[str, str, str]:
    return each.filter, each.phase, each.verb


class Metrics(Collector):
    """The metrics of a journal; `journal` makes a reader for each look."""

    def __init__(self) -> None:
        self.counts = Counts()
        #: How far the journal's files were read.
        self._marks: dict[str, Mark] = {}
        self._extent: tuple[str, str, int] | None = None
        self._unread = 0
        self._states: States | None = None
        self._lock = Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def look(self, journal: Journal) -> None:
        """Read the journal's sums."""
        with self._lock:
            self._look(journal)

    def scrape(self, journal: Journal, accept: str) -> tuple[bytes, str]:
        """Read the journal's sums, and return them as `exposition` does; in any thread.

        Of two scrapers at a time each has what was counted before.
        """
        with self._lock:
            self._look(journal)
            return self.exposition(accept)

    def _look(self, journal: Journal) -> None:
        self.counts.look(journal.totals(self._marks), self._marks)
        self._unread = len(journal.unread)
        self._extent = journal.extent()
        self._states = journal.states()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text in the format that a header field `Accept` asks for, and its type."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the library raises for some versions
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names don't have to be known at start."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        counts = self.counts
        info = InfoMetricFamily(f"{PREFIX}_build", "The version of the package.")
        info.add_metric((), {"version": package().rpartition(" ")[2]})
        yield info
        messages = CounterMetricFamily(
            f"{PREFIX}_messages", "Messages and sessions by outcome.", labels=("outcome",)
        )
        for name, n in counts.outcomes.items():
            messages.add_metric((name,), n)
        yield messages
        yield _verdicts(counts.verdicts)
        yield _times(counts.times)
        yield CounterMetricFamily(
            f"{PREFIX}_verdicts_left_out", "Verdicts of too many filters.", value=counts.left_out
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_journal_size_bytes",
            "Size of the journal's files.",
            value=self._extent[2] if self._extent else 0,
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_journal_unread_files",
            "Files of the journal that could not be read.",
            value=self._unread,
        )
        yield from _of_processes(self._states, time())


def _of_processes(states: States | None, now: float) -> Iterator[Metric]:
    """Yield what the journal knows of the processes that send to it."""
    is_current = states is not None and states.is_current(now)
    yield GaugeMetricFamily(
        f"{PREFIX}_journal_up", "1 if the journal runs.", value=1.0 if is_current else 0.0
    )
    lookups = states.lookups if states is not None else {}
    yield _histogram(
        HistogramMetricFamily(
            f"{PREFIX}_lookup_duration_seconds",
            "Time of look-ups, the attempts at several servers included; cached ones don't count.",
            labels=("kind",),
        ),
        LOOKUP_BUCKETS,
        {(kind,): (each.seconds, each.buckets) for kind, each in lookups.items()},
    )
    yield _failures(lookups)
    yield from _counted(states)
    yield from _current(states if is_current else None)


def _failures(lookups: Mapping[str, Times]) -> CounterMetricFamily:
    failed = CounterMetricFamily(
        f"{PREFIX}_lookup_failures", "Look-ups that failed, by cause.", labels=("kind", "cause")
    )
    for kind, each in lookups.items():
        for cause, n in each.failures.items():
            failed.add_metric((kind, cause), n)
    return failed


def _counted(states: States | None) -> Iterator[Metric]:
    """Yield what processes and the journal have counted."""
    dropped = CounterMetricFamily(
        f"{PREFIX}_journal_events_dropped",
        "Events that a process could not send to the journal.",
        labels=("process",),
    )
    ends = CounterMetricFamily(
        f"{PREFIX}_program_ends",
        "Ends of supervised programs that were to go on.",
        labels=("process",),
    )
    if states is not None:
        for process, n in states.dropped.items():
            dropped.add_metric((process,), n)
        for process, n in states.ends.items():
            ends.add_metric((process,), n)
    yield dropped
    yield ends
    lost = CounterMetricFamily(
        f"{PREFIX}_journal_events_lost", "Events that the journal did not store.", labels=("cause",)
    )
    for cause in LOSSES:
        lost.add_metric((cause,), states.journal.get(cause, 0) if states is not None else 0)
    yield lost


def _current(states: States | None) -> Iterator[Metric]:
    """Yield what processes have at the moment; None if the journal doesn't run."""
    sessions = GaugeMetricFamily(
        f"{PREFIX}_open_sessions", "Sessions that a process serves now.", labels=("process",)
    )
    circuits = GaugeMetricFamily(
        f"{PREFIX}_server_passed_over",
        "1 if a process passes over a server, which has failed repeatedly.",
        labels=("kind", "server"),
    )
    if states is not None:
        for process, n in states.sessions.items():
            sessions.add_metric((process,), n)
        for key, is_open in states.circuits.items():
            circuits.add_metric(key, float(is_open))
    yield sessions
    yield circuits


def _verdicts(verdicts: Mapping[_Key, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        f"{PREFIX}_verdicts",
        "Decisions of filters; result is applied, dry_run, or failed if --on-error decided.",
        labels=_Key._fields,
    )
    for key, n in verdicts.items():
        family.add_metric(key, n)
    return family


def _times(times: Mapping[tuple[str, str], tuple[float, list[int]]]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        f"{PREFIX}_verdict_duration_seconds",
        "Time that filters took to decide, look-ups included.",
        labels=("filter", "phase"),
    )
    return _histogram(family, BUCKETS, times)


def _histogram(
    family: HistogramMetricFamily,
    limits: Sequence[float],
    times: Mapping[L, tuple[float, list[int]]],
) -> HistogramMetricFamily:
    """Add to a histogram by labels: seconds, and numbers by bucket."""
    for labels, (seconds, buckets) in times.items():
        total = 0
        rows = []
        for limit, n in zip([*map(str, limits), "+Inf"], buckets, strict=True):
            total += n
            rows.append((limit, float(total)))
        family.add_metric(labels, rows, seconds)
    return family

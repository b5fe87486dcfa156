"""`smtpd-filters stats`: how many messages were accepted and refused, by filter and day."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from time import time
from typing import TYPE_CHECKING

from smtpd_filters.journal.query import RANKED
from smtpd_filters.journal.stories import OUTCOMES
from smtpd_filters.journal.telling import OUTCOMES as WORDS
from smtpd_filters.journal.telling import coloured, safe
from smtpd_filters.settings import INTEGER, choice, option

from .journal_use import DAY, SINCE, JournalOptions, in_colour, reading, since
from .streams import print_json
from .verb import Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from smtpd_filters.journal.query import Journal
    from smtpd_filters.journal.records import Overview, Passing

#: Columns of the chart.
WIDTH = 50


class Options(JournalOptions):
    """The time, and what to count."""

    since = option(SINCE, default=7 * DAY, help="How far back to count.")
    by = option(
        choice("filter", "day", "hour", "reason", *RANKED),
        default="filter",
        help="What to list below the chart: filters with their verdicts, days, hours, reasons of "
        "refusals, or the most active senders, clients or users, of whole days in UTC.",
    )
    number = option(INTEGER(low=1, high=1000), default=20, help="How many lines at most.")


def run(options: Options, _rest: list[str]) -> int:
    """Print the numbers."""
    return reading(options, lambda journal: _stats(journal, options))


def _stats(journal: Journal, options: Options) -> int:
    begin, end = since(options.since), time()
    # The days of the chart are local ones, of 23 to 25 hours.
    by_hour = options.by == "hour" or (options.since >= DAY and not options.json)
    found = journal.overview(
        begin, end, steps=1 << 20 if by_hour else max(1, round(options.since / DAY))
    )
    ranked = (
        journal.rankings(options.by, begin, end, options.number) if options.by in RANKED else []
    )
    if options.json:
        print_json({**asdict(found), "ranked": [asdict(each) for each in ranked]})
        return 0
    colour = in_colour(options)
    lines = list(_totals(found, colour=colour))
    lines += ["", *_chart(found, options, colour=colour), ""]
    if options.by == "filter":
        lines += list(_filters(found.verdicts))[: options.number + 1]
    elif options.by == "reason":
        lines += [
            f"{n:>8} {WORDS[outcome]:<19} {safe(name):<14} {safe(reason)}"
            for name, outcome, reason, n in found.reasons[: options.number]
        ]
    elif ranked:
        lines += [
            f"{each.count:>8} {safe(each.word)}  "
            + ", ".join(f"{n} {WORDS[name]}" for name, n in each.outcomes.items())
            for each in ranked
        ]
    sys.stdout.write("\n".join(lines).rstrip("\n") + "\n")
    return 0


def _totals(found: Overview, *, colour: bool) -> Iterator[str]:
    every = sum(found.outcomes.values()) or 1
    for name in OUTCOMES:
        n = found.outcomes[name]
        share = f"{100 * n / every:5.1f} %"
        # The letters of the chart are those of the names.
        words = WORDS[name] if WORDS[name].startswith(name) else f"{WORDS[name]} ({name})"
        yield f"{n:>8} {share} {coloured(words, name, colour=colour)}"


def _chart(found: Overview, options: Options, *, colour: bool) -> Iterator[str]:
    """Yield a line for each day or hour: its bar has a part for each outcome, in the same order."""
    daily = options.since >= DAY and options.by != "hour"
    steps = found.steps
    lines = list(days(steps) if daily else hours(steps))
    most = max((sum(counts.values()) for _, counts in lines), default=0) or 1
    for label, counts in lines:
        bar = "".join(
            coloured(_bar(counts.get(name, 0) / most, name), name, colour=colour)
            for name in OUTCOMES
        )
        yield f"{label} {sum(counts.values()):>8} {bar}".rstrip()


def days(steps: Iterable[tuple[float, dict[str, int]]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the sums of steps by day, in local time."""
    for day, same in groupby(_labelled(steps, "%Y-%m-%d"), key=itemgetter(0)):
        yield day, sum((Counter(counts) for _, counts in same), Counter())


def hours(steps: Sequence[tuple[float, dict[str, int]]]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield steps by hour, in local time; the hours that come twice have their offset to UTC."""
    labelled = list(_labelled(steps, "%Y-%m-%d %H:%M"))
    times = Counter(label for label, _ in labelled)
    for (label, counts), (longer, _) in zip(
        labelled, _labelled(steps, "%Y-%m-%d %H:%M%z"), strict=True
    ):
        yield label if times[label] == 1 else longer, counts


def _labelled(
    steps: Iterable[tuple[float, dict[str, int]]], form: str
) -> Iterator[tuple[str, dict[str, int]]]:
    for at, counts in steps:
        yield datetime.fromtimestamp(at, UTC).astimezone().strftime(form), counts


def _bar(share: float, outcome: str) -> str:
    """Return a part of a bar; the letters tell outcomes apart without colours."""
    return outcome[:1] * round(share * WIDTH)


def _filters(verdicts: tuple[Passing, ...]) -> Iterator[str]:
    yield f"{'filter':<20} {'phase':<10} {'verdict':<18} {'number':>8} {'mean':>9} {'longest':>9}"
    for each in sorted(verdicts, key=lambda one: (one.filter, one.phase, -one.count)):
        mean = each.seconds / each.count * 1000 if each.count else 0.0
        yield (
            f"{safe(each.filter):<20} {each.phase:<10} {each.verb:<18} {each.count:>8} "
            f"{mean:>6.1f} ms {each.longest * 1000:>6.1f} ms"
        )


VERB = Verb(
    "stats",
    run,
    options=Options,
    description="Show how many messages were accepted, marked, refused and abandoned, with a chart "
    "by day, and the verdicts of each filter.",
)

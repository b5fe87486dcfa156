"""The charts of the overview, and the sums of each filter."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from smtpd_filters.journal.telling import OUTCOMES as WORDS

from .charts import Series, Stack

if TYPE_CHECKING:
    from smtpd_filters.journal.records import Overview

_DAY, _WEEK, _YEAR = 86400, 7 * 86400, 365 * 86400
#: Outcomes in the order of a stack, from the bottom; those of sessions without a message last.
STACKED = ("accepted", "junk", "deferred", "refused", "abandoned")
#: Outcomes of decisions, in the order of a stack, with their words.
DECIDED = {
    "changed": "changed the message or an address",
    "points": "gave points",
    "junk": "marked as junk",
    "refused": "refused",
    "failed": "left to --on-error",
    "dry": "would have acted, but only logs",
}
#: The outcomes of verbs (`rollups.verb_of`) without a failure or a dry run.
_OF_VERBS = {
    "edit": "changed",
    "rewrite": "changed",
    "points": "points",
    "junk": "junk",
    "reject": "refused",
    "disconnect": "refused",
}


def messages(found: Overview) -> Stack:
    """Return the chart of messages over time."""
    total = sum(found.outcomes[name] for name in STACKED)
    shares = ", ".join(
        f"{found.outcomes[name]} {WORDS[name]}" for name in STACKED if found.outcomes[name]
    )
    return Stack(
        "messages",
        f"Messages by {_unit(found)}",
        f"{total} messages: {shares}" if total else "No messages.",
        _labels(found),
        [
            Series(WORDS[name], name, [counts.get(name, 0) for _, counts in found.steps])
            for name in STACKED
        ],
    )


def decisions(found: Overview) -> Stack:
    """Return the chart of decisions over time.

    Those to let mail pass as it is are left out: the others would be too small beside them.
    """
    values = {name: [0] * len(found.verdict_steps) for name in DECIDED}
    for at, (_, counts) in enumerate(found.verdict_steps):
        for verb, count in counts.items():
            if name := _outcome(verb):
                values[name][at] += count
    total = sum(each.count for each in found.verdicts)
    acted = sum(map(sum, values.values()))
    shares = ", ".join(
        f"{sum(values[name])} {DECIDED[name]}" for name in DECIDED if any(values[name])
    )
    passed = f"{total - acted} of {total} decisions let mail pass as it was"
    if not total:
        passed = "No decisions"
    return Stack(
        "decisions",
        f"Decisions other than to let mail pass, by {_unit(found)}",
        f"{passed}; {shares}" if shares else f"{passed}.",
        _labels(found),
        [Series(DECIDED[name], name, values[name]) for name in DECIDED],
    )


def _outcome(verb: str) -> str:
    """Return the outcome of decisions with a verb; "" for one that is not drawn."""
    word, *flags = verb.split("/")
    if "failed" in flags:
        return "failed"
    return "dry" if "dry" in flags and word in _OF_VERBS else _OF_VERBS.get(word, "")


def _labels(found: Overview) -> list[str]:
    """Return the time of each bar, with the date if bars of several weeks would look alike."""
    length = found.until - found.since
    if found.step >= _DAY:
        layout = "%d %b" if length <= _YEAR else "%d %b %Y"
    else:
        layout = "%a %H:%M" if length <= _WEEK else "%d %b %H:%M"
    return [time.strftime(layout, time.localtime(at)) for at, _ in found.steps]


def _unit(found: Overview) -> str:
    return "hour" if found.step == 3600 else f"{found.step // 3600} hours"


class FilterSums(NamedTuple):
    """What a filter did over a time."""

    name: str
    decisions: int
    acted: int
    failed: int
    mean: float
    longest: float


def filters(found: Overview) -> list[FilterSums]:
    """Return the sums of each filter, those that acted most first."""
    sums: dict[str, FilterSums] = {}
    total: dict[str, float] = {}
    for each in found.verdicts:
        verb, *flags = each.verb.split("/")
        old = sums.get(each.filter, FilterSums(each.filter, 0, 0, 0, 0.0, 0.0))
        acts = verb not in {"proceed", "points", "bypass"} and "dry" not in flags
        total[each.filter] = total.get(each.filter, 0.0) + each.seconds
        decided = old.decisions + each.count
        sums[each.filter] = old._replace(
            decisions=decided,
            acted=old.acted + (each.count if acts else 0),
            failed=old.failed + (each.count if "failed" in flags else 0),
            mean=total[each.filter] / max(decided, 1),
            longest=max(old.longest, each.longest),
        )
    return sorted(sums.values(), key=lambda each: (-each.acted, -each.decisions, each.name))

"""Texts of the page: what outsiders wrote made visible, times, sizes and words for outcomes.

Invariants
----------
*Visible*: control characters, and those that change the direction of text, are shown as escapes,
so that no sender's text can pretend to be another. Templates escape everything else.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

from markupsafe import Markup

from smtpd_filters.journal.telling import OUTCOMES, exempts
from smtpd_filters.runtime.counters import BUCKETS
from smtpd_filters.runtime.log import escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.journal.states import Times
    from smtpd_filters.journal.stories import Story, Verdict

#: Characters of a text that are shown.
LONGEST = 400
#: Categories of Unicode (UAX 44) that are invisible: controls, formats, surrogates, unassigned,
#: private use, and separators of lines and paragraphs.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})
_PLAIN = re.compile(r"[ -~]*")
#: Outcomes in words, of a message that is replayed.
FATES = {**OUTCOMES, "passes": "no longer refused"}
#: Why look-ups fail (`runtime.counters.FAILURES`), in words.
_CAUSES = {
    "timeout": "no answer in time",
    "unreachable": "no connection",
    "invalid": "an error or an invalid answer",
    "passed_over": "server passed over",
    "local": "too many at a time, or short of resources",
}
_VERBS = {
    "proceed": "let it pass",
    "junk": "marked it as junk",
    "reject": "refused it",
    "disconnect": "refused it and closed the connection",
    "rewrite": "changed the address",
    "edit": "changed it",
    "points": "gave points",
    "bypass": "let it bypass the filters behind it",
}


def visible(text: object) -> str:
    """Return a text in one line of limited length, with escapes for invisible characters."""
    shown = str(text)
    cut = len(shown) > LONGEST
    shown = shown[:LONGEST]
    if not _PLAIN.fullmatch(shown):
        shown = "".join(
            escaped(each) if unicodedata.category(each) in _INVISIBLE else each for each in shown
        )
    return f"{shown}…" if cut else shown


def visible_lines(text: str) -> str:
    """Return a text of several lines with escapes for invisible characters."""
    return "\n".join(map(visible, text.split("\n")))


def foreign(text: object) -> Markup:
    """Return a text of an outsider as an element of its own direction."""
    return Markup("<bdi>{}</bdi>").format(visible(text))


def machine_time(seconds: float) -> str:
    """Return a time as the attribute `datetime` of an element `time` has it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def duration(seconds: float) -> str:
    """Return a time span in a unit that fits."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(count: int) -> str:
    """Return a number of bytes in a unit that fits."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= each:
            return f"{count / each:.1f} {unit}"
    return f"{count} bytes"


def failures(times: Times) -> str:
    """Return why look-ups failed, and how many."""
    found = sorted(times.failures.items(), key=lambda each: -each[1])
    return ", ".join(f"{_CAUSES[cause]}: {n}" for cause, n in found if n)


def quantile(times: Times, part: float) -> str:
    """Return the time within which a part of the look-ups ended."""
    found = times.quantile(part)
    return f"{duration(BUCKETS[-1])} or more" if found is None else f"within {duration(found)}"


def verdict(it: Verdict) -> str:
    """Return what a filter did, in words; reason and reply are shown beside it."""
    words = exempts(it) if it.exempt else _VERBS.get(it.verb, it.verb)
    if it.verb == "points":
        words = f"gave {it.points / 1000:g} points"
    if it.edits:
        words += " and changed it"
    if it.earlier:
        words += ", earlier in the session"
    if it.dry and not it.exempt:
        words = f"would have acted, but only logs: {words}"
    if it.failed:
        words = f"failed, so its --on-error decided: {words}"
    return f"{words}, {it.count} times" if it.count > 1 else words


def cause(story: Story) -> str:
    """Return why a message was refused or marked; "" if it was not."""
    deciding = story.deciding
    if deciding is not None:
        return deciding.reason or deciding.reply
    return story.reply

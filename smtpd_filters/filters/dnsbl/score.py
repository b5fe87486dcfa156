"""The score of a client, and its bounds while answers are pending.

A score is the sum of the weights of all matching entries, negative ones included. A pending answer
can add at least `low` and at most `high`, the sums of its list's negative and positive weights. So
the bounds of the final score are known.

Invariants
----------
*No needless wait*: a decision waits for an answer only while that can change it (`decided`).
*No guess*: an answer that never arrives leaves the bounds apart. A level that is certain all the
same applies; otherwise the score decides nothing (`certain`). As points the least score counts.
"""

from __future__ import annotations

from itertools import pairwise

from smtpd_filters.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from typing import Protocol

    from smtpd_filters.runtime.log import FilterLog

    from .options import Sites

    class Actions(Protocol):
        """The settings of a filter that say what to do from which score on."""

        junk_at: int | None
        reject_at: int | None
        disconnect_at: int | None
        mark: bool
        points: bool
        header: bool
        reply: str

        @property
        def given(self) -> AbstractSet[str]:
            """The names of the settings that were given."""


#: The levels of action, in order of severity.
NOTHING, JUNK, REJECT, DISCONNECT = range(4)


class Thresholds:
    """The minimum score of each level; None for a level that is not used.

    With `exact` the score itself is of interest, and not only its level.
    """

    __slots__ = ("_exact", "_steps")

    def __init__(
        self,
        junk: int | None = None,
        reject: int | None = None,
        disconnect: int | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self._exact = exact
        steps = ((DISCONNECT, disconnect), (REJECT, reject), (JUNK, junk))
        self._steps = tuple((level, score) for level, score in steps if score is not None)

    def level(self, score: int) -> int:
        """Return the most severe level that a score reaches."""
        for level, least in self._steps:
            if score >= least:
                return level
        return NOTHING

    def decides(self, low: int, high: int) -> bool:
        """Return whether all scores from `low` to `high` lead to the same decision."""
        return low == high if self._exact else self.level(low) == self.level(high)


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
        return self._thresholds.decides(self.low, self.high)

    @property
    def certain(self) -> bool:
        """Whether the level can be applied if no more answers arrive."""
        return self.level > NOTHING or self.decided


def configured(settings: Actions, given: Sequence[Sites], log: FilterLog) -> Thresholds:
    """Return the thresholds of the settings, and log settings without effect.

    `given` are the lists. Raises ConfigError if thresholds contradict each other, or if no client
    can reach any of them.
    """
    junk, reject, disconnect = settings.junk_at, settings.reject_at, settings.disconnect_at
    if settings.points:
        if junk or reject or disconnect or settings.mark:
            raise ConfigError(
                "--points: cannot be combined with --junk-at, --reject-at, --disconnect-at or -m"
            )
        return Thresholds(junk=1, exact=True)
    if settings.mark:
        if junk or reject or disconnect:
            raise ConfigError(
                "-m: cannot be combined with --junk-at, --reject-at or --disconnect-at"
            )
        junk = 1
    elif not (junk or reject or disconnect):
        disconnect = 1
    steps = (("--junk-at", junk), ("--reject-at", reject), ("--disconnect-at", disconnect))
    named = [(flag, score) for flag, score in steps if score]
    for (milder, low), (severer, high) in pairwise(named):
        if low >= high:
            raise ConfigError(f"{milder} {low}: must be below {severer} {high}")
    if not (settings.header or settings.mark):
        _check_reach(settings, named, given, log)
    if settings.reply and not (reject or disconnect):
        log.event("--reply has no effect: no score refuses")
    return Thresholds(junk, reject, disconnect)


def _check_reach(
    settings: Actions,
    named: Sequence[tuple[str, int]],
    given: Sequence[Sites],
    log: FilterLog,
) -> None:
    """Log which of the thresholds, in rising order, no client can reach.

    Raises ConfigError if no threshold can ever be reached. A filter that adds the header field is
    not checked: a score beyond reach is the way to request only the field.
    """
    most = sum(max(site.weight, 0) for sites in given for site in sites)
    beyond = [f"{flag} {score}" for flag, score in named if score > most]
    if not beyond:
        return
    text = f"{beyond[0]}: cannot be reached, the weights of the lists add up to {most} at most"
    asked = {"junk_at", "reject_at", "disconnect_at"} & settings.given
    if len(beyond) < len(named) or not asked or any(sites.is_file for sites in given):
        # Files may add lists, and some lists serve only to exempt clients.
        log.event(text)
    else:
        raise ConfigError(text)

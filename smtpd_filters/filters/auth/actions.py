"""The kind of the settings of filter-auth that name an action, and the points of an action."""

from __future__ import annotations

from smtpd_filters.protocol.decisions import MAX_POINTS
from smtpd_filters.settings import NUMBER, Kind
from smtpd_filters.settings.quoting import quote

POINTS = "points"
WORDS = ("ignore", "log", "junk", "tempfail", "reject")
#: The most points of one action: the sum of all must be a valid number of points.
_NUMBER = NUMBER(low=0, high=MAX_POINTS / 4)


class _Action(Kind[str]):
    """A word, or a number of points: `points=2.5`."""

    inward = True
    metavar = "ACTION"
    noun = f"{', '.join(WORDS)} or points=N"

    def parse(self, text: str) -> str:
        if text in WORDS:
            return text
        word, equals, number = text.partition("=")
        if word != POINTS or not equals:
            raise ValueError(f"invalid choice {quote(text)} (choose from {self.noun})")
        return f"{POINTS}={_NUMBER.show(_NUMBER.parse(number))}"


ACTION = _Action()


def points_of(action: str) -> float:
    """Return the points of an action; 0 if it gives none."""
    word, _, number = action.partition("=")
    return float(number) if word == POINTS else 0.0

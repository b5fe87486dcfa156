"""The score of a session and its message, and the bounds of the final score.

A score is the sum of the points in its slots; there is one for each filter and phase. All points
are whole thousandths, so that sums don't depend on their order.

Invariants
----------
*One value*: a slot has one value. A command that is repeated replaces it; of several recipients the
one with the most points counts.
*Belongs where it was given*: points of the phases up to auth belong to the session, all others to
the message, and end with it.
*Bounds*: whatever the open slots get, within their own bounds, the sum is within `low` and `high`.
"""

from __future__ import annotations

from smtpd_filters.protocol.decisions import show_points

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: The order of the phases; a slot of a later one is open until it has a value.
ORDER = {
    "connect": 0,
    "helo": 1,
    "ehlo": 1,
    "starttls": 2,
    "auth": 3,
    "mail-from": 4,
    "rcpt-to": 5,
    "data": 6,
    "headers": 7,
    "message": 7,
}
MAIL_FROM, RCPT_TO, DATA, CONTENT = 4, 5, 6, 7


class Scale:
    """The thresholds of a score, in thousandths; None for one that is not used."""

    __slots__ = ("_steps", "greylist", "junk", "reject")

    def __init__(
        self, junk: int | None = None, reject: int | None = None, greylist: int | None = None
    ) -> None:
        self.junk, self.reject, self.greylist = junk, reject, greylist
        self._steps = tuple(each for each in (junk, reject, greylist) if each is not None)

    def level(self, score: int) -> int:
        """Return how many thresholds a score reaches."""
        return sum(score >= each for each in self._steps)

    def refuses(self, score: int) -> bool:
        """Return whether a score reaches the threshold of a refusal."""
        return self.reject is not None and score >= self.reject

    def marks(self, score: int) -> bool:
        """Return whether a score reaches the threshold of junk."""
        return self.junk is not None and score >= self.junk

    def certain(self, low: int, high: int) -> bool:
        """Return whether all scores from `low` to `high` reach the same thresholds."""
        return self.level(low) == self.level(high)


class Slot:
    """The place of one filter's points at one phase; `low` and `high` are their bounds."""

    __slots__ = ("filter", "high", "low", "order", "phase")

    def __init__(self, filter_: str, phase: str, low: int, high: int) -> None:
        self.filter, self.phase = filter_, phase
        self.order = ORDER[phase]
        # A handler may not be called, and may always proceed.
        self.low, self.high = min(low, 0), max(high, 0)

    def __repr__(self) -> str:
        return f"<slot {self.filter} {self.phase}>"


class Tally:
    """The points of a session so far, and of its message."""

    __slots__ = ("_message", "_session")

    def __init__(self) -> None:
        self._session: dict[Slot, tuple[int, bool]] = {}
        self._message: dict[Slot, tuple[int, bool]] = {}

    def put(self, slot: Slot, thousandths: int, *, temporary: bool = False) -> None:
        """Set the value of a slot; at rcpt-to only if it is more than that of former recipients."""
        values = self._session if slot.order < MAIL_FROM else self._message
        if slot.order == RCPT_TO and slot in values and values[slot][0] >= thousandths:
            return
        values[slot] = thousandths, temporary

    def forget(self, slots: Iterable[Slot]) -> None:
        """Remove the values of a command that is repeated; a recipient repeats none."""
        for slot in slots:
            if slot.order != RCPT_TO:
                self._session.pop(slot, None)
                self._message.pop(slot, None)

    def end_message(self) -> None:
        """Remove the values of the message."""
        self._message.clear()

    def snapshot(self) -> dict[Slot, tuple[int, bool]]:
        """Return the values of the message, to `restore` them if its recipient is refused."""
        return dict(self._message)

    def restore(self, message: dict[Slot, tuple[int, bool]]) -> None:
        """Replace the values of the message by those of a snapshot."""
        self._message = message

    @property
    def total(self) -> int:
        """The score."""
        return sum(value for value, _ in self._values())

    def bounds(self, behind: Iterable[Slot], later: Iterable[Slot]) -> tuple[int, int]:
        """Return the least and the most that the score can be in the end.

        `behind` are the slots of this phase whose filters have not been asked yet, `later` those of
        later phases, of which those without a value are open.
        """
        low = high = self.total
        for slot in behind:
            known = self._message.get(slot)
            if known is None:
                low += slot.low
                high += slot.high
            else:  # of a former recipient
                high += max(slot.high - known[0], 0)
        for slot in later:
            if slot not in self._session and slot not in self._message:
                low += slot.low
                high += slot.high
        return low, high

    @property
    def temporary(self) -> int:
        """The part of the score that is temporary points against the client."""
        return sum(value for value, temporary in self._values() if temporary and value > 0)

    def shown(self) -> str:
        """Return the breakdown: `dnsbl=3.5 fcrdns=-1`; slots without points are left out."""
        by_filter: dict[str, int] = {}
        for values in (self._session, self._message):
            for slot, (value, _) in values.items():
                by_filter[slot.filter] = by_filter.get(slot.filter, 0) + value
        return " ".join(f"{name}={show_points(sum_)}" for name, sum_ in by_filter.items() if sum_)

    def _values(self) -> Iterable[tuple[int, bool]]:
        yield from self._session.values()
        yield from self._message.values()

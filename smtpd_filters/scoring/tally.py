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
_MAIL_FROM, _RCPT_TO = ORDER["mail-from"], ORDER["rcpt-to"]


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
        for step in self._steps:  # noqa: SIM110  # a generator costs four times as much
            if low < step <= high:
                return False
        return True


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

    __slots__ = ("_message", "_session", "latest", "total")

    def __init__(self) -> None:
        self._session: dict[Slot, tuple[int, bool]] = {}
        self._message: dict[Slot, tuple[int, bool]] = {}
        #: The score.
        self.total = 0
        #: The order of the latest phase with a value; no slot of a later one has a value.
        self.latest = -1

    def put(self, slot: Slot, thousandths: int, *, temporary: bool = False) -> None:
        """Set the value of a slot; at rcpt-to only if it is more than that of former recipients."""
        values = self._session if slot.order < _MAIL_FROM else self._message
        known = values.get(slot)
        if known is None:
            if not thousandths and slot.order != _RCPT_TO:
                return
        elif slot.order == _RCPT_TO and known[0] >= thousandths:
            return
        else:
            self.total -= known[0]
        values[slot] = thousandths, temporary
        self.total += thousandths
        self.latest = max(self.latest, slot.order)

    def forget(self, order: int, slots: Iterable[Slot]) -> None:
        """Remove the values of a command that is repeated; a recipient repeats none."""
        if self.latest < order or order == _RCPT_TO:
            return
        for slot in slots:
            for values in (self._session, self._message):
                if (known := values.pop(slot, None)) is not None:
                    self.total -= known[0]

    def end_message(self) -> None:
        """Remove the values of the message."""
        if self._message:
            self.restore({})

    def snapshot(self) -> dict[Slot, tuple[int, bool]]:
        """Return the values of the message, to `restore` them if its recipient is refused."""
        return dict(self._message)

    def restore(self, message: dict[Slot, tuple[int, bool]]) -> None:
        """Replace the values of the message by those of a snapshot."""
        self._message = message
        self.total = sum(value for value, _ in self._values())
        self.latest = max((slot.order for slot in (*self._session, *message)), default=-1)

    def open(self, slot: Slot) -> tuple[int, int]:
        """Return the least and the most that an answer can add, of a slot of this phase."""
        known = self._message.get(slot) if slot.order == _RCPT_TO else None
        if known is None:
            return slot.low, slot.high
        return 0, max(slot.high - known[0], 0)  # of a former recipient

    def bounds(self, behind: Iterable[Slot], later: Iterable[Slot]) -> tuple[int, int]:
        """Return the least and the most that the score can be in the end.

        `behind` are the slots of this phase whose filters have not been asked yet, `later` those of
        later phases, of which those without a value are open.
        """
        low = high = self.total
        for slot in behind:
            least, most = self.open(slot)
            low += least
            high += most
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


class Plan:
    """The slots of a phase, and the sums of the bounds of those of later phases."""

    __slots__ = ("high", "later", "low", "order", "own_high", "own_low", "slots")

    def __init__(self, order: int, slots: Iterable[Slot], every: Iterable[Slot]) -> None:
        self.order = order
        self.slots = tuple(dict.fromkeys(slots))
        self.later = tuple(slot for slot in dict.fromkeys(every) if slot.order > order)
        self.own_low = sum(slot.low for slot in self.slots)
        self.own_high = sum(slot.high for slot in self.slots)
        self.low = sum(slot.low for slot in self.later)
        self.high = sum(slot.high for slot in self.later)


class Outlook:
    """The bounds of the final score during a phase, as its filters answer one after the other."""

    __slots__ = ("high", "low", "tally")

    def __init__(self, tally: Tally, plan: Plan) -> None:
        self.tally = tally
        if tally.latest < plan.order:  # nothing of this phase or a later one has a value
            self.low = tally.total + plan.own_low + plan.low
            self.high = tally.total + plan.own_high + plan.high
        else:
            self.low, self.high = tally.bounds(plan.slots, plan.later)

    def answer(self, slot: Slot, thousandths: int, *, temporary: bool = False) -> None:
        """Take the points of a slot, which is open no more."""
        tally = self.tally
        low, high = tally.open(slot)
        before = tally.total
        tally.put(slot, thousandths, temporary=temporary)
        gain = tally.total - before
        self.low += gain - low
        self.high += gain - high

    def answer_nothing(self, slot: Slot) -> None:
        """Take no points of a slot, which is open no more."""
        if slot.order == _RCPT_TO:
            self.answer(slot, 0)  # a former recipient may have had fewer
        else:
            self.low -= slot.low
            self.high -= slot.high

    def close(self, slot: Slot) -> None:
        """Leave a slot without an answer."""
        low, high = self.tally.open(slot)
        self.low -= low
        self.high -= high

"""The handlers of a chain that add points, and those that are called from a score on."""

from __future__ import annotations

from smtpd_filters.guard import FAILED
from smtpd_filters.handlers import CONTENT, SCORED
from smtpd_filters.protocol.vocabulary import HANDLERS

from .rules import EXEMPT, actions_of
from .tally import ORDER, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from smtpd_filters.guard import Guard
    from smtpd_filters.protocol.decisions import Decision

    from .rules import Rules, Treatment


class Scored:
    """The handlers that matter to the score, of all `guards` of a chain by handler.

    `greylists` are the names of the filters that are called from `greylist-at` on. The guards treat
    decisions by the rules from now on.
    """

    __slots__ = ("least", "only_points", "slots")

    def __init__(
        self, guards: Mapping[str, Sequence[Guard]], rules: Rules, greylists: Container[str]
    ) -> None:
        #: The slot of each handler that adds points.
        self.slots: dict[Guard, Slot] = {}
        #: The least score from which a handler is called.
        self.least: dict[Guard, int] = {}
        greylist_at = rules.scale().greylist
        adding: set[Guard] = set()
        for handler, guard in ((name, each) for name in guards for each in guards[name]):
            if handler not in SCORED:
                continue
            treatment = rules.treatment(guard.filter)
            points = _points(guard, treatment)
            _treat(guard, treatment, adds=bool(points))
            if points:
                phase = HANDLERS[handler].name if handler in HANDLERS else handler
                self.slots[guard] = self._slot(guard.filter, phase, min(points), max(points))
                if handler not in CONTENT and _acts_by_points(guard, treatment):
                    adding.add(guard)
            if greylist_at is not None and guard.filter in greylists:
                self.least[guard] = greylist_at
        mixed = {guard.filter for of in guards.values() for guard in of if guard not in adding}
        #: The handlers that can only add points, of filters whose handlers all are like that.
        self.only_points = {guard for guard in adding if guard.filter not in mixed}

    def _slot(self, filter_: str, phase: str, low: int, high: int) -> Slot:
        """Return the slot of a filter at a phase; HELO and EHLO share one."""
        for slot in self.slots.values():
            if slot.filter == filter_ and slot.order == ORDER[phase] < ORDER["mail-from"]:
                slot.low, slot.high = min(slot.low, low), max(slot.high, high)
                return slot
        return Slot(filter_, phase, low, high)


def _points(guard: Guard, treatment: Treatment | None) -> list[int]:
    """Return the points that a handler may add, or their bounds, in thousandths."""
    points = [] if treatment is None else [*treatment.points.values()]
    if guard.points is not None:
        points += [round(each * 1000) for each in guard.points]
    return points


def _treat(guard: Guard, treatment: Treatment | None, *, adds: bool) -> None:
    """Have a guard apply the treatment; without one, keep the points of a handler that adds some.

    A guard without either suppresses points.
    """
    if treatment is not None:
        guard.treat = lambda each: treatment.apply(each, failed=each.reason is FAILED)
        if EXEMPT in treatment.bypass:
            guard.log.keep_exemptions()
    elif adds:
        guard.treat = _itself


def _itself(decision: Decision) -> Decision:
    return decision


def _acts_by_points(guard: Guard, treatment: Treatment | None) -> bool:
    """Return whether points replace every action of a handler."""
    actions = actions_of(guard.legal, guard.fallback)
    if treatment is None:
        return not actions
    if EXEMPT in treatment.bypass:
        actions.add(EXEMPT)
    return actions <= set(treatment.points)

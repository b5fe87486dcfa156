"""The check of a chain's rules: none is without effect, and no two contradict each other."""

from __future__ import annotations

from smtpd_filters.protocol.decisions import show_points
from smtpd_filters.settings.quoting import quote

from .rules import RuleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .rules import FilterRules, Rules
    from .tally import Scale, Slot


def check_rules(
    rules: Rules, names: Sequence[str], slots: Iterable[Slot], *, has_greylist: bool
) -> None:
    """Raise RuleError for rules without effect or against each other.

    `names` are those of the chain's filters, `slots` the places of their points; `has_greylist` is
    whether the score decides if one of the filters is asked.
    """
    for name in rules.filters:
        if name not in names:
            known = ", ".join(map(quote, names))
            raise RuleError(f"no filter {quote(name)} in the chain, which has {known}", name)
    if rules.settings.greylist_at is not None and not has_greylist:
        raise RuleError("greylist-at: requires a filter of the kind greylist in the chain")
    for name, of_filter in rules.filters.items():
        _check_filter(name, of_filter, scores=rules.scores)
    scale = rules.scale()
    _check_thresholds(rules, scale)
    _check_reach(scale, names, slots)


def _check_filter(name: str, rules: FilterRules, *, scores: bool) -> None:
    """Check the rules of a filter; `scores` is whether its chain has a score."""
    scored = set(rules.score or {})
    if both := scored.intersection(rules.bypass):
        raise RuleError(f"bypass: {min(both)} has points, too; see score", name)
    if scored and not scores:
        raise RuleError("score: requires junk-at, reject-at or score-header in the chain", name)


def _check_thresholds(rules: Rules, scale: Scale) -> None:
    """Check the order of the thresholds, and the settings that need one."""
    if scale.junk is not None and scale.reject is not None and scale.junk >= scale.reject:
        junk, reject = show_points(scale.junk), show_points(scale.reject)
        raise RuleError(f"junk-at: {junk} must be below reject-at, {reject}")
    if scale.reject is None and (useless := {"score_at", "score_reply"} & rules.settings.given):
        raise RuleError(f"{min(useless).replace('_', '-')}: requires reject-at")


def _check_reach(scale: Scale, names: Iterable[str], slots: Iterable[Slot]) -> None:
    """Check that the filters have enough points for each threshold."""
    slots = dict.fromkeys(slots)  # some handlers share one
    most = sum(slot.high for slot in slots)
    pointless = [each for each in names if all(each != slot.filter for slot in slots)]
    steps = (("junk", scale.junk), ("reject", scale.reject), ("greylist", scale.greylist))
    for name, at in steps:
        if at is not None and at > most:
            raise RuleError(
                f"{name}-at: {show_points(at)} cannot be reached, the points of the filters "
                f"add up to {show_points(most)} at most"
                + (f"; without points: {', '.join(pointless)}" if pointless else "")
            )

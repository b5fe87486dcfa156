"""The arithmetic of scores: sums, bounds and when a score is certain."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters import JUNK, PROCEED, Points
from smtpd_filters.protocol.decisions import MAX_POINTS, show_points
from smtpd_filters.scoring.tally import ORDER, Outlook, Plan, Scale, Slot, Tally

THOUSANDTHS = st.integers(-20_000, 20_000)
SLOTS = st.lists(
    st.tuples(st.sampled_from(sorted(ORDER)), THOUSANDTHS, THOUSANDTHS), min_size=1, max_size=5
)
SCALES = st.builds(Scale, *[st.none() | st.integers(1, 30_000) for _ in range(3)])


@given(SLOTS, SCALES, st.data())
def test_a_certain_score_reaches_the_same_thresholds_whatever_follows(
    made: list[tuple[str, int, int]], scale: Scale, data: st.DataObject
) -> None:
    slots = [
        Slot(f"f{at}", phase, min(one, two), max(one, two))
        for at, (phase, one, two) in enumerate(made)
    ]
    given_ = data.draw(st.integers(0, len(slots)))
    tally = Tally()
    for slot in slots[:given_]:
        tally.put(slot, data.draw(st.integers(slot.low, slot.high)))
    low, high = tally.bounds((), slots)
    now = tally.total
    assert low <= now <= high
    for slot in slots[given_:]:
        # It may never be asked, too.
        if data.draw(st.booleans()):
            tally.put(slot, data.draw(st.integers(slot.low, slot.high)))
    assert low <= tally.total <= high
    if scale.certain(low, high):
        assert scale.level(now) == scale.level(tally.total)
    # The bounds are those of an outcome: no tighter ones would do.
    assert scale.certain(low, high) == (scale.level(low) == scale.level(high))


@given(st.lists(THOUSANDTHS, min_size=1, max_size=4), THOUSANDTHS)
def test_of_several_recipients_the_worst_one_counts(values: list[int], former: int) -> None:
    slot = Slot("f", "rcpt-to", -20_000, 20_000)
    tally = Tally()
    tally.put(slot, former)
    low, high = tally.bounds([slot], ())
    for value in values:
        tally.put(slot, value)
    assert tally.total == max(former, *values)
    assert low <= tally.total <= high


@pytest.mark.parametrize("former", [-2_000, 0])
def test_a_recipient_that_passes_has_no_points(former: int) -> None:
    slot = Slot("f", "rcpt-to", -20_000, 20_000)
    tally, plan = Tally(), Plan(slot.order, [slot], [slot])
    if former:
        Outlook(tally, plan).answer(slot, former)
    assert tally.total == former
    Outlook(tally, plan).answer_nothing(slot)
    assert (tally.total, tally.shown()) == (0, "")


def test_points_belong_to_the_session_or_to_the_message() -> None:
    tally = Tally()
    for phase in ORDER:
        tally.put(Slot("f", phase, 0, 1_000), 1_000)
    assert tally.total == 10_000
    tally.end_message()
    assert tally.total == 5_000
    assert tally.shown() == "f=5"


def test_a_repeated_command_has_its_points_once() -> None:
    slot, recipient = Slot("f", "ehlo", 0, 9_000), Slot("f", "rcpt-to", 0, 9_000)
    tally = Tally()
    for value in (9_000, 2_000):
        for each in (slot, recipient):
            tally.forget(each.order, [each])
        tally.put(slot, value)
        tally.put(recipient, value)
    assert tally.total == 2_000 + 9_000


def test_sums_do_not_depend_on_their_order() -> None:
    parts = [0.1, 0.2, 0.7, 2.4, -0.4]
    sums = set()
    for order in itertools.permutations(parts):
        tally = Tally()
        for at, part in enumerate(order):
            tally.put(Slot(f"f{at}", "connect", -9_000, 9_000), Points(part).thousandths)
        sums.add(tally.total)
    assert sums == {3_000}
    assert Scale(reject=3_000).refuses(sums.pop())


@given(st.integers(-MAX_POINTS * 1000, MAX_POINTS * 1000))
def test_points_are_shown_as_they_are(thousandths: int) -> None:
    assert round(float(show_points(thousandths)) * 1000) == thousandths


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), MAX_POINTS + 1])
def test_what_is_no_number_of_points(wrong: float) -> None:
    with pytest.raises(ValueError, match="points are a number"):
        Points(wrong)


def test_points_are_decisions_of_their_own() -> None:
    assert Points(2.5) == Points(2.5)
    assert len({Points(2.5), Points(2.5), Points(3)}) == 2
    assert Points(2.5).because("x") == Points(2.5).because("x") != Points(2.5)
    assert Points(2.5) != PROCEED != Points(2.5)
    assert Points(1) != JUNK
    assert repr(Points(-2.5, temporary=True).because("x")) == (
        "Points(-2.5, temporary=True, reason='x')"
    )
    match Points(2.5):
        case Points(points):
            assert points == 2.5


PUT = st.tuples(st.integers(0, 4), THOUSANDTHS, st.booleans())


@given(SLOTS, st.lists(PUT), st.sampled_from(sorted(ORDER)), st.data())
def test_the_outlook_has_the_bounds_of_what_is_open(
    made: list[tuple[str, int, int]],
    before: list[tuple[int, int, bool]],
    phase: str,
    data: st.DataObject,
) -> None:
    slots = [
        Slot(f"f{at}", where, min(one, two), max(one, two))
        for at, (where, one, two) in enumerate(made)
    ]
    order = ORDER[phase]
    plan = Plan(order, [slot for slot in slots if slot.order == order], slots)
    tally = Tally()
    for at, value, message in before:
        if message:
            tally.end_message()
        slot = slots[at % len(slots)]
        tally.put(slot, max(slot.low, min(value, slot.high)))
    tally.forget(order, plan.slots)
    outlook = Outlook(tally, plan)
    behind = list(plan.slots)
    while True:
        assert (outlook.low, outlook.high) == tally.bounds(behind, plan.later)
        if not behind:
            break
        slot = behind.pop(data.draw(st.integers(0, len(behind) - 1)))
        kind = data.draw(st.integers(0, 2))
        if kind == 0:
            outlook.answer(slot, data.draw(st.integers(slot.low, slot.high)))
        elif kind == 1:
            outlook.answer_nothing(slot)
        else:
            outlook.close(slot)

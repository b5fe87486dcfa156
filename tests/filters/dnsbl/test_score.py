"""The sum, and when it is known what will come of it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.filters.dnsbl.score import (
    DISCONNECT,
    JUNK,
    NOTHING,
    REJECT,
    Tally,
    Thresholds,
)

scores = st.none() | st.integers(1, 6)
bounds = st.tuples(st.integers(-4, 0), st.integers(0, 4))


@pytest.mark.parametrize(
    ("score", "level"),
    [(-5, NOTHING), (1, NOTHING), (2, JUNK), (3, JUNK), (4, REJECT), (8, DISCONNECT), (99, 3)],
)
def test_a_threshold_is_reached_by_its_own_score(score: int, level: int) -> None:
    assert Thresholds(2, 4, 8).level(score) == level


def test_what_has_no_threshold_is_never_done() -> None:
    assert Thresholds(reject=2).level(100) == REJECT
    assert Thresholds(junk=2).level(100) == JUNK


@given(scores, scores, scores, st.lists(bounds, max_size=4), st.data())
def test_it_is_decided_exactly_when_no_answer_can_change_it(
    junk: int | None,
    reject: int | None,
    disconnect: int | None,
    lists: list[tuple[int, int]],
    data: st.DataObject,
) -> None:
    """Against all sums that there can be."""
    thresholds = Thresholds(junk, reject, disconnect)
    tally = Tally(thresholds)
    for low, high in lists:
        tally.expect(low, high)
    out, known = list(lists), 0
    while True:
        ends = [known + sum(points) for points in product(*(range(b[0], b[1] + 1) for b in out))]
        # Levels rise with scores: it is enough to look at the sums that there can be.
        levels = {thresholds.level(end) for end in ends}
        assert (tally.low, tally.high) == (min(ends), max(ends))
        assert tally.score == known
        assert tally.decided is (len(levels) == 1)
        assert tally.level == min(levels)
        assert tally.certain is (tally.decided or min(levels) > NOTHING)
        if not out:
            break
        low, high = out.pop(data.draw(st.integers(0, len(out) - 1)))
        points = data.draw(st.integers(low, high))
        tally.settle(low, high, points)
        known += points
    assert tally.decided
    assert tally.level == thresholds.level(known)


def test_an_allow_list_that_is_still_out_holds_a_refusal_back() -> None:
    tally = Tally(Thresholds(reject=3))
    tally.expect(0, 3)
    tally.expect(-2, 0)
    tally.settle(0, 3, 3)
    assert not tally.decided
    tally.settle(-2, 0, 0)
    assert (tally.decided, tally.level) == (True, REJECT)


def test_a_refusal_waits_for_nobody_who_cannot_change_it() -> None:
    tally = Tally(Thresholds(reject=3))
    for _ in range(3):
        tally.expect(-1, 2)
    tally.settle(-1, 2, 2)
    tally.expect(0, 9)
    tally.settle(0, 9, 9)
    assert (tally.decided, tally.level) == (True, REJECT)


@given(st.lists(bounds, min_size=1, max_size=4))
def test_an_exact_score_is_decided_when_nothing_is_open(lists: list[tuple[int, int]]) -> None:
    tally = Tally(Thresholds(junk=1, exact=True))
    for low, high in lists:
        tally.expect(low, high)
    for low, high in lists:
        assert tally.decided is (tally.low == tally.high)
        tally.settle(low, high, high)
    assert tally.decided

"""Parts of one story, of several processes, become one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.journal.merging import HOLD, MAX_PROCESSES, MAX_VERDICTS, Merger
from smtpd_filters.journal.stories import story
from tests.effort import part as effort

from .made import NOON, PASSED, REFUSED, part


def test_processes_of_one_transaction_are_one_story() -> None:
    merger = Merger()
    merger.add(part(1, [PASSED], p="filter-fcrdns", t=int(NOON * 1000) + 20), 0.0)
    merger.add(part(2, p="filter-fcrdns"), 0.1)
    merger.add(part(1, [REFUSED], p="filter-dnsbl", c=[], z=0), 0.2)
    assert merger.due(HOLD - 0.01) == []
    [first] = merger.due(HOLD)
    told = story("x", first)
    assert [(each.filter, each.at) for each in told.verdicts] == [("dnsbl", 3), ("fcrdns", 21)]
    assert told.processes == ("filter-fcrdns", "filter-dnsbl")
    assert (told.client, told.size) == ("192.0.2.1", 1234)
    assert len(merger) == 1
    assert len(merger.due(0.0, everything=True)) == 1


def test_a_clock_that_was_set_back_holds_nothing_up() -> None:
    merger = Merger()
    merger.add(part(1), 1000.0)
    assert len(merger.due(0.0)) == 1


@settings(max_examples=effort(50))
@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 10))
def test_no_story_is_lost_and_memory_is_bounded(numbers: list[int], most: int) -> None:
    merger = Merger(max_held=most)
    found = []
    for at, number in enumerate(numbers):
        merger.add(part(number), at / 1000)
        found += merger.due(at / 1000)
        assert len(merger) <= most
    found += merger.due(0.0, everything=True)
    assert {each["s"] for each in found} == {f"{number:016x}" for number in numbers}


def test_a_story_of_many_parts_is_bounded() -> None:
    names = " ".join(f"filter{number}" for number in range(30))
    merger = Merger()
    for number in range(200):
        merger.add(part(1, [["connect", 1, 20, names]] * 3, p=f"filter-{number}"), 0.0)
    [joint] = merger.due(0.0, everything=True)
    told = story("x", joint)
    assert len(told.processes) == MAX_PROCESSES
    assert MAX_VERDICTS - 30 < len(told.verdicts) <= MAX_VERDICTS
    assert len(told.verdicts) + told.left_out == 200 * 3 * 30


def test_stories_with_much_in_them_are_complete_earlier() -> None:
    merger = Merger(max_memory=1_000_000)
    many = [["fcrdns", "connect", "reject", at] for at in range(30)]
    for number in range(1000):
        merger.add(part(number, many), 0.0, 2000)
        merger.due(0.0)
        assert len(merger) <= 50
    # Parts of one story are added up.
    for _ in range(1000):
        merger.add(part(1, many), 0.0, 2000)
        merger.due(0.0)
        assert sum(merger._memory.values()) == merger._total <= 1_000_000
    merger.due(0.0, everything=True)
    assert not merger._memory
    assert merger._total == 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_end_that_one_process_has_not_seen(order: tuple[int, int]) -> None:
    parts = [part(1, e="commit"), part(1, e="rollback")]
    merger = Merger()
    for at in order:
        merger.add(parts[at], 0.0)
    [told] = merger.due(HOLD)
    assert told["e"] == "commit"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_reply_that_one_process_keeps_to_itself(order: tuple[int, int]) -> None:
    refused = ["550 5.7.1 No", "535 5.7.8 Not with this password: secret"]
    parts = [part(1, a=refused), part(1, a=["550 5.7.1 No", "535"])]
    merger = Merger()
    for at in order:
        merger.add(parts[at], 0.0)
    [told] = merger.due(HOLD)
    assert told["a"] == ["550 5.7.1 No", "535"]

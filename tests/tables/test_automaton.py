"""All patterns that match in a key, compared with the first one that does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.tables.automaton import Automaton
from smtpd_filters.tables.ere import parse
from tests.effort import part

if TYPE_CHECKING:
    from collections.abc import Sequence

PATTERNS = st.lists(
    st.sampled_from(["a", "ab", "b+c", "^a", "c$", "^$", "a*", "^abc$", "(ab|c)b", ".b.", "x"]),
    min_size=1,
    max_size=5,
)


def made(*patterns: str, memory: int = 1000) -> Automaton:
    automaton = Automaton()
    for each in patterns:
        automaton.add(parse(each.encode()))
    automaton.finish(memory)
    return automaton


def all_in(automaton: Automaton, key: bytes, size: int = 4) -> set[int]:
    steps = automaton.matches(key, size)
    try:
        while True:
            assert next(steps) >= 0
    except StopIteration as end:
        found: set[int] = end.value
    return found


def one_by_one(patterns: Sequence[str], key: bytes) -> set[int]:
    return {at for at, each in enumerate(patterns) if made(each).match(key) is not None}


@settings(max_examples=part(300), deadline=None)
@given(PATTERNS, st.text("abcx", max_size=20), st.integers(1, 8))
def test_all_that_match_are_found(patterns: list[str], text: str, size: int) -> None:
    key = text.encode()
    automaton = made(*patterns)
    found = all_in(automaton, key, size)
    assert found == one_by_one(patterns, key)
    assert automaton.match(key) == min(found, default=None)


@pytest.mark.parametrize("key", [b"", b"abc", b"zzz"])
def test_the_work_of_each_step_is_counted(key: bytes) -> None:
    steps = made("a", "c$").matches(key, 1)
    assert len(list(steps)) == len(key)

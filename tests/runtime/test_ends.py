"""Sessions that end anywhere are answered, and leave nothing behind."""

from __future__ import annotations

import gc
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import part

from .ends import alive, play


@pytest.fixture(scope="module", autouse=True)
def _only_new_objects() -> None:
    """Hide from `alive`, which looks at each object, what the tests before have left.

    In a process that has run many tests these were most of its time: 30 s instead of 1 s.
    """
    gc.collect()
    gc.freeze()


@given(st.binary(min_size=150, max_size=500))
@settings(max_examples=part(80))
def test_sessions_that_end_anywhere_leave_nothing_behind(data: bytes) -> None:
    before = alive()
    with pytest.MonkeyPatch.context() as patch:
        play(data, patch)
    known = set(map(id, before))
    assert [type(each) for each in alive() if id(each) not in known] == []


def test_messages_are_compared() -> None:
    """The choices lead to messages that come back, not only to failures."""
    compared = 0
    for seed in range(12):
        with pytest.MonkeyPatch.context() as patch:
            compared += play(random.Random(seed).randbytes(800), patch).compared  # noqa: S311  # a test
    assert compared

"""Filters that ask a server answer each request and leave nothing behind, however it fails.

Each conversation checks (`bridges`): every request gets one answer, which is legal; a refusal has a
4xx or 5xx reply, and a final one only for what the server refuses; a message passes byte for byte
or is refused, and the server gets it as it was sent; a verdict is never that of another message;
no session, task, timer, connection, turn or spooled message is left at the end.
"""

from __future__ import annotations

import gc
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import part

from .bridges import BRIDGES, play


@pytest.fixture(scope="module", autouse=True)
def _only_new_objects() -> None:
    """Hide what the tests before have left from the collections of garbage in each example."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("name", BRIDGES)
def test_sessions_with_a_server_that_fails_leave_nothing_behind(name: str) -> None:
    @given(st.randoms(use_true_random=False), st.sampled_from((150, 400, 900)))
    @settings(max_examples=part(30))
    def check(choices: random.Random, size: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            play(name, choices.randbytes(size), patch)

    check()


@pytest.mark.parametrize("name", BRIDGES)
def test_messages_pass_and_are_refused(name: str) -> None:
    """The choices lead to messages that pass, and to refusals, not only to sessions that end."""
    passed = refused = 0
    for seed in range(8):
        with pytest.MonkeyPatch.context() as patch:
            world = play(name, random.Random(seed).randbytes(1200), patch)  # noqa: S311  # a test
        passed += world.server.commits
        refused += world.server.refusals
    assert passed
    assert refused

"""Filters that ask a server answer each request and leave nothing behind, however it fails.

Each conversation checks (`bridges`): every request gets one answer, which is legal; a refusal has a
4xx or 5xx reply, and a final one only for what a server refuses; a message passes byte for byte,
with all that a milter edits or nothing of it, or is refused, and each server gets it as it was
sent; a verdict is never that of another message, nor one that nothing has asked for; no request
waits for a server that has ended its connection, and none fails without a fault; no session, task,
timer, connection, turn or spooled message is left at the end.
"""

from __future__ import annotations

import gc
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import part

from .bridges import CHAINS, play


@pytest.fixture(scope="module", autouse=True)
def _only_new_objects() -> None:
    """Hide what the tests before have left from the collections of garbage in each example."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize("name", CHAINS)
def test_sessions_with_a_server_that_fails_leave_nothing_behind(name: str) -> None:
    @given(st.randoms(use_true_random=False), st.sampled_from((150, 400, 900)))
    @settings(max_examples=part(20))
    def check(choices: random.Random, size: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            play(name, choices.randbytes(size), patch)

    check()


@pytest.mark.parametrize("name", CHAINS)
def test_messages_pass_and_are_refused(name: str) -> None:
    """The choices lead to messages that pass, and to refusals, not only to sessions that end."""
    due = {"passed", "refused", "edited"} if "milter" in name else {"passed", "refused"}
    for seed in range(200):
        with pytest.MonkeyPatch.context() as patch:
            world = play(name, random.Random(seed).randbytes(900), patch)  # noqa: S311  # a test
        due -= world.server.seen
        if not due:
            break
    assert not due

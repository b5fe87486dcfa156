"""Stories wait for others only while many come, and none is lost or reported twice."""

from __future__ import annotations

import pytest

from smtpd_filters.journal.outbox import SPACING, Outbox

from .deciding import Sent
from .made import NOON, parse_all
from .test_service import datagram


class Clock:
    """A monotonic clock that stands still."""

    now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(sent: Sent, clock: Clock) -> Outbox:
    return Outbox(sent, clock, room=1000)  # type: ignore[arg-type]


def numbers(sent: Sent) -> list[list[int]]:
    return [[int(part["s"], 16) for part in parse_all(data)] for data in sent.datagrams]


def test_a_single_story_is_sent_at_once(outbox: Outbox, sent: Sent, clock: Clock) -> None:
    for number in (1, 2):
        outbox.add([datagram(number)])
        assert outbox.due == float("inf")
        clock.now += SPACING
    assert numbers(sent) == [[1], [2]]


def test_those_that_follow_are_sent_together(outbox: Outbox, sent: Sent, clock: Clock) -> None:
    for number in (1, 2, 3):
        outbox.add([datagram(number)])
    assert numbers(sent) == [[1]]
    assert outbox.due == clock.now + SPACING
    outbox.flush()
    assert outbox.due == float("inf")
    assert numbers(sent) == [[1], [2, 3]]


def test_a_full_datagram_is_sent_at_once(outbox: Outbox, sent: Sent) -> None:
    size = len(datagram(1)) + 1
    together = 999 // size
    assert together > 1
    for number in range(1, 3 * together + 1):
        outbox.add([datagram(number)])
    assert [len(each) for each in numbers(sent)] == [1, together, together]
    assert max(map(len, sent.datagrams)) <= 1000
    outbox.flush()
    assert [number for each in numbers(sent) for number in each] == [*range(1, 3 * together + 1)]


def test_a_lost_datagram_counts_all_its_stories(outbox: Outbox, sent: Sent, clock: Clock) -> None:
    outbox.add([datagram(1)])
    sent.full = True
    outbox.add([datagram(2)])
    outbox.add([datagram(3)])
    outbox.flush()
    assert sent.dropped == outbox.losses == 2
    sent.full = False
    outbox.add([datagram(4)], outbox.losses)
    assert outbox.losses == 0  # the next story doesn't report them as well
    assert sent.unreported == 2
    sent.full = True
    outbox.flush()
    assert sent.dropped == outbox.losses == 3
    sent.full = False
    clock.now += SPACING
    outbox.add([datagram(5)], outbox.losses)
    assert outbox.losses == sent.unreported == 0

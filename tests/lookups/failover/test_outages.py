from __future__ import annotations

import pytest

from smtpd_filters.lookups.failover.outages import EVERY, Outages
from smtpd_filters.lookups.retry import Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Log(list[tuple[str, str]]):
    """The events and their servers."""

    def note(self, event: str, **values: Any) -> None:
        self.append((event, values["server"]))


def test_a_line_for_each_server_and_one_at_the_end() -> None:
    log = Log()
    outages = Outages(["a", "b"], log.note)
    outages.answered(0)
    for now in range(3):
        outages.failed(0, Failure.SILENT, "timeout", now)
        outages.failed(1, Failure.BROKEN, "status 500", now)
        outages.answered(1)
    outages.answered(0)
    outages.answered(0)
    assert log == [
        ("server failed", "a"),
        ("server failed", "b"),
        ("answers again", "b"),
        ("answers again", "a"),
    ]


def test_a_server_that_fails_now_and_then_does_not_fill_the_log() -> None:
    log = Log()
    outages = Outages(["a", "b"], log.note)
    for second in range(int(2 * EVERY)):
        outages.failed(0, Failure.UNREACHABLE, "refused", second)
        outages.answered(0)
    assert len(log) == 4


@pytest.mark.parametrize("failure", [Failure.LOCAL, Failure.SHORT])
def test_failures_of_this_machine_are_not_the_servers(failure: Failure) -> None:
    log = Log()
    Outages(["a", "b"], log.note).failed(0, failure, "too many pending requests", 0)
    assert log == []

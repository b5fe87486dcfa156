"""Servers that can't be reached, and that answer again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.lookups.failover.attempts import Attempts
from smtpd_filters.lookups.failover.failures import Trouble
from smtpd_filters.lookups.failover.group import Group
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import Failure

if TYPE_CHECKING:
    from smtpd_filters.lookups.retry import Ask


class Scripted(Attempts[str]):
    """Attempts with a result for each server."""

    def __init__(self, group: Group, result: str | Trouble) -> None:
        super().__init__(group)
        self.result = result

    async def ask(self, _step: Ask) -> str | Trouble:
        return self.result


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure.UNREACHABLE, ["answers again"]),
        (Failure.LOCAL, []),
        (Failure.BROKEN, []),
        (None, []),
    ],
)
def test_the_end_of_an_outage_is_noted(failure: Failure | None, expected: list[str]) -> None:
    lines: list[str] = []
    now = 0.0

    def note(event: str, *, server: str, cause: str = "") -> None:
        assert (server, cause) == ("a", "")
        lines.append(event)

    async def steps() -> None:
        hosts: list[Any] = [None]  # no attempt gets to it
        group = Group(hosts, ["a"], timeout=9, deadline=99, clock=lambda: now, note=note)
        if failure is not None:
            refused = Scripted(group, Trouble(failure, "a refused"))
            found = await group.run(refused)
            assert isinstance(found, Unavailable)
        for _ in range(2):
            assert await group.run(Scripted(group, "result")) == "result"

    asyncio.run(steps())
    assert lines == expected

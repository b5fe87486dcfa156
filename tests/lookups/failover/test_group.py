"""Servers that can't be reached, and that answer again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.lookups.failover.attempts import Attempts
from smtpd_filters.lookups.failover.failures import Trouble
from smtpd_filters.lookups.failover.group import Group
from smtpd_filters.lookups.outcome import Unavailable
from smtpd_filters.lookups.retry import SILENCES, Failure
from tests.lookups.stream.peer import until

if TYPE_CHECKING:
    from smtpd_filters.lookups.retry import Ask

#: Seconds that a server has for a request and for a ping; and a test.
TIMEOUT, PATIENCE = 90.0, 60.0


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


class Silent(Attempts[str]):
    """Attempts at a server that doesn't answer in time; its answer to a ping may take long."""

    def __init__(self, group: Group, pinged: asyncio.Event, clock: list[float]) -> None:
        super().__init__(group)
        self.pinged = pinged
        self.clock = clock

    async def ask(self, _step: Ask) -> Trouble:
        self.clock[0] += TIMEOUT
        return Trouble(Failure.SILENT, "timeout")

    async def is_healthy(self, server: int) -> bool:  # noqa: ARG002
        await self.pinged.wait()
        return False


def test_a_request_waits_for_a_ping_no_longer_than_until_its_deadline() -> None:
    """Its failure is known; the ping, which decides about the next requests, goes on."""

    async def steps() -> None:
        hosts: list[Any] = [None]
        clock = [0.0]
        group = Group(
            hosts, ["a"], timeout=TIMEOUT, deadline=TIMEOUT, clock=lambda: clock[0], pings=TIMEOUT
        )
        pinged = asyncio.Event()
        async with asyncio.timeout(PATIENCE):
            for _ in range(SILENCES):
                found = await group.run(Silent(group, pinged, clock))
                assert isinstance(found, Unavailable)
                assert found.cause == "a timeout"
        assert not group.circuit.is_open
        pinged.set()
        await until(lambda: group.circuit.is_open)

    asyncio.run(steps())

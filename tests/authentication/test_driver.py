"""The driver: keys from a real name server, side by side, and a body in steps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from smtpd_filters.authentication.dkim import driver
from smtpd_filters.authentication.dkim.arc import NO_CHAIN
from smtpd_filters.authentication.dkim.driver import Verified, verify
from smtpd_filters.authentication.dkim.keys import FAST
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.testing.dns import DNSServer
from tests.authentication.signing import (
    MESSAGE,
    NAME,
    NOW,
    TEMPLATE,
    message,
    public,
    rsa_key,
    signed,
)
from tests.authentication.test_arc import sealed
from tests.effort import brief

if TYPE_CHECKING:
    from collections.abc import Generator

    import pytest

ZONE = {
    NAME: {"TXT": f"v=DKIM1; p={public(rsa_key())}"},
    "sel._domainkey.servfail.example": {"servfail": True},
    "sel._domainkey.dead.example": {"drop": True},
}


def verified(raw: bytes, *, arc: bool = True, hasty: bool = False) -> tuple[Verified, list[str]]:
    """Return the results, and the names that were asked for."""

    async def ask(server: DNSServer) -> Verified:
        nameserver = (server.address, server.port)
        timeout = brief(0.2)
        async with Resolver([nameserver], timeout=timeout, deadline=2.5 * timeout) as resolver:
            made = message(raw)
            try:
                return await verify(
                    made,
                    resolver,
                    authors=["example.org"],
                    arc=arc,
                    clock=lambda: NOW,
                    seconds=1.25 * timeout if hasty else None,
                )
            finally:
                made.discard()

    with DNSServer(ZONE) as server:
        return asyncio.run(ask(server)), [str(each[0]) for each in server.queries]


def test_a_message_with_several_signatures_and_a_chain() -> None:
    raw = sealed()
    for name in ("dead.example", "servfail.example", "example.com", "example.org"):
        raw = signed(raw, TEMPLATE.replace("example.org", name))
    found, asked = verified(raw)
    assert [(each.domain, each.result) for each in found.signatures] == [
        ("example.org", "pass"),
        ("example.com", "permerror"),
        ("servfail.example", "temperror"),
        ("dead.example", "temperror"),
    ]
    assert (found.arc.result, found.left_out) == ("pass", 0)
    # All are asked for before the first answer is there, and the key of both once.
    assert len(asked[:4]) == len(set(asked[:4]))
    found, _ = verified(raw, arc=False)
    assert found.arc is NO_CHAIN


def test_a_message_without_signatures_asks_nothing() -> None:
    assert verified(MESSAGE) == (Verified((), 0, NO_CHAIN), [])


def test_a_large_body_is_hashed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted: list[int] = []

    class Counting:
        async def admit(self, work: int) -> None:
            admitted.append(work)

    monkeypatch.setattr(driver, "pace", Counting)
    head, _, body = MESSAGE.partition(b"\r\n\r\n")
    raw = signed(head + b"\r\n\r\n" + body * (9 * driver.BLOCK // (2 * len(body) - 12)))
    found, _ = verified(raw)
    assert found.signatures[0].result == "pass"
    assert admitted == [driver.PRICE] * 4


def test_signatures_are_verified_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    prices: list[int] = []

    async def noting(steps: Generator[int, None, Any]) -> Any:
        try:
            while True:
                prices.append(next(steps))
        except StopIteration as end:
            return end.value

    monkeypatch.setattr(driver, "paced", noting)
    found, _ = verified(signed(sealed(sealed())))
    assert (found.signatures[0].result, found.arc.result, found.arc.oldest) == ("pass", "pass", 0)
    # The signature, both message signatures, and both seals.
    assert prices == [FAST] * 5


def test_keys_that_are_not_there_in_time() -> None:
    raw = sealed()
    for name in ("dead.example", "example.org"):
        raw = signed(raw, TEMPLATE.replace("example.org", name))
    found, _ = verified(raw, hasty=True)
    assert [(each.domain, each.result) for each in found.signatures] == [
        ("example.org", "pass"),
        ("dead.example", "temperror"),
    ]
    assert found.signatures[1].reason == "key: not done in time"


class Stuck:
    """A budget that is never renewed."""

    async def admit(self, work: int) -> None:
        del work
        await asyncio.get_running_loop().create_future()


def test_a_body_that_is_not_hashed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "pace", Stuck)
    raw = sealed(MESSAGE + b"x\r\n" * driver.BLOCK)
    raw = signed(signed(raw), TEMPLATE.replace("to:", ""))
    found, _ = verified(raw, hasty=True)
    late = ("temperror", "not done in time")
    assert [(each.result, each.reason) for each in found.signatures] == [late, late]
    assert (found.arc.result, found.arc.temporary, len(found.arc.sets)) == ("fail", True, 1)
    # That of a changed header is known.
    found, _ = verified(raw.replace(b"Suzie", b"Susan"), hasty=True)
    assert [each.result for each in found.signatures] == ["temperror", "fail"]

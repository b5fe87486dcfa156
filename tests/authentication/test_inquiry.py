"""The engines with a real resolver and a real name server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from smtpd_filters.authentication import dmarc, spf
from smtpd_filters.authentication.inquiry import at_once, settle
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.testing.dns import DNSServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from smtpd_filters.authentication.inquiry import Engine

T = TypeVar("T")

ZONE = {
    "example.com": {"TXT": ["v=spf1 mx include:alias.example.com -all", "other"],
                    "MX": ["10 mx.example.com"]},
    "mx.example.com": {"A": "192.0.2.2"},
    "alias.example.com": {"CNAME": "spf.example.net"},
    "spf.example.net": {"TXT": "v=spf1 ip4:192.0.2.3 ?all"},
    "tagged.example": {"TXT": "v=spf1 exists:%{l}.tagged.example -all"},
    "user+tag=a.tagged.example": {"A": "127.0.0.2"},
    "_dmarc.example.com": {"TXT": "v=DMARC1; p=reject; np=quarantine"},
    "broken.example": {"TXT": "v=spf1 a:fails.example -all"},
    "fails.example": {"servfail": True},
    "_dmarc.broken.example": {"servfail": True},
    "silent.example": {"drop": True},
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as running:
        yield running


def settled(server: DNSServer, engine: Engine[T]) -> T:
    async def run() -> T:
        async with Resolver([(server.address, server.port)]) as resolver:
            return await settle(engine, resolver)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("client", "sender", "result"),
    [
        ("192.0.2.2", "a@example.com", "pass"),
        ("192.0.2.3", "a@example.com", "pass"),
        ("192.0.2.4", "a@example.com", "fail"),
        ("2001:db8::1", "a@example.com", "fail"),
        ("192.0.2.4", "a@missing.example", "none"),
        ("192.0.2.4", "user+tag=a@tagged.example", "pass"),
        ("192.0.2.4", "user+tag=b@tagged.example", "fail"),
        ("192.0.2.4", "a@broken.example", "temperror"),
    ],
)
def test_spf(server: DNSServer, client: str, sender: str, result: str) -> None:
    assert settled(server, spf.check(client, "h.example", sender, now=0)).result == result


@pytest.mark.parametrize(
    ("author", "result", "disposition"),
    [
        ("example.com", "pass", "none"),
        ("mx.example.com", "pass", "none"),
        ("example.net", "none", "none"),
        ("missing.example.com", "pass", "none"),
        ("broken.example", "temperror", "none"),
    ],
)
def test_dmarc(server: DNSServer, author: str, result: str, disposition: str) -> None:
    identifiers = [dmarc.Identifier("dkim", "news.example.com", "pass")]
    verdict = settled(server, dmarc.evaluate(author, identifiers))
    assert (verdict.result, verdict.disposition) == (result, disposition)
    assert settled(server, dmarc.discover("missing.example.com")).requested == "quarantine"


def test_a_cancelled_evaluation(server: DNSServer) -> None:
    engine = spf.check("192.0.2.1", "h.example", "a@silent.example", now=0)

    async def run() -> None:
        async with Resolver([(server.address, server.port)]) as resolver:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await settle(engine, resolver)

    asyncio.run(run())
    assert next(engine, None) is None  # closed


def test_an_engine_whose_answers_are_cached_needs_no_task(server: DNSServer) -> None:
    async def run() -> None:
        async with Resolver([(server.address, server.port)]) as resolver:

            def engine() -> Engine[spf.Verdict]:
                return spf.check(
                    "192.0.2.2", "h.example", "a@example.com", now=0, cached=resolver.known
                )

            begun = engine()
            assert at_once(begun, resolver) == (None, [("example.com", "TXT")])
            verdict = await settle(begun, resolver, [("example.com", "TXT")])
            assert verdict.result == "pass"
            assert at_once(engine(), resolver) == (verdict, None)
            count = len(server.queries)
            assert await settle(engine(), resolver) == verdict
            assert len(server.queries) == count

    asyncio.run(run())


@pytest.mark.parametrize("paced", [False, True])
def test_others_have_a_turn_at_a_pause(server: DNSServer, *, paced: bool) -> None:
    turns: list[str] = []

    def engine() -> Engine[str]:
        for _ in range(3):
            asyncio.get_running_loop().call_soon(turns.append, "other")
            assert list((yield [])) == []
            turns.append("engine")
        return "done"

    async def pause() -> None:
        await asyncio.sleep(0)

    async def run() -> None:
        async with Resolver([(server.address, server.port)]) as resolver:
            begun = engine()
            assert at_once(begun, resolver) == (None, [])
            settling = settle(begun, resolver, [], pause) if paced else settle(begun, resolver, [])
            assert await settling == "done"

    asyncio.run(run())
    assert turns == ["other", "engine"] * 3

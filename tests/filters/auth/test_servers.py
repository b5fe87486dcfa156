"""The log of name servers of which none answers."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from smtpd_filters.filters.auth.servers import NameServers
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.runtime.log import FilterLog
from smtpd_filters.testing import Conversation, DNSServer
from tests.filters.auth.mail import PASSES, of, send, zone
from tests.filters.auth.test_policy import talk


class Lines:
    """A log that keeps events."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def event(self, text: str) -> None:
        self.kept.append(text)

    def limited(self, _kind: str, text: str, *, cause: str) -> None:
        self.kept.append(f"{text}: {cause}" if cause else "")


def noted(failed: list[bool], *, answers: bool) -> list[str]:
    """Return what is logged for messages whose look-ups have failed or not."""
    lines = Lines()

    async def main(server: DNSServer) -> None:
        async with Resolver([(server.address, server.port)]) as dns:
            servers = NameServers(dns, cast("FilterLog", lines))
            for each in failed:
                servers.note(failed=each)
                if servers.trial is not None:
                    await servers.trial
            servers.note(failed=True)
            await servers.aclose()

    names: dict[str, dict[str, object]] = {"in-addr.arpa": {"NS": ["a.example"]}}
    if not answers:
        names = {"in-addr.arpa": {"refused": True}}
    with DNSServer(names) as server:
        asyncio.run(main(server))
    return lines.kept


def test_name_servers_that_are_down_and_answer_again() -> None:
    down, again = noted([False, True, False, False], answers=False)
    assert down.startswith("no name server answers: ")
    assert again == "name servers answer again"


def test_a_domain_whose_servers_fail_is_not_a_fault_of_ours() -> None:
    assert noted([True, False, True], answers=True) == []


def test_messages_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[bool] = []
    monkeypatch.setattr(NameServers, "note", lambda _, *, failed: noted.append(failed))
    names = zone()
    for owner in ("f.example", "_dmarc.f.example", "mail.f.example", "in-addr.arpa"):
        names[owner] = {"refused": True}
    with DNSServer(names) as own, talk(own) as smtpd:
        assert isinstance(smtpd, Conversation)
        for domain in ("f.example", "f.example", "example.org"):
            client = smtpd.connect(address=PASSES)
            client.ehlo(f"mail.{domain}")
            assert send(smtpd, of(f"x@{domain}"), f"a@{domain}", client=client).verb == "proceed"
    assert noted == [True, True, False]

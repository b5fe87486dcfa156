"""`Resolver.setting()`: the flags of a filter that asks name servers, and the resolver it gets."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING

import pytest

from smtpd_filters import (
    PROCEED,
    ConfigError,
    Decision,
    Filter,
    Found,
    NotFound,
    Registration,
    Reject,
    Resolver,
    Session,
    Unavailable,
)
from smtpd_filters.main import set_up
from smtpd_filters.runtime.log import Log
from smtpd_filters.settings import Pool
from smtpd_filters.testing import Conversation, DNSServer
from smtpd_filters.testing.dns import host, merge
from tests.filters.executables import pending_work
from tests.type_check import type_check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ZONE = merge(
    host("mail.a.example", "192.0.2.1"),
    host("mail.b.example", "192.0.2.2"),
    {"mail.broken.example": {"servfail": True}},
)
GONE = Reject("550 5.1.8 No such host")


class Asks(Filter):
    """Look up the mail host of a sender's domain, then of the second label of its address."""

    on_error = "tempfail"
    dns = Resolver.setting()

    async def mail_from(self, _session: Session, address: str) -> Decision:
        local, _, domain = address.partition("@")
        for name in (f"mail.{domain}", f"mail.{local}.example"):
            match await self.dns.query(name, "A"):
                case NotFound(reason):
                    return GONE.because(f"{name}: {reason}")
                case Unavailable() as cause:
                    raise cause.error()
                case Found():
                    pass
        return PROCEED


class AsksToo(Asks):
    """Another one."""


class Sometimes(Asks):
    """Ask if there is a name server to ask."""

    def setup(self) -> Registration:
        return Registration(waits="nameserver" in self.settings.given)


@pytest.fixture
def server() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as running:
        yield running


def reply_to(smtpd: Conversation, sender: str) -> str:
    there = smtpd.connect()
    there.ehlo()
    return there.mail_from(sender).reply


def test_what_is_known_takes_no_task(server: DNSServer) -> None:
    with Conversation(Asks, nameserver=server.endpoints[0]) as smtpd:
        assert reply_to(smtpd, "a@b.example") == ""
        assert reply_to(smtpd, "missing@b.example") == GONE.text
        spawned = pending_work(smtpd)
        assert reply_to(smtpd, "a@b.example") == ""
        assert reply_to(smtpd, "b@a.example") == ""
        assert reply_to(smtpd, "missing@a.example") == GONE.text
        assert spawned == []


def test_what_is_not_known_is_asked_for_and_nothing_else(server: DNSServer) -> None:
    with Conversation(Asks, nameserver=server.endpoints[0]) as smtpd:
        assert reply_to(smtpd, "a@a.example") == ""
        assert reply_to(smtpd, "b@a.example") == ""
        assert reply_to(smtpd, "b@missing.example") == GONE.text
    names = [name for name, _ in server.queries]
    assert names == ["mail.a.example", "mail.b.example", "mail.missing.example"]


@pytest.mark.parametrize("sender", ["a@broken.example", "broken@a.example"])
def test_on_error_decides_if_it_cannot_be_looked_up(server: DNSServer, sender: str) -> None:
    with Conversation(Asks, nameserver=server.endpoints[0]) as smtpd:
        for _ in range(2):
            assert reply_to(smtpd, sender).startswith("451 4.4.3 ")
        assert "SERVFAIL" in smtpd.log[0]


def test_a_handler_that_waits_can_be_cancelled() -> None:
    ended: list[str] = []

    class Waits(Asks):
        """Note its end."""

        async def mail_from(self, session: Session, address: str) -> Decision:
            try:
                return await super().mail_from(session, address)
            finally:
                ended.append(address)

    with DNSServer({"mail.a.example": {"drop": True}}) as dead:
        flags = ("--deadline", "30ms", "--timeout", "20ms")
        with Conversation(Waits, *flags, nameserver=dead.endpoints[0]) as smtpd:
            assert reply_to(smtpd, "a@a.example").startswith("451 ")
    assert ended == ["a@a.example"]


def test_the_name_server_is_that_of_the_flag_if_there_is_one(server: DNSServer) -> None:
    with DNSServer({}) as empty:
        flags = ("--nameserver", f"{server.address}:{server.port}")
        with Conversation(Asks, *flags, nameserver=empty.endpoints[0]) as smtpd:
            assert reply_to(smtpd, "a@b.example") == ""
        assert empty.queries == []


def test_filters_that_are_configured_alike_share_a_resolver(server: DNSServer) -> None:
    with Conversation([Asks(), AsksToo()], nameserver=server.endpoints[0]) as smtpd:
        first, second = smtpd.filters
        assert isinstance(first, Asks)
        assert isinstance(second, Asks)
        assert first.dns is second.dns
        assert reply_to(smtpd, "a@b.example") == ""
    assert len(server.queries) == 2


def test_filters_that_are_configured_otherwise_do_not() -> None:
    pool = Pool()
    for cls, timeout in ((Asks, 1.0), (AsksToo, 2.0)):
        set_up(cls(cls.Options(timeout=timeout)), Log(), None, pool)
    assert len(pool) == 2
    asyncio.run(pool.aclose())
    assert len(pool) == 0


@pytest.mark.parametrize("waits", [True, False])
def test_it_is_opened_at_the_start_if_the_filter_waits(*, waits: bool) -> None:
    pool = Pool()
    options = {"nameserver": (("127.0.0.1", 53),)} if waits else {}
    set_up(Sometimes(Sometimes.Options(**options)), Log(), None, pool)
    assert len(pool) == waits
    asyncio.run(pool.aclose())


@pytest.mark.parametrize("opens", [(), ("dns",)])
def test_a_filter_registers_what_is_opened(opens: tuple[str, ...]) -> None:
    class Chooses(Asks):
        """Open what the test has chosen."""

        def setup(self) -> Registration:
            return Registration(opens=opens)

    pool = Pool()
    set_up(Chooses(), Log(), None, pool)
    assert len(pool) == len(opens)
    asyncio.run(pool.aclose())


def test_a_filter_cannot_open_what_it_does_not_declare() -> None:
    class Wrong(Asks):
        """Misspell it."""

        def setup(self) -> Registration:
            return Registration(opens={"dms"})

    with pytest.raises(ConfigError, match=r"filter 'wrong': nothing to open for \['dms'\]"):
        set_up(Wrong(), Log())


def test_each_filter_has_its_line_about_a_timeout_that_is_not_used(
    capfd: pytest.CaptureFixture[str],
) -> None:
    filters = [Asks(Asks.Options(timeout=4.0)), AsksToo(AsksToo.Options(timeout=4.0))]
    pool = Pool()
    for filter_ in filters:
        filter_.deadline = 1.0
        set_up(filter_, Log(), None, pool)
    assert len(pool) == 1
    asyncio.run(pool.aclose())
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["asks", "askstoo"]


def test_a_name_server_is_an_address() -> None:
    filter_ = Asks(Asks.Options(nameserver=(("ns.example", 53),)))
    with pytest.raises(ConfigError, match=r"--nameserver: name server: 'ns\.example'"):
        set_up(filter_, Log())


def test_without_the_package_that_asks_the_reason_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What has been imported before this test is an attribute of its package too.
    monkeypatch.delattr("smtpd_filters.lookups.dns.transport", raising=False)
    monkeypatch.setitem(sys.modules, "smtpd_filters.lookups.dns.transport", None)
    with pytest.raises(ConfigError, match=r"^DNS look-ups require dnspython: "):
        set_up(Asks(), Log())


HEAD = "from smtpd_filters import Found, Resolver\n"
ASKING = """
async def {name}(dns: Resolver) -> bool:
    match await dns.query("example.org", "{rdtype}"):
        case Found(records):
            return {test}
    return False
"""
RECORDS = [
    ("A", '"192.0.2.1" in records', ""),
    ("A", 'b"192.0.2.1" in records', "comparison-overlap"),
    ("NS", "records[0].preference == 0", "attr-defined"),
    ("MX", "records[0].preference == 0", ""),
    ("MX", 'records[0].startswith("mx")', "attr-defined"),
    ("TXT", 'b"x" in records', ""),
    ("TXT", '"x" in records', "comparison-overlap"),
]


def test_records_are_typed_by_their_type(tmp_path: Path) -> None:
    functions = [
        ASKING.format(name=f"ask{number}", rdtype=rdtype, test=test)
        for number, (rdtype, test, _) in enumerate(RECORDS)
    ]
    (tmp_path / "asks.py").write_text(HEAD + "".join(functions))
    done = type_check(tmp_path, "asks.py")
    found = dict(re.findall(r"^asks\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE))
    height = functions[0].count("\n")
    expected = {
        # The line of the test is the last but one of its function.
        str(HEAD.count("\n") + height * number + height - 1): error
        for number, (_, _, error) in enumerate(RECORDS)
        if error
    }
    assert found == expected, done.stdout


ASKING_ALL = """
async def several(dns: Resolver, name: str) -> None:
    reveal_type(await dns.query_all([(name, "A"), (name, "AAAA")]))
    reveal_type(await dns.query_all([(each, "MX") for each in name.split()]))
    reveal_type(await dns.query_all(((name, "TXT"), (name, "TXT"))))
    reveal_type(await dns.query_all([(name, "TXT"), (name, "A")]))
"""


def test_records_of_several_look_ups_are_typed_if_all_are_of_one_type(tmp_path: Path) -> None:
    # mypy keeps no notes of a file that it has checked before.
    (tmp_path / "asks.py").write_text(f"{HEAD}{ASKING_ALL}# {tmp_path}\n")
    done = type_check(tmp_path, "asks.py")
    shown = re.findall(r"Revealed type is .*?Found\[([\w.]+)\]", done.stdout)
    types = [each.rpartition(".")[2] for each in shown]
    assert types == ["str", "MX", "bytes", "Any"], done.stdout


@pytest.mark.parametrize("takes", ["A client takes 16 s.", " a client, 16 s"])
def test_the_end_of_the_help_has_no_full_stop(takes: str) -> None:
    with pytest.raises(TypeError, match="the end of a sentence without its full stop"):
        Resolver.setting(takes=takes)

"""The results of DMARC that filter-auth records for aggregate reports."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.authentication.dmarc.reports import Published, Row
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filters.auth import Auth, reporting
from smtpd_filters.filters.auth.reporting import Reporter, count, day_of, most_frequent, results_on
from smtpd_filters.runtime.log import FilterLog, Log
from smtpd_filters.stores.memory import MemoryStore
from smtpd_filters.stores.sqlite import SQLiteStore
from smtpd_filters.testing import Conversation, DNSServer
from tests.filters.auth.mail import FAILS, MESSAGE, PASSES, of, send, signed_by, zone
from tests.filters.auth.recorded import rows_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Found = dict[str, tuple[Published, list[tuple[Row, int]]]]

NOW = 1_796_000_000.0
DAY = "2026-11-30"
LOCAL, TESTING = [("local_policy", "")], ("policy_test_mode", "")
RUA = "; rua=mailto:dmarc@example.org"


@pytest.fixture(scope="module")
def server() -> Iterator[DNSServer]:
    names = zone()
    for name in ("_dmarc.example.org", "_dmarc.testing.example"):
        names[name] = {"TXT": f"{names[name]['TXT']}{RUA}"}
    names["sub.example.org"] = {"A": PASSES}
    with DNSServer(names) as running:
        yield running


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "time", lambda: NOW)


def talk(server: DNSServer, path: Path, *flags: str, **options: Any) -> Conversation:
    address = (server.address, server.port)
    return Conversation(
        Auth, "--report-to", f"sqlite:{path}", *flags, nameserver=address, **options
    )


def recorded(path: Path, day: str = DAY) -> Found:
    async def read() -> Found:
        store = SQLiteStore(str(path), timeout=30, note=print)
        try:
            return await rows_on(store, day)
        finally:
            await store.aclose()

    return asyncio.run(read())


def rows_after(server: DNSServer, path: Path, *flags: str, **message: Any) -> list[tuple[Row, int]]:
    with talk(server, path, *flags) as smtpd:
        send(smtpd, **message)
    return [row for _, rows in recorded(path).values() for row in rows]


@pytest.mark.parametrize("address", [PASSES, FAILS])
def test_a_failure_of_the_record_changes_no_verdict(
    server: DNSServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    flags = ("--dmarc", "honour", "--dmarc-reject", "reject")
    with talk(server, tmp_path / "auth.sqlite", *flags, "--on-error", "tempfail") as smtpd:
        monkeypatch.setattr(reporting, "rows_of", broken)
        verb = send(smtpd, of("x@example.org"), address=address).verb
        assert verb == ("proceed" if address == PASSES else "reject")
        assert any(
            'error="a result is not reported: ValueError: a bug"' in line for line in smtpd.log
        )


def test_equal_results_are_counted_together(server: DNSServer, tmp_path: Path) -> None:
    path = tmp_path / "auth.sqlite"
    # Two processes at once, as behind two listeners.
    with talk(server, path) as one, talk(server, path) as two:
        for smtpd in (one, two, one):
            delivery = send(smtpd, signed_by("example.org"))
            assert delivery.verb == "proceed"
        send(two, of("x@sub.example.org"), sender="", address=FAILS)
    (published, rows) = recorded(path)["example.org"]
    assert published == Published("example.org", p="reject", rua=("mailto:dmarc@example.org",))
    passed = Row(
        source=PASSES,
        header_from="example.org",
        envelope_from="example.org",
        disposition="pass",
        dkim=True,
        spf=True,
        signatures=(("example.org", "sel", "pass", ""),),
        sender=("example.org", "pass", ""),
    )
    failed = Row(
        source=FAILS,
        header_from="sub.example.org",
        envelope_from="",
        disposition="none",
        dkim=False,
        spf=False,
        reasons=(("local_policy", ""),),
        sender=("mail.example.com", "fail", ""),
    )
    assert sorted(rows, key=lambda each: each[1]) == [(failed, 1), (passed, 3)]
    assert recorded(path, "2026-11-29") == {}


@pytest.mark.parametrize(
    ("flags", "author", "expected"),
    [
        ((), "example.org", ("none", LOCAL)),
        (("--dmarc", "honour"), "example.org", ("quarantine", LOCAL)),
        (("--dmarc-reject", "reject"), "example.org", ("reject", [])),
        (("--dmarc-reject", "reject", "--dry-run"), "example.org", ("none", LOCAL)),
        (("--dmarc-reject", "reject", "--except-domains", "example.org"), "example.org",
         ("none", LOCAL)),
        (("--dmarc", "honour"), "testing.example", ("quarantine", [TESTING])),
        (("--dmarc-quarantine", "ignore"), "testing.example", ("none", [TESTING, *LOCAL])),
    ],
)  # fmt: skip
def test_the_disposition_and_its_reasons(
    server: DNSServer,
    tmp_path: Path,
    flags: tuple[str, ...],
    author: str,
    expected: tuple[str, list[tuple[str, str]]],
) -> None:
    content = of(f"x@{author}")
    ((row, number),) = rows_after(
        server, tmp_path / "s", *flags, content=content, sender="a@example.com", address=FAILS
    )
    assert number == 1
    assert (row.disposition, list(row.reasons)) == expected


def test_a_failed_look_up(server: DNSServer, tmp_path: Path) -> None:
    names = dict(server.zone)
    names["broken.example"] = {"servfail": True}
    names["_dmarc.broken.example"] = {"TXT": f"v=DMARC1; p=reject{RUA}"}
    with DNSServer(names) as own:
        content = signed_by("broken.example", of("x@broken.example"))
        ((row, _),) = rows_after(own, tmp_path / "s", content=content, sender="a@broken.example")
        flags = ("--dmarc", "honour", "--dmarc-error", "junk")
        ((marked, _),) = rows_after(own, tmp_path / "t", *flags, content=content)
    assert row.disposition == "none"
    assert (marked.disposition, marked.reasons) == ("quarantine", row.reasons)
    # The causes have the address of our name server, which does not belong into a report.
    assert row.reasons == (("other", "a look-up failed"),)
    assert row.sender == ("broken.example", "temperror", "a look-up failed")
    assert row.signatures == (("broken.example", "sel", "temperror", "a look-up failed"),)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        # Nobody asks for a report.
        ((), {"content": of("x@example.com"), "sender": "a@example.com"}),
        # The message comes again.
        (("--dmarc-reject", "tempfail"), {"address": FAILS, "sender": "a@example.com"}),
        # Exempt.
        ((), {"address": "127.0.0.1"}),
        ((), {"content": MESSAGE.replace(b"From", b"X-From")}),
    ],
)
def test_what_is_not_recorded(
    server: DNSServer, tmp_path: Path, flags: tuple[str, ...], message: dict[str, Any]
) -> None:
    assert rows_after(server, tmp_path / "s", *flags, **message) == []


def test_a_store_that_fails_delays_nothing(
    server: DNSServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"

    async def fail(*_: object) -> None:
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(reporting, "count", fail)
    with talk(server, path) as smtpd:
        assert send(smtpd).verb == "proceed"
        client = smtpd.connect("x", address=PASSES)
        client.ehlo("mail.example.com")
        assert send(smtpd, client=client).verb == "proceed"
    lines = [line for line in smtpd.log if "a result is not reported: the disk is full" in line]
    assert len(lines) == 1  # once in a minute
    assert recorded(path) == {}


class _Captured(Log):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


ROW = Row("192.0.2.1", "example.org", "", "none", dkim=False, spf=False)
PUBLISHED = Published("example.org")


def test_the_results_that_wait_are_bounded() -> None:
    log = _Captured()

    class Stuck(MemoryStore):
        async def _apply(self, _operations: object) -> Any:
            await asyncio.Event().wait()

    async def flood() -> None:
        reporter = Reporter(FilterLog(log, "auth"), max_pending=2, last=0.0)
        for _ in range(3):
            reporter.note(Stuck(), PUBLISHED, ROW)
        await reporter.aclose()
        await asyncio.sleep(0)

    asyncio.run(flood())
    (line,) = log.lines
    assert "too many results wait for the store" in line


def test_what_another_version_has_stored_is_left_out() -> None:
    async def run() -> Found:
        from smtpd_filters.stores import Put, join

        store = MemoryStore()
        await count(store, DAY, PUBLISHED, ROW)
        for domain, kind in ((b"example.org", b"row"), (b"other.example", b"policy")):
            shard = DAY.encode() + b"/" + domain
            await store.ask(Put(join("dmarc-report", shard, kind, b"x"), b'{"a":1}', 60))
        return await rows_on(store, DAY)

    assert asyncio.run(run()) == {"example.org": (PUBLISHED, [(ROW, 1)])}


def test_the_most_frequent_rows_are_read() -> None:
    rows = [replace(ROW, source=f"192.0.2.{n}") for n in range(1, 90)]

    async def read(**bounds: int) -> list[tuple[str, int]]:
        store = MemoryStore()
        for row in (*rows, rows[7], rows[70], rows[70]):
            await count(store, DAY, PUBLISHED, row)
        found = await results_on(store, DAY)
        assert sum(found["example.org"].counts.values()) == len(rows) + 3
        read = await most_frequent(store, found["example.org"], **bounds)
        return [(row.source, number) for row, number in read]

    most = [("192.0.2.71", 3), ("192.0.2.8", 2)]
    assert asyncio.run(read(max_rows=2)) == most
    assert asyncio.run(read(max_size=2 * len(ROW.stored()) + 10)) == most
    every = asyncio.run(read())
    assert (every[:2], len(every)) == (most, len(rows))


def test_days_are_those_of_utc() -> None:
    assert [day_of(at) for at in (0, 86399.9, 86400)] == ["1970-01-01", "1970-01-01", "1970-01-02"]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--store-timeout", "1"), "--store-timeout requires --report-to"),
        (("--report-to", "memory:", "--scrub-only"), "--report-to has no effect with --scrub-only"),
        (("--report-to", "memory:", "--store-prefix", "x"),
         "--store-prefix requires a --report-to of Redis or Valkey"),
        (("--report-to", "/var/x"), "--report-to"),
        (("--report-to", "memory:"), "--report-to: memory: is lost"),
    ],
)  # fmt: skip
def test_wrong_flags(flags: tuple[str, ...], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Conversation(Auth, *flags)

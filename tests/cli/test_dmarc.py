"""The verb dmarc: reports from a store, written, and sent by a program in place of sendmail."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import signal
from dataclasses import replace
from email import message_from_bytes, policy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters.authentication.dmarc.reports import Published, Row
from smtpd_filters.cli import dmarc, main
from smtpd_filters.cli.verb import Verb
from smtpd_filters.filters.auth import reporting
from smtpd_filters.filters.auth.reporting import count
from smtpd_filters.stores.sqlite import SQLiteStore
from smtpd_filters.testing import DNSServer
from tests.authentication.aggregate_schema import every, text_at, validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from email.message import EmailMessage

    Capture = pytest.CaptureFixture[str]

# A program is started in place of sendmail.
pytestmark = pytest.mark.processes

DAY = "2026-11-29"
BEGIN = 1_795_910_400
ZONE: dict[str, dict[str, Any]] = {
    "_dmarc.example.org": {"TXT": "v=DMARC1; p=none"},
    "example.org._report._dmarc.reports.example": {"TXT": "v=DMARC1"},
    "_dmarc.broken.example": {"servfail": True},
    "example.com._report._dmarc.broken.example": {"servfail": True},
}
ROW = Row("192.0.2.1", "example.org", "example.org", "pass", dkim=True, spf=True)


@pytest.fixture(scope="module")
def server() -> Iterator[DNSServer]:
    with DNSServer(ZONE) as running:
        yield running


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be the last second of the day after `DAY`."""
    monkeypatch.setattr(dmarc, "time", lambda: BEGIN + 2 * 86400 - 1.0)


class Tool:
    """The command, a store, and a program in place of sendmail."""

    def __init__(self, server: DNSServer, capsys: Capture, folder: Path) -> None:
        self.store = folder / "auth.sqlite"
        self.sent = folder / "sent"
        self.sent.mkdir()
        self.sendmail = folder / "sendmail"
        self.reports = folder / "reports"
        self.reports.mkdir()
        self._server = server
        #: The flags for the day.
        self.day: tuple[str, ...] = ("--day", DAY)
        self._capsys = capsys
        self.accept()

    def accept(self) -> None:
        self._program(
            f'n=$(ls {self.sent} | wc -l); cat > "{self.sent}/$n"; echo "$@" >> "{self.sent}/$n"'
        )

    def refuse(self) -> None:
        self._program("cat > /dev/null; echo 'first' >&2; echo 'queue is full' >&2; exit 75")

    def _program(self, text: str) -> None:
        self.sendmail.write_text(f"#!/bin/sh\n{text}\n")
        self.sendmail.chmod(0o700)

    def record(self, *results: tuple[Published, Row]) -> None:
        async def write() -> None:
            store = SQLiteStore(str(self.store), timeout=30, note=print)
            try:
                for published, row in results:
                    await count(store, DAY, published, row)
            finally:
                await store.aclose()

        asyncio.run(write())

    def run(self, *words: str, main: Callable[[Sequence[str]], int] = main) -> tuple[int, str, str]:
        given = (
            "dmarc", "report", "--organization", "Example", "--email", "dmarc@mx.example",
            "--store", f"sqlite:{self.store}", *self.day, "--sendmail", str(self.sendmail),
            "--nameserver", f"{self._server.address}:{self._server.port}", *words,
        )  # fmt: skip
        try:
            status = main(given)
        except SystemExit as end:
            status = int(str(end.code))
        out, err = self._capsys.readouterr()
        return status, out, err

    def mails(self) -> list[tuple[EmailMessage, str]]:
        """Return the mails that were submitted, each with sendmail's arguments."""
        found = []
        for path in sorted(self.sent.iterdir()):
            content, _, arguments = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
            message: Any = message_from_bytes(content, policy=policy.default)
            found.append((message, arguments.decode()))
        return found


@pytest.fixture
def tool(server: DNSServer, capsys: Capture, tmp_path: Path) -> Tool:
    return Tool(server, capsys, tmp_path)


def asking(domain: str, *addresses: str) -> Published:
    return Published(domain, p="none", rua=tuple(f"mailto:{each}" for each in addresses))


def test_reports_are_written(tool: Tool) -> None:
    com, org = asking("example.com", "x@example.com"), asking("example.org", "x@example.org")
    tool.record((com, ROW), (org, ROW), (org, ROW))
    status, out, err = tool.run("--output", str(tool.reports))
    assert (status, err) == (0, "")
    first, second = sorted(tool.reports.iterdir())
    assert first.name.startswith(f"mx.example!example.com!{BEGIN}!{BEGIN + 86399}!")
    assert out.splitlines() == [
        "example.com: 1 messages in 1 rows",
        f"  wrote {first}",
        "example.org: 2 messages in 1 rows",
        f"  wrote {second}",
    ]
    root = validate(gzip.decompress(second.read_bytes()))
    assert text_at(root, "policy_published/domain") == "example.org"
    assert text_at(root, "record/row/count") == "2"
    assert (text_at(root, "report_metadata/generator") or "").startswith("smtpd-filters ")
    # Again: the same files.
    before = first.read_bytes()
    assert tool.run("--output", str(tool.reports))[0] == 0
    assert len(list(tool.reports.iterdir())) == 2
    assert first.read_bytes() == before
    assert tool.mails() == []
    # One domain only.
    _, out, _ = tool.run("--output", str(tool.reports), "--domain", "EXAMPLE.org")
    assert "example.com" not in out


def test_reports_are_sent_once(tool: Tool) -> None:
    addresses = "a@example.org", "b@reports.example", "c@refuses.example", "d@example.org!1m"
    signatures = tuple(("example.org", f"{n:064x}", "fail", "") for n in range(8))
    row = replace(ROW, signatures=signatures)
    rows = [replace(row, source=f"2001:db8::{n:x}") for n in range(0, 65536, 4096)]
    published = asking("example.org", *addresses)
    tool.record(*((published, each) for each in rows))
    status, out, _ = tool.run("--send")
    assert status == 0
    assert out.splitlines()[1:] == [
        "  sent to a@example.org",
        "  sent to b@reports.example",
        "  not sent to mailto:c@refuses.example: refuses.example has not agreed to reports",
        "  sent to d@example.org",
    ]
    mails = tool.mails()
    assert [arguments for _, arguments in mails] == [
        f"-i -f dmarc@mx.example -- {to}"
        for to in ("a@example.org", "b@reports.example", "d@example.org")
    ]
    message, _ = mails[1]
    assert (message["From"], message["To"]) == ("dmarc@mx.example", "b@reports.example")
    subject = message["Subject"].split()
    assert subject[:5] == ["Report", "Domain:", "example.org", "Submitter:", "mx.example"]
    assert message["Message-ID"] == subject[6]
    assert message["Auto-Submitted"] == "auto-generated"
    (attached,) = message.iter_attachments()
    assert attached.get_content_type() == "application/gzip"
    assert str(attached.get_filename()).startswith(f"mx.example!example.org!{BEGIN}!")
    root = validate(gzip.decompress(attached.get_content()))
    assert len(every(root, "record")) == len(rows)
    # Again: nothing is sent twice.
    status, out, _ = tool.run("--send")
    assert (status, len(tool.mails())) == (0, 3)
    assert "  sent to a@example.org before" in out


def test_what_can_not_be_sent_is_sent_later(tool: Tool) -> None:
    tool.record((asking("example.org", "a@example.org", "b@example.org"), ROW))
    tool.refuse()
    status, out, _ = tool.run("--send")
    assert status == 1
    assert f"  not sent to a@example.org: {tool.sendmail}: queue is full" in out.splitlines()
    tool.sendmail.unlink()
    status, out, _ = tool.run("--send")
    assert (status, "No such file" in out) == (1, True)
    tool.accept()
    status, out, _ = tool.run("--send", "--limit", "1")
    assert status == 1
    assert out.splitlines()[1:3] == [
        "  sent to a@example.org",
        "  not sent to b@example.org: --limit is reached",
    ]
    status, out, _ = tool.run("--send", "--limit", "1")
    assert (status, len(tool.mails())) == (0, 2)


def claim(tool: Tool, address: str, lease: float = reporting.LEASE) -> str:
    async def ask() -> str:
        store = SQLiteStore(str(tool.store), timeout=30, note=print)
        try:
            return await reporting.claim(store, DAY, "example.org", address, lease)
        finally:
            await store.aclose()

    return asyncio.run(ask())


def test_two_runs_at_a_time_send_once(tool: Tool) -> None:
    tool.record((asking("example.org", "a@example.org"), ROW))
    assert claim(tool, "a@example.org") == ""
    status, out, _ = tool.run("--send")
    assert (status, tool.mails()) == (1, [])
    assert "  not sent to a@example.org: another run is sending it, or ended" in out.splitlines()


def test_the_claim_of_a_run_that_was_killed_expires(tool: Tool) -> None:
    tool.record((asking("example.org", "a@example.org"), ROW))
    assert claim(tool, "a@example.org", 0.001) == ""
    assert (tool.run("--send")[0], len(tool.mails())) == (0, 1)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt, also where tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("takes", [True, False])
def test_a_run_that_is_interrupted(tool: Tool, *, takes: bool) -> None:
    """The program in place of sendmail interrupts the run: what it has done is noted."""
    tool.record((asking("example.org", "a@example.org", "b@example.org"), ROW))
    if takes:
        tool._program(f'cat > "{tool.sent}/0"; kill -INT $PPID; echo "$@" >> "{tool.sent}/0"')
    else:
        tool._program("cat > /dev/null; kill -INT $PPID; exit 75")
    assert tool.run("--send")[0] == 130
    assert claim(tool, "a@example.org") == ("sent" if takes else "")
    assert claim(tool, "b@example.org") == ""


def test_a_mail_that_can_not_be_made_is_not_noted_as_sent(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.record((asking("example.org", "a@example.org"), ROW))

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(dmarc, "mail", fail)
    with pytest.raises(MemoryError):
        tool.run("--send")
    assert claim(tool, "a@example.org") == ""


class Ended(io.StringIO):
    """A pipe whose reader, such as head(1), has ended."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def fileno(self) -> int:
        return self._number

    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_ends_does_not_end_the_sending(
    tool: Tool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [f"{n}.example" for n in range(3)]
    tool.record(*((asking(name, f"a@{name}"), ROW) for name in names))
    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr("sys.stdout", Ended(file.fileno()))
        status, _, _ = tool.run("--send")
    assert (status, len(tool.mails())) == (0, 3)


def test_the_names_of_one_owner_do_not_use_up_the_limit(tool: Tool) -> None:
    names = [f"{n}.evil.example" for n in range(4)]
    tool.record(*((asking(each, f"a@{each}", f"b@{each}"), ROW) for each in names))
    tool.record((asking("example.org", "a@example.org"), ROW))
    status, out, _ = tool.run("--send", "--limit", "3")
    assert (status, out.count("--limit is reached")) == (1, 6)
    assert "a@example.org" in [message["To"] for message, _ in tool.mails()]


def test_nothing_to_report(tool: Tool) -> None:
    tool.record((asking("example.org", "a@example.org"), ROW))
    status, out, _ = tool.run("--send", "--domain", "example.net")
    assert (status, out) == (0, f"no results of these domains on {DAY}\n")
    tool.day = ("--day", "2026-11-28")
    status, out, _ = tool.run("--send")
    assert (status, out) == (0, "no results on 2026-11-28\n")


def hasty(words: Sequence[str]) -> int:
    """Run `smtpd-filters dmarc` with little time for sendmail."""
    run = partial(dmarc.run, patience=0.05)
    return Verb("dmarc", run, options=dmarc.Options, description="Report.").run(words[1:])


def test_sendmail_that_hangs(tool: Tool) -> None:
    tool.record((asking("example.org", "a@example.org"), ROW))
    tool._program("exec sleep 60")
    status, out, _ = tool.run("--send", main=hasty)
    assert (status, "not done within 0.05 s" in out) == (1, True)


def test_a_destination_that_is_not_known(tool: Tool) -> None:
    tool.record((asking("example.com", "a@broken.example", "b\n@example.com"), ROW))
    status, out, _ = tool.run("--send")
    assert status == 1
    assert "  not sent to mailto:a@broken.example: " in out
    assert "  not sent to mailto:b\\n@example.com: not a plain address" in out.splitlines()


def test_a_folder_that_is_read_only(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool.record((asking("example.org"), ROW))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    status, out, _ = tool.run("--output", str(tool.reports))
    assert (status, "No space left on device" in out) == (1, True)
    assert list(tool.reports.iterdir()) == []


def test_links_in_the_folder_are_not_followed(tool: Tool, tmp_path: Path) -> None:
    tool.record((asking("example.org"), ROW))
    tool.run("--output", str(tool.reports))
    (written,) = tool.reports.iterdir()
    target = tmp_path / "target"
    target.write_text("precious")
    written.unlink()
    written.symlink_to(target)
    written.with_name(f".{written.name}.new").symlink_to(target)
    assert tool.run("--output", str(tool.reports))[0] == 0
    assert target.read_text() == "precious"
    assert not written.is_symlink()


def test_a_report_on_very_many_rows(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    published = asking("example.org")
    tool.record(*((published, replace(ROW, source=f"192.0.2.{n}")) for n in range(9)))
    monkeypatch.setattr(
        reporting.most_frequent, "__kwdefaults__", {"max_rows": 4, "max_size": 1 << 20}
    )
    status, out, _ = tool.run("--output", str(tool.reports))
    assert (status, out.splitlines()[:2]) == (
        0,
        ["example.org: 9 messages in 9 rows", "  5 rows are left out"],
    )
    (path,) = tool.reports.iterdir()
    root = validate(gzip.decompress(path.read_bytes()))
    assert len(every(root, "record")) == 4
    assert text_at(root, "report_metadata/error") == "5 rows left out"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "report requires --output, --send or both"),
        (("--send", "--day", "2926-01-01"), "--day: 2926-01-01 is not over"),
        (("--send", "--day", "monday"), "--day: expected a date such as"),
        (("--send", "--email", "Ann <a@mx.example>"), "--email: expected a mail address"),
        (("--send", "--email", "a@../../mx.example"), "--email: expected a mail address"),
        (("--send", "--email", "a@mx.example\n"), "--email: expected a mail address"),
        (("--send", "--organization", "M\udcfcller"), "--organization: expected a name in UTF-8"),
        (("--send", "--organization", "X\r\nY"), "--organization: expected a name in UTF-8"),
        (("--send", "--organization", ""), "--organization: expected a name in UTF-8"),
        (("--send", "--email", "-oQ@mx.example"), "begins with a hyphen"),
        (("--output", "/dev/null/x"), "--output: /dev/null/x: not a directory"),
        (("--send", "--store", "memory:"), "--store: memory:"),
    ],
)
def test_a_wrong_command_line(tool: Tool, words: tuple[str, ...], error: str) -> None:
    tool.record((asking("example.org"), ROW))
    status, out, err = tool.run(*words)
    assert (status, out) == (2, "")
    assert error in err


def test_yesterday_is_the_default(tool: Tool) -> None:
    tool.record((asking("example.org"), ROW))
    tool.day = ()
    _, out, _ = tool.run("--output", str(tool.reports))
    assert out.startswith("example.org: 1 messages")

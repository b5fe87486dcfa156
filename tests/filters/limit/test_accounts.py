"""Accounts that others use: blocks, notices, networks, and sudden rises."""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.limit import Limit, ledger, notifier
from smtpd_filters.filters.limit.notices import Notices
from smtpd_filters.filters.limit.steps import DAY, DAYS
from smtpd_filters.filters.limit.subjects import BLOCK, key
from smtpd_filters.runtime.log import FilterLog, Log
from smtpd_filters.startup import STRAY
from smtpd_filters.stores import Delete
from smtpd_filters.testing import Conversation
from tests.filters.limit.limiting import limits, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.filters.limit.limiting import Server

SUSPENDED = "450 4.7.1 Sending is suspended, please contact the postmaster"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program that writes down its arguments, and what it reads."""
    path = tmp_path / "program"
    path.write_text(
        f'#!/bin/sh\nfor word; do echo "$word"; done >>{tmp_path}/words\ncat >>{tmp_path}/read\n'
    )
    path.chmod(0o755)
    return path


def test_an_account_stays_blocked() -> None:
    with serving(*limits("user messages 2/1h action=block", "client messages 90/1h")) as server:
        alice = server.client(user="alice")
        assert [server.send(alice) for _ in range(2)] == ["", ""]
        assert server.send(alice) == "450 4.7.1 Too many messages"  # no time to try again
        assert server.events == ['blocked address=192.0.2.1 user=alice limit="user messages 2/1h"']
        server.advance(30 * DAY)
        assert server.send(alice) == SUSPENDED
        assert server.send(server.client("198.51.100.1", "ALICE")) == SUSPENDED
        assert server.send(server.client(user="bob")) == ""
        assert len(server.events) == 1
        reason = 'reason="user=alice is blocked: user messages 2/1h"'
        assert reason in server.smtpd.log[-1]


def test_a_block_holds_within_a_message() -> None:
    with serving(*limits("user recipients 2/1s action=block")) as server:
        alice = server.client(user="alice")
        alice.mail_from("a@example.com")
        replies = [alice.rcpt_to(f"{n}@example.org").reply[:9] for n in range(3)]
        assert replies == ["", "", "452 4.5.3"]
        server.advance(60)
        assert alice.rcpt_to("x@example.org").reply == SUSPENDED


def test_the_reply_to_a_blocked_account() -> None:
    flags = (*limits("user messages 1/1h action=block"), "--blocked-reply", "550 5.7.1 Call us")
    with serving(*flags) as server:
        alice = server.client(user="alice")
        assert [server.send(alice) for _ in range(3)][2] == "550 5.7.1 Call us"


def test_a_dry_run_blocks_nothing() -> None:
    with serving(*limits("user messages 1/1h action=block"), "--dry-run") as server:
        alice = server.client(user="alice")
        assert [server.send(alice) for _ in range(3)] == ["", "", ""]
        assert server.events == ['breach address=192.0.2.1 user=alice limit="user messages 1/1h"']


def test_the_first_breach_is_one_line_an_hour() -> None:
    with serving(*limits("client messages 1/1d")) as server:
        client = server.client()
        for _ in range(4):
            server.send(client)
        line = 'breach address=192.0.2.1 client=192.0.2.1 limit="client messages 1/1d"'
        assert server.events == [line]
        server.advance(1800)
        server.send(client)
        assert server.events == [line]
        server.advance(1801)
        server.send(client)
        assert server.events == [line, line]


# -- networks ----------------------------------------------------------------------------------


def test_the_networks_of_a_user() -> None:
    with serving(*limits("user networks 2/1h")) as server:

        def sends(address: str) -> str:
            return server.send(server.client(address, "alice"))

        assert sends("192.0.2.1") == ""
        assert sends("192.0.2.99") == "", "the same network"
        assert sends("2001:db8:1::1") == ""
        assert sends("198.51.100.1") == "450 4.7.1 Used from too many networks"
        assert sends("2001:db8:1:7::1") == ""
        assert server.send(server.client("198.51.100.1", "bob")) == ""
        server.advance(1800)
        assert sends("192.0.2.1") == ""
        server.advance(1801)
        assert sends("198.51.100.1") == "", "that in IPv6 has not been used for an hour"
        assert sends("2001:db8:1::1") != ""
        assert server.send(server.client("127.0.0.1", "alice")) == "", "a web mail on this machine"


def test_networks_whose_mail_is_refused_do_not_count() -> None:
    rules = limits("user networks 2/1h action=block", "user messages 1/30m")
    with serving(*rules) as server:

        def sends(address: str) -> str:
            return server.send(server.client(address, "alice"))[:3]

        assert sends("192.0.2.1") == ""
        assert [sends(f"198.51.{n}.1") for n in range(3)] == ["450"] * 3
        assert sends("192.0.2.1") == "450", "which has sent, and stays counted"
        server.advance(1800)
        assert sends("203.0.113.1") == "", "the second one"
        server.advance(1700)
        assert sends("198.51.0.1") == "450"
        assert server.events[-1].endswith('limit="user networks 2/1h"')


# -- rises -------------------------------------------------------------------------------------


class Days:
    """A server whose wall clock moves by days."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.wall = 1_700_000_000.0
        monkeypatch.setattr(ledger, "time", lambda: self.wall)

    def send(self, messages: int, user: str = "alice") -> int:
        """Send messages on this day; return how many pass."""
        client = self.server.client(user=user)
        return [self.server.send(client) for _ in range(messages)].count("")

    def next(self, days: int = 1) -> None:
        self.wall += days * DAY
        self.server.advance(days * DAY)


def test_a_sudden_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("user messages 3x floor=5")) as server:
        days = Days(server, monkeypatch)
        for messages in (2, 4, 1):
            assert days.send(messages) == messages
            days.next()
        assert days.send(20) == 12, "three times the highest"
        assert days.send(9, "bob") == 9, "has no past"
        assert server.events == [
            'breach address=192.0.2.1 user=alice limit="user messages 3x floor=5"'
        ]


def test_a_rise_from_little_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("user messages 3x")) as server:
        days = Days(server, monkeypatch)
        for _ in range(3):
            days.send(1)
            days.next()
        assert days.send(60) == 49, "fewer than 50 are no rise"


def test_a_past_needs_some_days_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("user messages 2x floor=1")) as server:
        days = Days(server, monkeypatch)
        for messages in (1, 1):
            days.send(messages)
            days.next()
        assert days.send(9) == 9, "two days are no past"
        days.next()
        assert days.send(30) == 18
        days.next(DAYS + 1)
        assert days.send(40) == 40, "long ago"


def test_nobody_waits_for_the_end_of_a_rise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float) -> None:
        raise AssertionError(seconds)

    monkeypatch.setattr("smtpd_filters.filters.limit.policy.sleep", sleep)
    table = tmp_path / "overrides"
    table.write_text("alice messages 2x floor=1\n")
    rules = limits("user messages 60/1m action=delay")
    with serving(*rules, "--override", f"file:{table}") as server:
        days = Days(server, monkeypatch)
        for _ in range(3):
            assert days.send(1) == 1
            days.next()
        assert days.send(9) == 2
        assert [line for line in server.smtpd.log if " error=" in line] == []


class Forgetful(Limit):
    """It remembers three subjects."""

    name = "limit"
    remembered = 3


def test_what_is_remembered_of_subjects_is_bounded() -> None:
    with serving(*limits("user messages 1/1d", "user messages 2x"), kind=Forgetful) as server:
        filter_ = server.filter
        assert isinstance(filter_, Limit)
        known, past = filter_._noted, filter_._ledger._past
        for number in range(8):
            client = server.client(user=f"user{number}")
            assert [server.send(client)[:3] for _ in range(2)] == ["", "450"]
            assert 0 < len(known) <= 3
            assert 0 < len(past) <= 3
        assert len(server.events) == 8


def test_recipients_rise_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("user recipients 2x floor=1 action=block")) as server:
        days = Days(server, monkeypatch)
        for _ in range(3):
            days.send(2)
            days.next()
        alice = server.client(user="alice")
        alice.mail_from("a@example.com")
        replies = [alice.rcpt_to(f"{n}@example.org").reply[:9] for n in range(6)]
        assert replies == ["", "", "", "", "452 4.5.3", SUSPENDED[:9]]


def test_what_is_refused_is_no_past(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("user messages 2x floor=1")) as server:
        days = Days(server, monkeypatch)
        for _ in range(3):
            days.send(2)
            days.next()
        assert days.send(30) == 4
        days.next()
        assert days.send(30) == 8, "not twice the 30 that were tried"


def test_what_others_refuse_is_no_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = limits(
        "user messages 3/1d", "user messages 2x floor=1 action=block", "client messages 1000/1h"
    )
    with serving(*rules) as server:
        days = Days(server, monkeypatch)
        for _ in range(3):
            days.send(2)
            days.next()
        assert days.send(20) == 3
        assert server.events == ['breach address=192.0.2.1 user=alice limit="user messages 3/1d"']


def test_two_rises_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("user messages 9x floor=1", "user messages 2x floor=7")) as server:
        days = Days(server, monkeypatch)
        for _ in range(3):
            assert days.send(2) == 2
            days.next()
        assert days.send(20) == 6
        days.next()
        assert days.send(20) == 12


def test_what_a_block_refuses_is_no_past(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("user messages 2x floor=1 action=block")) as server:
        days = Days(server, monkeypatch)
        for _ in range(3):
            days.send(2)
            days.next()
        assert days.send(30) == 4
        release = server.filter.store.ask(Delete(key("user=alice", BLOCK)))  # type: ignore[attr-defined]
        server.smtpd._served._loop.run_until_complete(release)
        days.next()
        assert days.send(30) == 8


def test_days_on_which_all_was_refused_are_no_past(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = limits("user messages 2x floor=1", "client messages 1/10d")
    with serving(*rules) as server:
        days = Days(server, monkeypatch)
        for passing in (1, 0, 0, 0):
            assert days.send(3) == passing
            days.next()
        days.next(7)
        replies = [server.send(server.client(f"198.51.100.{n}", "alice")) for n in range(9)]
        assert replies == [""] * 9, "one day with mail is no past"


def test_a_wall_clock_that_jumps_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(*limits("user messages 2x floor=1")) as server:
        days = Days(server, monkeypatch)
        for _ in range(4):
            days.send(3)
            days.next()
        days.wall -= 3000 * DAY
        assert days.send(9) == 9, "there is no past at this date"
        days.wall += 6000 * DAY
        assert days.send(9) == 9


# -- notices -----------------------------------------------------------------------------------


def block(*flags: str) -> list[str]:
    """Have an account blocked; return the log."""
    with serving(*limits("user messages 1/1h action=block"), *flags) as server:
        alice = server.client(user="alice $(x)")
        for _ in range(4):
            server.send(alice)
        return server.smtpd.log


@pytest.mark.processes
def test_a_command_is_run_once(script: Path) -> None:
    log = block("--notify-command", str(script))
    session = log[-1].split()[0]
    words = (script.parent / "words").read_text().splitlines()
    assert words == ["user=alice_$(x)", "user messages 1/1h", "192.0.2.1", session]


@pytest.mark.processes
def test_a_mail_is_sent_once(script: Path) -> None:
    block("--notify-mail", "root@example.org", "--sendmail", str(script))
    assert (script.parent / "words").read_text().splitlines() == ["-i", "--", "root@example.org"]
    text = (script.parent / "read").read_bytes()
    message = email.message_from_bytes(text, policy=email.policy.default)
    assert message["To"] == "root@example.org"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Subject"] == "blocked: user=alice_$(x)"
    body = message.get_content()
    assert "    limit: user messages 1/1h\n" in body
    assert "    address: 192.0.2.1\n" in body
    assert "smtpd-filters limit release 'user=alice_$(x)'\n" in body


def test_the_mail_has_a_word_for_each_part_of_a_subject() -> None:
    fields = dict.fromkeys(notifier.FIELDS, "x") | {"subject": "client=192.0.2.1 user=o'hara"}
    text = notifier.letter("root@example.org", fields).decode()
    assert """ release client=192.0.2.1 'user=o'"'"'hara'\n""" in text


@pytest.mark.processes
def test_a_command_that_fails_is_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    block("--notify-command", str(path))
    assert f'limit notice error="{path}: exited with 3"\n' in capfd.readouterr().err


@pytest.mark.processes
def test_notices_are_given_after_stray_signals(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    path = tmp_path / "program"
    path.write_text(
        f'#!/bin/sh\necho "$1" >>{tmp_path}/words\ntest ! -p {ready} || echo >{ready}\n'
    )
    path.chmod(0o755)
    notices = Notices(str(path), "", "", FilterLog(Log(fd=2), "limit"))
    notices.give(subject="alice")
    assert ready.read_text() == "\n"
    ready.unlink()
    for number in STRAY:
        notices._process.send_signal(number)
    notices.give(subject="bob")
    asyncio.run(notices.aclose())
    assert (tmp_path / "words").read_text() == "alice\nbob\n"


@pytest.mark.processes
def test_notices_that_are_not_taken_are_dropped(script: Path) -> None:
    """A process that has ended, or that does not keep up, holds up nobody."""
    with serving(
        *limits("user messages 1/1h action=block"), "--notify-command", str(script)
    ) as server:
        given = vars(server.filter)["_notices"]
        given._process.kill()  # as an operator might
        given._process.wait()
        for user in ("alice", "bob"):
            client = server.client(user=user)
            for _ in range(3):
                server.send(client)
            assert server.send(client) == SUSPENDED
        assert any("limit notice error=" in line for line in server.smtpd.log)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--notify-command", "/nonexistent"], "--notify-command: /nonexistent: not the absolute"),
        (["--notify-command", "true"], "--notify-command: true: not the absolute path"),
        (["--notify-mail", "a@b", "--sendmail", "/nonexistent"], "--sendmail: /nonexistent: not"),
    ],
)
def test_a_program_that_is_missing(flags: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Conversation(Limit, "--store=memory:", *limits("user messages 1/1h action=block"), *flags)
    assert reason in str(raised.value)


def test_a_notice_without_a_block_is_an_error(script: Path) -> None:
    with pytest.raises(ConfigError, match="--notify-command has no effect without"):
        Conversation(
            Limit,
            "--store=memory:",
            *limits("user messages 1/1h"),
            f"--notify-command={script}",
        )


@pytest.mark.parametrize("text", ["", "root", "root@", "-x@example.org", "a b@c", "a@b\nc"])
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a mail address"):
        Conversation(
            Limit,
            "--store=memory:",
            *limits("user messages 1/1h action=block"),
            f"--notify-mail={text}",
        )

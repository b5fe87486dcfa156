"""The replay of a session: a program that takes it over is asked again about what came before."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.message.spool import Spool
from smtpd_filters.supervise.engine import MAX_SESSIONS, MAX_UNFINISHED, Engine
from smtpd_filters.supervise.link import Link
from smtpd_filters.supervise.replay import MAX_ROWS
from tests.supervise.hostile import nowhere
from tests.supervise.supervised import Supervised, chain

if TYPE_CHECKING:
    from pathlib import Path

    from smtpd_filters.supervise.observer import Observer
    from tests.supervise.supervised import Client

NAME, TOKEN = b"00000000000000ee", b"00000000000000a0"
CONFIG = (
    b"config|smtpd-version|7.8.0\nconfig|protocol|0.7\nconfig|subsystem|smtp-in\nconfig|ready\n"
)
EVERYTHING = (
    *(f"filter|smtp-in|{name}" for name in ("connect", "ehlo", "auth", "mail-from", "rcpt-to")),
    *("filter|smtp-in|data", "filter|smtp-in|data-line", "filter|smtp-in|commit"),
    *(f"report|smtp-in|{name}" for name in ("link-identify", "link-auth", "tx-rcpt", "timeout")),
)
TRANSACTION = tuple(f"report|smtp-in|tx-{name}" for name in ("begin", "mail", "reset"))


def report(name: str, *values: str) -> bytes:
    fields = "|".join(("smtp-in", name, NAME.decode(), *values))
    return f"report|0.7|1576146008.006099|{fields}\n".encode()


def request(phase: str, argument: str = "", token: bytes = TOKEN) -> bytes:
    fields = f"smtp-in|{phase}|{NAME.decode()}|{token.decode()}|{argument}"
    return f"filter|0.7|1576146008.006099|{fields}\n".encode()


def answer(wire: str = "proceed", token: bytes = TOKEN) -> bytes:
    return b"filter-result|%b|%b|%b\n" % (NAME, token, wire.encode())


class Stage:
    """An engine, and programs of which one is asked."""

    def __init__(
        self,
        *registered: str,
        on_error: str = "tempfail",
        spool: Spool | None = None,
        observer: Observer | None = None,
        refuse_long_lines: bool = False,
        max_sessions: int = MAX_SESSIONS,
    ) -> None:
        self.engine = Engine(
            nowhere(),
            on_error=on_error,
            spool=spool or Spool(),
            observer=observer,
            refuse_long_lines=refuse_long_lines,
            max_sessions=max_sessions,
        )
        self.engine.from_smtpd(CONFIG)
        self.registered = registered or EVERYTHING
        self.link = self.start()
        self.engine.answers.clear()

    def start(self) -> Link:
        """Start a program, which is the one from now on."""
        self.link = link = Link()
        self.engine.attach(link)
        rows = "".join(f"register|{each}\n" for each in self.registered)
        self.engine.from_program(link, f"{rows}register|ready\n".encode())
        assert link.ready, link.fault
        self.engine.admit(link)
        link.out.clear()
        self.engine.settle()
        return link

    def end(self) -> None:
        self.engine.lost(self.link, "killed")

    def write(self, *rows: bytes) -> None:
        for row in rows:
            self.engine.from_smtpd(row)

    def reply(self, wire: str = "proceed") -> None:
        """Have the program answer."""
        self.engine.from_program(self.link, answer(wire))

    def ask(self, phase: str, argument: str = "", wire: str = "proceed") -> None:
        """Ask the program; it answers at once."""
        self.write(request(phase, argument))
        self.reply(wire)
        assert self.said() == answer(wire)

    def given(self) -> bytes:
        """What the program was given since the last look."""
        data = b"".join(self.link.out)
        self.link.out.clear()
        return data

    def said(self) -> bytes:
        """What smtpd got since the last look."""
        data = b"".join(self.engine.answers)
        self.engine.answers.clear()
        return data

    def transaction(self) -> None:
        """Go on to the first recipient."""
        self.write(report("link-connect", "h", "pass", "192.0.2.1:25", "192.0.2.2:25"))
        self.ask("connect", "h|192.0.2.1")
        self.ask("ehlo", "one", "reject|550 5.7.1 no")
        self.ask("ehlo", "two")
        self.write(report("link-identify", "EHLO", "two"))
        self.ask("auth", "c2VjcmV0")
        self.write(report("link-auth", "pass", "user"))
        self.ask("mail-from", "a@example.org")
        self.write(report("tx-begin", "0000000a"), report("tx-mail", "0000000a", "ok", "a@b"))
        self.ask("rcpt-to", "b@example.org", "junk")
        self.write(report("tx-rcpt", "0000000a", "ok", "b@example.org"))
        self.given()
        self.said()

    def transaction_lost(self) -> Link:
        """Go on to the first recipient, where the program ends; start the next one."""
        self.transaction()
        self.end()
        return self.start()


#: What a program gets again of such a session, up to each request.
AGAIN = (
    request("connect", "h|192.0.2.1"),
    request("ehlo", "two"),
    report("link-identify", "EHLO", "two")
    + report("link-auth", "pass", "user")
    + request("mail-from", "a@example.org"),
    request("rcpt-to", "b@example.org"),
)
BEGUN = report("tx-begin", "0000000a") + report("tx-mail", "0000000a", "ok", "a@b")
LAST = report("tx-rcpt", "0000000a", "ok", "b@example.org")


def test_a_program_is_asked_again_before_it_is_asked_more() -> None:
    stage = Stage()
    stage.transaction_lost()
    assert stage.given() == b""  # the session has no event
    stage.write(request("data"))
    for rows in AGAIN:
        assert stage.given() == rows
        stage.reply("reject|550 5.7.1 what was accepted remains so")
        assert stage.said() == b""
    assert stage.given() == LAST + request("data")
    stage.reply("reject|550 5.7.1 refused")
    assert stage.said() == answer("reject|550 5.7.1 refused")
    assert not stage.engine.waiting
    assert not stage.link.replaying


def test_a_message_waits_as_well_and_reports_keep_their_place() -> None:
    stage = Stage()
    stage.transaction()
    stage.ask("data")
    lines = [request("data-line", each) for each in ("Subject: x", "", ".")]
    stage.write(lines[0])
    stage.end()
    stage.start()
    assert stage.given() == AGAIN[0]
    stage.engine.expecting = False
    stage.write(*lines[1:], report("timeout"))
    for rows in (*AGAIN[1:], LAST + request("data")):
        stage.reply()
        assert stage.given() == rows
    stage.reply()
    assert stage.given() == report("timeout")
    stage.engine.transit.feed(stage.link)
    assert stage.given() == b"".join(lines)


def test_a_message_that_begins_during_the_replay() -> None:
    stage = Stage()
    stage.transaction()
    stage.ask("data")
    stage.end()
    stage.start()
    stage.engine.expecting = False
    stage.write(report("tx-data", "0000000a", "ok"), request("data-line", "."))
    for _ in (*AGAIN, "data"):
        stage.reply()
    stage.engine.transit.feed(stage.link)
    assert stage.given().endswith(request("data-line", "."))
    assert stage.engine.lines == []


def test_what_has_ended_is_not_asked_again() -> None:
    stage = Stage()
    stage.transaction()
    stage.write(report("tx-reset", "0000000a"))
    stage.end()
    stage.start()
    stage.write(request("mail-from", "c@example.org"))
    assert stage.given() == AGAIN[0]
    stage.reply()
    assert stage.given() == AGAIN[1]
    stage.reply()
    assert stage.given() == (
        report("link-identify", "EHLO", "two")
        + report("link-auth", "pass", "user")
        + request("mail-from", "c@example.org")
    )


def test_a_transaction_that_ends_during_the_replay_is_not_asked_again() -> None:
    stage = Stage(*EVERYTHING, *TRANSACTION)
    stage.transaction_lost()
    stage.write(report("timeout"), report("tx-reset", "0000000a"))
    stage.write(request("mail-from", "c@example.org"))
    stage.reply()
    stage.reply()
    assert stage.given().endswith(
        report("link-identify", "EHLO", "two")
        + report("link-auth", "pass", "user")
        + report("timeout")
        + request("mail-from", "c@example.org")
    )


def test_a_transaction_that_ends_after_its_beginning_was_given_is_reset() -> None:
    stage = Stage(*EVERYTHING, *TRANSACTION)
    stage.transaction_lost()
    stage.write(report("timeout"))
    for rows in AGAIN[:3]:
        assert stage.given() == rows
        stage.reply()
    assert stage.given() == BEGUN + AGAIN[3]
    stage.write(report("tx-reset", "0000000a"))
    stage.write(report("tx-begin", "0000000b"), report("tx-reset", "0000000b"))
    stage.reply()
    assert stage.given() == report("timeout") + report("tx-reset", "0000000b")


def test_a_client_that_repeats_commands_during_the_replay() -> None:
    stage = Stage(*EVERYTHING, *TRANSACTION)
    stage.transaction_lost()
    stage.write(report("timeout"))
    [session] = stage.engine.sessions.values()
    replay = session.replay
    assert replay is not None
    mail = [report("tx-begin", "0000000b"), report("tx-mail", "0000000b", "ok", "c@example.org")]
    for _ in range(MAX_ROWS):
        stage.write(report("timeout"), report("link-identify", "EHLO", "three"))
        stage.write(*mail, report("tx-reset", "0000000b"))
    assert len(replay.rows) <= MAX_ROWS
    stage.write(*mail)
    assert list(replay.rows)[-2:] == mail


@pytest.mark.parametrize("on_error", ["tempfail", "proceed"])
def test_what_ended_a_program_is_not_asked_again(on_error: str) -> None:
    stage = Stage("filter|smtp-in|connect", "filter|smtp-in|ehlo", on_error=on_error)
    stage.ask("connect", "h|192.0.2.1")
    stage.write(request("ehlo", "deadly"))
    stage.end()
    assert b"proceed" in stage.said() or on_error == "tempfail"
    stage.start()
    stage.write(report("link-identify", "EHLO", "deadly"), request("ehlo", "again"))
    assert stage.given() == request("connect", "h|192.0.2.1")
    stage.reply()
    assert stage.given() == request("ehlo", "again")


def test_a_session_that_ends_during_the_replay() -> None:
    stage = Stage()
    link = stage.transaction_lost()
    stage.write(request("data"))
    stage.engine.from_smtpd(report("link-disconnect"))
    assert stage.given().endswith(AGAIN[0])
    for none in (link.sessions, link.replaying, stage.engine.waiting, stage.engine.sessions):
        assert not none
    stage.reply()  # late
    assert not link.fault
    assert not link.late
    assert stage.said() == b""


def test_a_program_that_does_not_answer_again() -> None:
    stage = Stage()
    link = stage.transaction_lost()
    stage.engine.now = 10.0
    stage.write(request("data"))
    stage.engine.now = 69.0
    assert stage.engine.overdue(link) == ""
    stage.engine.now = 71.0
    assert stage.engine.overdue(link) == "no answer at connect, asked again, for 60 s"
    stage.engine.expire()
    assert b"|reject|451 " in stage.said()


def test_an_answer_again_that_is_a_fault() -> None:
    stage = Stage()
    link = stage.transaction_lost()
    stage.write(request("data"))
    stage.reply("perhaps")
    assert "unknown decision" in link.fault


def test_a_session_that_ends_after_such_a_fault() -> None:
    """The program has answered, so nothing of it comes late."""
    stage = Stage()
    link = stage.transaction_lost()
    stage.write(request("data"))
    stage.reply("perhaps")
    stage.write(report("link-disconnect"))
    left = link.late, link.sessions, stage.engine.sessions, stage.engine.waiting
    assert not any(left)
    assert stage.said() == b""


def test_a_session_that_ends_each_program_is_given_to_no_other() -> None:
    stage = Stage()
    stage.transaction_lost()
    stage.write(request("data"))
    for _ in range(MAX_UNFINISHED):
        assert stage.given() == AGAIN[0]
        assert stage.said() == b""
        stage.end()
        stage.start()
    assert b"|reject|451 " in stage.said()
    stage.write(request("data"))
    assert b"|reject|451 " in stage.said()
    assert stage.given() == b""
    assert not stage.engine.waiting


def follow(smtpd: Supervised) -> None:
    """Kill the program, and wait for the next one."""
    pid = smtpd.logged("supervise ready").split("pid=")[1].split()[0]
    os.kill(int(pid), signal.SIGKILL)
    smtpd.until(lambda: sum("supervise ready" in line for line in smtpd.log) > 1)


def greeted(smtpd: Supervised, name: bytes) -> Client:
    """A client that has greeted with this name."""
    client = smtpd.connect()
    client.report("link-greeting", b"mx.example.org")
    assert client.ask("helo", name).verb == b"proceed"
    client.report("link-identify", b"HELO", name)
    return client


CHAIN = """\
[filter.helo]
non-fqdn = "junk"
unknown = "off"
phase = "{phase}"
{more}

[filter.sender]
unknown = "off"
null-mx = "off"
bad-mx = "off"

[chain.tried]
filters = ["helo", "sender"]
{rules}
"""
REFUSED = b"550 5.7.1 Refused as probable spam"


def tried(folder: Path, *, phase: str, more: str = "", rules: str = "") -> Supervised:
    return Supervised(command=chain(folder, CHAIN.format(phase=phase, more=more, rules=rules)))


@pytest.mark.parametrize("phase", ["helo", "mail-from", "rcpt-to"])
def test_points_of_earlier_phases_still_refuse(phase: str, tmp_path: Path) -> None:
    rules = 'reject-at = 5\nscore-at = "data"'
    with tried(tmp_path, phase=phase, more="score = 6", rules=rules) as smtpd:
        client, other = greeted(smtpd, b"nodots"), greeted(smtpd, b"client.example.com")
        for each in (client, other):
            assert each.begin().verb == b"proceed"
            assert each.ask("rcpt-to", b"b@example.org").verb == b"proceed"
            each.report("tx-rcpt", b"0000000a", b"ok", b"b@example.org")
        follow(smtpd)
        assert client.ask("data").argument == REFUSED
        assert other.ask("data").verb == b"proceed"


def test_a_mark_that_was_to_be_made_later_is_made(tmp_path: Path) -> None:
    with tried(tmp_path, phase="mail-from") as smtpd:
        client = greeted(smtpd, b"nodots")
        assert client.begin().verb == b"proceed"
        follow(smtpd)
        assert client.ask("data").verb == b"junk"


def test_a_verdict_that_bypasses_the_chain_still_does(tmp_path: Path) -> None:
    with tried(tmp_path, phase="helo", more='bypass = ["junk"]') as smtpd:
        exempt, other = greeted(smtpd, b"nodots"), greeted(smtpd, b"client.example.com")
        follow(smtpd)
        assert exempt.ask("mail-from", b"a@nodots").verb == b"proceed"
        assert other.ask("mail-from", b"a@nodots").verb == b"reject"

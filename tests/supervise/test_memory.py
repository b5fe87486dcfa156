"""Without memory, or without room in the spool, every request is answered and no message cut."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.message.spool import Spool
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.supervise.engine import Engine
from smtpd_filters.supervise.transit import SMALL
from tests.effort import part
from tests.runtime.process import ROOT, TOKENS, sid
from tests.supervise.hostile import nowhere
from tests.supervise.test_own_faults import DOT, LARGE, refused, returned
from tests.supervise.test_replay import NAME, TOKEN, Stage, answer, report, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Full(list[bytes]):
    """Output for which there is no memory at first."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures

    def append(self, row: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise MemoryError
        super().append(row)


def once(function: Callable[..., object]) -> Callable[..., object]:
    """The function, which runs out of memory at the first call."""
    calls: list[None] = []

    def call(*arguments: object, **named: object) -> object:
        calls.append(None)
        if len(calls) == 1:
            raise MemoryError
        return function(*arguments, **named)

    return call


def alone(on_error: str = "tempfail") -> Stage:
    """An engine whose program has ended, and that expects no other."""
    stage = Stage(on_error=on_error)
    stage.end()
    stage.engine.expecting = False
    return stage


def played(module: str, *arguments: str) -> int:
    """Run a program in which nothing may go wrong; return how often it has tried."""
    if importlib.util.find_spec("_testcapi") is None:
        pytest.skip("this Python lacks _testcapi")
    done = subprocess.run(
        [sys.executable, "-m", f"tests.supervise.{module}", *arguments],
        capture_output=True,
        cwd=ROOT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    *wrong, tried = done.stdout.decode().splitlines()
    assert wrong == []
    return int(tried.split()[0])


@pytest.mark.allocations
@pytest.mark.parametrize(
    ("kind", "width"),
    [("Lines", "1"), ("Whole", "1"), ("Late", "1"), ("Lost", "1"), ("Gone", "1"), ("Lines", "20")],
)
def test_any_allocation_may_fail(kind: str, width: str) -> None:
    assert played("no_memory", kind, width) > part(500)


@pytest.mark.allocations
@pytest.mark.parametrize("width", ["1", "4"])
def test_each_place_has_one_program_if_memory_ran_out(width: str) -> None:
    assert played("no_memory_fleet", width) > part(500)


@pytest.mark.allocations
def test_random_conversations_while_allocations_fail() -> None:
    assert played("scarce", str(part(2500))) == part(2500)


def test_a_message_whose_end_does_not_fit_into_the_spool_gets_one_dot(tmp_path: Path) -> None:
    """No program runs, so the message is kept; smtpd would exit on a second dot."""
    spool = Spool(memory=0, directories=(str(tmp_path / "missing"),))
    engine, smtpd, session = Engine(nowhere(), spool=spool), SmtpdConnection(), sid(1)
    engine.from_smtpd(smtpd.configure())
    engine.handshake.register_all()
    engine.answers.clear()
    engine.expecting = True
    token = TOKENS["data-line"]
    engine.from_smtpd(smtpd.lines(session, token, [b"", b"x" * SMALL], end=True))
    assert engine.lines == [b"filter-dataline|%b|%b|.\n" % (session, token)]
    engine.from_smtpd(smtpd.request("commit", session, TOKENS["commit"]))
    assert engine.answers[0].split(b"|")[3:4] == [b"reject"]


def test_a_lost_message_is_refused_at_the_second_try() -> None:
    stage = Stage()
    stage.write(request("data-line", "Subject: x"))
    stage.engine.from_program(stage.link, DOT[:-2] + b"Subject: x\n")
    stage.end()
    stage.start()
    stage.write(request("data-line", "."))
    stage.engine.answers = Full()
    stage.write(request("commit"))
    assert stage.engine.smtpd.stalled
    stage.engine.smtpd.resume()
    assert stage.said().startswith(answer("reject|451")[:-1])
    assert stage.given() == b""


@pytest.mark.parametrize("what", ["_observer.answered_for", "log.failure", "answers.append"])
def test_a_request_is_answered_once(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smtpd exits on a second answer."""
    stage = alone()
    engine = stage.engine
    if what == "answers.append":
        engine.answers = Full()
    else:
        place, name = what.split(".")
        owner = getattr(engine, place)
        monkeypatch.setattr(owner, name, once(getattr(owner, name)))
    stage.write(request("mail-from", "a@b"))
    assert engine.smtpd.stalled
    engine.smtpd.resume()
    assert stage.said().count(b"filter-result|") == 1


def test_an_answer_that_can_not_be_noted_is_answered_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()
    observer = stage.engine._observer
    monkeypatch.setattr(observer, "answered", once(observer.answered))
    stage.write(request("mail-from", "a@b"))
    stage.reply("reject|550 5.7.1 no")
    assert stage.link.fault == "no memory for its answers"
    stage.end()
    assert stage.said().count(b"filter-result|") == 1


def test_a_request_that_expires_is_answered_at_the_second_try() -> None:
    stage = alone()
    engine = stage.engine
    engine.expecting = True
    stage.write(request("mail-from", "a@b"))
    engine.now += 2 * engine.deadline
    engine.answers = Full()
    with pytest.raises(MemoryError):
        engine.expire()
    engine.expire()
    assert stage.said().startswith(answer("reject|451")[:-1])
    assert not engine.waiting


def test_a_request_that_waits_is_asked_at_the_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is of a session in which smtpd has not waited for the answer."""
    stage = alone()
    engine = stage.engine
    engine.expecting = True
    stage.write(request("mail-from", "a@b"), request("data-line", "Subject: x"))
    monkeypatch.setattr(engine, "_request", once(engine._request))
    with pytest.raises(MemoryError):
        stage.start()
    stage.engine.transit.feed(stage.link)
    stage.engine.relieve()
    stage.end()  # the message is lost, and the request waits on
    monkeypatch.undo()
    link = stage.start()
    assert list(link.open) == [answer().split(b"|", 1)[1].rsplit(b"|", 1)[0]]
    assert returned(stage) == DOT
    assert not engine.waiting


@pytest.mark.parametrize("tries", [1, 2])
def test_a_message_returned_in_part_is_refused(tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = alone(on_error="proceed")
    engine = stage.engine
    engine.expecting = True
    stage.write(LARGE, request("data-line", "."))
    engine.expecting = False
    back = engine.transit._return
    monkeypatch.setattr(engine.transit, "_return", once(back))
    if tries == 2:
        engine.transit.lines = Full()
        with pytest.raises(MemoryError):
            engine.settle()
        assert engine.waiting
    engine.settle()
    assert b"".join(engine.transit.lines) == DOT
    assert not engine.waiting
    refused(stage)


@pytest.mark.parametrize("next_one", [True, False])
def test_the_end_of_a_lost_message_is_written_at_the_second_try(next_one: bool) -> None:  # noqa: FBT001
    stage = Stage()
    engine = stage.engine
    stage.write(request("data-line", "Subject: x"))
    engine.relieve()
    stage.write(request("data-line", "."))
    engine.transit.lines = Full()
    with pytest.raises(MemoryError):
        stage.end()
    if next_one:
        stage.start()
    else:
        engine.expecting = False
        engine.settle()
    assert b"".join(engine.transit.lines) == DOT
    assert not engine.waiting


def with_a_loss(monkeypatch: pytest.MonkeyPatch) -> Stage:
    """An engine that ran out of memory as it gave up a message."""
    stage = alone()
    engine = stage.engine
    engine.expecting = True
    stage.write(request("data-line", "Subject: x"))
    engine.expecting = False
    monkeypatch.setattr(engine.log, "limited", once(engine.log.limited))
    with pytest.raises(MemoryError):
        engine.settle()
    return stage


def resume(stage: Stage, tries: int) -> None:
    """Have the engine try again what it had no memory for."""
    for _ in range(tries):
        assert stage.engine.smtpd.stalled
        stage.engine.smtpd.resume()
    assert not stage.engine.smtpd.stalled


@pytest.mark.parametrize("tries", [1, 2])
@pytest.mark.parametrize("phase", ["rcpt-to", "auth"])
def test_a_program_gets_a_request_once(phase: str, tries: int) -> None:
    """What it answers before is not passed on, lest there be two answers."""
    stage = Stage()
    stage.ask("mail-from", "a@b")
    stage.link.out = Full(tries)
    stage.write(request(phase, "x"))
    assert not stage.link.open
    resume(stage, tries)
    assert stage.given() == request(phase, "x")
    stage.reply()
    assert stage.said() == answer()


@pytest.mark.parametrize("wire", ["proceed", "reject|550 5.7.1 no"])
def test_an_answer_to_a_request_that_the_program_has_not_got(wire: str) -> None:
    stage = Stage()
    stage.ask("mail-from", "a@b")
    stage.link.out = Full(2)
    stage.write(request("rcpt-to", "x"))
    stage.reply(wire)
    assert "answer without a request" in stage.link.fault
    assert stage.said() == b""


@pytest.mark.parametrize("name", ["tx-rcpt", "timeout"])
def test_a_program_gets_a_report_once(name: str) -> None:
    stage = Stage()
    stage.ask("mail-from", "a@b")
    row = report(name, "0000000a", "ok", "b@c")
    [session] = stage.engine.sessions.values()
    before = len(session.lines)
    stage.link.out = Full()
    stage.write(row)
    resume(stage, 1)
    assert stage.given() == row
    assert session.lines.count(row) == (name == "tx-rcpt")
    assert len(session.lines) <= before + 2  # the request is kept as well


@pytest.mark.parametrize("token", [TOKEN, b"short"])
def test_a_message_of_which_a_line_is_lost_is_refused(token: bytes) -> None:
    stage = Stage()
    stage.link.out = Full()
    rows = [request("data-line", each, token) for each in ("Subject: x", "", ".")]
    stage.write(rows[0])
    stage.engine.transit.lines = Full()
    stage.write(rows[1] + rows[2])
    resume(stage, 1)
    assert b"".join(stage.engine.transit.lines) == DOT.replace(TOKEN, token)
    assert not stage.link.messages
    assert not stage.engine.transit.known
    assert not stage.link.fault  # nothing of it was given
    refused(stage)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (MemoryError(), "no memory for its messages"),
        (ValueError("a bug"), "its messages can't be processed"),
    ],
)
@pytest.mark.parametrize("returned_some", [True, False])
def test_a_program_that_has_a_part_of_a_lost_message_is_ended(
    error: Exception,
    fault: str,
    returned_some: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may keep messages until their end, and would add the next one to this one."""
    stage = Stage("filter|smtp-in|data-line")
    rows = [request("data-line", each) for each in ("Subject: x", "", ".")]
    stage.write(rows[0])
    assert stage.given() == rows[0]
    if returned_some:
        stage.engine.from_program(stage.link, DOT[:-2] + b"Subject: x\n")
    with monkeypatch.context() as patch:
        patch.setattr(stage.engine.transit, "_forward", failing(error))
        stage.write(rows[1])
    assert stage.link.fault == fault
    stage.end()
    stage.start()
    stage.write(rows[2], request("commit"))
    assert returned(stage).endswith(DOT)
    assert stage.said().startswith(answer("reject|451")[:-1])
    assert stage.given() == b""
    stage.write(*rows)
    assert stage.given() == b"".join(rows)


class Scarce(int):
    """A number for whose sum there is no memory once."""

    failed = False

    def __add__(self, other: int) -> int:
        if not self.failed:
            self.failed = True
            raise MemoryError
        return int(self) + other


def test_a_message_is_given_again_once() -> None:
    stage = Stage()
    rows = request("data-line", "Subject: x") + request("data-line", ".")
    stage.write(rows)
    stage.end()
    link = stage.start()
    [message] = link.feeding
    message.fed = Scarce()
    for _ in range(2):
        try:
            stage.engine.transit.feed(link)
        except MemoryError:
            assert list(link.feeding) == [message]
    assert stage.given() == rows


def failing(error: Exception) -> Callable[..., object]:
    """A function that raises an error."""

    def call(*_: object) -> object:
        raise error

    return call


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("request", "link-disconnect"),
        ("message", "link-disconnect"),
        ("message", "tx-reset"),
        ("replay", "link-disconnect"),
    ],
)
def test_what_comes_late_is_remembered_at_the_second_try(
    kind: str, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program whose answer comes after the end of its session is not at fault."""
    stage = Stage()
    if kind == "replay":
        stage.transaction_lost()
        stage.write(request("data"))
    else:
        stage.write(request("mail-from" if kind == "request" else "data-line", "a@b"))
    link = stage.link
    with monkeypatch.context() as patch:
        patch.setattr(link, "owe", failing(MemoryError()))
        stage.write(report(event, "0000000a"))
    resume(stage, 1)
    assert list(link.late) == [NAME]
    stage.engine.from_program(link, DOT if kind == "message" else answer())
    assert not link.fault
    assert not link.late


def test_a_lost_message_that_has_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = with_a_loss(monkeypatch)
    stage.engine.settle()
    assert not stage.engine.waiting
    assert returned(stage) == b""
    stage.write(request("data-line", "."))
    assert returned(stage) == DOT
    stage.start()
    refused(stage)


def test_the_end_of_a_lost_message_is_written_while_smtpd_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no memory for the dot when it arrives; what follows it is processed later."""
    stage = with_a_loss(monkeypatch)
    engine = stage.engine
    engine.transit.lines = Full()
    stage.write(request("data-line", "x") + request("data-line", ".") + request("commit"))
    assert engine.smtpd.stalled
    engine.settle()
    assert b"".join(engine.transit.lines) == DOT
    resume(stage, 1)
    assert b"".join(engine.transit.lines) == DOT
    assert stage.said().startswith(answer("reject|451")[:-1])


def test_a_program_that_can_not_be_given_a_session_is_at_fault() -> None:
    stage = Stage()
    link = stage.transaction_lost()
    link.out = Full()
    stage.write(request("data"))
    assert link.fault == "no memory for its sessions"
    stage.end()
    stage.start()
    resume(stage, 1)
    for _ in range(4):
        stage.given()
        stage.reply()
    assert stage.given().endswith(request("data"))

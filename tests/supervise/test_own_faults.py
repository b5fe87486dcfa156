"""Faults of the supervisor itself and of its machine: bugs, a full disk, too many sessions."""

from __future__ import annotations

from typing import NoReturn

import pytest

from smtpd_filters.message.spool import Spool, SpoolError, Store
from smtpd_filters.supervise import engine
from smtpd_filters.supervise.link import MAX_LATE, Link
from smtpd_filters.supervise.program_side import ProgramSide
from smtpd_filters.supervise.transit import MAX_GIVEN, SMALL, Transit
from tests.supervise.test_replay import NAME, TOKEN, Stage, answer, request

DOT = b"filter-dataline|%b|%b|.\n" % (NAME, TOKEN)
#: More than is kept without the spool.
LARGE = request("data-line", "x" * (SMALL // 2)) * 3


#: Sessions of which the engine keeps two.
NAMES = [b"%016x" % number for number in range(3)]


def fail(*_: object) -> NoReturn:
    raise ValueError("a bug")


def unreadable(*_: object) -> NoReturn:
    raise SpoolError("Input/output error")


def returned(stage: Stage) -> bytes:
    """What smtpd got of messages since the last look."""
    data = b"".join(stage.engine.lines)
    stage.engine.lines.clear()
    return data


def refused(stage: Stage) -> None:
    """See that the message is refused at `commit`, and that the next one is not."""
    stage.write(request("commit"))
    assert stage.said().startswith(answer("reject|451")[:-1])
    stage.write(request("commit"))
    assert not stage.said().startswith(answer("reject")[:-1])


def crowded(*answered: bytes) -> Stage:
    """An engine for two sessions at a time; these are the sessions that have their answers."""
    stage = Stage(max_sessions=2)
    for name in NAMES:
        stage.write(request("mail-from", "a@b").replace(NAME, name))
        if name in answered:
            stage.engine.from_program(stage.link, answer().replace(NAME, name))
    return stage


def test_a_bug_costs_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    monkeypatch.setattr(engine.Engine, "_bind", fail)
    stage.write(request("mail-from", "a@b"))
    assert stage.said().startswith(answer("reject|451")[:-1])
    monkeypatch.undo()
    stage.ask("mail-from", "a@b")


def test_a_bug_in_a_report_costs_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_reported", fail)
        stage.write(b"report|0.7|1.0|smtp-in|tx-begin|%b|0000000a\n" % NAME)
    assert stage.said() == b""
    stage.ask("mail-from", "a@b")


def test_a_bug_in_the_answers_of_a_program_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    stage.write(request("mail-from", "a@b"))
    with monkeypatch.context() as patch:
        patch.setattr(ProgramSide, "_receive", fail)
        stage.reply()
    assert stage.link.fault == "its answers can't be processed"
    stage.end()
    assert stage.said().startswith(answer("reject|451")[:-1])


def test_a_bug_in_a_message_costs_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    with monkeypatch.context() as patch:
        patch.setattr(Transit, "_forward", fail)
        stage.write(request("data-line", "Subject: x"))
    stage.write(request("data-line", "y"), request("data-line", "."))
    assert returned(stage) == DOT
    refused(stage)


def test_a_message_that_can_not_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(spool=Spool(memory=0))
    stage.write(LARGE, request("data-line", "."))
    monkeypatch.setattr(Store, "block", unreadable)
    for _ in range(MAX_GIVEN - 1):
        stage.end()
        link = stage.start()
        stage.engine.transit.feed(link)
        assert link.fault == "message can't be given again: Input/output error"
    assert returned(stage) == b""
    stage.end()
    assert returned(stage) == DOT
    stage.start()
    refused(stage)


def test_a_message_that_can_not_be_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(on_error="proceed", spool=Spool(memory=0))
    stage.end()
    stage.engine.expecting = True
    stage.write(LARGE, request("data-line", "."))
    monkeypatch.setattr(Store, "block", unreadable)
    stage.engine.expecting = False
    stage.engine.settle()
    assert returned(stage) == DOT
    refused(stage)


def test_a_disk_that_is_full_while_a_message_is_given_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(spool=Spool(memory=0))
    stage.write(LARGE)
    stage.end()
    link = stage.start()
    monkeypatch.setattr(Store, "append_block", unreadable)
    stage.write(request("data-line", "y"))
    assert link.fault == "message can't be given again: Input/output error"
    stage.end()
    stage.write(request("data-line", "."))
    assert returned(stage) == DOT
    stage.start()
    refused(stage)


@pytest.mark.parametrize("ends", [True, False])
def test_a_disk_that_is_full_while_a_program_reads_a_message(
    ends: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gets all of it, but no other program does."""
    stage = Stage(spool=Spool(memory=0))
    monkeypatch.setattr(Store, "append_block", unreadable)
    rows = [LARGE, request("data-line", "y"), request("data-line", ".")]
    stage.write(*rows)
    given = stage.given()
    assert given == b"".join(rows)
    assert not stage.link.fault
    if ends:
        stage.end()
        assert returned(stage) == DOT
        stage.start()
        refused(stage)
        return
    back = [DOT[:-2] + row.split(b"|", 7)[7] for row in given.splitlines(keepends=True)]
    stage.engine.from_program(stage.link, b"".join(back))
    assert returned(stage) == b"".join(back)
    stage.ask("commit")


def test_without_a_program_a_whole_message_is_passed_on() -> None:
    stage = Stage(on_error="proceed")
    stage.end()
    lines = ("Subject: x", "", "..", ".")
    stage.write(*[request("data-line", each) for each in lines])
    assert returned(stage) == b""
    stage.engine.expecting = False
    stage.engine.settle()
    assert returned(stage) == b"".join(DOT[:-2] + each.encode() + b"\n" for each in lines)
    stage.write(request("commit"))
    assert stage.said() == answer()


def test_without_memory_messages_are_not_given_again() -> None:
    stage = Stage()
    stage.write(request("data-line", "Subject: x"))
    stage.engine.relieve()
    stage.write(request("data-line", "y"), request("data-line", "."))
    stage.end()
    assert returned(stage) == DOT
    stage.start()
    refused(stage)


def test_the_oldest_session_without_a_request_is_forgotten() -> None:
    stage = crowded(*NAMES[1:])
    assert list(stage.engine.sessions) == [NAMES[0], NAMES[2]]
    stage.write(request("mail-from", "a@b").replace(NAME, NAMES[1]))
    stage.engine.from_program(stage.link, answer().replace(NAME, NAMES[1]))
    assert stage.said().count(answer().replace(NAME, NAMES[1])) == 2


def test_late_answers_are_remembered_within_bounds() -> None:
    link = Link()
    for number in range(MAX_LATE + 1):
        link.owe(b"%d" % number)
    assert len(link.late) == MAX_LATE
    assert b"0" not in link.late

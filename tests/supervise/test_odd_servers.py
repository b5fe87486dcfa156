"""Servers that do what no known smtpd does, or in another order: each request has one answer."""

from __future__ import annotations

import pytest

from smtpd_filters.supervise import engine
from smtpd_filters.supervise.link import Link
from tests.supervise.test_own_faults import DOT, NAMES, crowded, refused, returned
from tests.supervise.test_replay import NAME, Stage, answer, report, request

OPEN = b"|".join(answer().split(b"|")[1:3])


def back(line: str) -> bytes:
    """A line of the message that a program returns."""
    return DOT[:-2] + line.encode() + b"\n"


def test_a_request_while_another_is_open_is_let_pass() -> None:
    stage = Stage()
    stage.write(request("mail-from", "a@b"), request("rcpt-to", "b@c", b"00000000000000a1"))
    assert stage.said() == answer(token=b"00000000000000a1")
    stage.reply("reject|550 5.7.1 no")
    assert stage.said() == answer("reject|550 5.7.1 no")


def test_a_request_at_an_unknown_phase_is_let_pass() -> None:
    stage = Stage()
    stage.write(request("future", "x"))
    assert stage.said() == answer()
    assert stage.given() == b""


def test_a_message_while_commit_is_open() -> None:
    """What the program said of it is lost with the program; the open commit has its answer."""
    stage = Stage()
    stage.write(request("commit"), request("data-line", "."))
    stage.engine.from_program(stage.link, back("."))
    stage.end()
    assert stage.said().startswith(answer("reject|451")[:-1])
    stage.start()
    stage.ask("commit")


@pytest.mark.parametrize("lines", [["x"], ["x", "."]])
def test_a_request_within_a_message_ends_the_message_first(lines: list[str]) -> None:
    """Smtpd exits on a result before the final dot; that of the program comes too late."""
    stage = Stage()
    stage.write(*[request("data-line", each) for each in lines])
    stage.write(request("commit"))
    assert returned(stage) == DOT
    assert stage.said().startswith(answer("reject|451")[:-1])
    assert not stage.link.messages


def test_a_session_that_ends_within_its_message() -> None:
    stage = Stage()
    stage.write(request("data-line", "x"), report("link-disconnect"))
    left = stage.engine.sessions, stage.engine.transit.known, stage.link.messages
    assert not any(left)
    stage.engine.from_program(stage.link, back("x") + back("."))
    assert not stage.link.fault
    assert returned(stage) == b""


def test_a_transaction_that_ends_while_a_request_waits() -> None:
    stage = Stage()
    stage.end()
    stage.write(request("mail-from", "a@b"), request("data-line", "x"))
    stage.write(report("tx-reset", "0000000a"))
    link = stage.start()
    assert list(link.open) == [OPEN]
    stage.reply()
    assert stage.said() == answer()
    assert returned(stage) == b""


@pytest.mark.parametrize("row", [request("data-line", "y"), request("data-line", ".")])
@pytest.mark.parametrize("lines", [["."], ["x", "."]])
def test_a_line_after_the_dot_is_dropped(lines: list[str], row: bytes) -> None:
    stage = Stage()
    stage.write(*[request("data-line", each) for each in lines])
    stage.given()
    stage.write(row)
    assert stage.given() == b""
    stage.engine.from_program(stage.link, back("."))
    assert returned(stage) == DOT


def test_without_a_session_to_forget_a_further_one_is_kept() -> None:
    """Each of them waits for an answer."""
    stage = crowded()
    for name in NAMES:
        stage.engine.from_program(stage.link, answer().replace(NAME, name))
    assert stage.said() == b"".join(answer().replace(NAME, name) for name in NAMES)


@pytest.mark.parametrize(("version", "logged"), [("0.4", 1), ("0.5", 0), ("1.0", 0), ("x", 0)])
def test_an_old_protocol_is_logged(
    version: str, logged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage()
    events: list[dict[str, str]] = []
    log = stage.engine.log
    monkeypatch.setattr(log, "event", lambda *_, **values: events.append(values))
    stage.write(b"config|protocol|%b\n" % version.encode())
    assert events == [{"protocol": version}] * logged


@pytest.mark.parametrize("before", [True, False])
def test_a_program_may_register_before_smtpd_is_ready(before: bool) -> None:  # noqa: FBT001
    made, link = engine.Engine(Stage().engine.log), Link()
    made.attach(link)
    if not before:
        made.from_smtpd(b"config|subsystem|smtp-in\nconfig|ready\n")
    made.from_program(link, b"register|filter|smtp-in|helo\nregister|ready\n")
    if before:
        assert not link.ready
        assert made.answers == []
        made.from_smtpd(b"config|subsystem|smtp-in\nconfig|ready\n")
    assert link.ready
    assert not made.handshake.starting
    assert made.answers[-2:] == [b"register|filter|smtp-in|helo\n", b"register|ready\n"]


def test_a_program_that_is_not_ready_when_smtpd_is() -> None:
    made, link = engine.Engine(Stage().engine.log), Link()
    made.attach(link)
    made.from_smtpd(b"config|ready\n")
    assert list(made.handshake.starting) == [link]
    assert made.answers == []


def test_refused_credentials_are_refused_at_the_next_command() -> None:
    """Smtpd would log the password: see `protocol.credentials`."""
    stage = Stage()
    stage.write(request("auth", "PLAIN c2VjcmV0"))
    stage.reply("reject|535 5.7.8 no")
    assert stage.said() == answer("rewrite|PLAIN *")
    stage.given()
    stage.write(request("mail-from", "a@b"))
    assert stage.said() == answer("reject|535 5.7.8 no")
    assert stage.given() == b""
    stage.ask("mail-from", "a@b")


@pytest.mark.parametrize(
    ("on_error", "phase", "wire"),
    [
        ("junk", "mail-from", "junk"),
        ("junk", "commit", "reject|451"),
        ("junk", "quit", "proceed"),
        ("proceed", "commit", "proceed"),
        ("tempfail", "commit", "reject|451"),
    ],
)
def test_answers_without_a_program(on_error: str, phase: str, wire: str) -> None:
    stage = Stage(on_error=on_error)
    stage.end()
    stage.engine.expecting = False
    stage.write(request(phase))
    assert stage.said().startswith(answer(wire)[:-1])


@pytest.mark.parametrize("owed", [1, 3])
def test_late_answers_are_counted(owed: int) -> None:
    stage = Stage()
    for _ in range(owed):
        stage.write(request("mail-from", "a@b"), report("link-disconnect"))
    for _ in range(owed):
        assert stage.link.late
        stage.reply()
    assert not stage.link.late
    assert not stage.link.fault
    assert stage.said() == b""
    stage.reply()
    assert "answer without a request" in stage.link.fault


def test_a_message_that_is_given_again_does_not_end_before_it_is_given() -> None:
    stage = Stage()
    stage.write(request("data-line", "Subject: x"), request("data-line", "."))
    stage.end()
    link = stage.start()
    [message] = link.feeding
    assert message.ended
    stage.engine.from_program(link, back("Subject: x") + DOT)
    assert link.fault.startswith("end of a message before its end: ")
    assert DOT not in stage.said()


def test_messages_whose_lines_take_turns() -> None:
    """Once something of each has come back, a read that has both goes on in one piece."""
    stage = Stage()
    other = b"00000000000000ef"
    rows = [request("data-line", "x"), request("data-line", "x").replace(NAME, other)]
    stage.write(*rows)
    for clogged in (False, True):
        stage.given()
        stage.write(b"".join(rows))
        assert stage.given() == b"".join(rows)
        assert len(stage.engine.transit.known) == 2
        if not clogged:
            lines = [back("x"), back("x").replace(NAME, other)]
            stage.engine.from_program(stage.link, b"".join(lines * 2))
    stage.link.clogged = True
    stage.write(b"".join(rows))
    assert stage.given() == b""
    assert len(stage.link.feeding) == 2
    stage.end()
    stage.write(request("data-line", "."), request("data-line", ".").replace(NAME, other))
    assert returned(stage).endswith(DOT + DOT.replace(NAME, other))
    refused(stage)

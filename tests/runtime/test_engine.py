"""What becomes of sessions that do not end, and of lines that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import PROCEED, Filter, Headers, Message, Proceed, Rewrite, Session
from smtpd_filters.chain import Chain
from smtpd_filters.protocol.events import Line, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.testing.oracle import Oracle
from tests.runtime.process import TOKENS, sid

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.protocol.events import Malformed, Register
    from tests.conftest import Logbook


class Knows(Filter):
    """Takes note of its sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str] = []
        self.rdns: list[str | None] = []

    def mail_from(self, session: Session, address: str) -> Proceed | Rewrite:
        self.rdns.append(session.rdns)
        return Rewrite("new@example.org") if address == "rewrite" else PROCEED

    def rcpt_to(self, session: Session, address: str) -> Proceed:  # noqa: ARG002
        assert session.tx is not None
        self.rdns.append(session.tx.sender)
        return PROCEED

    def gone(self, session: Session) -> None:
        self.left.append(session.id)


class Passes(Knows):
    """Lets messages pass as well."""

    def headers(self, session: Session, headers: Headers) -> Proceed:  # noqa: ARG002
        return PROCEED


class Talk:
    """An engine, and smtpd."""

    def __init__(self, filter_: Filter, book: Logbook) -> None:
        self.smtpd = SmtpdConnection()
        self.oracle = Oracle()
        self.engine = Engine(Chain([(filter_, "proceed", 1.0)], book.log), book.log)
        self.say(self.smtpd.configure())

    def say(self, data: bytes) -> list[Register | Result | Line | Malformed]:
        self.oracle.from_smtpd(data)
        self.engine.receive(data)
        while self.engine.sending:
            self.engine.pump()
        said = self.engine.output()
        self.oracle.from_filter(said)
        return list(self.smtpd.receive(said))

    def connect(self, session: bytes) -> None:
        values = (b"mx.example.org", b"pass", b"192.0.2.1:25", b"192.0.2.2:25")
        self.say(self.smtpd.report("link-connect", session, *values))

    def ask(self, phase: str, session: bytes, argument: bytes = b"") -> bytes:
        (answer,) = self.say(self.smtpd.request(phase, session, TOKENS[phase], argument))
        assert isinstance(answer, Result)
        return answer.verb


def test_a_session_that_never_ends_is_dropped(logbook: Logbook) -> None:
    filter_ = Knows()
    talk = Talk(filter_, logbook)
    talk.connect(sid(1))
    talk.connect(sid(2))
    talk.engine.sweep()
    assert filter_.left == []
    talk.ask("mail-from", sid(2), b"a@example.org")
    talk.engine.sweep()
    assert filter_.left == [sid(1).decode()]
    assert f"{sid(1).decode()} smtpd-filters session dropped: it never ended" in logbook.lines
    talk.engine.sweep()
    talk.engine.sweep()
    assert filter_.left == [sid(1).decode(), sid(2).decode()]
    assert not talk.engine.sessions
    # One that was dropped all the same is served, though nothing is known of it any more.
    assert talk.ask("mail-from", sid(2), b"a@example.org") == b"proceed"
    assert filter_.rdns == ["mx.example.org", None]


@pytest.mark.parametrize("kind", [Knows, Passes])
def test_a_message_that_takes_its_time_keeps_its_session(
    kind: Callable[[], Knows], logbook: Logbook
) -> None:
    filter_ = kind()
    filter_.passes_data = True
    talk = Talk(filter_, logbook)
    talk.connect(sid(1))
    for number in range(6):
        line = [b"Subject: x", b"", b"body"][min(number, 2)]
        talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], [line], end=False))
        talk.engine.sweep()
    assert filter_.left == []
    talk.engine.sweep()
    talk.engine.sweep()
    assert filter_.left == [sid(1).decode()]


def test_nothing_grows_with_sessions_that_end(logbook: Logbook) -> None:
    talk = Talk(Passes(), logbook)
    for number in range(200):
        session = sid(number)
        talk.connect(session)
        talk.ask("mail-from", session, b"rewrite")
        talk.say(talk.smtpd.lines(session, TOKENS["data-line"], [b"Subject: x", b"", b"x"]))
        talk.say(talk.smtpd.report("link-disconnect", session))
    engine: Any = talk.engine
    connection: Any = engine.connection
    for holder in (engine, engine.messages, connection):
        for name, value in vars(holder).items():
            if isinstance(value, dict | set | list) and name not in {"config", "_asks"}:
                assert len(value) < 30, name
    talk.oracle.finish()
    talk.oracle.verify()


def test_a_rewritten_sender_does_not_stick_to_the_next(logbook: Logbook) -> None:
    filter_ = Knows()
    talk = Talk(filter_, logbook)
    talk.connect(sid(1))
    # Another process of the chain refuses it: smtpd reports no tx-mail.
    talk.ask("mail-from", sid(1), b"rewrite")
    talk.ask("mail-from", sid(1), b"second@example.org")
    talk.say(talk.smtpd.report("tx-begin", sid(1), b"1ef1c203"))
    talk.say(talk.smtpd.report("tx-mail", sid(1), b"1ef1c203", b"ok", b"second@example.org"))
    talk.ask("rcpt-to", sid(1), b"b@example.org")
    assert filter_.rdns[-1] == "second@example.org"


@pytest.mark.parametrize(
    "line",
    [
        b"filter|0.7|1.1|smtp-in|auth|nothex|beef|PLAIN AGFiYw==\n",
        b"filter|0.7|1.1|smtp-out|auth|7641df9771b4ed00|beef|PLAIN AGFiYw==\n",
        b"filter|0.7|1.1|smtp-in|auth|7641df9771b4ed00|nothex|PLAIN AGFiYw==\n",
    ],
)
def test_credentials_are_not_logged_of_lines_that_are_none(line: bytes, logbook: Logbook) -> None:
    talk = Talk(Knows(), logbook)
    talk.say(line)
    assert logbook.lines
    assert not [each for each in logbook.lines if "AGFiYw" in each]


MAIL = [b"Subject: x", b"", b"body", b"", b"more"]


def failing(*_arguments: object) -> Any:
    raise ValueError("a bug of ours")


def test_a_bug_of_ours_costs_no_line_of_a_message(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(Passes(), logbook)
    talk.connect(sid(1))
    monkeypatch.setattr(Chain, "judge_headers", failing)
    first, rest = MAIL[:1], MAIL[1:]
    said = talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], first, end=False))
    # The end of the header and what follows come together.
    said += talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], rest))
    assert [each.line for each in said if isinstance(each, Line)] == [*MAIL, b"."]
    assert "a bug of ours" in logbook.lines[-1]
    talk.oracle.verify()


def test_a_header_that_is_too_long_is_cut_in_front_of_a_field(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Adds(Filter):
        def headers(self, session: Session, headers: Headers) -> Proceed:  # noqa: ARG002
            headers.append("X", "1")
            return PROCEED

    monkeypatch.setattr("smtpd_filters.message.head.HEADER_LIMIT", 200)
    talk = Talk(Adds(), logbook)
    talk.connect(sid(1))
    # 64 and 5 each, at the least: the second field is cut off with its continuation.
    lines = [b"A: 1", b"B: 1", b" more", b"", b"body"]
    said = talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], lines))
    assert [each.line for each in said if isinstance(each, Line)] == [
        *(b"A: 1", b"X: 1", b"B: 1", b" more", b"", b"body", b".")
    ]
    talk.oracle.verify()


class Whole(Filter):
    """Reads messages."""

    def message(self, session: Session, message: Message) -> Proceed:  # noqa: ARG002
        return PROCEED


def test_a_message_that_cannot_be_sent_on_is_refused_for_now(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(Whole(), logbook)
    talk.connect(sid(1))
    monkeypatch.setattr("smtpd_filters.runtime.messages.TURN", 1)
    send = talk.engine.connection.send_lines
    calls: list[int] = []

    def fail_later(session: bytes, lines: list[bytes], *, end: bool = False) -> None:
        calls.append(len(lines))
        if len(calls) == 2:
            failing()
        send(session, lines, end=end)

    monkeypatch.setattr(talk.engine.connection, "send_lines", fail_later)
    talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], MAIL))
    assert "a bug of ours" in logbook.lines[-1]
    assert talk.ask("commit", sid(1)) == b"reject"


def test_a_message_that_was_broken_off_is_not_part_of_the_next(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def verdict(*_arguments: object) -> Proceed:
        return PROCEED

    talk = Talk(Passes(), logbook)
    monkeypatch.setattr(Chain, "judge_headers", verdict)
    done: list[Callable[[Any], None]] = []

    class Given:
        def cancel(self) -> None:
            """Nothing was begun."""

    def spawn(work: Any, then: Callable[[Any], None]) -> Given:
        work.close()
        done.append(then)
        return Given()

    talk.engine.spawn = spawn
    talk.connect(sid(1))
    lines = talk.smtpd.lines
    talk.engine.receive(lines(sid(1), TOKENS["data-line"], MAIL, end=False))
    # No server asks within a message; what was held of it must not get into another.
    talk.engine.receive(talk.smtpd.request("rset", sid(1), TOKENS["rset"]))
    talk.engine.output()
    talk.engine.receive(lines(sid(1), TOKENS["data-line"], [b"A: 1", b"", b"new"]))
    for then in done:
        then(PROCEED)
    said = list(talk.smtpd.receive(talk.engine.output()))
    assert [each.line for each in said if isinstance(each, Line)] == [b"A: 1", b"", b"new", b"."]

"""The engine: sessions that don't end, invalid lines, and lack of memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtpd_filters import (
    PROCEED,
    Filter,
    Headers,
    Message,
    Proceed,
    Registration,
    Reject,
    Rewrite,
    Session,
)
from smtpd_filters.chain import Chain
from smtpd_filters.message import Spool
from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.events import Line, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.coroutines import Suspended
from smtpd_filters.runtime.engine import PRESSED, RECOVERY, Engine
from tests.protocol.test_properties import A, B, traffic
from tests.runtime.process import TOKENS, sid

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.protocol.events import Malformed, Register
    from smtpd_filters.runtime.coroutines import Pending
    from tests.conftest import Logbook


class Knows(Filter):
    """Records its sessions."""

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

    def link_disconnect(self, session: Session) -> None:
        self.left.append(session.id)


class Passes(Knows):
    """Also passes messages."""

    def headers(self, session: Session, headers: Headers) -> Proceed:  # noqa: ARG002
        return PROCEED


class Holds(Knows):
    """Registers for whole messages."""

    def message(self, session: Session, message: Message) -> Proceed | Reject:  # noqa: ARG002
        return Reject("550 5.7.1 No") if message.size % 2 else PROCEED


class Talk:
    """An engine, and smtpd."""

    def __init__(
        self, filter_: Filter, book: Logbook, spool: Spool | None = None, **limits: Any
    ) -> None:
        self.smtpd = SmtpdConnection()
        self.oracle = Oracle()
        chain = Chain([(filter_, "proceed", 1.0)], book.log)
        self.engine = Engine(chain, book.log, spool=spool, **limits)
        self.say(self.smtpd.configure())

    def say(self, data: bytes) -> list[Register | Result | Line | Malformed]:
        self.oracle.from_smtpd(data)
        self.engine.receive(data)
        while self.engine.working:
            self.engine.work()
        said = self.engine.output()
        self.oracle.from_filter(said)
        return list(self.smtpd.receive(said))

    def short(self) -> bool:
        """Whether memory is scarce."""
        return self.engine.scarce

    def connect(self, session: bytes) -> None:
        values = (b"mx.example.org", b"pass", b"192.0.2.1:25", b"192.0.2.2:25")
        self.say(self.smtpd.report("link-connect", session, *values))

    def ask(self, phase: str, session: bytes, argument: bytes = b"") -> bytes:
        (answer,) = self.say(self.smtpd.request(phase, session, TOKENS[phase], argument))
        assert isinstance(answer, Result)
        return answer.verb


@pytest.mark.parametrize("kind", [Knows, Passes, Holds])
@given(stream=traffic(), size=st.sampled_from((20, 200, 1 << 16)))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_scarce_memory_changes_no_answer(
    kind: type[Knows],
    stream: bytes,
    size: int,
    logbook: Logbook,
) -> None:
    chains = [Chain([(kind(), "proceed", 1.0)], logbook.log) for _ in range(2)]
    # The reserve is allocated again with each read, and megabytes take their time.
    plenty, scarce = (Engine(chain, logbook.log, reserve=1) for chain in chains)
    said: dict[Engine, list[bytes]] = {plenty: [], scarce: []}
    for at in range(0, len(stream), size):
        # What is read is taken in piece by piece.
        scarce.scarce = True
        for engine, got in said.items():
            engine.receive(stream[at : at + size])
            while engine.working:
                engine.work()
            assert not engine.stalled
            got.extend(engine.output().splitlines())
    assert sorted(said[plenty]) == sorted(said[scarce])
    for session in (A, B):
        lines = [
            [line for line in got if line.startswith(b"filter-dataline|" + session)]
            for got in said.values()
        ]
        assert lines[0] == lines[1]


def test_facts_are_kept_however_long_a_session_is_silent(logbook: Logbook) -> None:
    filter_ = Knows()
    talk = Talk(filter_, logbook)
    talk.connect(sid(0))
    for number in range(1, 3000):
        talk.connect(sid(number))
        talk.say(talk.smtpd.report("link-disconnect", sid(number)))
    talk.ask("mail-from", sid(0), b"a@example.org")
    assert filter_.rdns == ["mx.example.org"]
    assert len(talk.engine.sessions) == 1


def test_the_number_of_sessions_is_bounded(logbook: Logbook) -> None:
    filter_ = Passes()
    talk = Talk(filter_, logbook, max_sessions=10)
    for number in range(10):
        talk.connect(sid(number))
    # The oldest is in the middle of a message.
    line = talk.smtpd.lines(sid(0), TOKENS["data-line"], [b"Subject: x"], end=False)
    talk.say(line)
    talk.connect(sid(10))
    assert filter_.left == [sid(1).decode()]
    assert "more than 10 at a time" in logbook.lines[-1]
    # One that was dropped is served, as a stranger.
    assert talk.ask("mail-from", sid(1), b"a@example.org") == b"proceed"
    assert filter_.rdns == [None]
    said = talk.say(talk.smtpd.lines(sid(0), TOKENS["data-line"], [b"", b"body"]))
    assert [each.line for each in said if isinstance(each, Line)][-1] == b"."


def test_a_session_with_a_refused_message_is_not_dropped(logbook: Logbook) -> None:
    """As an unknown session it would have its message accepted."""

    class Refuses(Knows):
        def headers(self, session: Session, headers: Headers) -> Reject:  # noqa: ARG002
            return Reject("550 5.7.1 no")

    filter_ = Refuses()
    talk = Talk(filter_, logbook, max_sessions=2)
    for number in range(2):
        talk.connect(sid(number))
    talk.say(talk.smtpd.lines(sid(0), TOKENS["data-line"], [b"Subject: x", b"", b"body"]))
    talk.connect(sid(2))
    assert filter_.left == [sid(1).decode()]
    assert talk.ask("commit", sid(0)) == b"reject"


def test_at_the_end_a_message_without_a_session_is_dropped(logbook: Logbook) -> None:
    spool = Spool()
    talk = Talk(Holds(), logbook, spool)
    talk.say(talk.smtpd.lines(sid(0), TOKENS["data-line"], [b"Subject: x"], end=False))
    assert not talk.engine.sessions
    assert talk.engine.messages.intakes
    assert spool.used
    talk.engine.abandon()
    assert not talk.engine.messages.intakes
    assert not spool.used


class Scarce:
    """`bytes` of a process that gets no more memory, as long as `left` is 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        monkeypatch.setattr("smtpd_filters.runtime.engine.bytes", self, raising=False)

    def __call__(self, size: int) -> bytes:
        if not self.left:
            raise MemoryError
        return bytes(size)


def test_without_memory_the_oldest_sessions_make_room(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("smtpd_filters.runtime.engine.monotonic", lambda: now[0])
    filter_ = Knows()
    talk = Talk(filter_, logbook, checked=1)
    for number in range(16):
        talk.connect(sid(number))
    engine = talk.engine
    assert not talk.short()
    memory = Scarce(monkeypatch)
    # There are no more of them than when it was noticed.
    talk.connect(sid(16))
    assert talk.short()
    assert len(engine.sessions) == 17
    talk.connect(sid(17))
    assert len(engine.sessions) < 17
    assert filter_.left[0] == sid(0).decode()
    # One that was dropped is served, as a stranger.
    assert talk.ask("mail-from", sid(0), b"a@example.org") == b"proceed"
    assert filter_.rdns == [None]
    # There is some again.
    memory.left = 1
    talk.connect(sid(18))
    assert talk.ask("mail-from", sid(18), b"a@example.org") == b"proceed"
    assert not talk.short()
    # Or what is there was not enough for long.
    memory.left = 0
    talk.connect(sid(19))
    assert talk.short()
    now[0] += RECOVERY
    assert talk.ask("mail-from", sid(18), b"a@example.org") == b"proceed"
    assert not talk.short()
    lines = [line for line in logbook.lines if "out of memory" in line]
    assert len(lines) == 1


def test_without_memory_messages_are_given_up_last(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(Passes(), logbook)
    talk.connect(sid(1))
    line = talk.smtpd.lines(sid(1), TOKENS["data-line"], [b"Subject: x"], end=False)
    talk.say(line)
    Scarce(monkeypatch)
    for _ in range(PRESSED):
        talk.engine.relieve()
    assert talk.engine.messages.intakes
    talk.engine.relieve()
    assert not talk.engine.messages.intakes
    said = talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], [b"", b"body"]))
    assert [each.line for each in said if isinstance(each, Line)][-1] == b"."
    (answer,) = talk.say(talk.smtpd.request("commit", sid(1), TOKENS["commit"]))
    assert isinstance(answer, Result)
    assert answer.argument == b"452 4.3.1 Insufficient system storage"


def _no_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("spills", [True, False], ids=["spilled", "no memory to spill"])
def test_without_memory_no_further_coroutine_begins(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch, *, spills: bool
) -> None:
    ended: list[str] = []

    class Waits(Filter):
        async def rcpt_to(self, session: Session, address: str) -> Proceed:  # noqa: ARG002
            return await self._wait("rcpt-to")

        async def headers(self, session: Session, headers: Headers) -> Proceed:  # noqa: ARG002
            return await self._wait("headers")

        async def _wait(self, phase: str) -> Proceed:
            try:
                await asyncio.Event().wait()
            except GeneratorExit:
                ended.append(phase)
                raise SystemExit(phase) from None
            raise AssertionError

    class Given:
        def cancel(self) -> None:
            """Nothing was begun."""

    spawned: list[Pending] = []

    def spawn(pending: Pending, _then: Callable[[Any], None], _price: int) -> Given:
        spawned.append(pending)
        return Given()

    async def main() -> None:
        talk = Talk(Waits(), logbook)
        talk.engine.spawn = spawn
        for number in range(4):
            talk.connect(sid(number))
        request = talk.smtpd.request
        assert talk.say(request("rcpt-to", sid(0), TOKENS["rcpt-to"], b"a@b")) == []
        Scarce(monkeypatch)
        if not spills:
            monkeypatch.setattr(talk.engine.messages, "spill", _no_memory)
        talk.engine.relieve()
        # These are answered at once, in place of the policy.
        assert talk.ask("rcpt-to", sid(1), b"a@b") == b"proceed"
        said = talk.say(talk.smtpd.lines(sid(2), TOKENS["data-line"], [b"A: 1", b"", b"body"]))
        assert [each.line for each in said if isinstance(each, Line)][-1] == b"."

    asyncio.run(main())
    assert len(spawned) == 1
    # No code of theirs has run.
    assert ended == []
    assert [line.partition(" error=")[2] for line in logbook.lines[-2:]] == ['"was cancelled"'] * 2
    suspended = spawned[0].wait.suspended
    assert isinstance(suspended, Suspended)
    with pytest.raises(SystemExit):
        suspended.work.close()


def test_a_client_under_an_id_that_never_ended_inherits_nothing(logbook: Logbook) -> None:
    class Users(Knows):
        def setup(self) -> Registration:
            return Registration(reports={"link-auth"})

        def mail_from(self, session: Session, address: str) -> Proceed:  # noqa: ARG002
            self.rdns.append(session.username)
            return PROCEED

    filter_ = Users()
    filter_.registration = filter_.setup()
    talk = Talk(filter_, logbook)
    talk.connect(sid(1))
    talk.say(talk.smtpd.report("link-auth", sid(1), b"pass", b"anna"))
    talk.ask("mail-from", sid(1), b"a@example.org")
    talk.connect(sid(1))
    talk.ask("mail-from", sid(1), b"a@example.org")
    assert filter_.rdns == ["anna", None]
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
    sizes = {
        name: len(value)
        for holder in (engine, engine.messages, connection)
        for name, value in vars(holder).items()
        if isinstance(value, dict | set | list) and name not in {"config", "_asks"}
    }
    assert sizes
    assert not {name: size for name, size in sizes.items() if size >= 30}
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
def test_credentials_in_invalid_lines_are_not_logged(line: bytes, logbook: Logbook) -> None:
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
    logbook: Logbook,
) -> None:
    class Adds(Filter):
        def headers(self, session: Session, headers: Headers) -> Proceed:  # noqa: ARG002
            headers.append("X", "1")
            return PROCEED

    talk = Talk(Adds(), logbook, Spool(header=140))
    talk.connect(sid(1))
    # 64 and 5 each, at the least: the second field is cut off with its continuation.
    lines = [b"A: 1", b"B: 1", b" more", b"", b"body"]
    said = talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], lines))
    assert [each.line for each in said if isinstance(each, Line)] == [
        *(b"A: 1", b"X: 1", b"", b"B: 1", b" more", b"", b"body", b".")
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
    send = talk.engine.connection.send_lines
    calls: list[int] = []

    def fail_later(session: bytes, lines: list[bytes], *, end: bool = False) -> None:
        calls.append(len(lines))
        if len(calls) == 2:
            failing()
        send(session, lines, end=end)

    monkeypatch.setattr(talk.engine.connection, "send_lines", fail_later)
    talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], [*MAIL, *[b"x"] * 3000]))
    assert "a bug of ours" in logbook.lines[-1]
    assert talk.ask("commit", sid(1)) == b"reject"


def test_a_message_that_was_broken_off_is_not_part_of_the_next(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(Passes(), logbook)
    monkeypatch.setattr(Chain, "judge_headers", lambda *_: object())
    done: list[Callable[[Any], None]] = []

    class Given:
        def cancel(self) -> None:
            """Nothing was begun."""

    def spawn(_pending: object, then: Callable[[Any], None], _price: int) -> Given:
        done.append(then)
        return Given()

    talk.engine.spawn = spawn
    talk.connect(sid(1))
    lines = talk.smtpd.lines
    talk.engine.receive(lines(sid(1), TOKENS["data-line"], MAIL, end=False))
    talk.engine.work()
    # No server sends a request within a message; its lines must not get into another message.
    talk.engine.receive(talk.smtpd.request("rset", sid(1), TOKENS["rset"]))
    talk.engine.output()
    talk.engine.receive(lines(sid(1), TOKENS["data-line"], [b"A: 1", b"", b"new"]))
    talk.engine.work()
    for then in done:
        then(PROCEED)
    talk.engine.work()
    said = list(talk.smtpd.receive(talk.engine.output()))
    assert [each.line for each in said if isinstance(each, Line)] == [b"A: 1", b"", b"new", b"."]


@pytest.mark.parametrize("name", ["tx-reset", "tx-rollback"])
def test_a_message_that_is_being_judged_ends_with_its_transaction(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of a client that hangs up, smtpd reports both, which may come in two reads."""
    talk = Talk(Passes(), logbook)
    monkeypatch.setattr(Chain, "judge_headers", lambda *_: object())
    done: list[Callable[[Any], None]] = []
    cancelled: list[bool] = []

    class Given:
        def cancel(self) -> None:
            cancelled.append(True)

    def spawn(_pending: object, then: Callable[[Any], None], _price: int) -> Given:
        done.append(then)
        return Given()

    talk.engine.spawn = spawn
    talk.connect(sid(1))
    talk.say(talk.smtpd.lines(sid(1), TOKENS["data-line"], MAIL))
    talk.say(talk.smtpd.report(name, sid(1), b"1ef1c203"))
    assert (len(done), cancelled) == (1, [True])
    assert not talk.engine.messages.intakes
    done[0](PROCEED)
    assert talk.say(b"") == []
    assert not [each for each in logbook.lines if "bug" in each]
    talk.oracle.verify()

"""Between the protocol and the policies: who is asked, what becomes of the answer.

Law
---
1. Every request is answered: by the policy, or, when anything at all goes wrong on the way, by
   ``proceed``; a policy's own failures have been decided upon before they get here (`chain`).
2. A message comes out as it came in but for what a policy changed; it is held in memory up to a
   limit, on disk beyond, and sent back no faster than smtpd takes it.
3. A refused message is refused at ``commit``.
4. What a session leaves behind goes with ``link-disconnect``, and if that never comes, with time.

How it works
------------
`Engine` is told what was read and says what to write.  It holds no descriptor: `loop` and `aio`
move the bytes.  Where a policy answers with a coroutine, the loop's ``spawn`` runs it, and the
engine goes on when it is done.  A message goes through the states of `_Intake`: its header or the
whole of it is collected, judged, and then sent; behind a judged header the body passes through.
"""

from __future__ import annotations

from collections import deque

from smtpd_filters.message import Message, SpoolError
from smtpd_filters.protocol.decisions import PROCEED, Decision, Proceed, Reject, Rewrite
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.session import Session

from .log import fold_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any, Protocol

    from smtpd_filters.message import Headers
    from smtpd_filters.protocol.events import Report
    from smtpd_filters.protocol.vocabulary import Phase

    from .log import Log

    class Task(Protocol):
        """A coroutine on its way."""

        def cancel(self) -> object:
            """Give it up."""

    Later = Coroutine[Any, Any, Decision]
    Ask = Callable[[Session, bytes], Decision | Later]
    Spawn = Callable[[Later, Callable[[Decision], None]], Task]

    class Policy(Protocol):
        """What decides.  None of its methods raises; a coroutine's result is a decision."""

        #: What it asks smtpd for: phases, ``data-line`` among them, and reports.
        phases: tuple[str, ...]
        reports: tuple[str, ...]
        #: Reports of the sessions in which smtpd is the client, for the tap alone.
        outgoing: tuple[str, ...]
        #: The fields of a session that these reports fill.
        fields: tuple[str, ...]
        #: How much of a message it looks at: "", "headers" or "message".
        content: str

        #: Who answers the requests of a phase.
        ask: dict[Phase, Ask]

        def judge_headers(self, session: Session, headers: Headers) -> Decision | Later:
            """Edit the header block; junk is a field in it by then."""

        def judge_message(self, session: Session, message: Message) -> Decision | Later:
            """Judge a whole message."""

        def gone(self, session: Session) -> None:
            """The session is over."""


COMMIT = PHASES["commit"]
#: RFC 3463, 3.4: X.3.1 is "Mail system full"; RFC 5321, 4.2.3: 452 "insufficient system storage".
NO_STORAGE = Reject("452 4.3.1 Insufficient system storage")
LATER = Reject("451 4.3.0 Temporary failure, please try again later")
#: Bytes of messages that one call of `Engine.pump` sends on.
PUMP = 1 << 18


class _Intake:
    """A message on its way: collected, judged, sent."""

    __slots__ = ("ended", "judged", "message", "rows", "session", "tail")

    def __init__(self, session: bytes, message: Message) -> None:
        self.session = session
        self.message = message
        #: A policy has been asked; smtpd's dot has come.
        self.judged = self.ended = False
        #: What is left to be sent, once the verdict is there.
        self.rows: Iterator[list[bytes]] | None = None
        #: Lines that came in behind a judged header while that was being sent.
        self.tail: Message | None = None


class Engine:
    """One conversation with smtpd on behalf of a policy.

    ``spool_limit``: bytes of a message kept in memory.  ``spawn`` is set by a loop that can run
    coroutines.
    """

    def __init__(
        self,
        policy: Policy,
        log: Log,
        *,
        refuse_long_lines: bool = False,
        spool_limit: int = 1 << 20,
    ) -> None:
        self.connection = FilterConnection(
            self, refuse_long_lines=refuse_long_lines, pass_all=not policy.content
        )
        self.spawn: Spawn | None = None
        self.ready = False
        self.sessions: dict[bytes, Session] = {}
        #: Those of which nothing was heard since the last sweep.
        self._silent: dict[bytes, Session] = {}
        #: Seconds after which smtpd ends a session that is silent.
        self.session_timeout = 300
        self._policy = policy
        self._asks = policy.ask
        self._log = log
        self._spool_limit = spool_limit
        self._tasks: dict[bytes, Task] = {}
        self._intakes: dict[bytes, _Intake] = {}
        self._sending: deque[_Intake] = deque()
        self._refusals: dict[bytes, Decision] = {}

    # -- what a loop calls ---------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what was read.

        Raises UnsupportedProtocolError, before ``register|ready``, and nothing else.
        """
        self.connection.receive(data)
        if self.connection.remarks:
            self._log_remarks()

    def output(self) -> bytes:
        """What is to be written."""
        return self.connection.data_to_send()

    def pump(self) -> bool:
        """Send on messages whose verdict is there, a bounded part; whether any is left."""
        budget = PUMP
        while self._sending and budget > 0:
            intake = self._sending.popleft()
            if intake.rows is not None:
                budget -= self._send_part(intake)
        return bool(self._sending)

    @property
    def sending(self) -> bool:
        """Whether there is something left to `pump`."""
        return bool(self._sending)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer that is on its way."""
        return bool(self._tasks or self._sending)

    def sweep(self) -> None:
        """Drop the sessions of which nothing was heard since the last but one call."""
        alive = self.connection.heard_of()
        for key in list(self._silent):
            if key in alive:
                self._find(key)
            else:
                self._log.event(
                    "smtpd-filters", "session dropped: it never ended", key.decode("latin-1")
                )
                self._drop(key)
        self._silent = self.sessions
        self.sessions = {}

    def abandon(self) -> None:
        """Give up all that is on its way; the conversation is over."""
        for key in [*self.sessions, *self._silent]:
            self._drop(key)
        for key in {*self._tasks, *self._intakes}:
            self._drop(key)

    # -- what the connection tells: one for each kind of event; none of them raises -------

    def configured(self, key: str, value: str) -> None:
        """Take note of a line of the hand-shake; register when it is over."""
        if key == "smtp-session-timeout" and value.isascii() and value.isdecimal():
            self.session_timeout = min(max(int(value[:9]), 1), 86400)
        elif key == "ready" and not self.ready:
            policy = self._policy
            self.connection.register(policy.phases, policy.reports, policy.outgoing)
            self.ready = True
            if self.connection.cuts and "data-line" in self._policy.phases:
                done = "refused" if self.connection.refuse_long_lines else "broken"
                self._log.event(
                    "smtpd-filters",
                    f"this smtpd cuts long lines of filtered messages: they are {done}",
                    smtpd=self.connection.config.get("smtpd-version", ""),
                )

    def reported(self, report: Report) -> None:
        """Bring the session up to date."""
        name, subsystem, _, key, values = report
        try:
            if name == "link-disconnect":
                self._gone(key)
            elif subsystem == b"smtp-in":
                session = self.sessions.get(key) or self._find(key)
                if name == "tx-reset":
                    self._rolled_back(key)
                session.apply(name, values)
        except Exception as error:  # noqa: BLE001  # promise 1: it never dies
            self._failed(key, error)

    def asked(self, phase: Phase, key: bytes, argument: bytes) -> Decision | None:
        """Have the policy decide; None when it will later."""
        try:
            session = self.sessions.get(key) or self._find(key)
            if self._intakes and key in self._intakes:
                self._rolled_back(key)
            if self._refusals and phase is COMMIT and key in self._refusals:
                return self._refusals.pop(key)
            ask = self._asks.get(phase)
            decision = ask(session, argument) if ask else PROCEED
            if decision is PROCEED:
                return PROCEED
            if isinstance(decision, Decision):
                return self._noted(session, phase, decision)
            self._later(
                key,
                decision,
                lambda late: self.connection.answer(key, self._noted(session, phase, late)),
            )
        except Exception as error:  # noqa: BLE001  # promise 1
            self._failed(key, error)
            return PROCEED
        return None

    def content(self, key: bytes, lines: list[bytes], *, end: bool) -> None:
        """Collect lines of a message; judge it when there are enough of them."""
        try:
            intake = self._intakes.get(key)
            if intake is None:
                intake = self._intakes[key] = _Intake(key, Message(limit=self._spool_limit))
                self._refusals.pop(key, None)
            self._collect(intake, lines, end=end)
        except Exception as error:  # noqa: BLE001  # promise 1
            self._failed(key, error)

    # -- answers -------------------------------------------------------------------------

    def _find(self, key: bytes) -> Session:
        """A session of which nothing was heard for long, or a new one."""
        session = self._silent.pop(key, None)
        if session is None:
            session = Session(key).expect(self._policy.fields)
        self.sessions[key] = session
        return session

    @staticmethod
    def _noted(session: Session, phase: Phase, decision: Decision) -> Decision:
        if type(decision) is Rewrite:
            session.rewritten(phase.name, decision.text)
        return decision

    def _later(self, key: bytes, later: Later, then: Callable[[Decision], None]) -> None:
        assert self.spawn is not None  # noqa: S101  # a policy with coroutines has that loop

        def done(decision: Decision) -> None:
            # A session that is gone, or has another task by now, has no use for the answer.
            if self._tasks.get(key) is task:
                del self._tasks[key]
                try:
                    then(decision)
                except Exception as error:  # noqa: BLE001  # promise 1
                    self._failed(key, error)
                if self.connection.remarks:
                    self._log_remarks()

        former = self._tasks.pop(key, None)
        if former is not None:
            former.cancel()
        task = self.spawn(later, done)
        self._tasks[key] = task

    # -- messages ------------------------------------------------------------------------

    def _collect(self, intake: _Intake, lines: list[bytes], *, end: bool) -> None:
        message = intake.message
        if intake.rows is not None:
            message = intake.tail = intake.tail or Message(limit=self._spool_limit)
        try:
            if lines:
                message.feed(lines)
            if end:
                intake.ended = True
                message.close()
        except SpoolError as error:
            self._no_storage(intake, error)
            return
        if not intake.judged and (
            end or (self._policy.content == "headers" and message.headers_complete)
        ):
            self._judge(intake)

    def _judge(self, intake: _Intake) -> None:
        intake.judged = True
        key = intake.session
        session = self.sessions.get(key) or self._find(key)
        if self._policy.content == "headers":
            verdict = self._policy.judge_headers(session, intake.message.headers)
        else:
            verdict = self._policy.judge_message(session, intake.message)
        if isinstance(verdict, Decision):
            self._release(intake, verdict)
        else:
            self._later(key, verdict, lambda decision: self._release(intake, decision))

    def _release(self, intake: _Intake, verdict: Decision) -> None:
        """The verdict is there: send the message on."""
        if type(verdict) is not Proceed:
            self._refusals[intake.session] = verdict
        try:
            # What comes from here on is kept apart (`_lines`): a message is read when complete.
            if not intake.ended:
                intake.message.close()
            intake.rows = intake.message.wire_lines()
        except SpoolError as error:
            self._no_storage(intake, error)
            return
        self._send_part(intake)

    def _send_part(self, intake: _Intake) -> int:
        """Send a part of the message; how much it was.  At its end, pass through or close."""
        assert intake.rows is not None  # noqa: S101  # it is set before this is called
        sent = 0
        try:
            for rows in intake.rows:
                self.connection.send_lines(intake.session, rows)
                sent += sum(map(len, rows))
                if sent >= PUMP // 4:
                    self._sending.append(intake)
                    return sent
            if intake.tail is not None:
                if not intake.ended:
                    intake.tail.close()
                intake.message.discard()
                intake.message, intake.tail = intake.tail, None
                intake.rows = intake.message.wire_lines()
                self._sending.append(intake)
                return sent + 1
        except SpoolError as error:
            self._no_storage(intake, error)
            return sent
        del self._intakes[intake.session]
        intake.message.discard()
        if intake.ended:
            self.connection.send_lines(intake.session, [], end=True)
        else:
            self.connection.pass_through(intake.session)
        return sent

    def _no_storage(self, intake: _Intake, error: SpoolError) -> None:
        """Neither kept nor sent: the message is refused for now, and what follows is let pass."""
        self._log.limited("spool", "smtpd-filters", "message refused", reason=str(error))
        key = intake.session
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
        self._discard(intake)
        self._refusals[key] = NO_STORAGE
        if intake.ended:
            self.connection.send_lines(key, [], end=True)
        else:
            self.connection.pass_through(key)

    def _discard(self, intake: _Intake) -> None:
        self._intakes.pop(intake.session, None)
        intake.rows = None
        intake.message.discard()
        if intake.tail is not None:
            intake.tail.discard()

    # -- ends ----------------------------------------------------------------------------

    def _rolled_back(self, key: bytes) -> None:
        """The transaction is over; so is what was being thought about its message."""
        self._refusals.pop(key, None)
        intake = self._intakes.get(key)
        if intake is not None:
            task = self._tasks.pop(key, None)
            if task is not None:
                task.cancel()
            self._discard(intake)

    def _drop(self, key: bytes) -> None:
        self.connection.forget(key)
        self._gone(key)

    def _gone(self, key: bytes) -> None:
        if self._tasks and key in self._tasks:
            self._tasks.pop(key).cancel()
        if self._refusals:
            self._refusals.pop(key, None)
        if self._intakes and key in self._intakes:
            self._discard(self._intakes[key])
        session = self.sessions.pop(key, None) or self._silent.pop(key, None)
        if session is not None:
            self._policy.gone(session)

    def _failed(self, key: bytes, error: BaseException) -> None:
        self._log.limited(
            f"bug {type(error).__name__}",
            "smtpd-filters",
            "bug",
            key.decode("latin-1"),
            error=fold_traceback(error),
        )
        intake = self._intakes.get(key)
        if intake is not None:
            self._let_go(intake)
        self.connection.rescue(key)

    def _let_go(self, intake: _Intake) -> None:
        """Send a message on as it came; if even that fails, the client must try again."""
        try:
            if intake.rows is None:
                intake.message.revert_headers()
                self._release(intake, PROCEED)
                return
        except Exception:  # noqa: BLE001, S110  # the first failure has been logged
            pass
        self._discard(intake)
        self._refusals[intake.session] = LATER

    def _log_remarks(self) -> None:
        for remark in self.connection.remarks.take():
            session = remark.session.decode("latin-1")
            detail = remark.detail.decode("utf-8", "surrogateescape")
            if remark.sort == "mail":
                self._log.event("smtpd-filters", remark.kind, session, lines=detail)
            else:
                self._log.limited(
                    remark.kind,
                    "smtpd-filters",
                    f"{remark.sort}: {remark.kind}",
                    session,
                    line=detail,
                )

"""Dispatcher between the protocol and the policy: sessions, requests, coroutines, lack of memory.

`Engine` processes what was read and makes what is to be written. It has no descriptors: `poll_loop`
and `asyncio_loop` move the bytes. If a policy answers with a coroutine, the loop's `spawn` runs it,
and the engine continues with its decision. Messages are handled in `messages`.

Invariants
----------
*Answered*: every request is answered. If our own code fails, the answer is the policy's
`--on-error` decision; `chain` and `guard` have already decided on failures of the policy itself.
*Facts last*: the facts of a session are kept until `link-disconnect`, however long the session is
idle: a client could abuse a filter that forgets them. Only the number of sessions is bounded, far
above that of any server.
*Turns*: `receive` processes at most one read; anything longer is left to `work`.
*Nothing lost*: input for which there is no memory is kept and tried again, however often.
*Short handlers*: where memory runs out, what raises in an exception handler is among the first 257
code units of its function: a call, `raise`, and the implicit `raise` of an exception that no
`except` matches. CPython makes an int of the index; if there is no memory for one above 256, it
tries for ever (`exception_unwind`, up to 3.13). It compiles handlers to the end of a function, and
from 3.12 on the whole body of a coroutine or generator is in one.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from time import monotonic

from smtpd_filters.protocol.decisions import PROCEED, Decision, Rewrite
from smtpd_filters.protocol.filter_side import ROLLED_BACK, FilterConnection
from smtpd_filters.protocol.versions import CUT
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.session import COMMANDS, Session, as_taken

from .coroutines import decide_at_once
from .log import fold_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.message import Spool
    from smtpd_filters.protocol.events import Report
    from smtpd_filters.protocol.vocabulary import Phase

    from .coroutines import Pending
    from .interfaces import Policy, Spawn, Task
    from .log import Log
    from .messages import Intake, Messages

MAIL_FROM = PHASES["mail-from"]
#: A number: bytes look for one five times as fast as for bytes.
COLON = ord(":")
#: Sessions at a time. A server runs out of descriptors before; sessions beyond are some whose end
#: was not reported.
MAX_SESSIONS = 1 << 15
#: Sessions examined for one that can be dropped.
SEARCHED = 64
#: Bytes reserved for lack of memory. They are address space only: zeros that were never written
#: take no page.
RESERVE = 4 << 20
#: Bytes that must be available, checked by an allocation for each so many new sessions, and new
#: coroutines. These take less.
AHEAD = 1 << 20
SESSIONS, TASKS = 512, 16
#: Bytes of input processed at a time if there was no memory for a whole read.
PIECE = 1 << 12
#: Every so many calls of `relieve` without success all messages are refused.
PRESSED = 8
#: Seconds without lack of memory after which memory counts as sufficient.
RECOVERY = 60.0


class Engine:
    """One conversation with smtpd on behalf of a policy.

    A loop that can run coroutines sets `spawn`.
    """

    def __init__(  # noqa: PLR0913  # keyword-only: one for each limit
        self,
        policy: Policy,
        log: Log,
        *,
        refuse_long_lines: bool = False,
        spool: Spool | None = None,
        max_sessions: int = MAX_SESSIONS,
        reserve: int = RESERVE,
        checked: int = SESSIONS,
    ) -> None:
        """Memory is checked for each `checked` new sessions; `reserve` is for lack of it."""
        self.connection = FilterConnection(
            self, refuse_long_lines=refuse_long_lines, pass_all=not policy.content
        )
        self.spawn: Spawn | None = None
        self.ready = False
        self.sessions: dict[bytes, Session] = {}
        self._policy = policy
        policy.refuses_coroutines = self._too_many
        self._asks = policy.ask
        self._hooks = policy.hooks
        self._journal = policy.journal
        self._watches = {} if self._journal is None else self._journal.watches
        self.connection.skips_replies = self._journal is not None
        if "protocol-client" not in self._hooks and "protocol-client" not in self._watches:
            self.connection.commands = COMMANDS
        self._log = log
        self._tasks: dict[bytes, Task] = {}
        self.messages: Messages | NoMessages = NoMessages()
        if policy.content:
            from .messages import Messages  # other policies don't load it

            self.messages = Messages(self, policy, log, spool)
        #: The messages that `work` has to process.
        self.queue = self.messages.queue
        self._held = self.messages.intakes
        #: Input that could not be processed yet, and whether to try again.
        self.unread = b""
        self.stalled = False
        #: Memory is scarce; the last attempt failed; calls of `relieve` without success, and the
        #: time of the last call.
        self.scarce = self.failing = False
        self.pressed = 0
        self._since = 0.0
        #: Sessions and coroutines that have begun; a coroutine counts as `SESSIONS // TASKS`.
        self._begun = 0
        self._checked = checked
        self._reserve_size = reserve
        self._reserve: bytes | None = bytes(reserve)
        self._limit = self._max_sessions = self._max_tasks = max_sessions
        #: Handles lines of messages.
        self.content = self.messages.content

    # -- calls of the loop ---------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Process what was read.

        Raise UnsupportedProtocolError, before `register|ready`, and nothing else.
        """
        self.unread = self.unread + data if self.unread else data
        self.resume()

    def resume(self) -> None:
        """Process `unread`, and lines that were left before.

        Input for which there is no memory stays and is to be tried again (`stalled`); until then
        nothing more must be read. Raise what `receive` raises.
        """
        connection = self.connection
        self.stalled = True
        data = b""
        try:
            if self.scarce or connection.stalled:
                self._take_in()
            else:
                data, self.unread = self.unread, b""
                connection.receive(data)
                data = b""
                if self.connection.stalled:
                    self._take_in()
                else:
                    self.stalled = False
            if connection.remarks.kept:
                self._log_remarks()
        except MemoryError:
            self.scarce = True
            if data:  # nothing of it has been processed
                self.unread, self.failing = data, True

    def _take_in(self) -> None:
        """Process the remaining input in small pieces; if the last attempt failed, free memory."""
        connection = self.connection
        if self.failing or connection.failing:
            self.relieve()
        # Stays set if this raises MemoryError.
        self.failing = True
        if connection.stalled:
            connection.resume()
        while self.unread and not connection.stalled:
            self._take_in_piece()
        self.failing = connection.failing
        if self.scarce and not connection.stalled:
            self._recover()
        self.stalled = connection.stalled or self.unread != b""

    def _take_in_piece(self) -> None:
        data, rest = self.unread, self.unread[PIECE:]
        self.unread = rest
        try:
            self.connection.receive(data[:PIECE])
        except MemoryError:
            self.unread = data
            raise

    def output(self) -> bytes:
        """Return the pending output in one piece, and clear it."""
        return self.connection.data_to_send()

    def work(self) -> None:
        """Judge and return messages, a bounded part of them.

        Raise MemoryError; then it is to be called again.
        """
        self.messages.work()
        if self.connection.remarks.kept:
            self._log_remarks()
        if self.scarce:
            self._recover()

    def beat(self) -> float | None:
        """Send the journal stories and the state that are due; return the seconds until more is.

        Return None without a journal.
        """
        return None if self._journal is None else self._journal.beat(len(self.sessions))

    @property
    def holds(self) -> bool:
        """Whether something for the journal waits for `beat`, which may be due soon."""
        return self._journal is not None and self._journal.holds

    @property
    def working(self) -> bool:
        """Whether `work` has something to do."""
        return bool(self.queue)

    @property
    def busy(self) -> bool:
        """Whether a coroutine or a message is pending."""
        return bool(self._tasks or self.messages.pending)

    def relieve(self) -> None:
        """Free memory after a MemoryError, more with each call.

        The first call frees the reserve. From then on messages are kept on disk, and the numbers of
        sessions and coroutines may not grow. Further calls drop idle sessions, and finally refuse
        all pending messages.
        """
        self.scarce = True
        again = self._reserve is None
        self._reserve = None  # before anything that needs memory
        try:
            self._use_less(again=again)
        except MemoryError:  # to be called again
            pass

    def _use_less(self, *, again: bool) -> None:
        self._max_sessions = max(len(self.sessions), 1)
        self._max_tasks = max(len(self._tasks) // 2, 1)
        self._since = monotonic()
        self.messages.spill()
        if again:
            self._make_room(len(self.sessions) // 8 + 1)
            self.pressed += 1
            if self.pressed % PRESSED == 0:
                self.messages.refuse_all()
        done = "messages are kept on disk"
        self._log.limited("memory", "smtpd-filters", "out of memory", result=done)

    def _recover(self) -> None:
        """Allocate the reserve again and lift the limits, if there is memory, or after RECOVERY."""
        try:
            bytes(2 * self._reserve_size)
            self._reserve = bytes(self._reserve_size)
        except MemoryError:
            if monotonic() - self._since < RECOVERY:
                return
        self.scarce = False
        self.pressed = 0
        self._max_sessions, self._max_tasks = self._limit, self._limit

    def abandon(self) -> None:
        """Drop all sessions, messages and coroutines at the end of the conversation.

        A message has no session in `sessions` if only its lines were read.
        """
        for key in [*self.sessions, *self._held]:
            self._drop(key)
        for key in list(self._tasks):
            self.cancel(key)
        if self._journal is not None:
            self._journal.flush()

    # -- events of the connection (`Listener`); none of these methods raises --------------

    def configured(self, key: str, _value: str) -> None:
        """Handle a line of the handshake; register at its end."""
        if key == "ready" and not self.ready:
            policy = self._policy
            policy.configured(self.connection.config)
            self.connection.register(policy.phases, policy.reports, policy.outgoing)
            self.ready = True
            if self.connection.cuts and "data-line" in self._policy.phases:
                refuses = self.connection.refuse_long_lines
                done = (
                    "messages with longer ones are refused" if refuses else "longer ones are split"
                )
                self._log.event(
                    "smtpd-filters",
                    f"this smtpd cuts lines over {CUT} bytes: {done} (--long-lines)",
                    smtpd=self.connection.config.get("smtpd-version", ""),
                )

    def reported(self, report: Report) -> None:
        """Apply a report to its session."""
        name, subsystem, _, key, values = report
        try:
            if name == "link-disconnect":
                self._end_session(key)
            elif subsystem == b"smtp-in":
                self._apply(name, key, values)
        except BaseException as error:  # noqa: BLE001  # never exits
            self.failed(key, error)

    def _apply(self, name: str, key: bytes, values: tuple[bytes, ...]) -> None:
        if name == "link-connect" and key in self.sessions:
            # A new client with the id of a session whose end was not reported.
            self._policy.gone(self.sessions.pop(key))
        session = self.sessions.get(key) or self._create(key)
        if name in ROLLED_BACK and self.messages.drop(key):
            self.cancel(key)
        session.apply(name, values)
        if self._hooks and name in self._hooks:
            self._hooks[name](session)
        if name in self._watches:
            self._watches[name](session, values)

    def asked(self, phase: Phase, key: bytes, argument: bytes) -> Decision | None:
        """Return the policy's decision, or None if a coroutine decides later."""
        try:
            session = self.sessions.get(key) or self._create(key)
            if self._held or session.rewrites or self._journal is not None or COLON in argument:
                argument = self._prepare(session, phase, key, argument)
            ask = self._asks.get(phase)
            decision = ask(session, argument) if ask else PROCEED
            if decision is PROCEED:
                return PROCEED
            return self._decided(session, phase, key, decision)
        except BaseException as error:  # noqa: BLE001  # never exits
            return self._not_decided(phase, key, error)

    def _prepare(self, session: Session, phase: Phase, key: bytes, argument: bytes) -> bytes:
        """Forget what was abandoned, and note a sender; return the argument as smtpd takes it."""
        if key in self._held and self.messages.drop(key):
            # No request comes within a message, so the message held was abandoned.
            self.cancel(key)
        if session.rewrites:
            # A rewrite that was not reported, since another filter refused the command.
            session.rewrites.pop(phase.name, None)
        if self._journal is not None and phase is MAIL_FROM:
            self._journal.mail_from(session, argument)
        return as_taken(argument) if phase.argument == "address" else argument

    def _decided(
        self, session: Session, phase: Phase, key: bytes, decision: Decision | Pending
    ) -> Decision | None:
        """Return a decision, or None if pending work has begun that takes it."""
        if not isinstance(decision, Decision) and self._too_many():
            decision = decide_at_once(decision)
        if isinstance(decision, Decision):
            return self._record_rewrite(session, phase, decision)
        self.run_pending(
            key,
            decision,
            lambda late: self.connection.answer(key, self._record_rewrite(session, phase, late)),
            self._policy.otherwise.get(phase, PROCEED),
        )
        return None

    def _not_decided(self, phase: Phase, key: bytes, error: BaseException) -> Decision:
        self.failed(key, error)
        return self._policy.otherwise.get(phase, PROCEED)

    # -- answers -------------------------------------------------------------------------

    def session(self, key: bytes) -> Session:
        """Return the session with this id, a new one if it is unknown."""
        return self.sessions.get(key) or self._create(key)

    def _create(self, key: bytes) -> Session:
        """Create a session."""
        if len(self.sessions) >= self._max_sessions:
            self._make_room(1)
        self._begun += 1
        if not self._begun % self._checked:
            self._look_ahead()
        session = Session(key)
        if self._policy.fields:
            session.expect(self._policy.fields)
        self.sessions[key] = session
        return session

    def _make_room(self, count: int) -> None:
        """Drop up to `count` of the oldest idle sessions.

        A session with a refusal to be given is not idle: its message would be accepted at `commit`.
        """
        busy = self.connection.busy
        some = islice(self.sessions, SEARCHED * count)
        idle = (key for key in some if not busy(key))
        for key in list(islice(idle, count)):
            self._log.limited(
                "sessions",
                "smtpd-filters",
                f"session dropped: more than {self._max_sessions} at a time",
                key.decode("latin-1"),
            )
            self._drop(key)

    @staticmethod
    def _record_rewrite(session: Session, phase: Phase, decision: Decision) -> Decision:
        if type(decision) is Rewrite:
            session.rewritten(phase.name, decision.text)
        return decision

    def run_pending(
        self,
        key: bytes,
        pending: Pending,
        then: Callable[[Decision], None],
        otherwise: Decision,
        price: int = 0,
    ) -> None:
        """Run pending work and call `then` with its decision, unless the session has ended by then.

        If our own code fails, the decision is `otherwise`. `price` is the cost of each step of the
        work (`Spawn`).
        """
        assert self.spawn is not None  # noqa: S101  # a policy with coroutines has that loop

        def done(decision: Decision | None) -> None:
            # The session may have ended, or have another task by now.
            if self._tasks.get(key) is task:
                del self._tasks[key]
                try:
                    then(otherwise if decision is None else decision)
                except BaseException as error:  # noqa: BLE001  # never exits
                    self.failed(key, error)
                if self.connection.remarks.kept:
                    self._log_remarks()

        self.cancel(key)
        if self._too_many():
            then(decide_at_once(pending))
            return
        self._begun += SESSIONS // TASKS
        if not self._begun % self._checked:
            self._look_ahead()
        task = self.spawn(pending, done, price)
        self._tasks[key] = task

    def _too_many(self) -> bool:
        """Return whether there is no memory for another coroutine."""
        return self.scarce and len(self._tasks) >= self._max_tasks

    def _look_ahead(self) -> None:
        """Free memory before it runs out, since freeing needs some."""
        try:
            bytes(AHEAD)
        except MemoryError:
            self.relieve()

    # -- ends ----------------------------------------------------------------------------

    def cancel(self, key: bytes) -> None:
        """Cancel the coroutine of a session."""
        if self._tasks and key in self._tasks:
            self._tasks.pop(key).cancel()

    def _drop(self, key: bytes) -> None:
        self.connection.forget(key)
        self._end_session(key)

    def _end_session(self, key: bytes) -> None:
        self.cancel(key)
        self.messages.drop(key)
        session = self.sessions.pop(key, None)
        if session is not None:
            self._policy.gone(session)

    def failed(self, key: bytes, error: BaseException) -> None:
        """Log a bug of ours, and answer what is pending in its session."""
        self._log.failure(
            f"bug {type(error).__name__}",
            "smtpd-filters",
            "bug",
            key.decode("latin-1"),
            {},
            error=fold_traceback(error),
        )
        if not self.messages.recover(key):
            self.connection.rescue(key)

    def _log_remarks(self) -> None:
        for remark in self.connection.remarks.take():
            session = remark.session.decode("latin-1")
            detail = remark.detail.decode("utf-8", "surrogateescape")
            shown, confidential, _ = detail.partition("|auth|")
            if confidential:
                detail = f"{shown}|auth|..."
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


class NoMessages:
    """In place of `Messages` for a policy that reads none: the connection passes them on."""

    #: Whether a message waits.
    pending = False

    def __init__(self) -> None:
        self.intakes: dict[bytes, Intake] = {}
        self.queue: deque[Intake] = deque()

    def content(self, key: bytes, lines: list[bytes], *, end: bool) -> None:
        """Never called."""

    def work(self) -> None:
        """Do nothing."""

    def spill(self) -> None:
        """Do nothing."""

    def refuse_all(self) -> None:
        """Do nothing."""

    def drop(self, _key: bytes) -> bool:
        """Return whether the transaction had a message."""
        return False

    def recover(self, _key: bytes) -> bool:
        """Return whether a message was returned as it came."""
        return False

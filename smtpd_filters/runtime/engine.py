"""Between the protocol and the policies: who is asked, what becomes of the answer.

Invariants
----------
Answered
    Every request is answered: by the policy, or, when anything at all goes wrong on the way, as the
    policy would have it answered when it fails; its own failures have been decided upon before they
    get here (`chain`).
Facts last
    What smtpd has reported of a session is kept until ``link-disconnect``, however long the session
    is silent: a filter that has forgotten who a client is can be fooled by it.  Only their number
    is bounded, far above what a server can have.
Turns
    `receive` is told at most one read's worth; what takes longer than that is left to `work`.
Nothing lost
    What was read and there is no memory for is kept and tried again, however often.

`Engine` is told what was read and says what to write.  It holds no descriptor: `poll_loop` and
`asyncio_loop` move the bytes.  Where a policy answers with a coroutine, the loop's ``spawn`` runs
it, and the engine goes on when it is done.  What becomes of messages is in `messages`.
"""

from __future__ import annotations

from itertools import islice
from time import monotonic

from smtpd_filters.message import Spool
from smtpd_filters.protocol.decisions import PROCEED, Decision, Rewrite
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.versions import CUT
from smtpd_filters.session import Session

from .coroutines import decide_at_once
from .log import fold_traceback
from .messages import Messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.protocol.events import Report
    from smtpd_filters.protocol.vocabulary import Phase

    from .coroutines import Pending
    from .interfaces import Policy, Spawn, Task
    from .log import Log

#: Sessions at a time.  A server that runs out of descriptors has fewer; more of them are sessions
#: whose end was not reported.
MAX_SESSIONS = 1 << 15
#: Sessions that are looked at for one that can be dropped.
SEARCHED = 64
#: Bytes that are set aside for the time when there is no memory.  They are address space alone:
#: zeros that nobody has written take no page.
RESERVE = 4 << 20
#: Bytes that there must be, seen by whether they could be set aside; looked at for each so many
#: sessions, and coroutines, that begin.  They take less.
AHEAD = 1 << 20
SESSIONS, TASKS = 64, 16
#: Bytes of a read that are tried at a time when there was no memory for it as a whole.
PIECE = 1 << 12
#: After how many calls of `relieve` without success messages are given up.
PRESSED = 8
#: Seconds without want of memory after which there is taken to be enough.
RECOVERY = 60.0


class Engine:
    """One conversation with smtpd on behalf of a policy.

    ``spawn`` is set by a loop that can run coroutines.
    """

    def __init__(
        self,
        policy: Policy,
        log: Log,
        *,
        refuse_long_lines: bool = False,
        spool: Spool | None = None,
    ) -> None:
        self.connection = FilterConnection(
            self, refuse_long_lines=refuse_long_lines, pass_all=not policy.content
        )
        self.spawn: Spawn | None = None
        self.ready = False
        self.sessions: dict[bytes, Session] = {}
        self._policy = policy
        self._asks = policy.ask
        self._hooks = policy.hooks
        self._log = log
        self._tasks: dict[bytes, Task] = {}
        self.messages = Messages(self, policy, log, spool or Spool())
        #: The messages for which there is something to do for `work`.
        self.queue = self.messages.queue
        self._held = self.messages.intakes
        #: What was read, and could not be taken in yet; whether that is to be tried again.
        self.unread = b""
        self.stalled = False
        #: Whether there is hardly any memory, and whether there was none last time; how often there
        #: was none since then, and when last.
        self.scarce = self.failing = False
        self.pressed = 0
        self._since = 0.0
        #: Sessions and coroutines begun.
        self._begun = 0
        self._reserve: bytes | None = bytes(RESERVE)
        self._max_sessions = self._max_tasks = MAX_SESSIONS
        #: Lines of messages go there.
        self.content = self.messages.content

    # -- what a loop calls ---------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what was read.

        Raises UnsupportedProtocolError, before ``register|ready``, and nothing else.
        """
        self.unread = self.unread + data if self.unread else data
        self.resume()

    def resume(self) -> None:
        """Take in `unread`, what is left of it and what was left before.

        What there is no memory for stays, and is to be tried again (`stalled`); nothing more is to
        be read until then.  Raises what `receive` raises.
        """
        connection = self.connection
        self.stalled = True
        try:
            if self.scarce or connection.stalled:
                self._take_in(short=self.failing or connection.failing)
            else:
                data, self.unread = self.unread, b""
                try:
                    connection.receive(data)
                except MemoryError:  # nothing of it has been taken in
                    self.unread = data
                if self.unread or self.connection.stalled:
                    self._take_in(short=self.unread != b"" or connection.failing)
            self.stalled = connection.stalled or self.unread != b""
            if connection.remarks.kept:
                self._log_remarks()
        except MemoryError:
            self.scarce = True

    def _take_in(self, *, short: bool) -> None:
        """Take in what is left, in small pieces; `short` of memory, as far as there is some."""
        connection = self.connection
        if short:
            self.relieve()
        # Unless it gets to the end, for want of memory.
        self.failing = True
        if connection.stalled:
            connection.resume()
        while self.unread and not self.connection.stalled:
            data, rest = self.unread, self.unread[PIECE:]
            self.unread = rest
            try:
                connection.receive(data[:PIECE])
            except MemoryError:
                self.unread = data
                raise
        self.failing = connection.failing
        if self.scarce and not connection.stalled:
            self._recover()

    def output(self) -> bytes:
        """What is to be written, in one piece."""
        return self.connection.data_to_send()

    def work(self) -> None:
        """Judge and send back messages, a bounded part of them.

        Raises MemoryError; then it is to be called again.
        """
        self.messages.work()
        if self.connection.remarks.kept:
            self._log_remarks()
        if self.scarce:
            self._recover()

    @property
    def working(self) -> bool:
        """Whether there is something to do for `work`."""
        return bool(self.queue)

    @property
    def busy(self) -> bool:
        """Whether smtpd waits for an answer or a message that is on its way."""
        return bool(self._tasks or self.messages.pending)

    def relieve(self) -> None:
        """Free memory, when there is none, the more the oftener it is called.

        First what was set aside.  From then on messages are kept on disk, and there are no more
        sessions and no more coroutines at a time than now.  When that is not enough, sessions of
        which nobody waits for anything are dropped, then messages that are on their way refused.
        """
        self.scarce = True
        had, self._reserve = self._reserve, None
        try:
            self._since = monotonic()
            spool = self.messages.spool
            spool.memory = min(spool.memory, max(spool.used // 2, PIECE))
            self._max_sessions = max(len(self.sessions), 1)
            self._max_tasks = max(len(self._tasks) // 2, 1)
            if had is None:
                self._make_room(len(self.sessions) // 8 + 1)
                self.pressed += 1
                if self.pressed % PRESSED == 0:
                    self.messages.refuse_all()
            del had
            done = "messages are kept on disk"
            self._log.limited("memory", "smtpd-filters", "out of memory", result=done)
        except MemoryError:  # still
            pass

    def _recover(self) -> None:
        """Take what was set aside back, if there is memory for more than that, or after a while."""
        try:
            bytes(2 * RESERVE)
            self._reserve = bytes(RESERVE)
        except MemoryError:
            if monotonic() - self._since < RECOVERY:
                return
        self.scarce = False
        self.pressed = 0
        self._max_sessions, self._max_tasks = MAX_SESSIONS, MAX_SESSIONS

    def abandon(self) -> None:
        """Give up all that is on its way; the conversation is over."""
        for key in list(self.sessions):
            self._drop(key)
        for key in list(self._tasks):
            self.cancel(key)

    # -- what the connection tells: one for each kind of event; none of them raises -------

    def configured(self, key: str, _value: str) -> None:
        """Take note of a line of the hand-shake; register when it is over."""
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
        """Bring the session up to date."""
        name, subsystem, _, key, values = report
        try:
            if name == "link-disconnect":
                self._gone(key)
            elif subsystem == b"smtp-in":
                if name == "link-connect" and key in self.sessions:
                    # A new client under the id of one whose end was not reported.
                    self._policy.gone(self.sessions.pop(key))
                session = self.sessions.get(key) or self._find(key)
                if name == "tx-reset" and self.messages.drop(key):
                    self.cancel(key)
                session.apply(name, values)
                if self._hooks and name in self._hooks:
                    self._hooks[name](session)
        except Exception as error:  # noqa: BLE001  # promise 1: it never dies
            self.failed(key, error)

    def asked(self, phase: Phase, key: bytes, argument: bytes) -> Decision | None:
        """Have the policy decide; None when it will later."""
        try:
            session = self.sessions.get(key) or self._find(key)
            if self._held and key in self._held and self.messages.drop(key):
                # Nothing is asked within a message: what is held of it belongs to none any more.
                self.cancel(key)
            if session.rewrites:
                # Of one that another filter refused there was no report.
                session.rewrites.pop(phase.name, None)
            ask = self._asks.get(phase)
            decision = ask(session, argument) if ask else PROCEED
            if decision is PROCEED:
                return PROCEED
            if not isinstance(decision, Decision) and self._too_many():
                decision = decide_at_once(decision)
            if isinstance(decision, Decision):
                return self._noted(session, phase, decision)
            self.later(
                key,
                decision,
                lambda late: self.connection.answer(key, self._noted(session, phase, late)),
                self._policy.otherwise.get(phase, PROCEED),
            )
        except Exception as error:  # noqa: BLE001  # promise 1
            self.failed(key, error)
            return self._policy.otherwise.get(phase, PROCEED)
        return None

    # -- answers -------------------------------------------------------------------------

    def session(self, key: bytes) -> Session:
        """The session of that name."""
        return self.sessions.get(key) or self._find(key)

    def _find(self, key: bytes) -> Session:
        """A new session."""
        if len(self.sessions) >= self._max_sessions:
            self._make_room(1)
        self._begun += 1
        if not self._begun % SESSIONS:
            self._look_ahead()
        session = Session(key)
        if self._policy.fields:
            session.expect(self._policy.fields)
        self.sessions[key] = session
        return session

    def _make_room(self, count: int) -> None:
        """Drop the oldest sessions of which nobody waits for anything, so many at most.

        Nor one whose message is to be refused when it is asked about: it would be accepted.
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
    def _noted(session: Session, phase: Phase, decision: Decision) -> Decision:
        if type(decision) is Rewrite:
            session.rewritten(phase.name, decision.text)
        return decision

    def later(
        self,
        key: bytes,
        pending: Pending,
        then: Callable[[Decision], None],
        otherwise: Decision,
        price: int = 0,
    ) -> None:
        """Go on with the decision of pending work, unless the session has ended by then.

        ``otherwise``: with what, if it comes to nothing through a fault of ours.  ``price``: what
        each of its steps costs, see `Spawn`.
        """
        assert self.spawn is not None  # noqa: S101  # a policy with coroutines has that loop

        def done(decision: Decision | None) -> None:
            # A session that is gone, or has another task by now, has no use for the answer.
            if self._tasks.get(key) is task:
                del self._tasks[key]
                try:
                    then(otherwise if decision is None else decision)
                except Exception as error:  # noqa: BLE001  # promise 1
                    self.failed(key, error)
                if self.connection.remarks.kept:
                    self._log_remarks()

        self.cancel(key)
        if self._too_many():
            then(decide_at_once(pending))
            return
        self._begun += SESSIONS // TASKS
        if not self._begun % SESSIONS:
            self._look_ahead()
        task = self.spawn(pending, done, price)
        self._tasks[key] = task

    def _too_many(self) -> bool:
        """Whether there is no memory for one more coroutine."""
        return self.scarce and len(self._tasks) >= self._max_tasks

    def _look_ahead(self) -> None:
        """Free memory before there is none, for then there is none to do anything with."""
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
        self._gone(key)

    def _gone(self, key: bytes) -> None:
        self.cancel(key)
        self.messages.drop(key)
        session = self.sessions.pop(key, None)
        if session is not None:
            self._policy.gone(session)

    def failed(self, key: bytes, error: BaseException) -> None:
        """A bug of ours: nobody of the session is left waiting."""
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

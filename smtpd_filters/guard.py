"""The call of one handler of one filter, which always results in a decision.

Invariants
----------
*Always a decision*: a call never raises, and the result of a coroutine is a decision as well. A
handler that raises, returns what its phase does not allow, or misses its deadline is answered for
as `--on-error` says; the log has the cause once per interval, and each session in which it happens.
*No credential*: what is logged of a failure never repeats one.
*Reported*: a handler that reads transactions isn't called for one whose sender smtpd has not
reported, nor for a path that it will not report (`MAX_PATH`); the command or message is refused.
*Dry run*: the decision is logged, and the result is to proceed.

A plain handler, and the first step of a coroutine, is watched by the `Watchdog`; the rest of a
coroutine by its deadline.
"""

from __future__ import annotations

from time import monotonic
from types import CoroutineType

from .errors import UnavailableError
from .handlers import is_coroutine, legal_decisions, unwrapped
from .protocol.decisions import (
    PROCEED,
    Decision,
    Disconnect,
    Junk,
    Marked,
    Points,
    Proceed,
    Reject,
    Rewrite,
    reply,
)
from .protocol.vocabulary import FORMS, HANDLERS, PHASES
from .runtime.coroutines import (
    CANCELLED,
    OVERDUE,
    Early,
    Pending,
    Raised,
    Suspended,
    Wait,
    begin,
)
from .runtime.log import EDIT, exemption, fold_traceback, outcome, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .filter import Filter, OnError
    from .journal.collector import Collector
    from .message import Headers, Message
    from .runtime.watchdog import Watchdog
    from .session import Session

REFUSALS = frozenset({"reject", "disconnect"})
#: The result on a dry run. Not `PROCEED`, for which the journal counts a verdict to proceed.
_SUPPRESSED = Proceed()
#: Replaces `PROCEED` if the message was edited: the verdict is an edit then.
_EDITED = Proceed()
#: The reason of a decision of `--on-error`, which distinguishes it from a handler's own.
FAILED = "handler failed"
#: The same if the handler's edits of the message stay (`UnavailableError.keeps_edits`).
KEEPING = "handler failed, its edits stay"
#: Seconds after which a plain handler, or a first step, is logged as having held up all sessions.
SLOW = 1.0
#: The phase whose parameter is a credential.
CONFIDENTIAL = "auth"
#: Octets of a path in a command, without its brackets: RFC 5321 section 4.5.3.1.3 allows 256 with
#: them. smtpd accepts more than twice as many, but then sends neither tx-mail nor tx-rcpt; seen on
#: 6.8 and 7.6.
MAX_PATH = 254
_IN_TRANSACTIONS = frozenset({"rcpt-to", "data", "headers", "message", "commit"})
#: What `Registration(junk=False)` excludes.
_MARKS = frozenset({Junk, Marked})


class Guard:
    """One handler of one filter."""

    __slots__ = (
        "allowed",
        "argument",
        "beside",
        "coroutine",
        "deadline",
        "declared",
        "dry",
        "early",
        "fallback",
        "filter",
        "first_step",
        "handler",
        "journal",
        "legal",
        "log",
        "may_mark",
        "phase",
        "points",
        "remove_forged",
        "settings",
        "starts",
        "treat",
        "watchdog",
        "where",
    )

    def __init__(
        self,
        filter: Filter,  # noqa: A002  # the field's word
        handler: str,
        on_error: OnError,
        deadline: float,
        watchdog: Watchdog,
    ) -> None:
        phase = HANDLERS.get(handler)
        self.filter = filter.name
        self.handler: Callable[..., object] = getattr(filter, handler)
        self.remove_forged = filter.remove_forged
        #: The name of the phase, or of a content handler.
        self.phase = phase.name if phase else handler
        #: Whether the handler has a parameter besides the session.
        self.argument = bool(phase and phase.argument)
        #: The kinds of decision that the annotation names, those of them that may be returned, and
        #: those that the phase allows.
        self.declared = filter.returns[handler]
        bounds = filter.registration.points or filter.points
        every = legal_decisions(handler)
        if bounds is not None and self.declared == every - {Points}:
            self.declared = every  # annotated `Decision`, in a class without bounds of its own
        junk = filter.registration.junk
        self.legal = self.declared if junk else self.declared - _MARKS
        #: The least and the most points that it may give; None if it gives none itself.
        self.points = bounds if Points in self.legal else None
        #: Replaces a decision by points, in a chain with a score.
        self.treat: Callable[[Decision], Decision] | None = None
        self.allowed = every
        #: Whether the handler is, or wraps, one that is written `async def`.
        self.coroutine = is_coroutine(self.handler)
        #: Whether it may be called before its turn. Messages are edited in order.
        self.early = self.coroutine and filter.early and phase is not None
        #: Whether it may be called before its turn to read a message (`Filter.scans`).
        self.beside = self.coroutine and filter.scans and handler == "message"
        #: The decision when the handler fails, a copy with the reason `FAILED`. For a message it is
        #: that of `data`: a refusal is sent at `commit`, and a mark is a field of the header by
        #: then.
        self.fallback = (phase or PHASES["data"]).fallbacks[on_error].because(FAILED)
        #: Whether it may mark.
        self.may_mark = Junk in self.legal or type(self.fallback) is Junk
        #: Seconds that a coroutine may take.
        self.deadline = deadline
        #: Takes the first step of a coroutine; a chain that runs on asyncio sets its own.
        self.first_step: Callable[[Coroutine[Any, Any, object]], object] = _only_step
        #: The place of the handler in its file, for the log.
        self.where = _place(self.handler)
        if "tx-begin" in filter.required_reports():
            self.handler = _of_reported(self.handler, self.phase)
        self.dry = filter.dry_run
        self.log = filter.log
        self.watchdog = watchdog
        #: The collector of verdicts for the journal; None without one.
        self.journal: Collector | None = None
        self.settings: object = filter.settings
        #: With a journal: the chain's list of the times at which `ask` was called.
        self.starts: list[float] | None = None

    def ask(self, session: Session, argument: object = None) -> Decision | Pending:
        """Call the handler, with the argument if it has one.

        Never raises; the result of pending work is a decision as well.
        """
        watchdog = self.watchdog
        started = watchdog.running = monotonic()
        if self.starts is not None:
            self.starts.append(started)
        try:
            result = self.handler(session) if argument is None else self.handler(session, argument)
            if self.coroutine and type(result) is CoroutineType:
                result = self.first_step(result)
            watchdog.running = 0.0
        except BaseException as error:  # noqa: BLE001  # always a decision; SystemExit included
            watchdog.running = 0.0
            return self._thrown(session, error, started)
        if result is PROCEED and not (watchdog.noticed or self.log.verbose):
            return PROCEED
        return self._returned(session, result, started)

    def decide(self, session: Session, argument: bytes) -> Decision | Pending:
        """Call the handler at a phase, when it is the only one.

        Nearly every request comes here, so nothing is shared with `ask`: a call costs as much as
        the rest.
        """
        watchdog = self.watchdog
        started = watchdog.running = monotonic()
        try:
            if self.argument:
                result = self.handler(session, argument.decode("utf-8", "surrogateescape"))
            else:
                result = self.handler(session)
            if self.coroutine and type(result) is CoroutineType:
                result = self.first_step(result)
            watchdog.running = 0.0
        except BaseException as error:  # noqa: BLE001  # always a decision; SystemExit included
            watchdog.running = 0.0
            return self._thrown(session, error, started)
        if result is PROCEED and not (watchdog.noticed or self.log.verbose):
            if self.journal is not None:
                self.journal.passed(session, self, started)
            return PROCEED
        returned = self._returned(session, result, started)
        if returned is PROCEED and self.journal is not None:
            self.journal.passed(session, self, started)
        return returned

    def judge(self, session: Session, edited: Headers | Message) -> Decision | Pending:
        """Call the handler of a message as `ask` does, and tell the journal if it passes."""
        started = monotonic()
        asked = self.ask(session, edited)
        if asked is PROCEED and (self.dry or self.journal is not None):
            if session.edited is not None and session.edited():  # `_checked` may not have run
                self._note(session, _EDITED, monotonic() - started, edited=True)
            elif self.journal is not None:
                self.journal.passed(session, self, started)
        return asked

    def scrub(self, session: Session, headers: Headers) -> None:
        """Remove a client's copies of the filter's own fields from a message that it hasn't judged.

        Never raises; does nothing on a dry run.
        """
        if self.dry:
            return
        watchdog = self.watchdog
        watchdog.running = monotonic()
        try:
            self.remove_forged(session, headers)
            watchdog.running = 0.0
        except BaseException as error:  # noqa: BLE001  # a request is pending
            watchdog.running = 0.0
            if type(error) is MemoryError:
                error.__traceback__ = error.__context__ = None
            self.scrub_failed(session, fold_traceback(error))

    def scrub_failed(self, session: Session, error: str) -> None:
        """Log that `remove_forged` failed."""
        self.log.defect("remove_forged", session, error)
        self.log.failure(f"remove_forged {error}", "remove_forged", session.id, {}, error=error)

    def ask_early(self, session: Session, *arguments: object) -> Early:
        """Call the handler before its turn.  Never raises; nothing is logged until `collect`."""
        watchdog = self.watchdog
        started = watchdog.running = monotonic()
        try:
            result = self.handler(session, *arguments)
            if self.coroutine and type(result) is CoroutineType:
                result = self.first_step(result)
            watchdog.running = 0.0
        except BaseException as error:  # noqa: BLE001  # always a decision; SystemExit included
            watchdog.running = 0.0
            if type(error) is MemoryError:
                error.__traceback__ = error.__context__ = None
            result = Raised(error)
        early = Early(result, started, self.deadline)
        if early.took > SLOW:
            self._slow(session, early.took)
        return early

    async def collect(self, session: Session, early: Early) -> Decision:
        """Return the decision of a handler that was called before its turn, which has come."""
        try:
            result = await early.collect()
        finally:
            self.drop(early)  # at the end of the session, or decided at once, it may not have ended
        return self._settled(session, result, monotonic() - early.took)

    def drop(self, early: Early) -> None:
        """Cancel a handler that was called before its turn, unless it has ended.  Never raises."""
        watchdog = self.watchdog
        watchdog.running = monotonic()
        try:
            early.drop()
            watchdog.running = 0.0
        except BaseException:  # noqa: BLE001  # a request is pending
            watchdog.running = 0.0

    def _returned(self, session: Session, result: object, started: float) -> Decision | Pending:
        self._measure(session, started)
        if result is CANCELLED:
            return self.failed(session, error="was cancelled")
        if type(result) is Suspended:
            return begin(self._wait(session, result, started))
        return self._checked(session, result, started)

    def _thrown(self, session: Session, error: BaseException, started: float) -> Decision:
        if type(error) is MemoryError:
            # The handler's frames hold the memory that everything else lacks.
            error.__traceback__ = error.__context__ = None
        else:
            self._measure(session, started)
        return self._raised(session, error)

    def _measure(self, session: Session, started: float) -> None:
        """Log a call that took long."""
        self.watchdog.measured()
        took = monotonic() - started
        if took > SLOW:
            self._slow(session, took)

    def _slow(self, session: Session, took: float) -> None:
        self.log.limited(
            f"slow {self.phase}",
            f"held up all sessions for {took:.1f} s",
            session.id,
            phase=self.phase,
            at=self.where,
        )

    async def _wait(self, session: Session, suspended: Suspended, started: float) -> Decision:
        """Wait for a coroutine, but not beyond its deadline, whatever it does."""
        result = await Wait(suspended, self.deadline)
        if result is CANCELLED or type(result) is Raised:
            self._close(suspended.work)
        return self._settled(session, result, started)

    def _settled(self, session: Session, result: object, started: float) -> Decision:
        """Return the decision for the result of a `Wait`."""
        if result is OVERDUE:
            return self.failed(session, error=f"not done after {self.deadline:g} s")
        if result is CANCELLED:
            return self.failed(session, error="was cancelled")
        if type(result) is Raised:
            return self._raised(session, result.error)
        decision = self._checked(session, result, started)
        if decision is PROCEED and self.journal is not None:
            self.journal.passed(session, self, started)
        return decision

    def _close(self, work: Coroutine[Any, Any, object]) -> None:
        """Close a coroutine, watched like a handler; one that has finished stays as it is."""
        watchdog = self.watchdog
        watchdog.running = monotonic()
        try:
            work.close()
            watchdog.running = 0.0
        except BaseException:  # noqa: BLE001  # a request is pending
            watchdog.running = 0.0

    def _checked(self, session: Session, result: object, started: float) -> Decision:
        if type(result) not in self.legal:
            return self.defect(session, error=self._illegal(result))
        decision: Decision = result  # type: ignore[assignment]  # all of `legal` are
        if b"\n" in decision.wire:
            return self.defect(session, error="returned a decision that was tampered with")
        if type(decision) is Points:
            low, high = self.points or (0, 0)
            if not low <= decision.points <= high:
                return self.defect(
                    session,
                    error=f"returned {decision!r}, but declares points = ({low:g}, {high:g})",
                )
        if type(decision) is Rewrite:
            phase = PHASES[self.phase]
            if not phase.takes(decision.text):
                # Its text may be a credential.
                return self.defect(
                    session, error=f"returned a Rewrite that is not {FORMS[phase.argument]}"
                )
        if self.treat is not None:
            decision = self.treat(decision)
        edited = session.edited is not None and session.edited()
        if edited and decision is PROCEED:
            decision = _EDITED
        self._note(session, decision, monotonic() - started, edited=edited)
        if decision is not PROCEED and (
            self.dry or (self.treat is None and type(decision) is Points)
        ):
            return _SUPPRESSED
        return decision

    def _note(
        self, session: Session, decision: Decision, took: float, *, edited: bool = False
    ) -> None:
        """Log a decision, and give it to the journal; `edited` is whether the message was changed.

        An edit without a reason is logged with `--verbose` or on a dry run only: some filters
        edit every message.
        """
        quiet = decision is PROCEED or decision is _EDITED or exemption(decision)
        if self.log.verbose or not quiet or (edited and self.dry):
            self.log.verdict(session, self.phase, decision, took, dry=self.dry, edited=edited)
        if edited and self.dry and decision.verb != "proceed":
            self.log.event(self.phase, session, result="proceed", would=EDIT)
        if self.journal is not None and decision is not PROCEED:
            self.journal.decided(session, self, decision, took, edited=edited)

    def _illegal(self, result: object) -> str:
        """Describe what was returned in place of a decision that is allowed."""
        name = type(result).__name__
        if isinstance(result, type):
            name = f"the class {result.__name__}"
        if type(result) is CoroutineType:
            result.close()  # it would warn that it was never awaited
            write = "await" if self.coroutine else "async def"
            return f'returned a coroutine; write "{write}" at {self.where}'
        if type(result) in self.declared and type(result) in _MARKS:
            return f"returned {name}, but setup returned Registration(junk=False), at {self.where}"
        allowed = " | ".join(sorted(kind.__name__ for kind in self.legal))
        if type(result) is Points and self.points is None and Points in self.allowed:
            return f"returned Points, but declares no points = (least, most), at {self.where}"
        if type(result) in self.allowed:
            return f'returned {name}, but is annotated "-> {allowed}" at {self.where}'
        return f"returned {name}, but may return {allowed}, at {self.where}"

    def _raised(self, session: Session, error: BaseException) -> Decision:
        if type(error) is _PathError:
            # Also where `--on-error` would proceed: each client could have that.
            self._note(session, error.refusal, 0.0)
            return _SUPPRESSED if self.dry else error.refusal
        where = fold_traceback(error, text=False)
        expected = isinstance(error, UnavailableError)
        status = getattr(error, "status", "") if expected else ""
        failed = self.failed if expected else self.defect
        if self.phase == CONFIDENTIAL:
            # The text of an error may repeat the client's credential.
            return failed(session, where, status, error=where)
        if status:
            cause = show(error)
            keeps = isinstance(error, UnavailableError) and error.keeps_edits
            decision = failed(session, cause, status, cause=cause)
            return decision.because(KEEPING) if keeps and not self.dry else decision
        return failed(session, where, error=fold_traceback(error))

    def defect(self, session: Session, kind: str = "", status: str = "", **why: str) -> Decision:
        """Do as `failed` for an error in the filter's code, which a test must not overlook."""
        self.log.defect(self.phase, session, why["error"])
        return self.failed(session, kind, status, **why)

    def failed(self, session: Session, kind: str = "", status: str = "", **why: str) -> Decision:
        """Log a failure, and return the decision of `--on-error`.

        `status` replaces the fallback's enhanced status code. Failures of one `kind` are logged in
        full once per interval.
        """
        fallback = self.fallback
        if status and fallback.verb in REFUSALS:
            code, _, text = fallback.text.split(" ", 2)
            assert isinstance(fallback, Reject | Disconnect)  # noqa: S101  # it is a refusal
            fallback = type(fallback)(reply(int(code), status, text)).because(FAILED)
        if self.treat is not None:
            fallback = self.treat(fallback)
        result = outcome(fallback, dry=self.dry)
        kind = f"{self.phase} {kind or why}"
        if fallback.verb in REFUSALS:
            why["reply"] = fallback.text
        self.log.failure(kind, self.phase, session.id, result, **why)
        if self.journal is not None:
            cause = why.get("cause") or why.get("error") or FAILED
            self.journal.decided(session, self, fallback, 0.0, failure=cause)
        return PROCEED.because(FAILED) if self.dry else fallback


class _PathError(Exception):
    """A path is too long for smtpd to report it; `refusal` is the decision."""

    def __init__(self, refusal: Reject) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


def _path_error(code: int, status: str, text: str) -> _PathError:
    return _PathError(Reject(reply(code, status, text)).because(f"more than {MAX_PATH} octets"))


def _of_reported(handler: Callable[..., object], phase: str) -> Callable[..., object]:
    """Return a handler with `_PathError` in place of its call for what smtpd doesn't report."""
    if phase not in _IN_TRANSACTIONS and phase != "mail-from":
        return handler

    # RFC 5321 section 4.5.3.1.10: "Path too long: 501 Path too long". RFC 3463 section 3.2: X.1.3
    # and X.1.7 are the syntax of a recipient's and a sender's address.
    def of_sender(session: Session, address: str) -> object:
        if _is_too_long(address):
            raise _path_error(501, "5.1.7", "Path too long")
        return handler(session, address)

    def in_transaction(session: Session, *arguments: object) -> object:
        tx = session.tx
        if tx is not None and tx.sender is None:
            # Or without memory the report was lost: it may come when the client tries again.
            raise _path_error(451, "4.1.7", "The sender's path is too long, or not known yet")
        return handler(session, *arguments)

    def of_recipient(session: Session, address: str) -> object:
        if _is_too_long(address):
            raise _path_error(501, "5.1.3", "Path too long")
        return in_transaction(session, address)

    return {"mail-from": of_sender, "rcpt-to": of_recipient}.get(phase, in_transaction)


def _is_too_long(address: str) -> bool:
    if len(address) <= MAX_PATH and address.isascii():
        return False
    return len(address.encode("utf-8", "surrogateescape")) > MAX_PATH


def _only_step(work: Coroutine[Any, Any, object]) -> object:
    """Run a coroutine of a process without an event loop: it must finish without waiting."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    work.close()
    raise RuntimeError("waited, but setup returned Registration(waits=False)")


def _place(handler: Callable[..., object]) -> str:
    """Return file and line of a handler."""
    code = getattr(unwrapped(handler), "__code__", None)
    if code is None:
        return "?"
    return f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"

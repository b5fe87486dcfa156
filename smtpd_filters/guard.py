"""One handler of one filter, asked so that whatever it does there is a decision.

Law
---
1. Asking never raises, and a coroutine's outcome is a decision as well.
2. A handler that raises, returns what its phase does not allow, or is not done by its deadline is
   answered for as ``--on-error`` says; the log has why, once per cause and interval, and each
   session in which it happens.
3. What is said of a failure never repeats a credential.
4. On a dry run what was decided is logged, and the decision is to proceed.

A plain handler is watched by the `Watchdog`, a coroutine by its deadline.
"""

from __future__ import annotations

from time import monotonic
from types import CoroutineType

from .errors import UnavailableError
from .protocol.decisions import PROCEED, Decision, Disconnect, Junk, Reject, Rewrite, reply
from .protocol.vocabulary import FORMS, HANDLERS, PHASES
from .runtime.coroutines import CANCELLED, OVERDUE, Wait
from .runtime.log import fold_traceback, outcome, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from .filter import Filter, Outcome
    from .runtime.interfaces import Later
    from .runtime.watchdog import Watchdog
    from .session import Session

REFUSALS = frozenset({"reject", "disconnect"})
#: The reason of a decision that stands in for a handler's own, which is told by it.
FAILED = "handler failed"
#: The phase whose parameter is a credential.
CONFIDENTIAL = "auth"


class Link:
    """One handler of one filter."""

    __slots__ = (
        "argument",
        "deadline",
        "dry",
        "fallback",
        "filter",
        "handler",
        "later",
        "legal",
        "log",
        "may_mark",
        "phase",
        "watchdog",
    )

    def __init__(  # what it takes to ask a handler
        self,
        filter: Filter,  # noqa: A002  # the field's word
        handler: str,
        on_error: Outcome,
        deadline: float,
        watchdog: Watchdog,
    ) -> None:
        phase = HANDLERS.get(handler)
        self.filter = filter.name
        self.handler: Callable[..., object] = getattr(filter, handler)
        #: The phase's name, or that of a handler of messages.
        self.phase = phase.name if phase else handler
        #: Whether the handler gets something besides the session.
        self.argument = bool(phase and phase.argument)
        #: The kinds of decision that may be returned.
        self.legal = filter.returns[handler]
        #: What is decided when the handler fails.  Of a message it is as at ``data``: the refusal
        #: is said at ``commit``, and a mark is a field of the header by then.  A copy, to be told
        #: from the same decision of a handler's own.
        self.fallback = (phase or PHASES["data"]).fallbacks[on_error].because(FAILED)
        #: Whether it may come to junk.
        self.may_mark = (Junk in self.legal and filter.marks) or type(self.fallback) is Junk
        #: Seconds that a coroutine may take.
        self.deadline = deadline
        #: Whether the handler may be a coroutine.
        self.later = handler in filter.later
        self.dry = filter.dry_run
        self.log = filter.log
        self.watchdog = watchdog

    def ask(self, session: Session, *arguments: object) -> Decision | Later:
        """Ask the filter.  Never raises; a coroutine's result is a decision as well."""
        watchdog = self.watchdog
        started = watchdog.running = monotonic()
        try:
            result = self.handler(session, *arguments)
            watchdog.running = 0.0
        except BaseException as error:  # noqa: BLE001  # law 2; SystemExit included
            watchdog.running = 0.0
            if type(error) is MemoryError:
                # What the handler's frames hold is what everything else lacks.
                error.__traceback__ = error.__context__ = None
            return self._raised(session, error)
        return self._said(session, result, started)

    def decide(self, session: Session, argument: bytes) -> Decision | Later:
        """Ask the filter at a phase, when it is the only one.

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
            watchdog.running = 0.0
        except BaseException as error:  # noqa: BLE001  # law 2; SystemExit included
            watchdog.running = 0.0
            if type(error) is MemoryError:
                # What the handler's frames hold is what everything else lacks.
                error.__traceback__ = error.__context__ = None
            return self._raised(session, error)
        if result is PROCEED and not self.log.verbose:
            return PROCEED
        return self._said(session, result, started)

    def _said(self, session: Session, result: object, started: float) -> Decision | Later:
        if self.later and type(result) is CoroutineType:
            return self._wait(session, result, started)
        return self._checked(session, result, started)

    async def _wait(
        self, session: Session, result: Coroutine[Any, Any, object], started: float
    ) -> Decision:
        """Wait for a coroutine, but not for longer than its deadline, whatever it does."""
        outcome = await Wait(_contained(result), self.deadline)
        if outcome is OVERDUE:
            return self.failed(session, error=f"not done after {self.deadline:g} s")
        if outcome is CANCELLED:
            result.close()  # it has not even begun, and would warn
            return self.failed(session, error="was cancelled")
        if isinstance(outcome, _Raised):
            return self._raised(session, outcome.error)
        return self._checked(session, outcome, started)

    def _checked(self, session: Session, result: object, started: float) -> Decision:
        if type(result) not in self.legal:
            if type(result) is CoroutineType:
                result.close()  # it would warn that it was never awaited
            return self.failed(session, error=f"returned {type(result).__name__}")
        decision: Decision = result  # type: ignore[assignment]  # all of `legal` are
        if b"\n" in decision.wire:
            return self.failed(session, error="returned a decision that was tampered with")
        if type(decision) is Rewrite:
            phase = PHASES[self.phase]
            if not phase.takes(decision.text):
                # Its text may be a credential.
                return self.failed(
                    session, error=f"returned a Rewrite that is not {FORMS[phase.argument]}"
                )
        if decision is not PROCEED or self.log.verbose:
            took = monotonic() - started
            self.log.verdict(session, self.phase, decision, took, dry=self.dry)
        return PROCEED if self.dry else decision

    def _raised(self, session: Session, error: BaseException) -> Decision:
        where = fold_traceback(error, text=False)
        status = getattr(error, "status", "") if isinstance(error, UnavailableError) else ""
        if self.phase == CONFIDENTIAL:
            # The text of an error may repeat what the client said.
            return self.failed(session, where, status, error=where)
        if status:
            cause = show(error)
            return self.failed(session, cause, status, cause=cause)
        return self.failed(session, where, error=fold_traceback(error))

    def failed(self, session: Session, kind: str = "", status: str = "", **why: str) -> Decision:
        """Log why, and answer for the filter; ``status`` takes the place of the general one.

        ``kind`` tells causes apart that are logged once per interval.
        """
        fallback = self.fallback
        if status and fallback.verb in REFUSALS:
            code, _, text = fallback.text.split(" ", 2)
            assert isinstance(fallback, Reject | Disconnect)  # noqa: S101  # it is a refusal
            fallback = type(fallback)(reply(int(code), status, text)).because(FAILED)
        result = outcome(fallback, dry=self.dry)
        kind = f"{self.phase} {kind or why}"
        if fallback.verb in REFUSALS:
            why["reply"] = fallback.text
        self.log.failure(kind, self.phase, session.id, result, **why)
        return PROCEED.because(FAILED) if self.dry else fallback


class _Raised:
    """What a coroutine raised."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _contained(work: Awaitable[object]) -> object:
    """Await it and give back what it raises: asyncio ends its loop on SystemExit."""
    try:
        return await work
    except BaseException as error:  # noqa: BLE001  # law 2; CancelledError may be its own
        if type(error) is MemoryError:
            error.__traceback__ = error.__context__ = None
        return _Raised(error)

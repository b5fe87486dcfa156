"""The calls of handlers, in the order of the chain, and before their turn while another one waits.

Invariants
----------
*In order*: the first refusal ends the chain; junk is kept while the rest are called; a rewritten
parameter is what the next filter gets.
*Look-ups start together*: while a coroutine waits, those of the filters behind it are called as
well, but their decisions count, and are logged, in order. What a refusal or a rewritten parameter
makes useless is cancelled, and in the latter case called again.
*Undone*: what a filter did to a message before it failed, or on a dry run, is undone.
"""

from __future__ import annotations

from functools import partial
from time import monotonic

from smtpd_filters.combining import (
    MAIL_FROM,
    changes,
    combined,
    handed_on,
    judged,
    made_mark,
    marked,
)
from smtpd_filters.guard import REFUSALS
from smtpd_filters.protocol.decisions import PROCEED, Decision, Rewrite
from smtpd_filters.runtime.coroutines import Early, Turn, begin
from smtpd_filters.session import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from smtpd_filters.guard import Guard
    from smtpd_filters.journal.collector import Collector
    from smtpd_filters.journal.passed import Group
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.vocabulary import Phase
    from smtpd_filters.runtime.coroutines import Pending
    from smtpd_filters.runtime.pace import Pace
    from smtpd_filters.session import Session

#: The price (`runtime.pace`) of a handler that is called before its turn: a first step and a task.
EARLY = 50
#: Seconds of all filters at a phase below which they share the time in the journal.
TOGETHER_BELOW = 0.001


class Calls:
    """Calls handlers; `Chain` says which ones."""

    #: The budget of the loop; set if any handler may wait.
    _pace: Callable[[], Pace]
    #: The handlers by phase, and those of messages, each with whether it takes the whole message.
    _guards: dict[Phase, list[Guard]]
    _content: list[tuple[Guard, bool]]
    #: What keeps the verdicts for the journal; None without one.
    journal: Collector | None = None

    def __init__(self) -> None:
        """Begin without a journal, and with memory for coroutines."""
        #: Whether there is no memory for another coroutine; set by the engine. If so, its code does
        #: not run: it would use up what everything else lacks.
        self.refuses_coroutines: Callable[[], bool] = _never
        #: With a journal: when the handlers were called at a phase, and groups of them by phase.
        self._starts: list[float] = []
        self._groups: dict[Phase, list[Group]] = {}

    def _decide(self, phase: Phase, session: Session, argument: bytes) -> Decision | Pending:
        """Call the filters that have a handler for the phase."""
        if phase is MAIL_FROM and session.mark == phase.name:
            session.mark = ""  # of a transaction that did not come about
        parameter = text(argument) if phase.argument else None
        guards = iter(self._guards[phase])
        self._starts.clear()
        for guard in guards:
            decision = guard.ask(session, parameter)
            if decision is not PROCEED:
                arguments = () if parameter is None else (parameter,)
                if self.journal is not None:
                    self._note_passed(phase, session)
                return begin(self._combine(phase, session, arguments, decision, guards))
        if self.journal is not None:
            self._starts.append(monotonic())
            self._note_passed(phase, session)
        return marked(phase, session, PROCEED) if session.mark else PROCEED

    def _ask_one(self, guard: Guard, session: Session, *arguments: Any) -> Decision | Pending:
        """Call a handler by itself; tell the journal if it lets pass at once."""
        if self.journal is None:
            return guard.ask(session, *arguments)
        self._starts.clear()
        asked = guard.ask(session, *arguments)
        if asked is PROCEED:
            self.journal.passed(session, guard, self._starts[0])
        return asked

    def _note_passed(self, phase: Phase, session: Session) -> None:
        """Tell the journal of the filters that let pass: of all but the last call.

        If they took little time together, each has an equal share: noting each takes longer than
        most of them do.
        """
        journal, (first, *rest) = self.journal, self._starts
        if journal is None or not rest:
            return
        if rest[-1] - first < TOGETHER_BELOW:
            journal.passed(session, self._groups[phase][len(rest)], first, rest[-1])
            return
        for guard, started, ended in zip(self._guards[phase], self._starts, rest, strict=False):
            journal.passed(session, guard, started, ended)

    async def _combine(
        self,
        phase: Phase,
        session: Session,
        arguments: tuple[str, ...],
        asked: Decision | Pending,
        rest: Iterator[Guard],
    ) -> Decision:
        """Combine a decision that is not simply to proceed with those of the filters after it."""
        result: Decision = PROCEED
        behind = list(rest)
        early: dict[Guard, Early] = {}
        try:
            while True:
                if isinstance(asked, Decision):
                    decision = asked
                else:
                    asked.wait.beside = self._ask_early(session, arguments, behind, early)
                    decision = await asked
                result = combined(phase, session, result, decision)
                if decision.verb in REFUSALS:
                    return decision
                if type(decision) is Rewrite:
                    arguments = (handed_on(phase, decision),)
                    self._drop(early)
                if not behind:
                    return marked(phase, session, result)
                guard = behind.pop(0)
                called = early.pop(guard, None)
                if called is None:
                    asked = self._ask_one(guard, session, *arguments)
                else:
                    asked = begin(guard.collect(session, called))
        finally:
            self._drop(early)

    def _ask_early(
        self,
        session: Session,
        arguments: tuple[str, ...],
        behind: Iterable[Guard],
        early: dict[Guard, Early],
    ) -> tuple[Early, ...]:
        """Call the coroutines of filters whose turn has not come; return those that wait.

        What exceeds the budget of this turn of the loop (`runtime.pace`) is left to its own turn.
        """
        waiting: tuple[Early, ...] = ()
        if self.refuses_coroutines():
            return waiting
        for guard in behind:
            if guard.early and guard not in early:
                if not self._pace().take(EARLY):
                    break
                early[guard] = called = guard.ask_early(session, *arguments)
                if not called.ended:
                    waiting += (called,)
        return waiting

    @staticmethod
    def _drop(early: dict[Guard, Early]) -> None:
        """Cancel handlers that were called before their turn, which will not come."""
        for guard in early:
            guard.drop(early[guard])
        early.clear()

    def judge_headers(self, session: Session, headers: Headers) -> Decision | Pending:
        """Have the header block judged and edited."""
        return begin(self._judge(session, headers, None))

    def judge_message(self, session: Session, message: Message) -> Decision | Pending:
        """Have the whole message judged and edited."""
        return begin(self._judge(session, message.headers, message))

    async def _judge(self, session: Session, headers: Headers, message: Message | None) -> Decision:
        if self.journal is not None:
            self.journal.message(session, headers)
        edited = headers if message is None else message
        early: dict[Guard, Early] = {}
        try:
            for at, (guard, _) in enumerate(self._content):
                before = edited.snapshot()
                session.edited = changes(edited, before)
                asked = self._ask_about(session, headers, message, at, early)
                decision = asked if isinstance(asked, Decision) else await asked
                decision, over = judged(session, guard, edited, before, decision)
                if over:
                    return decision
        finally:
            session.edited = None
            self._drop(early)
        return made_mark(session, headers)

    def _ask_about(
        self,
        session: Session,
        headers: Headers,
        message: Message | None,
        at: int,
        early: dict[Guard, Early],
    ) -> Decision | Pending:
        """Have a message judged by one filter, while those behind it that scan begin."""
        guard, whole = self._content[at]
        called = early.pop(guard, None)
        if called is None:
            asked = guard.judge(session, message if whole and message is not None else headers)
        else:
            assert called.turn is not None  # noqa: S101  # `_scan_beside` has set it
            called.turn.begin()
            asked = begin(guard.collect(session, called))
        if guard.beside and message is not None and not isinstance(asked, Decision):
            asked.wait.beside += self._scan_beside(session, message, at, early)
        return asked

    def _scan_beside(
        self, session: Session, message: Message, at: int, early: dict[Guard, Early]
    ) -> tuple[Early, ...]:
        """Call the filters right behind one that scan as well; return those that wait.

        Each edits the message in its turn only. What exceeds the budget of this turn of the loop is
        called then.
        """
        waiting: tuple[Early, ...] = ()
        if self.refuses_coroutines():
            return waiting
        ahead = self._content[at][0].deadline
        for guard, _ in self._content[at + 1 :]:
            if not guard.beside or self._is_gated(guard):
                break
            if guard not in early:
                if not self._pace().take(EARLY):
                    break
                call = partial(guard.ask_early, session, message)
                early[guard] = called = Early.before(Turn(), ahead, call)
                if not called.ended:
                    waiting += (called,)
            ahead += guard.deadline
        return waiting

    def _is_gated(self, guard: Guard) -> bool:  # noqa: ARG002  # an override's
        """Return whether a filter may be left out, depending on those in front of it."""
        return False


def _never() -> bool:
    return False

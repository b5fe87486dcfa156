"""A chain with a score: filters add points instead of acting, and thresholds over the sum act.

Invariants
----------
*Decided when certain*: the score refuses as soon as no open question can take it below the
threshold, from `score-at` on. While it is certain which thresholds the final score reaches, filters
that could only add points are not asked.
*Marks at the end*: the score marks a message in its header, or at `data` if the chain doesn't read
messages; never at `commit`, where smtpd exits on it.
*Temporary when in doubt*: a score that needs points for failures or temporary refusals to reach the
threshold refuses temporarily.
*Nothing half*: a client, message or recipient that bypasses the chain is neither judged nor marked
nor refused by it from then on; marks and refusals made before remain.
"""

from __future__ import annotations

from functools import partial

from smtpd_filters.chain import Chain
from smtpd_filters.chain.lifecycle import reload_table
from smtpd_filters.combining import (
    MAIL_FROM,
    changes,
    combined,
    handed_on,
    judged,
    made_mark,
    marked,
    scrub,
)
from smtpd_filters.errors import UnavailableError
from smtpd_filters.guard import REFUSALS
from smtpd_filters.handlers import CONTENT
from smtpd_filters.own_field import OwnField
from smtpd_filters.protocol.decisions import (
    JUNK,
    PROCEED,
    Decision,
    Points,
    Rewrite,
    show_points,
)
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.runtime.coroutines import begin
from smtpd_filters.session import FIELDS, TOGETHER, text

from .bypass import BypassState, BypassTables
from .replies import field_value, refusal, temporary_refusal
from .rule_check import check_rules
from .rules import Bypass
from .scored import Scored
from .tally import ORDER, Outlook, Plan, Slot, Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from smtpd_filters.filter import Filter, OnError
    from smtpd_filters.guard import Guard
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.vocabulary import Phase
    from smtpd_filters.runtime.coroutines import Early, Pending
    from smtpd_filters.runtime.log import Log
    from smtpd_filters.runtime.watchdog import Watchdog
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.session import Session
    from smtpd_filters.tables import Table

    from .rules import Rules

FIELD = OwnField("X-Smtpd-Filters-Score")
#: The name in the log of what the score does.
NAME = "score"
RCPT_TO = PHASES["rcpt-to"]


class _State:
    """What the chain knows of a session."""

    __slots__ = ("bypass", "tally")

    def __init__(self) -> None:
        self.tally = Tally()
        self.bypass = BypassState()

    def end_message(self) -> None:
        self.tally.end_message()
        self.bypass.end_message()


class ScoringChain(Chain):
    """Filters in order, with the points, thresholds and tables of `rules`."""

    decides = True

    def __init__(
        self,
        filters: Iterable[tuple[Filter, OnError, float]],
        log: Log,
        watchdog: Watchdog | None,
        rules: Rules,
    ) -> None:
        """Raise ConfigError as `Chain` does, and for rules that contradict each other."""
        settings = rules.settings
        self._rules = rules
        self._tables = BypassTables(settings)
        self._scale = rules.scale()
        self._from = ORDER[settings.score_at]
        self._header = settings.score_header
        self.reads_headers = settings.score_header
        for table in self.further_remotes():
            if table.remote is not None:
                table.remote.attach(partial(log.event, NAME))
        super().__init__(filters, log, watchdog)
        every = list(self._slots.values())
        #: By phase, and "content" for messages.
        self._plans = {
            phase.name: self._plan(ORDER.get(phase.name, -1), self._guards[phase], every)
            for phase in self._guards
        }
        #: The phases at which a handler may be left out.
        self._choosy = {
            phase.name
            for phase, guards in self._guards.items()
            if any(each in self._only_points or each in self._least for each in guards)
        }
        self._plans["content"] = self._plan(
            ORDER["message"], [each for each, _ in self._content], every
        )
        names = [each.name for each in self.filters]
        check_rules(rules, names, every, has_greylist=bool(self._least))

    def _plan(self, order: int, guards: Iterable[Guard], every: Iterable[Slot]) -> Plan:
        return Plan(order, [self._slots[each] for each in guards if each in self._slots], every)

    # -- registration --------------------------------------------------------------------

    def _prepare(self, guards: dict[str, list[Guard]]) -> None:
        """Have the guards apply the rules, and add the phases at which the score acts."""
        greylists = {each.name for each in self.filters if type(each).name == "greylist"}
        scored = Scored(guards, self._rules, greylists)
        self._slots, self._least = scored.slots, scored.least
        self._only_points = scored.only_points
        if self._scale.junk is not None and not (self._header or guards.keys() & CONTENT.keys()):
            guards.setdefault("data", [])
        if self._scale.reject is not None:
            at = self._rules.settings.score_at
            for handler in ("helo", "ehlo") if at == "helo" else (at.replace("-", "_"),):
                guards.setdefault(handler, [])
        if self._tables.recipients is not None:
            guards.setdefault("rcpt_to", [])

    def _required_reports(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        fields, reports = super()._required_reports()
        if self._tables.users is not None and "link-auth" not in reports:
            fields, reports = (*fields, "username"), (*reports, "link-auth")
        if self._tables.recipients is not None or any(
            each.bypass for each in self._rules.filters.values()
        ):
            fields = tuple(dict.fromkeys((*fields, *FIELDS["tx-begin"])))
            needed = ("tx-begin", *TOGETHER["tx-begin"])
            reports = tuple(dict.fromkeys((*reports, *needed)))
            self.hooks["tx-rcpt"] = self._count_recipient
        if "tx-reset" not in reports:
            reports = (*reports, "tx-reset")
        # Called after the report has been applied, like the events of filters.
        self.hooks["tx-reset"] = self._end_message
        return fields, reports

    def _end_message(self, session: Session) -> None:
        self._state(session).end_message()

    def _count_recipient(self, session: Session) -> None:
        self._state(session).bypass.count_recipient(session)

    def _state(self, session: Session) -> _State:
        state: _State | None = session.scratch.get(self)
        if state is None:
            state = session.scratch[self] = _State()
        return state

    def declare(self, needs: Needs) -> None:
        """Declare what the filters need, and the tables of what bypasses the chain."""
        super().declare(needs)
        for _, value in self._rules.tables:
            for path in value.files:
                needs.to_reload(path)
        for table in self.further_remotes():
            if table.remote is not None:
                table.remote.declare(needs)

    def further_remotes(self) -> Sequence[Table]:
        """Return the remote tables of what bypasses the chain."""
        return [remote for _, value in self._rules.tables for remote in value.remotes]

    def reload(self) -> Iterator[None]:
        """Reload the tables of all filters and those of what bypasses the chain."""
        yield from super().reload()
        for name, value in self._rules.tables:
            if value.is_file:
                yield from reload_table(self.log, "bypass", name.removeprefix("bypass-"), value)

    # -- phases --------------------------------------------------------------------------

    def _decide(self, phase: Phase, session: Session, argument: bytes) -> Decision | Pending:
        arguments = (text(argument),) if phase.argument else ()
        return begin(self._weigh(phase, session, arguments))

    async def _weigh(self, phase: Phase, session: Session, arguments: tuple[str, ...]) -> Decision:
        """Ask the filters at a phase, as `Chain` does, and apply the score."""
        if phase is MAIL_FROM and session.mark == phase.name:
            session.mark = ""  # of a transaction that did not come about
        state = self._state(session)
        order = ORDER.get(phase.name, -1)
        if phase is MAIL_FROM:
            state.end_message()
        state.bypass.recipient = False
        if self._passes(phase, session, state, arguments):
            return marked(phase, session, PROCEED)
        plan = self._plans[phase.name]
        state.tally.forget(order, plan.slots)
        before = state.tally.snapshot() if phase is RCPT_TO else {}
        decision = await self._ask(phase, session, arguments, state, Outlook(state.tally, plan))
        refused = decision.verb in REFUSALS
        if phase is RCPT_TO and refused:
            state.tally.restore(before)
        if isinstance(decision, Bypass):
            return marked(phase, session, PROCEED)
        if refused:
            return decision
        if order == ORDER["data"] and not self.content:
            decision = self._mark_at_data(phase, session, state, decision)
        return marked(phase, session, decision)

    async def _ask(  # noqa: C901, PLR0912  # one loop: a call for each handler costs as much
        self,
        phase: Phase,
        session: Session,
        arguments: tuple[str, ...],
        state: _State,
        outlook: Outlook,
    ) -> Decision:
        """Ask the filters until the score or one of them decides; return the decision."""
        result: Decision = PROCEED
        behind: Sequence[Guard] = self._guards[phase]
        choosy = phase.name in self._choosy
        early: dict[Guard, Early] = {}
        try:
            while True:
                if self._refuses(phase.name, outlook):
                    return self._refusal(phase.name, session, outlook)
                if choosy:
                    behind = self._open(session, outlook, behind)
                if not behind:
                    return result
                guard, *behind = behind
                called = early.pop(guard, None) if early else None
                if called is None:
                    asked = self._ask_one(guard, session, *arguments)
                else:
                    asked = begin(guard.collect(session, called))
                if not isinstance(asked, Decision):
                    asked.wait.beside = self._ask_early(session, arguments, behind, early)
                    asked = await asked
                decision = self._counted(guard, outlook, asked)
                if decision is PROCEED:
                    continue
                if isinstance(decision, Bypass):
                    state.bypass.end_by(guard.filter, ORDER[phase.name])
                    return decision
                result = combined(phase, session, result, decision)
                if decision.verb in REFUSALS:
                    return decision
                if type(decision) is Rewrite:
                    arguments = (handed_on(phase, decision),)
                    self._drop(early)
        finally:
            if early:
                self._drop(early)

    def _counted(self, guard: Guard, outlook: Outlook, decision: Decision) -> Decision:
        """Put the points of a handler into its slot; return what is left of its decision."""
        slot = self._slots.get(guard)
        if type(decision) is Points:
            if slot is not None:
                outlook.answer(slot, decision.thousandths, temporary=decision.temporary)
            return PROCEED
        if slot is not None:
            outlook.answer_nothing(slot)
        return decision

    def _ask_early(
        self,
        session: Session,
        arguments: tuple[str, ...],
        behind: Iterable[Guard],
        early: dict[Guard, Early],
    ) -> tuple[Early, ...]:
        ungated = [guard for guard in behind if guard not in self._least]
        return super()._ask_early(session, arguments, ungated, early)

    def _is_gated(self, guard: Guard) -> bool:
        return guard in self._least

    def _open(self, session: Session, outlook: Outlook, behind: Sequence[Guard]) -> Sequence[Guard]:
        """Return the handlers that are still to be called (*Decided when certain*)."""
        while behind and behind[0] in self._least:
            if self._least[behind[0]] <= outlook.tally.total:
                break
            if (slot := self._slots.get(behind[0])) is not None:
                outlook.close(slot)
            behind = behind[1:]
        # A message that passes shows its whole score in its header.
        if self._header:
            certain = self._scale.refuses(outlook.low)
        else:
            certain = self._scale.certain(outlook.low, outlook.high)
        if not certain or self._only_points.isdisjoint(behind):
            return behind
        if self.log.verbose:
            for each in behind:
                if each in self._only_points:
                    each.log.event(each.phase, session, result="skipped", reason="score is certain")
        return [each for each in behind if each not in self._only_points]

    # -- the score -----------------------------------------------------------------------

    def _refuses(self, phase: str, outlook: Outlook) -> bool:
        """Return whether the score refuses at a phase (*Decided when certain*)."""
        reject = self._scale.reject
        return reject is not None and outlook.low >= reject and ORDER.get(phase, -1) >= self._from

    def _refusal(self, phase: str, session: Session, outlook: Outlook) -> Decision:
        """Return the refusal of the score at a phase, and log it."""
        # *Temporary when in doubt*
        permanent = self._scale.refuses(outlook.low - outlook.tally.temporary)
        reply = self._rules.settings.score_reply
        decision = refusal(phase, reply) if permanent else temporary_refusal(phase)
        self._log_score(phase, session, outlook.tally, decision.verb, decision.text)
        return decision

    def _mark_at_data(
        self, phase: Phase, session: Session, state: _State, decision: Decision
    ) -> Decision:
        """Mark the message at `data` if the score says so."""
        marks = self._scale.marks(state.tally.total)
        if marks or self.log.verbose:
            self._log_score(phase.name, session, state.tally, "junk" if marks else "proceed")
        return combined(phase, session, decision, JUNK) if marks else decision

    def _log_score(
        self, phase: str, session: Session, tally: Tally, result: str, reply: str = ""
    ) -> None:
        scale = self._scale
        thresholds = {
            f"{name}-at": "" if at is None else show_points(at)
            for name, at in (("junk", scale.junk), ("reject", scale.reject))
        }
        self.log.event(
            NAME,
            phase,
            session.id,
            result=result,
            score=show_points(tally.total),
            **thresholds,
            points=tally.shown(),
            reply=reply,
        )
        if self.journal is not None:
            at = "junk-at" if result == "junk" else "reject-at"
            self.journal.noted(
                session,
                NAME,
                phase,
                result,
                reason=tally.shown(),
                reply=reply,
                points=tally.total,
                setting=f"{at} {thresholds[at]}" if thresholds.get(at) else "",
                flags="s",
            )

    # -- messages ------------------------------------------------------------------------

    async def _judge(self, session: Session, headers: Headers, message: Message | None) -> Decision:
        state = self._state(session)
        if self.journal is not None:
            self.journal.message(session, headers)
        if self._header:
            FIELD.remove(headers)  # a forged one
        why = state.bypass.reason(ORDER["message"])
        decision = PROCEED if why else await self._judge_in_turn(session, headers, message, state)
        return decision if decision.verb in REFUSALS else made_mark(session, headers)

    async def _judge_in_turn(
        self, session: Session, headers: Headers, message: Message | None, state: _State
    ) -> Decision:
        """Have a message judged by each filter and by the score."""
        plan = self._plans["content"]
        state.tally.forget(plan.order, plan.slots)
        outlook = Outlook(state.tally, plan)
        edited = headers if message is None else message
        early: dict[Guard, Early] = {}
        try:
            for at, (guard, _) in enumerate(self._content):
                if self._refuses(guard.phase, outlook):
                    session.mark = ""
                    return self._refusal(guard.phase, session, outlook)
                slot = self._slots.get(guard)
                if self._least.get(guard, state.tally.total) > state.tally.total:
                    if slot is not None:
                        outlook.close(slot)
                    scrub(session, guard, headers)
                    continue
                before: Any = edited.snapshot()
                session.edited = changes(edited, before)
                asked = self._ask_about(session, headers, message, at, early)
                decision = asked if isinstance(asked, Decision) else await asked
                decision, over = judged(session, guard, edited, before, decision)
                if over:
                    return decision
                if isinstance(decision, Bypass):
                    state.bypass.end_by(guard.filter, ORDER[guard.phase])
                    return PROCEED
                if type(decision) is Points and decision.instead == "marked":
                    self._unmark(session, guard, headers, message, before)
                if message is not None:
                    message.unmarked = None
                self._counted(guard, outlook, decision)
        finally:
            session.edited = None
            self._drop(early)
        return self._final(session, headers, state, outlook)

    @staticmethod
    def _unmark(
        session: Session, guard: Guard, headers: Headers, message: Message | None, before: Any
    ) -> None:
        """Undo a mark in place of which there are points: it is among the filter's edits."""
        if message is not None and message.unmarked is not None:
            message.restore(message.unmarked)
        else:
            (headers if message is None else message).restore(before)
            scrub(session, guard, headers)

    def _final(
        self, session: Session, headers: Headers, state: _State, outlook: Outlook
    ) -> Decision:
        """Apply the final score to a message."""
        if self._refuses("message", outlook):
            session.mark = ""
            return self._refusal("message", session, outlook)
        marks = self._scale.marks(state.tally.total)
        if marks:
            session.mark = "message"
        if marks or self.log.verbose:
            self._log_score("message", session, state.tally, "junk" if marks else "proceed")
        if self._header:
            FIELD.prepend(headers, field_value(self._scale, state.tally))
        return PROCEED

    # -- bypass --------------------------------------------------------------------------

    def _passes(
        self, phase: Phase, session: Session, state: _State, arguments: tuple[str, ...]
    ) -> bool:
        """Return whether the chain is bypassed at a phase; a failure bypasses nothing."""
        try:
            return self._is_bypassed(phase, session, state, arguments)
        except UnavailableError as error:  # of a table that is kept elsewhere
            self.log.limited("bypass", NAME, "bypass", session.id, cause=str(error))
            return False

    def _is_bypassed(
        self, phase: Phase, session: Session, state: _State, arguments: tuple[str, ...]
    ) -> bool:
        order = ORDER.get(phase.name, ORDER["message"])
        if why := state.bypass.look_up(self._tables, session, order):
            self._log_bypass(phase.name, session, why)
        if state.bypass.reason(order):
            return True
        if phase is RCPT_TO and (why := self._tables.of_recipient(*arguments)):
            state.bypass.recipient = True
            self._log_bypass(phase.name, session, why)
            return True
        return False

    def _log_bypass(self, phase: str, session: Session, why: str) -> None:
        if self.log.verbose:
            self.log.event("bypass", phase, session.id, result="proceed", reason=why)
        if self.journal is not None:
            self.journal.noted(session, "bypass", phase, "proceed", reason=why, setting="bypass")

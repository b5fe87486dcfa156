"""Filters in order, in one process: a chain of one or more is the policy of an engine.

Invariants
----------
*In order*: the first refusal ends the chain; junk is kept while the rest are called; a rewritten
parameter is what the next filter gets.
*Look-ups start together*: while a coroutine waits, those of the filters behind it are called as
well, but their decisions count, and are logged, in order. What a refusal or a rewritten parameter
makes useless is cancelled, and in the latter case called again.
*Failures are a filter's own*: one that fails is answered for by its own `--on-error`, and the
others are called as if it had returned that.
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
    may_keep_a_mark,
    otherwise,
)
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.filter import Filter, legal_outcomes
from smtpd_filters.guard import REFUSALS, Guard
from smtpd_filters.handlers import CONTENT, check_bounds
from smtpd_filters.protocol.decisions import PROCEED, Decision, Rewrite
from smtpd_filters.protocol.vocabulary import DATA_LINE, HANDLERS, PHASES, REPORTS
from smtpd_filters.runtime.coroutines import CANCELLED, Early, Turn, begin
from smtpd_filters.runtime.log import FilterLog, fold_traceback, show
from smtpd_filters.runtime.watchdog import Watchdog
from smtpd_filters.session import FIELDS, TOGETHER, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import (
        Callable,
        Coroutine,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from typing import Any

    from smtpd_filters.filter import OnError
    from smtpd_filters.journal.collector import Collector
    from smtpd_filters.journal.passed import Group
    from smtpd_filters.message import Headers, Message
    from smtpd_filters.protocol.vocabulary import Phase
    from smtpd_filters.runtime.coroutines import Pending
    from smtpd_filters.runtime.interfaces import Ask
    from smtpd_filters.runtime.log import Log
    from smtpd_filters.runtime.pace import Pace
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.session import Session
    from smtpd_filters.settings import Pool
    from smtpd_filters.tables import Table
    from smtpd_filters.tables.remote.source import Refresher

#: The price (`runtime.pace`) of a handler that is called before its turn: a first step and a task.
EARLY = 50
#: Seconds of all filters at a phase below which they share the time in the journal.
TOGETHER_BELOW = 0.001


class Chain:
    """Filters in order, as the policy of a `runtime.engine.Engine`."""

    #: The budget of the loop; set if any handler may wait.
    _pace: Callable[[], Pace]
    #: Whether the chain itself decides, and edits headers: for a subclass with rules of its own.
    decides = reads_headers = False
    #: What keeps the verdicts for the journal; None without one.
    journal: Collector | None = None

    def __init__(
        self,
        filters: Iterable[tuple[Filter, OnError, float]],
        log: Log,
        watchdog: Watchdog | None = None,
    ) -> None:
        """Take filters that are set up, each with its outcome for failures and its deadline.

        Deadlines are in seconds. Raises ConfigError for two filters of one name, and for an outcome
        that a filter's phases do not have; TypeError for a registration that its class can't serve.
        """
        self.log = log
        #: Whether there is no memory for another coroutine; set by the engine. If so, its code does
        #: not run: it would use up what everything else lacks.
        self.refuses_coroutines: Callable[[], bool] = _never
        self.watchdog = watchdog or Watchdog()
        self.filters: list[Filter] = []
        guards = self._add(filters)
        _check_signatures(self.filters)
        self._prepare(guards)
        self._serve_phases(guards)
        self._serve_content(guards)
        self._serve_events()
        pools = _pools_of(self.filters)
        #: Whether there is something to release when the process ends.
        closing = any("close" in each.events for each in self.filters)
        self.closing = closing or any(pools) or bool(self.remote_tables)
        #: Whether any handler may wait: then the chain runs on asyncio.
        self.waits = any(each.waits for each in self.filters) or bool(self.remote_tables)
        if self.waits:
            self._let_wait(guards)
        #: With a journal: when the handlers were called at a phase, and groups of them by phase.
        self._starts: list[float] = []
        self._groups: dict[Phase, list[Group]] = {}
        registrations = [each.registration for each in self.filters]
        #: Taps on the lines themselves; the phases and reports that they need are registered too.
        self.taps = tuple(tap for each in registrations for tap in each.taps)
        for tap in self.taps:
            if hasattr(tap, "looked_up"):
                for pool in pools:
                    pool.observe(tap.looked_up)
        self.phases = self._wanted_phases()
        self.fields, self.reports = self._wanted_reports()
        self.outgoing = tuple(sorted({name for each in registrations for name in each.outgoing}))

    # -- registration --------------------------------------------------------------------

    def _serve_phases(self, guards: dict[str, list[Guard]]) -> None:
        """Set what is called at each phase."""
        keeps_marks = any(may_keep_a_mark(name, guards[name]) for name in guards)
        if keeps_marks and not guards.keys() & {"data", *CONTENT}:
            # Marks go where they belong (`combining`): there must be a next phase.
            guards["data"] = []
        self._guards = {HANDLERS[name]: guards[name] for name in guards if name in HANDLERS}
        #: What to call at each phase.
        self.ask: dict[Phase, Ask] = {
            phase: partial(self._decide, phase)
            if keeps_marks or len(self.filters) > 1 or self.decides
            else self._guards[phase][0].decide
            for phase in self._guards
        }
        #: The decision when our own code fails: as when a filter fails, so that mail which should
        #: have been checked is not accepted unchecked.
        self.otherwise = {phase: otherwise(self._guards[phase]) for phase in self._guards}

    def _serve_content(self, guards: dict[str, list[Guard]]) -> None:
        """Set what is called about messages."""
        # Called in the order of the chain, whichever of the two handlers a filter has.
        self._content = [
            (guard, guard in guards.get("message", []))
            for filter_ in self.filters
            for guard in guards.get("headers", []) + guards.get("message", [])
            if guard.filter == filter_.name
        ]
        #: Whether messages are judged on a dry run alone, and so returned as they came.
        self.only_looks = all(guard.dry for guard, _ in self._content) and not self.reads_headers
        reads = self._content or self.reads_headers
        self.content = "message" if "message" in guards else "headers" if reads else ""
        self.otherwise_content = otherwise([guard for guard, _ in self._content])

    def _serve_events(self) -> None:
        """Set what is called when smtpd reports something, and from time to time."""
        self._disconnected = [each for each in self.filters if "link_disconnect" in each.events]
        #: Callbacks for when a report has been applied to its session.
        self.hooks: dict[str, Callable[[Session], None]] = {
            event.replace("_", "-"): partial(self._notify, event, called)
            for event in ("link_connect", "link_identify", "link_auth")
            if (called := [each for each in self.filters if event in each.events])
        }
        #: Tables that are kept elsewhere.
        self.remote_tables = [
            *self.further_remotes(),
            *(each for one in self.filters for each in one.remote_tables()),
        ]
        #: The filters that maintain something beside their sessions, and loaded remote tables.
        self.refreshing: list[Filter | Refresher] = [
            *(each for each in self.filters if "refresh" in each.events),
            *(each.refresher() for each in self.remote_tables if not each.asks),
        ]

    def _let_wait(self, guards: dict[str, list[Guard]]) -> None:
        """Have coroutines run on asyncio, unless there is no memory for them."""
        from smtpd_filters.runtime.first_step import first_step  # imports asyncio
        from smtpd_filters.runtime.pace import pace

        self._pace = pace

        def begin_unless_refused(work: Coroutine[Any, Any, object]) -> object:
            if self.refuses_coroutines():
                work.close()
                return CANCELLED
            return first_step(work)

        for guard in (guard for of in guards.values() for guard in of):
            guard.first_step = begin_unless_refused

    def _add(self, filters: Iterable[tuple[Filter, OnError, float]]) -> dict[str, list[Guard]]:
        """Add the filters; return the guards of all, by the names of their handlers."""
        guards: dict[str, list[Guard]] = {}
        for filter_, on_error, deadline in filters:
            if any(other.name == filter_.name for other in self.filters):
                raise ConfigError(f"two filters of the name {filter_.name!r} in one chain")
            _check(filter_, on_error)
            filter_.log = FilterLog(self.log, filter_.name)
            self.filters.append(filter_)
            registration = filter_.registration
            if not (filter_.registered or registration.taps or registration.data):
                if filter_.handlers:
                    filter_.log.event("nothing to do: no setting asks for anything")
                elif not filter_.events:
                    filter_.log.event("nothing to do: it has no handler")
            for handler in filter_.handlers:
                if handler in filter_.registered:
                    guard = Guard(filter_, handler, on_error, deadline, self.watchdog)
                    guards.setdefault(handler, []).append(guard)
        return guards

    def keep_journal(self, journal: Collector) -> None:
        """Give the journal all verdicts from now on; to be called before anything is registered."""
        self.journal = journal
        self.log.journaled = True
        from smtpd_filters.journal.passed import Group  # only with a journal

        self.reports += tuple(name for name in journal.reports if name not in self.reports)
        for guard in (guard for guards in self._guards.values() for guard in guards):
            guard.journal, guard.starts = journal, self._starts
        for guard, _ in self._content:
            guard.journal = journal
        for phase in self._guards:
            names = [guard.filter for guard in self._guards[phase]]
            self._groups[phase] = [
                Group(phase.name, names[:count]) for count in range(len(names) + 1)
            ]

    def _prepare(self, guards: dict[str, list[Guard]]) -> None:
        """Change the guards before anything is registered: for a subclass."""

    def _wanted_phases(self) -> tuple[str, ...]:
        """Return the phases to register."""
        phases = tuple(phase.name for phase in self._guards)
        if self.content or any(each.registration.data for each in self.filters):
            phases += ("data-line",)
        if self.content and "commit" not in phases:
            # A refused message, and one that could not be stored, is refused at commit.
            phases += ("commit",)
        for tap in self.taps:
            phases += tuple(sorted(tap.phases.difference(phases)))
        return phases

    def _wanted_reports(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the fields that a session needs, and the reports that fill them."""
        read = {report for each in self.filters for report in each.required_reports()}
        for event, report in (("link_identify", "link-identify"), ("link_auth", "link-auth")):
            if any(event in each.events for each in self.filters):
                read.add(report)
        known = [report for report in FIELDS if report in read]
        empty = {field for each in self.filters for field in each.fields_without_reports()}
        fields = tuple(field for report in known for field in FIELDS[report])
        fields += tuple(sorted(empty.difference(fields)))
        reports: tuple[str, ...] = ("link-connect", "link-disconnect")
        for report in known:
            reports += (report, *TOGETHER.get(report, ()))
        for tap in self.taps:
            reports += tuple(sorted(tap.reports.difference(reports)))
        return fields, reports

    # -- called by the engine ------------------------------------------------------------

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

    def further_remotes(self) -> Sequence[Table]:
        """Return the remote tables of the chain itself."""
        return ()

    def configured(self, smtpd: Mapping[str, str]) -> None:
        """Pass smtpd's configuration to the filters."""
        for filter_ in self.filters:
            filter_.smtpd = smtpd

    def gone(self, session: Session) -> None:
        """Call the filters' `link_disconnect`."""
        if self._disconnected:
            self._notify("link_disconnect", self._disconnected, session)
        if self.journal is not None:
            self.journal.closed(session)

    def _notify(self, event: str, filters: Sequence[Filter], session: Session) -> None:
        """Call an event method of filters."""
        watchdog = self.watchdog
        for filter_ in filters:
            watchdog.running = monotonic()
            try:
                getattr(filter_, event)(session)
                watchdog.running = 0.0
            except BaseException as error:  # noqa: BLE001  # failures are a filter's own
                watchdog.running = 0.0
                if isinstance(error, UnavailableError):
                    filter_.log.failure(event, event, session.id, {}, cause=show(error))
                    continue
                text = fold_traceback(error)
                filter_.log.defect(event, session, text)
                filter_.log.failure(event, event, session.id, {}, error=text)

    async def refresh(self, filter_: Filter | Refresher) -> None:
        """Call a filter's or a table's `refresh`; never raises."""
        import asyncio  # it is there already where there are coroutines

        if not isinstance(filter_, Filter):
            await filter_.refresh()
            return
        limit: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(max(filter_.refresh_interval, 1)) as limit:
                await filter_.refresh()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # failures are a filter's own
            expected = limit is not None and limit.expired()
            _failed(filter_, "refresh", error, expected=expected)

    async def close(self) -> None:
        """Release what the filters hold, and the chain itself."""
        await close(self.filters, self.log, self.further_remotes())

    def probes(self) -> Iterator[Probe]:
        """Yield the probes of the services that the filters depend on, and of the journal."""
        for filter_ in self.filters:
            yield from filter_.all_probes()
        if self.journal is not None:
            from smtpd_filters.journal.sender import probe_of  # loaded by now

            yield probe_of(self.journal.sender.path)

    def declare(self, needs: Needs) -> None:
        """Declare what the filters need after the start, and the files of large messages."""
        for filter_ in self.filters:
            filter_.declare(needs)
        if self.journal is not None:
            self.journal.sender.declare(needs)
        if self.content:
            from smtpd_filters.message.spool import directories  # loaded by now

            for directory in directories():
                needs.to_write(directory)

    def reload(self) -> Iterator[None]:
        """Reload the tables of all filters from their files, a step of bounded work at a time.

        One that can't be read keeps its entries.
        """
        for filter_ in self.filters:
            values = vars(filter_.settings)
            for name in values:
                value = values[name]
                if getattr(value, "is_file", False):
                    yield from self._reload_table(filter_.name, name.replace("_", "-"), value)

    def _reload_table(self, owner: str, name: str, value: Any) -> Iterator[None]:
        """Reload a table, and log the result."""
        result = yield from _reloaded(value)
        self.log.event(owner, "reload", table=name, **result)


async def close(filters: Sequence[Filter], log: Log, further: Iterable[Table] = ()) -> None:
    """Release what filters hold: call their `close`, and close their remote tables and pools.

    `further` are remote tables besides those of the filters.
    """
    for filter_ in filters:
        try:
            await filter_.close()
        except BaseException as error:  # noqa: BLE001  # failures are a filter's own
            _failed(filter_, "close", error)
    of_filters: Iterator[Any] = (table for each in filters for table in each.remote_tables())
    for table in (*further, *of_filters):
        await table.remote.aclose()
    for pool in _pools_of(filters):
        try:
            await pool.aclose()
        except BaseException as error:  # noqa: BLE001  # nothing is fatal any more
            log.event("smtpd-filters", "close", error=fold_traceback(error))


def _pools_of(filters: Iterable[Filter]) -> list[Pool]:
    """Return what filters have opened together."""
    return list({id(each.pool): each.pool for each in filters}.values())


def _failed(filter_: Filter, what: str, error: BaseException, *, expected: bool = False) -> None:
    """Log the exception of an event method that belongs to no session."""
    if isinstance(error, UnavailableError):
        filter_.log.event(what, cause=show(error))
        return
    text = fold_traceback(error)
    if not expected:
        filter_.log.defect(what, "", text)
    filter_.log.event(what, error=text)


def _never() -> bool:
    return False


def _reloaded(value: Any) -> Generator[None, None, dict[str, str]]:
    """Reload one table; return what to log."""
    try:
        changed = yield from value.reload()
        result = {"result": "ok" if changed else "unchanged"}
    except ConfigError as error:
        result = {"error": str(error), "result": "kept"}
    except MemoryError:
        result = {"error": "out of memory", "result": "kept"}
    except BaseException as error:  # noqa: BLE001  # nothing is fatal any more
        result = {"error": fold_traceback(error), "result": "kept"}
    try:
        # An author's own kind of table may have neither.
        files = getattr(value, "files", ())
        if files:
            result = {**result, "file": " ".join(files), "entries": str(value.entries)}
    except MemoryError:
        pass
    return result


def _check_signatures(filters: Iterable[Filter]) -> None:
    """Raise ConfigError for a filter that edits what one ahead of it has signed."""
    signer = ""
    for filter_ in filters:
        if signer and filter_.edits_signed:
            raise ConfigError(
                f"{filter_.name} must be ahead of {signer}, whose signature should cover its edits"
            )
        signer = filter_.name if filter_.signs else signer


def _check(filter_: Filter, on_error: OnError) -> None:
    """Raise TypeError or ConfigError for a registration or an outcome that a filter can't have."""
    unknown = filter_.registered - filter_.handlers.keys()
    if unknown:
        raise TypeError(f"filter {filter_.name!r}: no handler for {sorted(unknown)}")
    legal = legal_outcomes(filter_.registered)
    if on_error not in legal:
        raise ConfigError(
            f"filter {filter_.name!r}: on-error {on_error!r} is not one of {', '.join(legal)}"
        )
    unknown = filter_.required_reports() - FIELDS.keys()
    if unknown:
        known = sorted(FIELDS)
        raise TypeError(f"filter {filter_.name!r}: no report {sorted(unknown)}, of {known}")
    registration = filter_.registration
    if registration.points is not None:
        check_bounds(registration.points, f"filter {filter_.name!r}")
    _check_names(filter_, "report", registration.outgoing, REPORTS, "outgoing")
    for tap in registration.taps:
        _check_names(filter_, "report", tap.reports, REPORTS, "a tap")
        _check_names(filter_, "phase", tap.phases, (*PHASES, DATA_LINE), "a tap")
    unknown = filter_.events - filter_.defined_events()
    if unknown:
        raise TypeError(f"filter {filter_.name!r}: no method for {sorted(unknown)}")


def _check_names(
    filter_: Filter, kind: str, names: Iterable[str], known: Iterable[str], use: str
) -> None:
    """Raise TypeError for a name that smtpd doesn't know; it would end on its registration."""
    if unknown := set(names).difference(known):
        shown = sorted(unknown, key=repr)
        raise TypeError(f"filter {filter_.name!r}: no {kind} {shown} for {use}, of {sorted(known)}")

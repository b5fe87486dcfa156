"""A chain: what its filters are called for, what it registers, and their life cycle.

Invariants
----------
*Failures are a filter's own*: one that fails is answered for by its own `--on-error`, and the
others are called as if it had returned that.
"""

from __future__ import annotations

from functools import partial

from smtpd_filters.combining import may_keep_a_mark, otherwise
from smtpd_filters.errors import ConfigError
from smtpd_filters.filter import Filter
from smtpd_filters.guard import Guard
from smtpd_filters.handlers import CONTENT
from smtpd_filters.protocol.vocabulary import HANDLERS
from smtpd_filters.runtime.coroutines import CANCELLED
from smtpd_filters.runtime.log import FilterLog
from smtpd_filters.runtime.watchdog import Watchdog

from .calls import Calls
from .lifecycle import close, notify, pools_of, refresh, reload_tables
from .registration import check_filter, check_signatures, required_phases, required_reports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from smtpd_filters.filter import OnError
    from smtpd_filters.journal.collector import Collector
    from smtpd_filters.protocol.vocabulary import Phase
    from smtpd_filters.runtime.interfaces import Ask
    from smtpd_filters.runtime.log import Log
    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs
    from smtpd_filters.session import Session
    from smtpd_filters.tables import Table
    from smtpd_filters.tables.remote.source import Refresher


class Chain(Calls):
    """Filters in order, as the policy of a `runtime.engine.Engine`."""

    #: Whether the chain itself decides, and edits headers: for a subclass with rules of its own.
    decides = reads_headers = False

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
        super().__init__()
        self.log = log
        self.watchdog = watchdog or Watchdog()
        self.filters: list[Filter] = []
        guards = self._add(filters)
        check_signatures(self.filters)
        self._prepare(guards)
        self._serve_phases(guards)
        self._serve_content(guards)
        self._serve_events()
        pools = pools_of(self.filters)
        #: Whether there is something to release when the process ends.
        self.closing = (
            any("close" in each.events for each in self.filters)
            or any(pools)
            or bool(self.remote_tables)
        )
        #: Whether any handler may wait: then the chain runs on asyncio.
        self.waits = any(each.waits for each in self.filters) or bool(self.remote_tables)
        if self.waits:
            self._let_wait(guards)
        registrations = [each.registration for each in self.filters]
        #: Taps on the lines themselves; the phases and reports that they need are registered too.
        self.taps = tuple(tap for each in registrations for tap in each.taps)
        for tap in self.taps:
            if hasattr(tap, "looked_up"):
                for pool in pools:
                    pool.observe(tap.looked_up)
        self.phases = required_phases(self._guards, self.filters, content=bool(self.content))
        self.fields, self.reports = self._required_reports()
        self.outgoing = tuple(sorted({name for each in registrations for name in each.outgoing}))

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
            event.replace("_", "-"): partial(notify, self.watchdog, event, called)
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
            *(each.refresher() for each in self.remote_tables if not each.by_key),
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
            check_filter(filter_, on_error)
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

    # -- for a subclass with rules of its own --------------------------------------------

    def _prepare(self, guards: dict[str, list[Guard]]) -> None:
        """Change the guards before anything is registered."""

    def _required_reports(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the fields that a session needs, and the reports that fill them."""
        return required_reports(self.filters)

    def further_remotes(self) -> Sequence[Table]:
        """Return the remote tables of the chain itself."""
        return ()

    # -- the life cycle ------------------------------------------------------------------

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

    def configured(self, smtpd: Mapping[str, str]) -> None:
        """Pass smtpd's configuration to the filters."""
        for filter_ in self.filters:
            filter_.smtpd = smtpd

    def gone(self, session: Session) -> None:
        """Call the filters' `link_disconnect`."""
        if self._disconnected:
            notify(self.watchdog, "link_disconnect", self._disconnected, session)
        if self.journal is not None:
            self.journal.closed(session)

    async def refresh(self, filter_: Filter | Refresher) -> None:
        """Call a filter's or a table's `refresh`; never raises."""
        if isinstance(filter_, Filter):
            await refresh(filter_)
        else:
            await filter_.refresh()

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
        """Reload the tables of all filters from their files, a step of bounded work at a time."""
        yield from reload_tables(self.filters, self.log)

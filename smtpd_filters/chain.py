"""Filters in order, in one process: who is asked, whose word counts, what becomes of failures.

Law
---
1. Filters are asked in order.  The first refusal ends it; junk is kept while the rest are asked;
   a rewritten parameter is what the next one gets.
2. A filter that raises, returns what its phase does not allow, or is not done by its deadline is
   answered for by its own ``--on-error``, and the others are asked as if it had said so.
3. Whatever a filter did to a header before it failed is undone.
4. smtpd takes one of junk and rewrite.  Where both are due, rewrite is said, and the mark is made
   at the next phase that can.

A filter on its own is a chain of one.
"""

from __future__ import annotations

import sys
from functools import partial
from time import monotonic
from types import CoroutineType

from .errors import ConfigError, UnavailableError
from .filter import CONTENT, Filter
from .protocol.decisions import (
    JUNK,
    PROCEED,
    Decision,
    Disconnect,
    Junk,
    Proceed,
    Reject,
    Rewrite,
    reply,
)
from .protocol.vocabulary import HANDLERS, PHASES
from .runtime.log import Log, fold_traceback, show
from .runtime.watchdog import GIVEN_UP, Watchdog
from .session import FIELDS, TOGETHER, text
from .settings import common_options, die, parse_flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from typing import Any

    from .filter import Outcome
    from .message import Headers, Message
    from .protocol.vocabulary import Phase
    from .runtime.engine import Ask, Later
    from .session import Session

REFUSALS = frozenset({"reject", "disconnect"})
#: The reason of a decision that stands in for a handler's own, which is told by it.
FAILED = "handler failed"
#: Seconds that a plain handler may hold the process up, even when its deadline is longer.
MAX_TURN = 5.0
#: The phase whose parameter is a credential.
CONFIDENTIAL = "auth"
#: The mark that smtpd itself makes for junk, and that ``maildir junk`` files by.
MARK = ("X-Spam", "Yes")


class Link:
    """One handler of one filter."""

    __slots__ = (
        "argument",
        "deadline",
        "fallback",
        "filter",
        "handler",
        "later",
        "legal",
        "log",
        "phase",
        "watchdog",
    )

    def __init__(  # noqa: PLR0913  # what it takes to ask a handler
        self,
        filter: Filter,  # noqa: A002  # the field's word
        handler: str,
        on_error: Outcome,
        deadline: float,
        log: Log,
        watchdog: Watchdog,
    ) -> None:
        phase = HANDLERS.get(handler)
        self.filter = filter.name
        self.handler: Callable[..., object] = getattr(filter, handler)
        self.phase = phase.name if phase else handler
        self.argument = bool(phase and phase.argument)
        self.legal = filter.returns[handler]
        # What is wrong with a message is said at commit, where there is no junk: the mark is a
        # field of the header by then.
        # A copy: a filter may return the very constant.
        self.fallback = (phase or PHASES["data"]).fallbacks[on_error].because(FAILED)
        self.deadline = deadline
        self.later = is_coroutine(filter.handlers[handler])
        self.log = log
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
            return self._raised(session, error)
        return self._said(session, result, started)

    def decide(self, session: Session, argument: bytes) -> Decision | Later:
        """Ask the filter at a phase, when it is the only one."""
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
            return self._raised(session, error)
        if result is PROCEED and not self.log.verbose:
            return PROCEED
        return self._said(session, result, started)

    def _said(self, session: Session, result: object, started: float) -> Decision | Later:
        if self.later:
            return self._wait(session, result, started)  # type: ignore[arg-type]  # a coroutine
        return self._checked(session, result, started)

    async def _wait(
        self, session: Session, result: Coroutine[Any, Any, object], started: float
    ) -> Decision:
        """Wait for a coroutine, but not for longer than its deadline, whatever it does."""
        import asyncio  # noqa: PLC0415  # it is there already where there are coroutines

        task = asyncio.ensure_future(_contained(result))
        try:
            done, _ = await asyncio.wait({task}, timeout=self.deadline)
        except asyncio.CancelledError as cancelled:
            if cancelled.args == (GIVEN_UP,):
                raise
            # Some policy's doing: a client waits all the same.
            return self.failed(session, error="was cancelled")
        finally:
            # Cancelled or overdue: it is not waited for, since it may not heed.
            task.cancel()
        if not done:
            return self.failed(session, error=f"not done after {self.deadline:g} s")
        if task.cancelled():
            result.close()  # if it has not even begun it would warn
            return self.failed(session, error="was cancelled")
        outcome = task.result()
        if isinstance(outcome, _Raised):
            return self._raised(session, outcome.error)
        return self._checked(session, outcome, started)

    def _checked(self, session: Session, result: object, started: float) -> Decision:
        if type(result) not in self.legal:
            if type(result) is CoroutineType:
                result.close()  # it would warn that it was never awaited
            return self.failed(session, error=f"returned {type(result).__name__}")
        decision: Decision = result  # type: ignore[assignment]  # all of `legal` are
        if decision is not PROCEED or self.log.verbose:
            took = monotonic() - started
            self.log.verdict(session, self.filter, self.phase, decision, took)
        return decision

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
        self.log.limited(
            f"{self.filter} {self.phase} {kind or why}",
            self.filter,
            self.phase,
            session.id,
            result=fallback.verb,
            **why,
        )
        return fallback


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
        return _Raised(error)


def is_coroutine(function: Callable[..., object]) -> bool:
    """Whether a function is written ``async def``; `inspect` would cost start-up."""
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & 0x80)  # CO_COROUTINE


class Chain:
    """Filters in order, as the policy of a `runtime.engine.Engine`."""

    def __init__(
        self,
        filters: Iterable[tuple[Filter, Outcome, float]],
        log: Log,
        watchdog: Watchdog | None = None,
    ) -> None:
        """``filters``: each with its outcome for failures and its deadline in seconds.

        They are set up already.  Raises ConfigError when two have one name, or one has an outcome
        that its phases do not; TypeError when `setup` chose phases that it has no handlers for.
        """
        self.log = log
        self.watchdog = watchdog or Watchdog()
        self.filters: list[Filter] = []
        links: dict[str, list[Link]] = {}
        reports: set[str] = set()
        refusing = False
        for filter_, on_error, deadline in filters:
            if any(other.name == filter_.name for other in self.filters):
                raise ConfigError(f"two filters of the name {filter_.name!r} in one chain")
            _check(filter_, on_error)
            self.filters.append(filter_)
            reports |= filter_.required_reports()
            for handler in filter_.handlers:
                if handler in filter_.phases:
                    link = Link(filter_, handler, on_error, deadline, log, self.watchdog)
                    links.setdefault(handler, []).append(link)
                    refusing |= handler in ("headers", "message") and (
                        not link.legal <= {Proceed, Junk}
                        or link.fallback.verb == "reject"
                        or handler == "message"
                        or link.later
                    )
        self._leaving = [each for each in self.filters if type(each).gone is not Filter.gone]
        if not links.keys() & CONTENT and any(map(_may_leave_a_mark, links.values())):
            # Law 4: there must be a next phase.
            links.setdefault("data", [])
        self._links = {HANDLERS[name]: of for name, of in links.items() if name in HANDLERS}
        #: Whom to ask at each phase.
        self.ask: dict[Phase, Ask] = {
            phase: of[0].decide if len(self.filters) == 1 else partial(self._decide, phase)
            for phase, of in self._links.items()
        }
        # Asked in the order of the chain, whichever of the two a filter has.
        self._content = [
            (link, link in links.get("message", []))
            for filter_ in self.filters
            for link in links.get("headers", []) + links.get("message", [])
            if link.filter == filter_.name
        ]
        self.content = "message" if "message" in links else "headers" if self._content else ""
        #: Whether any filter has something to let go of when the process ends.
        self.closing = any(type(each).close is not Filter.close for each in self.filters)
        #: Whether any handler is a coroutine: then it takes asyncio to run the chain.
        self.later = any(link.later for of in links.values() for link in of)
        self.phases = tuple(phase.name for phase in self._links)
        if self.content or any(each.passes_data for each in self.filters):
            self.phases += ("data-line",)
            if refusing and "commit" not in self.phases:
                # What is refused, and what could not be kept, is refused at commit.
                self.phases += ("commit",)
        self.fields = tuple(
            field for report in FIELDS if report in reports for field in FIELDS[report]
        )
        self.outgoing = tuple(sorted({name for each in self.filters for name in each.outgoing}))
        self.reports = (
            "link-connect",
            "link-disconnect",
            *(
                name
                for report in FIELDS
                if report in reports
                for name in (report, *TOGETHER.get(report, ()))
            ),
        )
        #: Who hears the lines themselves; what they want to be told is asked for as well.
        self.taps = tuple(tap for each in self.filters for tap in each.taps)
        for tap in self.taps:
            self.phases += tuple(sorted(tap.phases.difference(self.phases)))
            self.reports += tuple(sorted(tap.reports.difference(self.reports)))

    # -- asked by the engine -------------------------------------------------------------

    def _decide(self, phase: Phase, session: Session, argument: bytes) -> Decision | Later:
        """Ask the filters that have a handler for the phase."""
        links = self._links[phase]
        arguments = (text(argument),) if phase.argument else ()
        said: Decision = PROCEED
        for link in links:
            decision = link.ask(session, *arguments)
            if decision is PROCEED:
                continue
            if not isinstance(decision, Decision):
                rest = links[links.index(link) :]
                return self._decide_later(phase, session, rest, decision, arguments, said)
            said = _both(session, said, decision)
            if decision.verb in REFUSALS:
                return decision
            if type(decision) is Rewrite:
                arguments = (_handed_on(phase, decision),)
        return _marked(phase, session, said) if session.junk else said

    async def _decide_later(  # noqa: PLR0913  # what `decide` had in hand
        self,
        phase: Phase,
        session: Session,
        links: Sequence[Link],
        waiting: Awaitable[Decision],
        arguments: tuple[str, ...],
        said: Decision,
    ) -> Decision:
        asked: Decision | Awaitable[Decision] = waiting
        for at, _ in enumerate(links):
            if at:
                asked = links[at].ask(session, *arguments)
            decision = asked if isinstance(asked, Decision) else await asked
            said = _both(session, said, decision)
            if decision.verb in REFUSALS:
                return decision
            if decision.verb == "rewrite":
                arguments = (_handed_on(phase, decision),)
        return _marked(phase, session, said)

    def judge_headers(self, session: Session, headers: Headers) -> Decision | Later:
        """Have the header block looked at and edited."""
        return self._judge(session, headers, None)

    def judge_message(self, session: Session, message: Message) -> Decision | Later:
        """Have the whole message looked at and edited."""
        return self._judge(session, message.headers, message)

    def _judge(
        self, session: Session, headers: Headers, message: Message | None
    ) -> Decision | Later:
        for at, (link, whole) in enumerate(self._content):
            before = headers.snapshot()
            decision = link.ask(session, message if whole else headers)
            if not isinstance(decision, Decision):
                links = self._content[at:]
                return self._judge_later(session, headers, message, links, decision, before)
            decision, over = _judged(session, link, headers, before, decision)
            if over:
                return decision
        return _mark(session, headers)

    async def _judge_later(  # noqa: PLR0913  # what `_judge` had in hand
        self,
        session: Session,
        headers: Headers,
        message: Message | None,
        links: Sequence[tuple[Link, bool]],
        waiting: Awaitable[Decision],
        before: object,
    ) -> Decision:
        asked: Decision | Awaitable[Decision] = waiting
        for at, (link, whole) in enumerate(links):
            if at:
                before = headers.snapshot()
                asked = link.ask(session, message if whole else headers)
            decision = asked if isinstance(asked, Decision) else await asked
            decision, over = _judged(session, link, headers, before, decision)
            if over:
                return decision
        return _mark(session, headers)

    def gone(self, session: Session) -> None:
        """Tell the filters that the session is over."""
        watchdog = self.watchdog
        for filter_ in self._leaving:
            watchdog.running = monotonic()
            try:
                filter_.gone(session)
                watchdog.running = 0.0
            except BaseException as error:  # noqa: BLE001  # law 2
                watchdog.running = 0.0
                self.log.limited(
                    f"{filter_.name} gone",
                    filter_.name,
                    "gone",
                    session.id,
                    error=fold_traceback(error),
                )

    async def close(self) -> None:
        """Let go of what the filters hold."""
        for filter_ in self.filters:
            try:
                await filter_.close()
            except BaseException as error:  # noqa: BLE001  # law 2
                self.log.event(filter_.name, "close", error=fold_traceback(error))

    def reload(self) -> None:
        """Read the tables of all filters anew; one that cannot be read keeps what it has."""
        for filter_ in self.filters:
            for name, value in vars(filter_.settings).items():
                reload = getattr(value, "reload", None)
                if reload is None:
                    continue
                try:
                    reload()
                except Exception as error:  # noqa: BLE001  # nothing is fatal any more
                    self.log.event(
                        filter_.name, "reload", table=name, error=str(error), result="kept"
                    )
                else:
                    self.log.event(filter_.name, "reload", table=name, result="ok")


def _check(filter_: Filter, on_error: Outcome) -> None:
    """Whether a filter can be asked as it is to be."""
    if on_error not in filter_.outcomes():
        legal = ", ".join(filter_.outcomes())
        raise ConfigError(f"filter {filter_.name!r}: on-error {on_error!r} is not one of {legal}")
    unknown = set(filter_.phases) - filter_.handlers.keys()
    if unknown:
        raise TypeError(f"filter {filter_.name!r}: no handler for {sorted(unknown)}")


def _both(session: Session, said: Decision, decision: Decision) -> Decision:
    """What is due when one filter said this and the next that."""
    if type(decision) is Proceed:
        return said
    if type(decision) is Junk and type(said) is Rewrite:
        session.junk = True
        return said
    if type(decision) is Rewrite and type(said) is Junk:
        session.junk = True
    return decision


def _marked(phase: Phase, session: Session, said: Decision) -> Decision:
    """Make a mark that is still due, where the phase can."""
    if session.junk and Junk in phase.legal and type(said) in (Proceed, Junk):
        session.junk = False
        return JUNK
    return said


def _may_leave_a_mark(links: Sequence[Link]) -> bool:
    """Whether one of a phase's filters may say junk and another rewrite."""
    kinds = {kind for link in links for kind in (*link.legal, type(link.fallback))}
    return len(links) > 1 and {Junk, Rewrite} <= kinds


def _handed_on(phase: Phase, decision: Decision) -> str:
    """The parameter in the form in which smtpd would have given it to the next filter."""
    text = decision.text
    if phase.argument == "address" and text.startswith("<"):
        return text[1:].partition(">")[0]
    return text


def _judged(
    session: Session, link: Link, headers: Headers, before: Any, decision: Decision
) -> tuple[Decision, bool]:
    """Take note of what a filter said of a message, and whether that was the last word."""
    if decision.reason is not FAILED and not _sound(headers):
        decision = link.failed(session, error="left a header that is none")
    if decision.reason is FAILED:
        headers.restore(before)
    if type(decision) is Junk:
        session.junk = True
    elif decision.verb in REFUSALS:
        # The mark that others made goes with the message.
        session.junk = False
        return decision, True
    return decision, False


def _sound(headers: Headers) -> bool:
    """Whether a header block is made of lines, whatever a filter did to it."""
    try:
        lines = headers.lines()
        return not lines or b"\n".join(lines).count(b"\n") == len(lines) - 1
    except BaseException:  # noqa: BLE001  # law 2
        return False


def _mark(session: Session, headers: Headers) -> Decision:
    """Make the mark that is due, in the header."""
    if session.junk:
        session.junk = False
        if headers.get(MARK[0]) != MARK[1]:
            headers.prepend(*MARK)
    return PROCEED


def run(*classes: type[Filter], argv: Sequence[str] | None = None) -> int:
    """The main function of a filter's executable: flags, set-up, service until the input ends.

    What is wrong with a flag or a file is one line on stderr and exit status 2, before smtpd is
    told ``register|ready``; from then on only the end of the input, or SIGTERM, ends it.
    """
    (cls,) = classes
    prog = f"filter-{cls.name}"
    common = common_options(cls.outcomes(), cls.on_error, cls.deadline)
    try:
        own, general = parse_flags(
            cls.Settings,
            sys.argv[1:] if argv is None else argv,
            common=common,
            prog=prog,
            description=cls.described(),
        )
        log = Log(verbose=general.verbose)
        watchdog = Watchdog(min(MAX_TURN, general.deadline))
        filter_ = cls(own)
        try:
            filter_.setup()
        except OSError as error:
            raise ConfigError(str(error)) from None
        on_error: Any = general.on_error
        chain = Chain([(filter_, on_error, general.deadline)], log, watchdog)
    except ConfigError as error:
        die(error, prog)
    from .runtime import serve  # noqa: PLC0415  # --help needs no loop

    try:
        refuse = general.long_lines == "refuse"
        return serve(chain, log, watchdog, refuse_long_lines=refuse, taps=chain.taps)
    except ConfigError as error:
        die(error, prog)

"""Filters in an engine without smtpd and descriptors: bytes in, bytes out."""

from __future__ import annotations

import asyncio
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.addresses.tags import PLUS, TAGS
from smtpd_filters.filter import Filter
from smtpd_filters.main import make_chain, named, set_up
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.log import Log, fold_traceback
from smtpd_filters.runtime.pace import Pace
from smtpd_filters.settings import (
    Pool,
    ProcessSettings,
    common_options,
    parse_flags,
    policy_options,
)
from smtpd_filters.stores.address import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, TextIO

    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.recording.replay import Replay
    from smtpd_filters.runtime.coroutines import Pending
    from smtpd_filters.scoring.rules import Rules
    from smtpd_filters.settings import PolicySettings, Settings

    #: A filter of a chain: its class, the class with its flags, or an instance with its settings.
    Member = type[Filter] | tuple[type[Filter], *tuple[str, ...]] | Filter
    #: A filter's class, or one with its settings, or several filters for a chain.
    Filters = type[Filter] | Filter | Sequence[Member]


class _Captured(Log):
    """A log that keeps its lines."""

    def __init__(self, *, verbose: bool) -> None:
        super().__init__(verbose=verbose)
        self.lines: list[str] = []
        #: Errors in the filters' code, each with the filter's name and the phase or event.
        self.errors: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def defect(self, who: str, what: str, session: str, error: str) -> None:
        self.errors.append(" ".join(filter(None, (session, who, f"{what}: {error}"))))


#: How the interpreter's warning of a coroutine that nobody has awaited ends.
_UNAWAITED = " was never awaited"


@contextmanager
def _awaits_noted(log: Log) -> Iterator[None]:
    """Note a coroutine that isn't awaited as an error in a filter's code: its work isn't done."""
    with warnings.catch_warnings():
        # Each time, whatever else the test does with warnings.
        warnings.filterwarnings("always", f"coroutine .*{_UNAWAITED}", RuntimeWarning)
        show = warnings.showwarning

        def note(  # noqa: PLR0913  # as `warnings` calls it
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text = str(message).partition("\n")[0]
            if category is RuntimeWarning and text.endswith(_UNAWAITED):
                log.defect("", f"{Path(filename).name}:{lineno}", "", text)
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = note
        yield


class Served:
    """Filters in an engine, with a loop that runs their coroutines to completion.

    `Conversation` and `play` are based on it.
    """

    def __init__(
        self,
        filters: Filters,
        flags: Sequence[str],
        settings: Settings | None,
        nameserver: tuple[str, int] | None = None,
        rules: Rules | None = None,
    ) -> None:
        """Raise ConfigError as the executable does before it is ready."""
        chosen, process = _configured(filters, flags, settings)
        self.log = _Captured(verbose=process.verbose)
        # A test must neither need nor change the files of the filters of this machine.
        defaults: dict[str, object] = {"store": Address("memory")}
        if nameserver is not None:
            defaults["nameserver"] = (nameserver,)
        pool = Pool(**defaults)
        ready = [set_up(filter_, self.log, general, pool) for filter_, general in chosen]
        self.chain = make_chain(ready, self.log, rules)
        # Until `close`: so not before what may raise.
        TAGS.delimiter = process.sub_addr_delim
        # Unlike a filter's, this process allocates and frees the reserve many times, and then its
        # zeros are written.
        refuses = process.long_lines == "refuse"
        self.engine = Engine(self.chain, self.log, refuse_long_lines=refuses, reserve=0)
        self.engine.spawn = self._spawn
        self._pace = Pace()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._unhandled)
        #: Done when a coroutine has ended.
        self._ended = self._loop.create_future()
        self.refresh()

    def refresh(self) -> None:
        """Run the filters' `refresh` to completion."""
        with _awaits_noted(self.log):
            for filter_ in self.chain.refreshing:
                self._loop.run_until_complete(self.chain.refresh(filter_))

    def receive(self, data: bytes) -> None:
        """Process bytes from smtpd, in the running loop as in a filter's process."""
        for tap in self.chain.taps:
            tap.received(data)
        self._in_loop(self.engine.receive, data)

    def _in_loop(self, call: Callable[..., object], *arguments: object) -> None:
        """Call a function as a filter's process does: in the loop, but not in a task.

        The first steps of the handlers' coroutines run in this call.
        """
        with _awaits_noted(self.log):
            if self.chain.waits:
                self._call_in_loop(call, *arguments)
            else:
                call(*arguments)

    def _call_in_loop(self, call: Callable[..., object], *arguments: object) -> None:
        returned = self._loop.create_future()

        def callback() -> None:
            try:
                call(*arguments)
            except BaseException as error:  # noqa: BLE001  # raised in the caller
                returned.set_exception(error)
            else:
                returned.set_result(None)

        self._loop.call_soon(callback)
        self._loop.run_until_complete(returned)

    def output(self) -> bytes:
        """Return what the filter has written."""
        parts = [self.engine.output()]
        while self.engine.working:
            self._in_loop(self.engine.work)
            parts.append(self.engine.output())
        written = b"".join(parts)
        if written:
            for tap in self.chain.taps:
                tap.sent(written)
        return written

    def run(self) -> bool:
        """Run coroutines until one of them ends; return whether there are any."""
        if not self.engine.busy:
            return False
        with _awaits_noted(self.log):
            self._loop.run_until_complete(self._ended)
        self._ended = self._loop.create_future()
        return True

    def play(self, replay: Replay) -> None:
        """Play a recording to the end, and close.

        Raises AssertionError if smtpd would exit, hang or misbehave.
        """
        try:
            self.receive(replay.handshake())
            replay.receive(self.output())
            for step in replay.steps():
                self.receive(step.data)
                replay.receive(self.output())
                while step.waiting:
                    if not self.run():
                        raise AssertionError(f"{step.phase} is never answered")
                    replay.receive(self.output())
        finally:
            self.close()
        replay.finish()
        replay.oracle.verify()

    def close(self) -> None:
        """End as at the end of input, and cancel everything that is left."""
        try:
            self._in_loop(self.engine.abandon)
            with _awaits_noted(self.log):
                self._loop.run_until_complete(self.chain.close())
            self._loop.run_until_complete(asyncio.sleep(0))  # a task must start to be cancelled
            while left := asyncio.all_tasks(self._loop):
                for task in left:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(left))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            for tap in self.chain.taps:
                tap.close()
            self._loop.close()
            TAGS.delimiter = PLUS

    def _spawn(self, pending: Pending, done: Callable[[Decision], None], price: int) -> Job:
        def decided(decision: Decision) -> None:
            done(decision)
            if not self._ended.done():
                self._ended.set_result(None)

        pace = self._pace if price else None
        return Job(self._loop, pending, decided, self._ended.set_exception, pace, price)

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = fold_traceback(error) if error is not None else str(context.get("message"))
        self.log.defect("smtpd-filters", "a task of a policy failed", "", text)
        self.log.limited("unhandled", "smtpd-filters", "a task of a policy failed", error=text)


def _configured(
    filters: Filters, flags: Sequence[str], settings: Settings | None
) -> tuple[list[tuple[Filter, PolicySettings | None]], ProcessSettings]:
    """Return the filters with their settings, and those of the process.

    An instance has its settings; those of a class are parsed from its flags.
    """
    if not isinstance(filters, type):
        if flags or settings is not None:
            raise TypeError("flags and settings require a class; an instance has its own settings")
        members = [filters] if isinstance(filters, Filter) else list(filters)
        return [_member(each) for each in members], ProcessSettings()
    common = common_options(filters.outcomes(), filters.on_error, filters.deadline)
    own, general = parse_flags(filters.Options, flags, common=common, prog=f"filter-{filters.name}")
    made: Any = settings if settings is not None else own
    filter_ = named(filters(made), general)
    return [(filter_, general)], general


def _member(given: Member) -> tuple[Filter, PolicySettings | None]:
    """Return a filter of a chain, and those of its flags that every filter of a chain has."""
    if isinstance(given, Filter):
        return given, None
    cls, *flags = given if isinstance(given, tuple) else (given,)
    policy = policy_options(cls.outcomes(), cls.on_error, cls.deadline)
    own, general = parse_flags(cls.Options, flags, common=policy, prog=f"filter-{cls.name}")
    return cls(own), general

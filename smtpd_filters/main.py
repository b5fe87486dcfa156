"""The main function of a filter's executable."""

from __future__ import annotations

import os
import sys

from .chain import Chain
from .errors import BugError, ConfigError, config_error, not_started
from .filter import Registration
from .runtime.log import FilterLog, Log, fold_traceback
from .runtime.watchdog import Watchdog
from .settings import CHECKING, ONLINE, TRAITS, common_options, die, parse_flags, start_status
from .settings.flags import Checking
from .startup import note_hangup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from .filter import Filter, OnError
    from .journal.collector import Collector
    from .scoring.rules import Rules
    from .settings import CommonSettings, PolicySettings, Pool, ProcessSettings, Settings

    #: A filter with its outcome for failures, and its deadline in seconds.
    Ready: TypeAlias = tuple[Filter, OnError, float]

#: Seconds for which a plain handler may block the process, even if its deadline is longer.
MAX_TURN = 5.0


def run(cls: type[Filter], argv: Sequence[str] | None = None) -> int:
    """Read the flags, set the filter up, and serve until the input ends; return the exit status.

    A mistake in a flag or a file is one line on stderr and exit status 2, before `register|ready`;
    under filter-supervise the status is that of the error (`ConfigError.status`).
    From then on only the end of the input, or SIGTERM, ends the process.
    """
    prog = f"filter-{cls.name}"
    try:
        return start(cls, sys.argv[1:] if argv is None else argv, prog)
    except ConfigError as error:
        die(error, prog, start_status(error))


def start(cls: type[Filter], argv: Sequence[str], prog: str) -> int:
    """Do what `run` does, under the name `prog`; raise ConfigError for a mistake."""
    common = common_options(cls.outcomes(), cls.on_error, cls.deadline)
    own, general = parse_flags(
        cls.Options, argv, common=common, prog=prog, description=cls.described()
    )
    if general.supervised:
        from .supervise.short_form import supervise_this

        supervise_this(
            argv, general.on_error, general.deadline, general, general.filter_name or cls.name
        )
    return serve_chain(
        lambda log: make_chain([set_up(named(make(cls, own), general), log, general)], log),
        process=general,
        prog=prog,
        name=general.filter_name or "",
    )


def make(cls: type[Filter], settings: Settings) -> Filter:
    """Return a filter with its settings; raise ConfigError, one line, for a bug in its code."""
    try:
        filter_ = cls(settings)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # it is a filter's own code
        raise bug(error) from error
    if vars(filter_).get("settings") is not settings:
        call = "super().__init__(settings) with its settings"
        raise BugError(f"cannot be set up: {cls.__name__}.__init__ doesn't call {call}")
    return filter_


def named(filter_: Filter, general: CommonSettings) -> Filter:
    """Give a filter the name of its flags, if they have one; its default store stays the same."""
    if general.filter_name:
        filter_.store_name = filter_.name
        filter_.name = general.filter_name
    return filter_


def set_up(
    filter_: Filter, log: Log, general: PolicySettings | None = None, pool: Pool | None = None
) -> Ready:
    """Prepare a filter: give it the process's log and pool, call `setup`, open what it shares.

    Every way to run a filter sets it up here: an executable, a chain, the tools, the test kit.
    `general` are the settings that every filter has; without them an instance keeps its own. `pool`
    is that of the process; without one the filter shares nothing. Raises ConfigError for whatever
    goes wrong, in one line.
    """
    if general is not None:
        on_error: Any = general.on_error
        filter_.on_error, filter_.deadline = on_error, general.deadline
        filter_.dry_run = general.dry_run
    filter_.log = FilterLog(log, filter_.name)
    if pool is not None:
        filter_.pool = pool
    try:
        for table in filter_.remote_tables():
            table.remote.attach(filter_.log.event)
        filter_.registration = _registration(filter_.setup())
        filter_.open_shared()
    except ConfigError:
        raise
    except OSError as error:
        raise config_error(error) from None
    except (Exception, SystemExit) as error:  # it is a filter's own code
        raise bug(error) from error
    return filter_, filter_.on_error, filter_.deadline


def _registration(returned: object) -> Registration:
    """Return what `setup` has returned as registrations. Raises TypeError."""
    if returned is None:
        return Registration()
    if isinstance(returned, Registration):
        return returned
    kind = type(returned).__name__
    raise TypeError(f"setup returned {kind}, in place of a Registration or None")


def make_chain(ready: Sequence[Ready], log: Log, rules: Rules | None = None) -> Chain:
    """Return a chain of filters that are set up; raise ConfigError for any mistake in one.

    `rules` are points, thresholds, and what bypasses the chain.
    """
    watchdog = Watchdog(min(MAX_TURN, *(deadline for _, _, deadline in ready)))
    try:
        if rules:
            from .scoring.chain import ScoringChain  # start-up time

            return ScoringChain(ready, log, watchdog, rules)
        return Chain(ready, log, watchdog)
    except ConfigError:
        raise
    except Exception as error:  # it is a filter's own code
        raise bug(error) from error


def bug(error: BaseException) -> ConfigError:
    """Return a ConfigError, one line, for a bug in a filter's code, or for lack of memory."""
    if isinstance(error, MemoryError):
        return not_started(error)
    if isinstance(error, SystemExit):  # smtpd would not log its text
        return BugError("the filter exits during setup")
    return BugError(f"cannot be set up: {fold_traceback(error)}")


def serve_chain(
    make: Callable[[Log], Chain], *, process: ProcessSettings, prog: str, name: str = ""
) -> int:
    """Make a chain by calling `make` with the log, and serve; return the exit status.

    `name` is that of the process in the journal, by default `prog`.

    Raises ConfigError for a mistake in their settings. On a terminal, where nothing speaks smtpd's
    protocol, it returns when they are set up, and writes to stderr that flags and files are right.
    """
    try:
        from .runtime import serve  # --help needs no loop
        from .runtime.channel import Ends

        # From here on the filters' own code runs, and its output must not reach smtpd.
        ends = Ends()
        log = Log(fd=ends.log(), verbose=process.verbose)
        if process.sub_addr_delim != "+":  # the default of smtpd and of TAGS
            from .addresses.tags import TAGS  # start-up time

            TAGS.delimiter = process.sub_addr_delim
    except (OSError, MemoryError) as error:
        raise not_started(error) from None
    note_hangup()
    try:
        if ends.terminal():
            with Checking():
                chain = make(log)
        else:
            chain = make(log)
        if process.journal is not None:
            chain.keep_journal(open_journal(process.journal, name or prog, log))
    except BaseException:
        ends.give_back()
        raise
    if ends.terminal():
        ends.leave_terminal(prog, "flags and files")
        return 0
    confines = None if process.sandbox == "off" else lambda: confine(chain, log, process)
    checking = os.environ.get(CHECKING)
    if checking == ONLINE:
        return ask_services(chain, log, confines)
    if checking:
        log_traits(chain, log)
    return serve(
        chain,
        log,
        chain.watchdog,
        refuse_long_lines=process.long_lines == "refuse",
        taps=chain.taps,
        ends=ends,
        confine=confines,
    )


def open_journal(path: str, prog: str, log: Log) -> Collector:
    """Return the collector of a process's verdicts for the journal. Raises ConfigError."""
    try:
        from .journal.collector import Collector  # only with a journal
        from .journal.sender import Sender

        return Collector(Sender(path, log), prog, log)
    except (OSError, ImportError) as error:
        raise not_started(error) from None


def log_traits(chain: Chain, log: Log) -> None:
    """Log for `smtpd-filters check` whether a chain signs messages, and edits what is signed."""
    traits = [
        trait
        for trait in ("signs", "edits_signed")
        if any(getattr(each, trait) for each in chain.filters)
    ]
    if traits:
        log.line(TRAITS + " ".join(traits))


def ask_services(chain: Chain, log: Log, confines: Callable[[], None] | None) -> int:
    """Ask the services of a chain's filters, in its sandbox, and log each answer."""
    from asyncio import run

    from .runtime.probes import ask, end

    async def examine() -> None:
        for answer in await ask(chain.probes()):
            log.line(answer.line())
        await end(chain.close())

    if confines is not None:
        confines()
    run(examine())
    return 0


def confine(chain: Chain, log: Log, process: ProcessSettings) -> None:
    """Give up what the filters of a chain have not declared to need from now on.

    Raises ConfigError for a bug in a filter's declaration or what it can't start, and with
    `--sandbox strict` for what this system can't take away; otherwise the log has it.
    """
    from .sandbox import Needs, confinement  # not with --sandbox off

    needs = Needs()
    try:
        chain.declare(needs)
    except ConfigError:  # of a program that can't be started, say
        raise
    except Exception as error:  # it is a filter's own code
        raise bug(error) from error
    missing = "; ".join(confinement.confine(needs))
    if missing and process.sandbox == "strict":
        raise ConfigError(f"--sandbox strict: {missing}")
    if missing:
        log.event("smtpd-filters", "sandbox is incomplete", missing=missing)

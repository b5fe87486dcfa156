"""The main function of a filter's executable."""

from __future__ import annotations

import sys

from .chain import Chain
from .errors import ConfigError, not_started, user_name
from .filter import Registration
from .runtime.log import FilterLog, Log, fold_traceback
from .runtime.watchdog import Watchdog
from .settings import common_options, die, parse_flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from .filter import Filter, Outcome
    from .settings import PolicySettings, Pool

    #: A filter with its outcome for failures, and its deadline in seconds.
    Ready: TypeAlias = tuple[Filter, Outcome, float]

#: Seconds that a plain handler may hold the process up, even when its deadline is longer.
MAX_TURN = 5.0


def run(cls: type[Filter], argv: Sequence[str] | None = None) -> int:
    """Read the flags, set the filter up, and serve until the input ends.  The exit status.

    What is wrong with a flag or a file is one line on stderr and exit status 2, before smtpd is
    told ``register|ready``; from then on only the end of the input, or SIGTERM, ends it.
    """
    prog = f"filter-{cls.name}"
    try:
        return start(cls, sys.argv[1:] if argv is None else argv, prog)
    except ConfigError as error:
        die(error, prog)


def start(cls: type[Filter], argv: Sequence[str], prog: str) -> int:
    """As `run`, under the name ``prog``; what is wrong is a ConfigError."""
    common = common_options(cls.outcomes(), cls.on_error, cls.deadline)
    own, general = parse_flags(
        cls.Options, argv, common=common, prog=prog, description=cls.described()
    )
    filter_ = cls(own)
    return serve_chain(
        lambda log: [set_up(filter_, log, general)],
        verbose=general.verbose,
        refuse_long_lines=general.long_lines == "refuse",
        prog=prog,
    )


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
        filter_.registration = filter_.setup() or Registration()
        filter_.open_shared()
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(str(error)) from None
    except Exception as error:  # it is a filter's own code
        raise bug(error) from error
    return filter_, filter_.on_error, filter_.deadline


def make_chain(ready: Sequence[Ready], log: Log) -> Chain:
    """Make a chain of filters that are set up; ConfigError for whatever is wrong with one."""
    deadlines = [deadline for _, _, deadline in ready]
    try:
        return Chain(ready, log, Watchdog(min(MAX_TURN, *deadlines)))
    except ConfigError:
        raise
    except Exception as error:  # it is a filter's own code
        raise bug(error) from error


def bug(error: Exception) -> ConfigError:
    """A mistake in a filter's code, said in one line like anything else."""
    return ConfigError(f"cannot be set up: {fold_traceback(error)}")


def serve_chain(
    ready: Callable[[Log], Sequence[Ready]], *, verbose: bool, refuse_long_lines: bool, prog: str
) -> int:
    """Set filters up, with `ready`, which is given the log, and serve.  The exit status.

    What is wrong with them is a ConfigError.  On a terminal nobody speaks smtpd's protocol: there
    it ends when they are set up, and ``prog`` says on stderr that nothing is wrong.
    """
    try:
        from .runtime import serve  # --help needs no loop
        from .runtime.channel import Ends, ignore_hangup

        # From here on the filters' own code runs, and what it prints must not get to smtpd.
        ends = Ends()
    except OSError as error:
        raise not_started(error) from None
    ignore_hangup()
    log = Log(verbose=verbose)
    try:
        chain = make_chain(ready(log), log)
    except BaseException:
        ends.give_back()
        raise
    if ends.terminal():
        ends.give_back()
        if sys.stderr is not None:  # closed
            sys.stderr.write(
                f"{prog}: flags and files are right, as user {user_name()}; "
                "smtpd starts this filter, see smtpd.conf(5)\n"
            )
        return 0
    return serve(
        chain,
        log,
        chain.watchdog,
        refuse_long_lines=refuse_long_lines,
        taps=chain.taps,
        ends=ends,
    )

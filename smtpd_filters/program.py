"""The main function of a filter's executable."""

from __future__ import annotations

import sys

from .chain import Chain
from .errors import ConfigError
from .runtime.log import Log, fold_traceback
from .runtime.watchdog import Watchdog
from .settings import common_options, die, parse_flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .filter import Filter
    from .settings import CommonSettings

#: Seconds that a plain handler may hold the process up, even when its deadline is longer.
MAX_TURN = 5.0


def run(cls: type[Filter], argv: Sequence[str] | None = None) -> int:
    """Read the flags, set the filter up, and serve until the input ends.  The exit status.

    What is wrong with a flag or a file is one line on stderr and exit status 2, before smtpd is
    told ``register|ready``; from then on only the end of the input, or SIGTERM, ends it.
    """
    prog = f"filter-{cls.name}"
    common = common_options(cls.outcomes(), cls.on_error, cls.deadline)
    try:
        own, general = parse_flags(
            cls.Options,
            sys.argv[1:] if argv is None else argv,
            common=common,
            prog=prog,
            description=cls.described(),
        )
        return _serve(cls(own), general)
    except ConfigError as error:
        die(error, prog)


def _serve(filter_: Filter, general: CommonSettings) -> int:
    """Set the filter up and serve.  What is wrong with it is a ConfigError."""
    from .runtime import serve  # --help needs no loop
    from .runtime.channel import give_back, take_over

    log = Log(verbose=general.verbose)
    watchdog = Watchdog(min(MAX_TURN, general.deadline))
    # From here on the filter's own code runs, and what it prints must not get to smtpd.
    ends = take_over()
    filter_.dry_run, filter_.deadline = general.dry_run, general.deadline
    try:
        filter_.setup()
        on_error: Any = general.on_error
        chain = Chain([(filter_, on_error, general.deadline)], log, watchdog)
    except BaseException as error:
        give_back(*ends)
        if isinstance(error, ConfigError) or not isinstance(error, Exception):
            raise
        if isinstance(error, OSError):
            raise ConfigError(str(error)) from None
        # A bug, said in one line like anything else.
        raise ConfigError(f"cannot be set up: {fold_traceback(error)}") from None
    refuse = general.long_lines == "refuse"
    return serve(chain, log, watchdog, refuse_long_lines=refuse, taps=chain.taps, ends=ends)

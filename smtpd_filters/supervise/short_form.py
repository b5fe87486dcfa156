"""The short form `--supervised`: an executable becomes its own supervisor."""

from __future__ import annotations

import os
import sys

from smtpd_filters.errors import ConfigError, not_started
from smtpd_filters.settings import CHECKING, MAX_DEADLINE
from smtpd_filters.startup import ignore_hangup, python

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_filters.settings import ProcessSettings

#: The flag, which is not declared by a class of its own.
FLAG = "--supervised"
#: Seconds by which the supervisor waits longer than the filter, which answers by itself then.
GRACE = 10.0
#: The least deadline: starting takes a while on a busy machine.
LEAST = 60.0


def supervise_this(
    words: Sequence[str], on_error: str, deadline: float, process: ProcessSettings, name: str
) -> None:
    """Replace this process with a filter-supervise that runs the same command without the flag.

    `words` are the command's flags, and `name` is the filter's in the journal. The interpreter is
    started again, so that the supervisor does not keep what the filter has loaded. Return only
    while `smtpd-filters check` tries the command. Raise ConfigError if it fails.
    """
    if os.environ.get(CHECKING):
        return
    command = command_line(words)
    deadline = min(MAX_DEADLINE, max(LEAST, deadline + GRACE))
    flags = [f"--on-error={on_error}", f"--deadline={deadline:g}s"]
    flags.append(f"--long-lines={process.long_lines}")
    if process.verbose:
        flags.append("--verbose")
    if process.journal is not None:
        flags.append(f"--journal={process.journal}")
    start = python("smtpd_filters.supervise.program", f"main(within={name!r})")
    ignore_hangup()
    try:
        os.execv(sys.executable, [*start, *flags, "--", *command])  # noqa: S606  # the same program
    except OSError as error:
        raise not_started(error) from None


def command_line(words: Sequence[str]) -> list[str]:
    """Return the command line of this process without the flag; `words` are its last words."""
    given = list(words)
    before = sys.orig_argv[1 : len(sys.orig_argv) - len(given)]
    if sys.orig_argv[1 + len(before) :] != given:
        raise ConfigError(f"{FLAG} is a flag of the command line only")
    own = [word for word in given if word.partition("=")[0] != FLAG]
    return [sys.executable, *before, *own]

"""The operator's tool, ``smtpd-filters``: a module for each of its verbs.

Exit statuses: 0 when all is well, 1 when `replay` has found a difference or `list` a filter that
can't be loaded, 2 for a wrong flag or file, 3 when a replayed filter would have ended or hung
smtpd. Those of `learn` are of sysexits(3).
"""

from __future__ import annotations

import os
import sys

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import die

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

PROG = "smtpd-filters"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # What follows `--` is another program's.
    cut = words.index("--") if "--" in words else len(words)
    words, command = words[:cut], words[cut + 1 :]
    if sys.stdout is None:  # closed; whoever wants no output gets none
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    try:
        options = _parse(words)
        status = _run(options, command)
        sys.stdout.flush()
    except ConfigError as error:
        die(error, PROG)
    except BrokenPipeError:
        # Whoever read the output has seen enough.
        write_nowhere()
        return 0
    except OSError as error:
        write_nowhere()
        die(error.strerror or str(error), PROG)
    except KeyboardInterrupt:
        return 130
    return status


def write_nowhere() -> None:
    """Give up stdout: what is still flushed at exit must not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(options: Namespace, command: list[str]) -> int:
    if options.verb == "learn":
        from . import learn  # each verb for itself

        return learn.run(options, command)
    if command and options.verb != "replay":
        raise ConfigError(f"{options.verb} takes no command behind --")
    if options.verb == "list":
        from . import listing

        return listing.run(as_json=options.json)
    if options.verb == "record":
        from . import record

        return record.run(options)
    from . import replay

    return replay.run(options, command)


def _parse(words: list[str]) -> Namespace:
    from . import parser  # filter-chain is of this package, and does without argparse

    try:
        return parser.parse(words)
    except SystemExit:
        sys.stdout.flush()  # --help and --version
        raise

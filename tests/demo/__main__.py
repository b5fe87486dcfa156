"""The program `python -m tests.demo`."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError
from smtpd_filters.testing.rspamd import daemon
from smtpd_filters.testing.server import (
    VERSIONS,
    LabError,
    add_server,
    system_version,
    unavailable,
    versions,
)
from tests.demo.configuration import CONF
from tests.demo.live import serve
from tests.demo.recorded import left_out, replay
from tests.demo.report import show, summary, unexpected
from tests.demo.sheet import Painter, wrap

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of what is piped: wide enough for most reasons, and fits a screen.
PIPED_WIDTH = 110
NARROWEST, WIDEST = 60, 150


def choose(wanted: str | None) -> tuple[str | None, str]:
    """Return the version of smtpd to run; or None, and the reason in one line."""
    own = system_version()
    by_itself = sorted(versions(), key=lambda each: each != own)
    reasons = {
        each: unavailable(each) or daemon.unavailable()
        for each in ([wanted] if wanted else by_itself)
    }
    for each, reason in reasons.items():
        if reason is None:
            return each, ""
    return None, next(reason for reason in reasons.values() if reason)


def server(given: str) -> str:
    """Return the version of smtpd that an argument names, by itself or by its root."""
    if "/" in given:
        try:
            return add_server(given)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    if given not in versions():
        raise argparse.ArgumentTypeError(
            f"{given}: neither a version ({', '.join(VERSIONS)}) nor a root"
        )
    return given


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.demo",
        description="Good and bad neighbours send mail to a real smtpd with six filters.",
    )
    parser.add_argument(
        "--server",
        type=server,
        metavar="VERSION|ROOT[=VERSION]",
        help=f"{' or '.join(VERSIONS)}, or the file system of another; by default the system's",
    )
    parser.add_argument(
        "--replay", action="store_true", help="run no smtpd, replay the recorded sessions"
    )
    parser.add_argument("--width", type=int, help="columns of the table; by default the terminal's")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; return the exit status."""
    options = arguments(argv)
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    paint = Painter(colour=terminal and not os.environ.get("NO_COLOR"))
    width = options.width or shutil.get_terminal_size((PIPED_WIDTH, 24)).columns
    width = max(NARROWEST, min(width, WIDEST))
    rule = "─" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"
    say = functools.partial(print, flush=True)

    server, reason = (None, "") if options.replay else choose(options.server)
    if reason and os.environ.get("SMTPD_FILTERS_E2E") == "required":
        sys.stderr.write(f"{reason}\n")
        return 1
    if reason:
        say(f"No real smtpd: {reason}. Recorded sessions are replayed instead.\n")
    say(paint("What smtpd.conf says", "bold") + paint(f"  ({_shown(CONF)})", "dim"))
    for line in CONF.read_text("utf-8").splitlines():
        if line.startswith(("filter", "listen on all")):
            say("\n".join(f"  {part}" for part in wrap(line, width - 2, hanging="    ")))
    say()
    began = time.monotonic()
    try:
        outcomes = serve(server) if server else replay()
    except (ConfigError, LabError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    seconds = time.monotonic() - began
    say("\n".join(show(outcomes, width, paint, rule)))
    how = f"On a real smtpd {server}" if server else "Replayed from a recording"
    say(f"\n{how}: {paint(summary(outcomes, seconds), 'bold')}")
    if not server:
        absent = ", ".join(left_out(CONF.read_text("utf-8")))
        say(f"Left out, since they ask others who aren't here: {absent}.")
    wrong = unexpected(outcomes)
    for line in wrong:
        say(paint(line, "red"))
    say(
        "\n".join(
            wrap(
                f"Next: change a filter's line or a rule in {_shown(CONF)} and run it again; "
                "`make test` passes the tests; README.md shows how to write a filter.",
                width,
                hanging="",
            )
        )
    )
    return 1 if wrong else 0


def _shown(path: Path) -> str:
    """Return a path relative to the working directory, if that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def program() -> int:
    """Run it as a program whose reader may close the pipe, as `head` does."""
    try:
        return main()
    except BrokenPipeError:
        # The interpreter flushes what is left at its end; Python's documentation of SIGPIPE.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(program())

"""The operator's tool, ``smtpd-filters``: a module for each of its verbs.

Exit statuses: 0 when all is well, 1 when `replay` has found a difference or `list` a filter that
can't be loaded, 2 for a wrong flag or file, 3 when a replayed filter would have ended or hung
smtpd.
"""

from __future__ import annotations

import argparse
import os
import sys

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import die

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

PROG = "smtpd-filters"
USAGE = 2


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        die(f"{message} (see {self.prog} --help)", self.prog)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # What follows `--` is another program's.
    cut = words.index("--") if "--" in words else len(words)
    words, command = words[:cut], words[cut + 1 :]
    parser = _parser()
    options = parser.parse_args(words)
    try:
        status = _run(options, command)
        sys.stdout.flush()
    except ConfigError as error:
        die(error, PROG)
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is flushed at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _run(options: argparse.Namespace, command: list[str]) -> int:
    if command and options.verb != "replay":
        raise ConfigError(f"{options.verb} takes no command behind --")
    if options.verb == "list":
        from . import listing  # each verb for itself

        return listing.run(as_json=options.json)
    if options.verb == "record":
        from . import record

        return record.run(options)
    from . import replay

    return replay.run(options, command)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        description="Look after filters for OpenSMTPD's smtpd(8).",
        epilog=f"See '{PROG} VERB --help' for the options of a verb.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    _add_list(verbs)
    _add_record(verbs)
    _add_replay(verbs)
    return parser


def _add_list(verbs: argparse._SubParsersAction[_Parser]) -> None:
    parser = verbs.add_parser(
        "list",
        help="list the filters and what they ask of smtpd",
        description="List the filters that are installed and, with their flags left alone, what "
        "they register: each phase is a round trip of smtpd's, each report a line.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_record(verbs: argparse._SubParsersAction[_Parser]) -> None:
    parser = verbs.add_parser(
        "record",
        help="be a filter that writes sessions to files",
        description="Be a filter that changes nothing and writes sessions to files, which replay.",
        epilog='In smtpd.conf: filter recorder proc-exec "smtpd-filters record /var/spool/sessions"'
        "  Credentials are never written.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="where to; made if it is missing")
    parser.add_argument("--no-body", action="store_true", help="leave out the bodies of messages")
    parser.add_argument(
        "--anonymise",
        action="store_true",
        help="write pseudonyms in place of names, addresses and words, and no bodies",
    )
    parser.add_argument(
        "--max-size", metavar="SIZE", help="begin another file at this size (default 16M)"
    )
    parser.add_argument("--max-files", metavar="N", help="how many files to keep (default 10)")
    parser.add_argument(
        "--detail", metavar="LEVEL", default="none", help="log as filter-trace does (default none)"
    )


def _add_replay(verbs: argparse._SubParsersAction[_Parser]) -> None:
    parser = verbs.add_parser(
        "replay",
        help="play recordings to a filter and compare what it answers",
        usage=f"{PROG} replay [option ...] FILE ... -- COMMAND ...",
        description="Play recordings to a filter as smtpd would, check that smtpd would survive "
        "its answers, and print them beside those recorded.",
        epilog="Exit status: 0 when nothing differs, 1 when something does, 2 for a wrong flag or "
        "file, 3 when the filter would have ended or hung smtpd.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="a recording, or a directory with recordings (*.session) below it",
    )
    parser.add_argument("--diff", action="store_true", help="show only what differs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--protocol",
        choices=("0.5", "0.6", "0.7"),
        help="speak this version of the protocol in place of the recorded one",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        default="30",
        help="how long to wait for an answer (default 30)",
    )
    parser.add_argument("--log", action="store_true", help="show what the filter logs")

"""The command line of ``smtpd-filters``.

It is read with argparse, which the filters do without: no filter's executable imports this.
"""

from __future__ import annotations

import argparse

from smtpd_filters.settings import die

from . import PROG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with 2."""
        die(f"{message} (see {self.prog} --help)", self.prog)


def make() -> argparse.ArgumentParser:
    """The parser of all verbs."""
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

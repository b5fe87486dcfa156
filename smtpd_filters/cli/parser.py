"""The command line of ``smtpd-filters``.

It is read with argparse, which the filters do without: no filter's executable imports this.
"""

from __future__ import annotations

import argparse
import sys

from smtpd_filters.settings import die, package
from smtpd_filters.settings.declare import suggest
from smtpd_filters.settings.kinds import printable, quote

from . import PROG

#: sysexits(3).
EX_USAGE = 64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    #: What it exits with; None for that of all else that is wrong at the start.
    status: int | None = None

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit."""
        try:
            die(f"{message} (see {self.prog} --help)", self.prog)
        except SystemExit as ended:
            raise SystemExit(self.status or ended.code) from None

    def refuse(self, word: str) -> NoReturn:
        """Say that a word is not known, with the nearest option, and exit."""
        if not word.startswith("-"):
            self.error(f"unexpected argument {quote(word)}")
        flag = word.partition("=")[0]
        self.error(f"unknown option {printable(flag)}{suggest(flag, self._option_string_actions)}")


class _Version(argparse.Action):
    """argparse's own has the version looked up at every start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Say it and exit."""
        sys.stdout.write(f"{package()}\n")
        parser.exit()


def parse(words: list[str]) -> argparse.Namespace:
    """Read a command line; what is wrong ends the program."""
    parser = make()
    for word in words:
        if not word.startswith("-"):
            break
        if word.partition("=")[0] not in parser._option_string_actions:  # noqa: SLF001  # they have no other list
            parser.refuse(word)
    options, rest = parser.parse_known_args(words)
    if options.verb == "learn":
        # argparse takes no files behind an option that stands behind another word.
        parser.status = EX_USAGE
        options.files += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        _of_verb(parser, options.verb).refuse(rest[0])
    return options


def _of_verb(parser: _Parser, verb: str) -> _Parser:
    """The parser of a verb."""
    [verbs] = [each for each in parser._actions if each.dest == "verb"]  # noqa: SLF001
    choices: dict[str, _Parser] = verbs.choices  # type: ignore[assignment]
    choices[verb].status = parser.status
    return choices[verb]


def make() -> _Parser:
    """The parser of all verbs."""
    parser = _Parser(
        prog=PROG,
        description="Look after filters for OpenSMTPD's smtpd(8).",
        epilog=f"See '{PROG} VERB --help' for the options of a verb.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show which version this is and exit"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    _add_learn(verbs)
    _add_list(verbs)
    _add_record(verbs)
    _add_replay(verbs)
    return parser


def _add_learn(verbs: argparse._SubParsersAction[_Parser]) -> None:
    parser = verbs.add_parser(
        "learn",
        help="give messages to rspamd to learn from",
        description="Give messages to rspamd's controller to learn from, as spam or as ham.",
        epilog="Exit status, of sysexits(3): 0 when all is learned, was learned before, or is "
        "skipped by rspamd as too short or no news; 75 when another try may help; 65 for a message "
        "that can't be learned, 66 for a file that can't be read, 77 for a wrong password, 64 for "
        "a wrong option, 78 for a password file that can't be read.",
        allow_abbrev=False,
    )
    parser.status = EX_USAGE
    parser.add_argument("kind", choices=("ham", "spam"), help="what the messages are")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        default=[],  # without one argparse says that it is required
        help="a message, an mbox, a maildir or a directory of messages; without any a message is "
        "read from stdin",
    )
    parser.add_argument(
        "-url",
        "--url",
        default="http://localhost:11334",
        help="the controller: http://HOST:PORT, https or the path of a socket (default "
        "http://localhost:11334)",
    )
    parser.add_argument("--password-file", metavar="FILE", help="its first line is the password")
    parser.add_argument(
        "--user", metavar="NAME", default="", help="whose mail it is, where users have their own"
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        default="60",
        help="how long to wait for the controller (default 60)",
    )
    parser.add_argument(
        "--jobs", metavar="N", default="4", help="how many messages at one time (default 4)"
    )
    parser.add_argument(
        "--mbox", action="store_true", help="what comes from stdin is an mbox, not a message"
    )


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

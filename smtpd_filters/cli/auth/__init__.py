"""`smtpd-filters auth`: the verdict of filter-auth on a message, explained step by step.

`examination` has the filter examine the message, `explanation` describes what it found, and
`text` prints that for people.
"""

from __future__ import annotations

import sys

from smtpd_filters.cli.streams import print_json
from smtpd_filters.cli.verb import Verb
from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.settings import SWITCH, TEXT, Kind, Settings, choice, operand, option
from smtpd_filters.settings.files import open_input
from smtpd_filters.tables.networks import parse_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PASSED, STOPPED, UNCERTAIN = 0, 1, 3


class _Address(Kind[str]):
    metavar = "ADDRESS"
    noun = "an IP address"

    def parse(self, text: str) -> str:
        try:
            parse_address(text)
        except ValueError:
            raise ValueError(f"expected {self.noun}, not {text[:60]!r}") from None
        return text


#: Bytes of a message, at most; the help names them.
_LARGEST = 128 << 20


class Options(Settings):
    """The message, and how it arrived."""

    action = operand(
        choice("check"),
        required=True,
        metavar="ACTION",
        help="check explains what filter-auth finds out about a message, and what it would do.",
    )
    file = operand(
        TEXT,
        required=True,
        metavar="FILE",
        help="The message, as it arrived or as it was delivered, of at most 128 MiB; - is the "
        "standard input.",
    )
    client = option(_Address(), required=True, help="The address of the client that sent it.")
    helo = option(TEXT, required=True, help="The name in the client's greeting (HELO or EHLO).")
    mail_from = option(
        TEXT,
        required=True,
        help="The sender of the envelope (MAIL FROM); '' is the null sender.",
    )
    server = option(
        TEXT,
        default="",
        help="The name of smtpd; by default that of this host. See --authserv-id of filter-auth.",
    )
    json = option(SWITCH, default=False, help="Print JSON.")


def run(options: Options, words: list[str]) -> int:
    """Explain the verdict on a message; return the exit status."""
    from .examination import Arrival, examine
    from .explanation import explain

    content = _content(options.file)
    sender = options.mail_from.removeprefix("<").removesuffix(">")
    arrival = Arrival(options.client, options.helo, sender, options.server)
    found = explain(examine(content, arrival, words))
    if options.json:
        print_json(found)
    else:
        from .text import written

        sys.stdout.write(written(found))
    return _status(found)


def _status(found: dict[str, Any]) -> int:
    if found["uncertain"]:
        return UNCERTAIN
    return PASSED if found["decision"]["result"] == "proceed" else STOPPED


def _content(name: str) -> bytes:
    try:
        if name == "-":
            if sys.stdin is None:
                raise ConfigError("stdin is closed")
            content = sys.stdin.buffer.read(_LARGEST + 1)
        else:
            with open_input(name) as file:
                content = file.read(_LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{name}: {os_reason(error)}") from None
    if len(content) > _LARGEST:
        raise ConfigError(f"{name}: larger than {_LARGEST >> 20} MiB")
    return content


def _others() -> type[Settings]:
    """Return the options of filter-auth."""
    from smtpd_filters.filters.auth import Auth

    return Auth.Options


VERB = Verb(
    "auth",
    run,
    options=Options,
    description="Explain the verdict of filter-auth on a message, step by step. The flags of the "
    "filter follow after --.",
    behind="FLAG ...",
    others=_others,
    ending="Exit status: 0 if the filter would accept the message unmarked, 1 if it would mark or "
    "refuse it, 2 for a wrong flag or an unreadable file, 3 if a look-up failed, so that the "
    "verdict may be another one later.",
)

"""`smtpd-filters help`: the list of verbs, or the help of a verb or a filter."""

from __future__ import annotations

import sys

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import TEXT, Settings, operand
from smtpd_filters.settings.declare import suggest
from smtpd_filters.settings.quoting import printable, quote

from . import PROG, VERBS, load
from .verb import Verb


class Options(Settings):
    """The topic."""

    topic = operand(
        TEXT,
        default="",
        metavar="NAME",
        help="A verb, the name of a filter with or without `filter-`, or the path of a file "
        "with a filter of your own.",
    )


def run(options: Options, _rest: list[str]) -> int:
    """Print the help."""
    topic = options.topic
    if not topic:
        sys.stdout.write(overview())
    elif topic in VERBS:
        sys.stdout.write(load(topic).help())
    else:
        from .chain_use import UnknownFilterError
        from .run import find

        try:
            main = find(topic)
        except UnknownFilterError as error:
            near = suggest(topic, VERBS) or error.near
            if not near:
                filters = ", ".join(map(printable, error.known))
                near = f" (verbs: {', '.join(VERBS)}; filters: {filters})"
                near += "; name a file of your own by its path, as in /etc/mail/filters/x.py"
            raise ConfigError(f"no verb and no filter {quote(topic)}{near}") from None
        return main(["--help"])
    return 0


def overview() -> str:
    """Return the help of the tool itself."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name.ljust(width)}  {load(name).summary}" for name in VERBS)
    return (
        f"usage: {PROG} VERB [option ...] [operand ...]\n\n"
        "Manage the filters of OpenSMTPD's smtpd(8).\n\n"
        f"Verbs:\n{verbs}\n\n"
        f"Options:\n  --version\n        Print the version and exit.\n\n"
        f"`{PROG} help VERB` shows the options of a verb, `{PROG} help NAME` those of a filter.\n"
    )


VERB = Verb(
    "help",
    run,
    options=Options,
    description="Show the help of a verb or of a filter, by default the list of verbs.",
)

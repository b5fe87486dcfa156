"""The operator's tool, `smtpd-filters`: a module for each of its verbs.

A verb's module declares its flags and operands as settings and names them in its `VERB` (`verb`).
Only the module of the verb that runs is loaded: `learn` must start quickly. The manual page and the
shells' completions are generated from the same declarations.

Exit statuses: 0 for success, 1 if `check` or `dkim` finds an error, `auth` a message that would
not pass, `replay` a difference, `list` a filter that can't be loaded, or `why` and `store` nothing,
2 for an invalid flag or file, 3 if a replayed filter would have ended or hung smtpd, or if `auth`
or `table` could not look something up. `learn` uses those of sysexits(3), and `run` those of the
filter.
"""

from __future__ import annotations

import sys
from importlib import import_module

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import die, package
from smtpd_filters.settings.declare import RESERVED, nearest
from smtpd_filters.settings.quoting import printable, quote
from smtpd_filters.startup import handle_interrupt

from .streams import prepare, write_nowhere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .verb import Verb

PROG = "smtpd-filters"
#: The verbs, with the modules that declare them.
VERBS = {
    "auth": "auth",
    "check": "check",
    "dkim": "dkim",
    "dmarc": "dmarc",
    "greylist": "greylist",
    "help": "overview",
    "journal": "journal",
    "learn": "learn",
    "limit": "limit",
    "list": "listing",
    "record": "record",
    "reload": "reload",
    "replay": "replay",
    "run": "run",
    "stats": "stats",
    "store": "entries",
    "table": "table",
    "tail": "tail",
    "web": "web",
    "why": "why",
}
#: Verbs that are filters, which complain of closed streams themselves.
_FILTERS = ["run"], ["record"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepare(descriptors=words[:1] not in _FILTERS)
    try:
        handle_interrupt()
        status = _main(words)
        sys.stdout.flush()
    except ConfigError as error:
        die(error, PROG)
    except BrokenPipeError:
        # The reader, such as head(1), has exited.
        write_nowhere()
        return 0
    except OSError as error:
        write_nowhere()
        die(error.strerror or str(error), PROG)
    except KeyboardInterrupt:
        return 130
    return status


def _main(words: list[str]) -> int:
    first, *rest = words or [""]
    if first == "--version":
        sys.stdout.write(f"{package()}\n")
        return 0
    if first in ("-h", "-help", "--help"):
        first = "help"
    if first.startswith("-"):
        flag = first.partition("=")[0]
        raise ConfigError(f"unknown flag {printable(flag)}{nearest(flag, RESERVED)}")
    if not first:
        raise ConfigError(f"VERB is required: {', '.join(VERBS)} (see {PROG} help)")
    if first not in VERBS:
        raise ConfigError(f"unknown verb {quote(first)}{nearest(first, VERBS)}")
    try:
        verb = load(first)
    except ImportError as error:
        raise ConfigError(f"{first} can't run: {error}") from None
    try:
        return verb.run(rest)
    except ImportError as error:
        die(ConfigError(f"can't run: {error}"), verb.prog)
    except ConfigError as error:
        die(error, verb.prog, verb.usage)
    except SystemExit:
        sys.stdout.flush()
        raise


def load(name: str) -> Verb:
    """Load the module of a verb; return the verb."""
    verb: Verb = import_module(f".{VERBS[name]}", __package__).VERB
    return verb

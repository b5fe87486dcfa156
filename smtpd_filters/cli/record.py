"""`smtpd-filters record`: filter-trace with only its recordings."""

from __future__ import annotations

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.trace import Trace
from smtpd_filters.main import start
from smtpd_filters.settings import PATH, Settings, die, operand, option

from .verb import Verb

_TRACE = Trace.Options.options


class Options(Settings):
    """The directory and the content of recordings; the flags are those of filter-trace."""

    directory = operand(
        PATH,
        required=True,
        metavar="DIR",
        help="The absolute path of the directory for the files; it is created if missing.",
    )
    no_body = _TRACE["no_body"]
    anonymise = _TRACE["anonymise"]
    max_size = _TRACE["max_size"]
    max_files = _TRACE["max_files"]
    detail = option(_TRACE["detail"].kind, default="none", help=_TRACE["detail"].help)


def run(options: Options, _rest: list[str]) -> int:
    """Run the filter until the end of input."""
    words = [f"--record={options.directory}"]
    for name, declared in Options.options.items():
        if not declared.positional:
            words.append(f"{declared.shown}={declared.kind.show(vars(options)[name])}")
    try:
        return start(Trace, words, VERB.prog)
    except ConfigError as error:
        # The directory is an operand, without a flag.
        die(str(error).replace("--record: ", "", 1), VERB.prog)


VERB = Verb(
    "record",
    run,
    options=Options,
    description="Run a filter that changes nothing and writes sessions to files, for replay. "
    'In smtpd.conf: filter recorder proc-exec "smtpd-filters record /var/spool/sessions". '
    "Credentials are never written.",
)

"""``smtpd-filters record``: filter-trace, of which only the recording is wanted."""

from __future__ import annotations

from smtpd_filters.errors import ConfigError
from smtpd_filters.filters.trace import Trace
from smtpd_filters.main import start
from smtpd_filters.settings import die

from . import PROG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(options: Namespace) -> int:
    """Be that filter until the input ends."""
    argv = [f"--record={options.directory}", f"--detail={options.detail}"]
    if options.max_size is not None:
        argv.append(f"--max-size={options.max_size}")
    if options.max_files is not None:
        argv.append(f"--max-files={options.max_files}")
    if options.no_body:
        argv.append("--no-body")
    if options.anonymise:
        argv.append("--anonymise")
    prog = f"{PROG} record"
    try:
        return start(Trace, argv, prog)
    except ConfigError as error:
        # The directory is named without a flag.
        die(str(error).replace("--record: ", "", 1), prog)

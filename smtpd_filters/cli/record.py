"""``smtpd-filters record``: filter-trace, of which only the recording is wanted."""

from __future__ import annotations

from smtpd_filters.filters import trace

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
    return trace.main(argv)

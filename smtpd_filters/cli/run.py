"""`smtpd-filters run`: a filter by its name, as if by its executable."""

from __future__ import annotations

import os
import sys

from smtpd_filters import main as executable
from smtpd_filters.settings import TEXT, Settings, operand
from smtpd_filters.settings.quoting import printable

from . import PROG
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The names of filter-chain and filter-supervise, for which there is no filter class.
CHAIN, SUPERVISE = "chain", "supervise"


class Options(Settings):
    """The filter."""

    name = operand(
        TEXT,
        required=True,
        metavar="NAME",
        help="The filter's name, such as `fcrdns` for filter-fcrdns, or the path of a file "
        "with a filter of your own, followed by flags of the filter. "
        f"`{PROG} list` shows the names; `{CHAIN}` and `{SUPERVISE}` are two more.",
    )


def run(options: Options, words: list[str]) -> int:
    """Run the filter; return its exit status."""
    status = find(options.name)(words)
    # On a terminal only its flags and files were checked.
    if status == 0 and os.isatty(0) and os.isatty(1) and _is_path(options.name):
        path = options.name
        if not os.path.exists(path):  # noqa: PTH110  # start-up time
            path = path.rpartition(":")[0]
        if not os.access(path, os.X_OK):
            shown = printable(path)
            sys.stderr.write(
                f"{PROG} run: {shown}: not executable; to name it in proc-exec, run "
                f"chmod 755 {shown}\n"
            )
    return status


def _is_path(name: str) -> bool:
    """Return whether a name is the path of a file, maybe with a class."""
    return "/" in name or name.partition(":")[0].endswith(".py")


def find(name: str) -> Callable[[Sequence[str]], int]:
    """Return the main function of a filter, by its name or the path of its file.

    Raises ConfigError for an unknown one.
    """
    if _is_path(name):
        name = os.path.abspath(name)  # noqa: PTH100  # not resolved
    name = name.removeprefix("filter-")
    if name == CHAIN:
        from .chain import main

        return main
    if name == SUPERVISE:
        from smtpd_filters.supervise.program import main as supervise

        return supervise
    from .chain_use import BUILT_IN
    from .chain_use import find as find_class

    cls = find_class(name, [CHAIN, SUPERVISE])
    # A package has it beside its policy, as [project.scripts] names it.
    of_module = getattr(sys.modules[cls.__module__.removesuffix(".policy")], "main", None)
    if cls.name != name or not callable(of_module):
        return lambda words: executable.run(cls, words)
    if cls.__module__.startswith(f"{BUILT_IN}."):
        return of_module  # type: ignore[no-any-return]
    return lambda words: _as_script(of_module, words)


def _as_script(main: Callable[[], int], words: Sequence[str]) -> int:
    """Call a main function without arguments, as the script of a distribution calls it."""
    sys.argv[1:] = words
    return main()


VERB = Verb(
    "run",
    run,
    options=Options,
    description="Start a filter by its name, as smtpd starts its executable. On a terminal it "
    "checks its flags and files, prints the result, and exits.",
    ending="The exit status is that of the filter.",
    hands_over=True,
)

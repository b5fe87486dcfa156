"""`smtpd-filters check`: a check of smtpd.conf's filters and smtpd-filters.toml before a restart.

Invariants
----------
*As smtpd*: a filter is started as smtpd starts it (`starter`), a chain file is checked as by
`filter-chain -n`.
*Ends*: each check has a time limit, after which its process is ended.
"""

from __future__ import annotations

import os
import subprocess
import sys

from smtpd_filters.errors import ConfigError
from smtpd_filters.settings import LIST, PATH, SECONDS, TEXT, Settings, option
from smtpd_filters.settings.kinds import printable, quote

from . import chain, smtpd_conf
from .accounts import UnknownError, filters_user
from .starter import Conditions, try_program
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .smtpd_conf import Program
    from .starter import Result

FINE, FAULTY = 0, 1
#: The default paths of smtpd.conf: on OpenBSD, FreeBSD, Debian, elsewhere.
PLACES = (
    "/etc/mail/smtpd.conf",
    "/usr/local/etc/mail/smtpd.conf",
    "/etc/smtpd.conf",
    "/etc/smtpd/smtpd.conf",
    "/etc/opensmtpd/smtpd.conf",
)


class Options(Settings):
    """The files and the user."""

    config = option(
        PATH,
        default=None,
        flags=("-f",),
        help="The file of smtpd.conf(5); by default smtpd.conf in /etc/mail, /usr/local/etc/mail, "
        "/etc, /etc/smtpd or /etc/opensmtpd, the first that exists.",
    )
    chains = option(
        PATH,
        default=None,
        help="Check this file of smtpd-filters.toml(5), with all its chains, and no smtpd.conf. By "
        "default filter-chain's default file is checked, if it exists.",
    )
    chain = option(TEXT, default="", help="With --chains, the only chain to check.")
    macro = option(
        LIST(TEXT),
        default=(),
        flags=("-D",),
        help="NAME=VALUE: a macro of smtpd.conf, as for smtpd's -D.",
    )
    user = option(
        TEXT,
        default="",
        help="As root: the user that smtpd runs filters as, unless a line names another. "
        "By default it is smtpd's own (_smtpd, opensmtpd or smtpd).",
    )
    timeout = option(
        SECONDS(low=0.001), default=30.0, help="How long a filter may take to get ready."
    )


def run(
    options: Options,
    _rest: list[str],
    *,
    conditions: Conditions = Conditions(),  # noqa: B008  # immutable
    places: tuple[str, ...] = PLACES,
    chain_places: tuple[str, ...] = chain.PLACES,
) -> int:
    """Check the files, print each result in one line, and return the exit status.

    `places` and `chain_places` are the files of smtpd and of filter-chain to try by default.
    """
    conditions = conditions._replace(ready=options.timeout)
    _check_user(options.user)
    if options.chain and options.chains is None:
        raise ConfigError("--chain requires --chains")
    if options.chains is not None:
        if options.config is not None:
            raise ConfigError("--chains and --config exclude each other: check one file at a time")
        return _chain_file(options, options.chains)
    config = options.config or _first(places)
    chains = None if options.config else _first(chain_places)
    if config is None and chains is None:
        raise ConfigError(f"no such file: {', '.join(places)}; name one with --config")
    statuses = []
    if config is not None:
        statuses.append(_configuration(options, config, conditions))
    if chains is not None:
        statuses.append(_chain_file(options, chains))
    return max(statuses)


def _check_user(name: str) -> None:
    if name and os.geteuid():
        raise ConfigError("--user: only root can check as another user")
    if name:
        try:
            filters_user(name)
        except UnknownError as error:
            raise ConfigError(f"--user: {error}") from None


def _first(places: tuple[str, ...]) -> str | None:
    return next((path for path in places if os.path.lexists(path)), None)


# -- smtpd.conf ------------------------------------------------------------------------------


def _configuration(options: Options, path: str, conditions: Conditions) -> int:
    read = smtpd_conf.read(path, _macros(options.macro))
    for problem in read.problems:
        _print(str(problem))
    wrong = len(read.errors)
    for program in read.programs:
        _flush()
        result = try_program(program, options.user, conditions)
        wrong += bool(result.error)
        _show(program, result)
    if read.errors:
        _print(f"{path}: smtpd -n -f {path} checks the rest of the file")
    if os.geteuid():
        _print(f"{path}: only root can try filters as smtpd's user, whose rights may differ")
    count = len(read.programs)
    errors = f"{wrong or 'no'} error{'' if wrong == 1 else 's'}"
    _print(f"{path}: {count or 'no'} filter{'' if count == 1 else 's'}, {errors}")
    return FAULTY if wrong else FINE


def _macros(given: tuple[str, ...]) -> dict[str, str]:
    """Parse macros as cmdline_symset() of parse.y: the last "=" separates name and value."""
    macros = {}
    for each in given:
        name, equals, value = each.rpartition("=")
        if not equals:
            raise ConfigError(f"--macro: expected NAME=VALUE, not {quote(each)}")
        macros[name] = value
    return macros


def _show(program: Program, result: Result) -> None:
    where = f"{program.place}: {program.statement} {quote(program.name)}"
    as_user = f" (as {result.user})" if result.user else ""
    if result.error:
        _print(f"{where}: {result.error}{as_user}")
    elif result.untried:
        _print(f"{where}: not checked: {result.untried}{as_user}")
    else:
        _print(f"{where}: ok{as_user}")
    if result.remains:
        _print(f"{where}: warning: a process that it started in a session of its own still runs")
    for line in result.logged:
        _print(f"{where}: log: {line}")


# -- smtpd-filters.toml ----------------------------------------------------------------------


def _chain_file(options: Options, path: str) -> int:
    """Check a chain file as `filter-chain -n` does: in a process that becomes smtpd's user."""
    words = [f"--config={os.path.abspath(path)}"]  # noqa: PTH100  # not resolved
    words += [f"--chain={options.chain}"] if options.chain else []
    words += [f"--user={options.user}"] if options.user else []
    # Import modules from where this process does, and nowhere else: it may run as root.
    modules = f"import sys; sys.path = {sys.path!r}"
    program = f"{modules}; from {chain.__name__} import main; sys.exit(main())"
    command = [sys.executable, "-I", "-c", program]
    _flush()
    try:
        done = subprocess.run(  # noqa: S603  # our own program
            [*command, "--check", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=options.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _print(f"{path}: not checked within {options.timeout:g} s")
        return FAULTY
    for line in done.stderr.splitlines():
        _print(line.removeprefix(f"{chain.PROG}: "))
    return FAULTY if done.returncode else FINE


def _print(line: str) -> None:
    sys.stdout.write(f"{printable(line)}\n")


def _flush() -> None:
    """Show the results so far, since the next check may take a while."""
    sys.stdout.flush()


VERB = Verb(
    "check",
    run,
    options=Options,
    stray="-f names a smtpd.conf, --chains a smtpd-filters.toml",
    description="Check the filters of smtpd.conf(5) and smtpd-filters.toml(5). Each filter of this "
    "package is started as smtpd would start it, as the same user; other programs only have to "
    "be executable. smtpd -n starts no filters: run both before smtpd is restarted.",
    ending="Exit status: 0 when nothing is wrong, 1 when something is, 2 for a wrong flag or an "
    "unreadable file. Warnings don't count.",
)

"""filter-chain: the program that runs several filters in one process, as a file declares them.

Invariants
----------
*Before ready*: an error in the file ends the process before `register|ready`, as in the executable
of a single filter.
*Lean*: only the modules that the chain's filters need are loaded.
"""

from __future__ import annotations

import os
import re
import sys

from smtpd_filters.errors import ConfigError
from smtpd_filters.main import make_chain, serve_chain, set_up
from smtpd_filters.scoring.rules import RuleError
from smtpd_filters.settings import (
    PATH,
    SUPERVISED,
    SWITCH,
    TEXT,
    Pool,
    ProcessSettings,
    Settings,
    die,
    option,
    parse_flags,
    start_status,
)
from smtpd_filters.settings.quoting import printable

from .chain_file import ChainFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from smtpd_filters.chain import Chain
    from smtpd_filters.main import Ready
    from smtpd_filters.runtime.log import Log

    from .chain_file import Declared

PROG = "filter-chain"
#: The default paths of the file: beside smtpd.conf on OpenBSD, FreeBSD and Debian.
PLACES = (
    "/etc/mail/smtpd-filters.toml",
    "/usr/local/etc/mail/smtpd-filters.toml",
    "/etc/smtpd-filters.toml",
)


class Options(Settings):
    """The flags of filter-chain."""

    config = option(
        PATH,
        default=None,
        flags=("-f",),
        help="The chain file; by default smtpd-filters.toml in /etc/mail, /usr/local/etc/mail or "
        "/etc, the first that exists.",
    )
    chain = option(
        TEXT,
        default="",
        help="The name of the chain to run; required only if the file has several.",
    )
    check = option(
        SWITCH,
        default=False,
        flags=("-n",),
        help="Check the file, with all its chains unless --chain names one, and exit with 0 if it "
        "is valid and with 1 otherwise, as smtpd -n.",
    )
    user = option(
        TEXT,
        default="",
        help="With --check, as root: the user to check as, the one that smtpd runs the filter as. "
        "By default it is smtpd's own (_smtpd, opensmtpd or smtpd), if it exists.",
    )
    online = option(
        SWITCH,
        default=False,
        help="With --check: have the filters ask the services that their settings name, such as "
        "name servers, and report each answer as a line of JSON.",
    )


class Common(Settings):
    """The flags of every filter that apply to the whole process."""

    verbose = option(
        SWITCH,
        default=False,
        flags=("-v",),
        help=ProcessSettings.options["verbose"].help,
    )
    sandbox = option(
        ProcessSettings.options["sandbox"].kind,
        default=ProcessSettings.options["sandbox"].default,
        help=f"{ProcessSettings.options['sandbox'].help} This overrides the file's.",
    )
    journal = option(
        PATH,
        default=None,
        help=f"{ProcessSettings.options['journal'].help} This overrides the file's.",
    )
    supervised = SUPERVISED


def main(argv: Sequence[str] | None = None, *, places: Sequence[str] = PLACES) -> int:
    """Run the executable filter-chain; `places` are the files to try without --config."""
    try:
        words = sys.argv[1:] if argv is None else argv
        own, common = parse_flags(
            Options,
            words,
            common=Common,
            prog=PROG,
            description="Run several filters in one process, as smtpd-filters.toml(5) declares "
            "them.",
        )
        if own.check:
            from .chain_check import check  # start-up time

            return check(own, places)
        if common.supervised:
            _supervise(words, own, places)
        given = {name: value for name, value in vars(common).items() if name in common.given}
        given.pop("supervised", None)
        return _serve(own, places, given)
    except ConfigError as error:
        die(error, PROG, start_status(error))


def _serve(own: Options, places: Sequence[str], common: Mapping[str, object]) -> int:
    for name in ("user", "online"):
        if name in own.given:
            raise ConfigError(f"--{name} requires --check")
    file = ChainFile.read(own.config or default_path(places))
    name = file.chain(own.chain)
    process = file.process(name)
    if common:
        process = process.replace(**common)
    return serve_chain(
        # Load the operator's own modules only after stdout is replaced: smtpd must not get prints.
        lambda log: _chain(file, name, log),
        process=process,
        prog=PROG,
    )


def _supervise(words: Sequence[str], own: Options, places: Sequence[str]) -> None:
    """Become the supervisor of this chain; its file is read first, for errors and deadlines."""
    from smtpd_filters.runtime.channel import Ends
    from smtpd_filters.supervise.short_form import supervise_this

    file = ChainFile.read(own.config or default_path(places))
    name = file.chain(own.chain)
    ends = Ends()  # smtpd must not get what the operator's own modules print
    try:
        policies = [each.policy for each in file.declared(name)]
    finally:
        ends.give_back()
    # The strictest of its filters.
    outcomes = {policy.on_error for policy in policies}
    on_error = next((each for each in ("tempfail", "junk") if each in outcomes), "proceed")
    deadline = max((policy.deadline for policy in policies), default=0.0)
    supervise_this(words, on_error, deadline, file.process(name), name)


def default_path(places: Sequence[str]) -> str:
    """Return the path of the file without --config; raise ConfigError if there is none."""
    for path in places:
        if os.path.lexists(path):  # a dangling link is an error of its own
            return path
    raise ConfigError(f"no such file: {', '.join(places)}; name one with --config")


def _chain(file: ChainFile, name: str, log: Log) -> Chain:
    """Set up the filters of a chain; return the chain."""
    pool = Pool()
    declared = file.declared(name)
    ready = [prepared(file, each, log, pool) for each in declared]
    return composed(file, name, declared, ready, log)


def composed(
    file: ChainFile, name: str, declared: Iterable[Declared], ready: Sequence[Ready], log: Log
) -> Chain:
    """Return the chain of filters that are set up. Raises ConfigError."""
    try:
        return make_chain(ready, log, file.rules(name, declared))
    except RuleError as error:
        table = f"[filter.{error.filter}]" if error.filter else f"[chain.{printable(name)}]"
        raise file.located(ConfigError(f"{file.path}: {table}: {error}")) from None
    except ConfigError as error:
        raise error.as_text(f"{file.path}: [chain.{printable(name)}]: {error}") from None


def prepared(file: ChainFile, declared: Declared, log: Log, pool: Pool) -> Ready:
    """Set up a filter of a file. Raises ConfigError."""
    try:
        return set_up(declared.make(), log, declared.policy, pool)
    except ConfigError as error:
        # The filter's error names flags; in the file they are keys.
        text = re.sub(r"(?<![\w-])--(?=[a-z])", "", str(error))
        placed = file.located(ConfigError(f"{declared.where}: {text}"))
        raise error.as_text(str(placed)) from None


if __name__ == "__main__":
    sys.exit(main())

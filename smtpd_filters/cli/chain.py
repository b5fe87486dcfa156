"""filter-chain: the program that runs several filters in one process, as a file declares them.

Invariants
----------
*Before ready*: an error in the file ends the process before `register|ready`, as in the executable
of a single filter.
*Check*: `--check` reports every error of the file that would prevent smtpd from starting, as the
user that smtpd runs filters as, and exits with the status of `smtpd -n`.
*Lean*: only the modules that the chain's filters need are loaded.
"""

from __future__ import annotations

import os
import re
import sys

from smtpd_filters.errors import ConfigError, user_name
from smtpd_filters.main import make_chain, serve_chain, set_up
from smtpd_filters.runtime.log import Log
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
from smtpd_filters.settings.kinds import printable, quote

from .chain_file import ChainFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from smtpd_filters.chain import Chain
    from smtpd_filters.filter import Filter
    from smtpd_filters.main import Ready

    from .chain_file import Declared

PROG = "filter-chain"
#: The default paths of the file: beside smtpd.conf on OpenBSD, FreeBSD and Debian.
PLACES = (
    "/etc/mail/smtpd-filters.toml",
    "/usr/local/etc/mail/smtpd-filters.toml",
    "/etc/smtpd-filters.toml",
)
#: The exit statuses of `--check`, as of `smtpd -n`.
FINE, FAULTY = 0, 1


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
    file = ChainFile.read(own.config or _default_path(places))
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

    file = ChainFile.read(own.config or _default_path(places))
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


def _default_path(places: Sequence[str]) -> str:
    """Return the path of the file without --config; raise ConfigError if there is none."""
    for path in places:
        if os.path.lexists(path):  # a dangling link is an error of its own
            return path
    raise ConfigError(f"no such file: {', '.join(places)}; name one with --config")


def _chain(file: ChainFile, name: str, log: Log) -> Chain:
    """Set up the filters of a chain; return the chain."""
    pool = Pool()
    declared = file.declared(name)
    return _made(file, name, declared, [_set_up(each, log, pool) for each in declared], log)


def _made(
    file: ChainFile, name: str, declared: Iterable[Declared], ready: Sequence[Ready], log: Log
) -> Chain:
    try:
        return make_chain(ready, log, file.rules(name, declared))
    except RuleError as error:
        table = f"[filter.{error.filter}]" if error.filter else f"[chain.{printable(name)}]"
        raise file.located(ConfigError(f"{file.path}: {table}: {error}")) from None


def _set_up(declared: Declared, log: Log, pool: Pool) -> Ready:
    try:
        return set_up(declared.make(), log, declared.policy, pool)
    except ConfigError as error:
        # The filter's error names flags; in the file they are keys.
        text = re.sub(r"(?<![\w-])--(?=[a-z])", "", str(error))
        raise error.as_text(f"{declared.where}: {text}") from None


# -- checking ------------------------------------------------------------------------------


class _CheckLog(Log):
    """The log of filters that are checked."""

    #: Whether nothing is written: the answers of services say themselves why they fail.
    silent = False

    def line(self, text: str) -> None:
        """Write a line, unless silent."""
        if not self.silent:
            super().line(text)


def check(own: Options, places: Sequence[str] = PLACES) -> int:
    """Print each error of the file in one line, or that there is none; return the exit status."""
    _become(own.user)
    faults = 0
    checked: list[str] = []
    ready: dict[str, Ready | None] = {}
    journals: set[str] = set()
    warnings: list[str] = []
    log = _CheckLog()
    try:
        for fault in _faults(own, places, log, checked, ready, journals, warnings):
            faults += 1
            sys.stderr.write(f"{PROG}: {printable(str(fault))}\n")
    except ImportError as error:
        # For example in root's home, where root's pip or pipx has installed it. A module of
        # Python itself isn't missing.
        why = "" if error.name in sys.stdlib_module_names else f" ({error})"
        raise ConfigError(
            f"the user {user_name()} can't read this Python, {sys.executable}, "
            f"or its modules{why}, so smtpd can't run filter-chain"
        ) from None
    if not faults:
        for warning in warnings:
            sys.stderr.write(f"{PROG}: {printable(warning)}\n")
        text = f"configuration OK: {' '.join(checked)}, as {user_name()}"
        sys.stderr.write(f"{printable(text)}\n")
        if own.online:
            log.silent = True
            _ask_services([each[0] for each in ready.values() if each is not None], journals)
    return FAULTY if faults else FINE


def _ask_services(filters: Sequence[Filter], journals: Collection[str]) -> None:
    """Have filters ask their services, try the sockets of journals, and write the answers."""
    import asyncio

    from smtpd_filters.journal.sender import probe_of
    from smtpd_filters.runtime.probes import ask

    async def write() -> None:
        probes = [probe for each in filters for probe in each.all_probes()]
        for answer in await ask([*probes, *map(probe_of, sorted(journals))]):
            sys.stderr.write(f"{answer.line()}\n")

    asyncio.run(write())


def _faults(  # noqa: PLR0913  # what it adds to
    own: Options,
    places: Sequence[str],
    log: Log,
    checked: list[str],
    ready: dict[str, Ready | None],
    journals: set[str],
    warnings: list[str],
) -> Iterator[ConfigError]:
    """Yield every error.

    Add the path and the names of the filters to `checked`, the filters to `ready`, the sockets of
    journals to `journals`, and probable mistakes to `warnings`.
    """
    try:
        file = ChainFile.read(own.config or _default_path(places))
        chains = [file.chain(own.chain)] if own.chain else file.chains
    except ConfigError as error:
        yield from (error, *error.others)
        return
    declared: dict[str, Declared] = {}
    if not own.chain:
        for name in file.filters:
            yield from _try(file, name, "", log, ready, declared)
    for chain in chains:
        try:
            process = file.process(chain)
            names = process.filters
        except ConfigError as error:
            yield from (error, *error.others)
            continue
        journals |= {process.journal} if process.journal else set()
        for name in names:
            yield from _try(file, name, chain, log, ready, declared)
        of = [each for name in names if (each := ready[name]) is not None]
        if len(of) == len(names):
            try:
                _made(file, chain, [declared[name] for name in names], of, log)
            except ConfigError as error:
                yield error
            warnings += (f"{file.path}: warning: [chain.{chain}]: {text}" for text in _orders(of))
    checked += [file.path, f"({', '.join(ready)}{'' if own.chain else _left_out(file, chains)})"]


def _orders(ready: Iterable[Ready]) -> Iterator[str]:
    """Yield what is wrong with the order of a chain's filters, though it can be run."""
    from .smtpd_conf.advice import BEHIND_RSPAMD

    scanner = ""
    for filter_, *_ in ready:
        kind = type(filter_).name
        why = BEHIND_RSPAMD.get(f"filter-{kind}", "")
        # Rewriting of the envelope alone changes no message.
        if scanner and why and (filter_.edits_signed or kind != "rewrite"):
            yield f"filter {quote(filter_.name)}, behind {quote(scanner)}, {why}"
        scanner = filter_.name if kind == "rspamd" else scanner


def _left_out(file: ChainFile, chains: Iterable[str]) -> str:
    """Return the end of the list of filters: those that no chain has."""
    try:
        named = {name for chain in chains for name in file.process(chain).filters}
    except ConfigError:
        return ""
    unused = [name for name in file.filters if name not in named]
    return f"; in no chain: {', '.join(unused)}" if unused else ""


def _try(  # noqa: PLR0913  # what it adds to
    file: ChainFile,
    name: str,
    chain: str,
    log: Log,
    ready: dict[str, Ready | None],
    declared: dict[str, Declared],
) -> Iterator[ConfigError]:
    """Set a filter up once, and yield its errors."""
    if name in ready:
        return
    ready[name] = None
    try:
        declared[name] = file.filter(name, chain)
        ready[name] = _set_up(declared[name], log, Pool())
    except ConfigError as error:
        yield from (error, *error.others)


def _become(name: str) -> None:
    """As root, become the user that smtpd runs filters as, with its access to files."""
    if os.geteuid():
        if name:
            raise ConfigError("--user: only root can check as another user")
        return
    from .accounts import UnknownError, filters_user  # needed with --check only

    try:
        filters_user(name).enter()
    except UnknownError as error:
        if name:
            raise ConfigError(f"--user: {error}") from None


if __name__ == "__main__":
    sys.exit(main())

"""`smtpd-filters check`: a check of smtpd.conf's filters and smtpd-filters.toml before a restart.

Invariants
----------
*As smtpd*: a filter is started as smtpd starts it (`starter`), a chain file is checked as by
`filter-chain -n`.
*Ends*: each check has a time limit, after which its process is ended.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from smtpd_filters.addresses.tags import PLUS
from smtpd_filters.errors import ConfigError
from smtpd_filters.runtime.probes import TIMEOUT, Answer
from smtpd_filters.settings import LIST, PATH, SECONDS, SWITCH, TEXT, Settings, operand, option
from smtpd_filters.settings.quoting import quote

from . import chain, smtpd_conf
from .accounts import UnknownError, filters_user
from .chain_file import ChainFile
from .check_report import JsonReport, TextReport
from .smtpd_conf import Problem, chain_run_by
from .smtpd_conf.commands import file_name, flags_in, words_of
from .starter import Conditions, try_program, try_table
from .verb import Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    from .smtpd_conf import Program

FINE, FAULTY = 0, 1
#: Filters that are tried at a time, with their services.
AT_ONCE = 32
#: The flag of the character that begins a tag, and the programs that it matters to.
_DELIMITER = "--sub-addr-delim"
_OF_ADDRESSES = frozenset(
    {
        *("filter-correspondents", "filter-greylist", "filter-limit", "filter-mailfrom"),
        *("filter-rcpt", "filter-rewrite", "filter-sender", "filter-tls"),
    }
)
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

    file = operand(
        PATH,
        default=None,
        metavar="FILE",
        help="The file to check: a smtpd.conf, as with -f, or one whose name ends with .toml, as "
        "with --chains.",
    )
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
    online = option(
        SWITCH,
        default=False,
        help="Have each filter of this package ask the services that its settings name, as smtpd's "
        "user and in its sandbox: name servers, the test entries of DNS lists, stores, daemons. "
        "The journal's socket is tried as well. The report says how long each took. All filters "
        "are asked side by side, which takes at most 10 s more.",
    )
    json = option(SWITCH, default=False, help="Write the report as JSON.")


def run(
    options: Options,
    _rest: list[str],
    *,
    conditions: Conditions = Conditions(),  # noqa: B008  # immutable
    places: tuple[str, ...] = PLACES,
    chain_places: tuple[str, ...] = chain.PLACES,
) -> int:
    """Check the files, report each result, and return the exit status.

    `places` and `chain_places` are the files of smtpd and of filter-chain to try by default.
    """
    conditions = conditions._replace(ready=options.timeout, online=options.online)
    _check_user(options.user)
    config, chains = _named(options)
    if config is None and chains is None:
        config, chains = _first(places), _first(chain_places)
        if config is None and chains is None:
            raise ConfigError(f"no such file: {', '.join(places)}; name one with --config")
    # Services may be silent until their time limit: all filters are asked side by side.
    with ThreadPoolExecutor(AT_ONCE if options.online else 1) as pool:
        check = _Check(options, conditions, pool)
        read = None if config is None else smtpd_conf.read(config, _macros(options.macro))
        online = options.online
        if online and read is not None and chains is not None:
            online = not _is_asked(chains, read.programs, chain_places)
        begun = (
            pool.submit(check.try_chain_file, chains, online=True) if chains and online else None
        )
        statuses = []
        if read is not None:
            statuses.append(check.configuration(read))
        if chains is not None:
            done = check.try_chain_file(chains) if begun is None else begun.result()
            statuses.append(check.chain_file(chains, done))
    status = max(statuses)
    check.report.close(status)
    return status


def _named(options: Options) -> tuple[str | None, str | None]:
    """Return the smtpd.conf and the chain file that are named. Raises ConfigError."""
    config, chains = options.config, options.chains
    if chains is not None and config is not None:
        raise ConfigError("--chains and --config exclude each other: check one file at a time")
    if options.file is not None:
        if chains is not None or config is not None:
            raise ConfigError(f"{quote(options.file)}: check one file at a time")
        if options.file.endswith(".toml"):
            chains = options.file
        else:
            config = options.file
    if options.chain and chains is None:
        raise ConfigError("--chain requires --chains")
    return config, chains


def _is_asked(path: str, programs: Sequence[Program], places: tuple[str, ...]) -> bool:
    """Return whether programs run all chains of a file, and so ask their services themselves."""
    try:
        file = ChainFile.read(path)
    except ConfigError:
        return False
    asked = set()
    for program in programs:
        try:
            named = smtpd_conf.chain_run_by(shlex.split(program.command))
            if named is None or program.chroot:  # there the path is that of another file
                continue
            config = named[0] or _first(places) or ""
            if os.path.realpath(config) == os.path.realpath(path):
                asked.add(file.chain(named[1]))
        except (ConfigError, ValueError):  # the program's own check reports it
            continue
    return asked.issuperset(file.chains)


def _delimiters(read: smtpd_conf.Configuration) -> Iterator[Problem]:
    """Yield warnings of programs that take tags to begin with another character than smtpd does."""
    for program in read.programs:
        words = words_of(program.command)
        known = _OF_ADDRESSES.intersection(map(file_name, words))
        named = chain_run_by(words)
        delimiter = next((value for flag, value in flags_in(words) if flag == _DELIMITER), PLUS)
        if named is not None and not program.chroot:
            try:
                file = ChainFile.read(named[0] or _first(chain.PLACES) or "")
                delimiter = file.process(file.chain(named[1])).sub_addr_delim
            except ConfigError:  # the program's own check reports it
                continue
        elif not known:
            continue
        if delimiter != read.sub_addr_delim:
            where = "sub-addr-delim of its chain" if named is not None else _DELIMITER
            text = (
                f"{program.statement} {quote(program.name)}: takes {quote(delimiter)} for the "
                f"beginning of a tag, but smtpd takes {quote(read.sub_addr_delim)} "
                f"(smtp sub-addr-delim); give it the same {where}"
            )
            yield Problem(program.place, text, warning=True)


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


def _macros(given: tuple[str, ...]) -> dict[str, str]:
    """Parse macros as cmdline_symset() of parse.y: the last "=" separates name and value."""
    macros = {}
    for each in given:
        name, equals, value = each.rpartition("=")
        if not equals:
            raise ConfigError(f"--macro: expected NAME=VALUE, not {quote(each)}")
        macros[name] = value
    return macros


class _Check:
    """The checks of one run, and their report."""

    def __init__(self, options: Options, conditions: Conditions, pool: Executor) -> None:
        self._pool = pool
        self.report = JsonReport() if options.json else TextReport()
        self._options = options
        self._conditions = conditions
        #: The errors with which programs have ended.
        self._reported: set[str] = set()
        #: The services that they have asked.
        self._asked: set[str] = set()

    def configuration(self, read: smtpd_conf.Configuration) -> int:
        """Try a smtpd.conf's programs, look at those of its tables; return the exit status.

        Warnings are reported last, so that they don't hide errors.
        """
        report, options, path = self.report, self._options, read.start.file
        errors = [*read.errors, *self._tables(read)]
        for problem in errors:
            report.problem(problem)
        warnings = read.warnings
        wrong = len(errors)
        phases: dict[tuple[str, str], frozenset[str]] = {}
        traits: dict[tuple[str, str], frozenset[str]] = {}
        results = self._pool.map(
            lambda program: try_program(program, options.user, self._conditions), read.programs
        )
        report.flush()
        for program, result in zip(read.programs, results, strict=True):
            report.flush()
            wrong += bool(result.error) + sum(bool(each.fault) for each in result.services)
            phases[program.statement, program.name] = result.phases
            traits[program.statement, program.name] = result.traits
            report.program(program, result)
            self._asked.update(each.subject for each in result.services)
            self._reported.add(result.error.removeprefix(f"{chain.PROG}: "))
            warnings += smtpd_conf.about_program(program, foreign=result.foreign)
        warnings += smtpd_conf.behind_signers(read, traits)
        warnings += [*smtpd_conf.unasked(read, phases), *smtpd_conf.crowded(read, phases)]
        warnings += _delimiters(read)
        for problem in warnings:
            report.problem(problem)
        if read.errors:
            report.line(f"{path}: smtpd -n -f {path} checks the rest of the file")
        if os.geteuid():
            report.line(
                f"{path}: only root can try filters as smtpd's user, whose rights may differ"
            )
        report.summary(path, len(read.programs), wrong)
        return FAULTY if wrong else FINE

    def _tables(self, read: smtpd_conf.Configuration) -> Iterator[Problem]:
        """Yield the errors of tables whose programs can't be run."""
        for table in read.tables:
            if error := try_table(table, self._options.user, self._conditions):
                yield Problem(table.place, f"table {quote(table.name)}: {error}")

    def try_chain_file(
        self, path: str, *, online: bool = False
    ) -> subprocess.CompletedProcess[str] | None:
        """Check a chain file as `filter-chain -n` does: in a process that becomes smtpd's user.

        Return how it ended; None if it did not in time.
        """
        options = self._options
        words = [f"--config={os.path.abspath(path)}"]  # noqa: PTH100  # not resolved
        words += [f"--chain={options.chain}"] if options.chain else []
        words += [f"--user={options.user}"] if options.user else []
        words += ["--online"] if online else []
        # Import modules from where this process does, and nowhere else: it may run as root.
        modules = f"import sys; sys.path = {sys.path!r}"
        program = f"{modules}; from {chain.__name__} import main; sys.exit(main())"
        command = [sys.executable, "-I", "-c", program]
        try:
            return subprocess.run(  # noqa: S603  # our own program
                [*command, "--check", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                timeout=options.timeout + (TIMEOUT if online else 0),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None

    def chain_file(self, path: str, done: subprocess.CompletedProcess[str] | None) -> int:
        """Report how the check of a chain file ended; return the exit status.

        Errors with which a filter-chain of smtpd.conf has ended are not repeated, and neither are
        the answers of its services.
        """
        report = self.report
        if done is None:
            report.chains([f"{path}: not checked within {self._options.timeout:g} s"], fine=False)
            return FAULTY
        answers = [(line, Answer.parse(line)) for line in done.stderr.splitlines()]
        lines = [line.removeprefix(f"{chain.PROG}: ") for line, answer in answers if answer is None]
        new = [line for line in lines if line not in self._reported]
        report.chains(new or [f"{path}: no further errors"], fine=not done.returncode)
        services = [answer for _, answer in answers if answer is not None]
        for answer in services:
            if answer.subject not in self._asked:
                report.service(path, answer)
        return FAULTY if done.returncode or any(each.fault for each in services) else FINE


VERB = Verb(
    "check",
    run,
    options=Options,
    stray="check one file at a time",
    description="Check the filters of smtpd.conf(5) and smtpd-filters.toml(5). Each filter of this "
    "package is started as smtpd would start it, as the same user; other programs only have to "
    "be executable. smtpd -n starts no filters: run both before smtpd is restarted.",
    ending="Exit status: 0 when nothing is wrong, 1 when something is, such as a service that does "
    "not answer, 2 for a wrong flag or an unreadable file. Warnings don't count.",
)

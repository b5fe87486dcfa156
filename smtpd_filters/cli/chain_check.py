"""`filter-chain --check`: the errors of a chain file, and the answers of services.

It reports every error that would prevent smtpd from starting, as the user that smtpd runs filters
as, and exits with the status of `smtpd -n`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from smtpd_filters.errors import ConfigError, user_name
from smtpd_filters.runtime.log import Log
from smtpd_filters.settings import Pool
from smtpd_filters.settings.flags import Checking
from smtpd_filters.settings.quoting import printable, quote

from .accounts import UnknownError, filters_user
from .chain import PROG, composed, default_path, prepared
from .chain_file import ChainFile
from .smtpd_conf.advice import BEHIND_RSPAMD, TWO_GREYLISTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from smtpd_filters.filter import Filter
    from smtpd_filters.main import Ready

    from .chain import Options
    from .chain_file import Declared

#: The exit statuses, as of `smtpd -n`.
FINE, FAULTY = 0, 1


def check(own: Options, places: Sequence[str]) -> int:
    """Print each error of the file in one line, or that there is none; return the exit status."""
    _become(own.user)
    with Checking():
        return _check_file(own, places)


def _check_file(own: Options, places: Sequence[str]) -> int:
    faults = 0
    found = _Check()
    try:
        for fault in found.errors(own, places):
            faults += 1
            sys.stderr.write(f"{PROG}: {printable(str(fault))}\n")
    except ImportError as error:
        # For example in root's home, where root's pip or pipx has installed it. A module of
        # Python itself isn't missing.
        why = "" if error.name in sys.stdlib_module_names else f" ({error})"
        raise ConfigError(
            f"the user {user_name()} can't read this Python, {sys.executable}, "
            f"or its modules{why}{_closed()}, so smtpd can't run filter-chain"
        ) from None
    if faults:
        return FAULTY
    for warning in found.warnings:
        sys.stderr.write(f"{PROG}: {printable(warning)}\n")
    text = f"configuration OK: {found.summary}, as {user_name()}"
    sys.stderr.write(f"{printable(text)}\n")
    if own.online:
        found.log.silent = True
        filters = [each[0] for each in found.ready.values() if each is not None]
        _ask_services(filters, found.journals, found.log)
    return FINE


def _closed() -> str:
    """Return, in words, the directory of this Python that the user may not enter; "" for none."""
    for path in (sys.executable, __file__):
        for directory in reversed(Path(os.path.realpath(path)).parents):
            if not os.access(directory, os.X_OK):
                return f": it may not enter {directory}"
    return ""


class _Check:
    """A check of a chain file, and what it has found besides errors."""

    def __init__(self) -> None:
        self.log = _Log()
        #: The path, and the names of the filters.
        self.summary = ""
        #: Probable mistakes.
        self.warnings: list[str] = []
        #: The filters that were set up; None for one with an error.
        self.ready: dict[str, Ready | None] = {}
        #: The sockets of journals.
        self.journals: set[str] = set()
        self._declared: dict[str, Declared] = {}

    def errors(self, own: Options, places: Sequence[str]) -> Iterator[ConfigError]:
        """Check the file; yield every error."""
        try:
            file = ChainFile.read(own.config or default_path(places))
            chains = [file.chain(own.chain)] if own.chain else file.chains
        except ConfigError as error:
            yield from (error, *error.others)
            return
        for name in () if own.chain else file.filters:
            yield from self._try(file, name, "")
        for chain in chains:
            yield from self._of_chain(file, chain)
        left_out = "" if own.chain else _left_out(file, chains)
        self.summary = f"{file.path} ({', '.join(self.ready)}{left_out})"

    def _of_chain(self, file: ChainFile, chain: str) -> Iterator[ConfigError]:
        try:
            process = file.process(chain)
            names = process.filters
        except ConfigError as error:
            yield from (error, *error.others)
            return
        if process.journal:
            self.journals.add(process.journal)
        for name in names:
            yield from self._try(file, name, chain)
        ready = [each for name in names if (each := self.ready[name]) is not None]
        if len(ready) < len(names):
            return
        try:
            composed(file, chain, [self._declared[name] for name in names], ready, self.log)
        except ConfigError as error:
            yield error
        where = f"{file.path}: warning: [chain.{chain}]"
        self.warnings += (f"{where}: {text}" for text in _orders(ready))

    def _try(self, file: ChainFile, name: str, chain: str) -> Iterator[ConfigError]:
        """Set a filter up once; yield its errors."""
        if name in self.ready:
            return
        self.ready[name] = None
        try:
            self._declared[name] = file.filter(name, chain)
            self.ready[name] = prepared(file, self._declared[name], self.log, Pool())
        except ConfigError as error:
            yield from (error, *error.others)


class _Log(Log):
    """The log of filters that are checked."""

    #: Whether nothing is written: the answers of services say themselves why they fail.
    silent = False

    def line(self, text: str) -> None:
        """Write a line, unless silent."""
        if not self.silent:
            super().line(text)


def _orders(ready: Iterable[Ready]) -> Iterator[str]:
    """Yield what is wrong with the order of a chain's filters, though it can be run."""
    scanner = greylist = ""
    for filter_, *_ in ready:
        kind = type(filter_).name
        if kind == "greylist":
            if greylist:
                yield f"filter {quote(filter_.name)}, behind {quote(greylist)}, {TWO_GREYLISTS}"
            greylist = filter_.name
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


def _ask_services(filters: Sequence[Filter], journals: Collection[str], log: Log) -> None:
    """Have filters ask their services, try the sockets of journals, and write the answers."""
    import asyncio

    from smtpd_filters.chain import close
    from smtpd_filters.journal.sender import probe_of
    from smtpd_filters.runtime.probes import ask, end

    async def write() -> None:
        probes = [probe for each in filters for probe in each.all_probes()]
        for answer in await ask([*probes, *map(probe_of, sorted(journals))]):
            sys.stderr.write(f"{answer.line()}\n")
        await end(close(filters, log))

    asyncio.run(write())


def _become(name: str) -> None:
    """As root, become the user that smtpd runs filters as, with its access to files."""
    if os.geteuid():
        if name:
            raise ConfigError("--user: only root can check as another user")
        return
    try:
        filters_user(name).enter()
    except UnknownError as error:
        if name:
            raise ConfigError(f"--user: {error}") from None

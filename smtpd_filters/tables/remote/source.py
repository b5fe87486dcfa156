r"""The remote sources of tables, by the scheme of their specification.

`sqlite:PATH`, `ldap:PATH`, `redis:PATH` name configuration files; `sqlite:PATH?query=SQL` and
`sqlite:PATH?list=SQL` a database with the query itself; `proc:COMMAND` starts a table program.

An option that can wait for an answer (`table(DomainTable, by_key=True)`) has its keys looked up one
by one if the source can answer so. Every other option loads all entries at start, and again every
`refresh` seconds; the source must then be able to list them. Networks and regular expressions are
always loaded, since no source could find the entry that covers a key.

Invariants
----------
*Starts without it*: a source that is unavailable when the filter starts, takes longer than
`START_MAX`, or has an entry that the option can't have, is no error. Until it answers, `--on-error`
decides. A mistake in its configuration is a ConfigError.
*Old content has an end*: a list that can't be refreshed is used for an hour more.
*Shared*: filters of a process that look keys up in the same table share its connection and cache.
"""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from time import monotonic
from weakref import WeakValueDictionary

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.tables.source import Source, shown

from .backend import LIST_FACTOR, BackendError, release, unexpected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any, NoReturn

    from smtpd_filters.runtime.probes import Probe
    from smtpd_filters.sandbox import Needs

    from .backend import Backend
    from .key_lookups import KeyLookups

#: The modules of the schemes; each has a function `open_backend(text, service)` that returns the
#: back-end and the times of its configuration.
SCHEMES = {
    "ldap": "ldap",
    "proc": "proc",
    "redis": "redis",
    "sqlite": "sqlite",
}
#: Bytes of memory for a list, and for each entry at start: it is there twice, and as rows, while it
#: is refreshed, and may grow.
_ROOM = 128 << 20
_PER_ENTRY = 2000
#: The key that probes ask for (RFC 2606 section 2: nobody has this domain).
PROBED = "smtpd-filters-check.invalid"
#: Seconds for a list at start, since smtpd serves nobody until all filters have started.
START_MAX = 5.0
#: Seconds that a list is used beyond its refresh while the source is unavailable.
OLD_MAX = 3600.0
# RFC 3463 section 3.5, X.4.3: "Directory server failure".
_STATUS = "4.4.3"


class RemoteSource(Source):
    """A remote source; `service` is what smtpd calls the kind of its table (table(5))."""

    __slots__ = (
        "_key", "_loaded", "_logged", "_note", "_read", "_unsaid", "backend", "down",
        "entries", "key_lookups", "refresh_interval", "rows", "times",
    )  # fmt: skip
    is_remote = True

    def __init__(self, spec: str, service: str) -> None:
        super().__init__(spec)
        scheme, _, text = spec.partition(":")
        try:
            module = import_module(f".{SCHEMES[scheme]}", __package__)
        except ImportError as error:  # Python without SQLite or TLS
            raise ConfigError(f"{scheme}: can't be used: {error}") from None
        self.backend: Backend
        self.backend, self.times = module.open_backend(text, service)
        self.backend.label = spec
        self.backend.timeout = self.times["timeout"]
        self._key = spec, service, _state(text.partition("?")[0])
        #: The look-ups, if its keys are looked up one by one.
        self.key_lookups: KeyLookups | None = None
        #: The entries that were listed last, until they are loaded.
        self.rows: list[tuple[str, str]] = []
        #: The number of those that are loaded.
        self.entries = 0
        #: Why it could not be listed the last time; "" if it could.
        self.down = ""
        #: The cause that was logged last; "" if the entries have been loaded since.
        self._logged = ""
        self.refresh_interval = self.times["refresh"]
        self._read: int | None = None
        self._loaded: int | None = None
        self._note: Callable[[str], object] | None = None
        self._unsaid = ""

    def look_up_by_key(self) -> bool:
        """Have keys looked up one by one; return False if the source can't answer so."""
        if not self.backend.by_key:
            return False
        from .key_lookups import KeyLookups

        shared = _SHARED.get(self._key)
        if shared is None:
            shared = _SHARED[self._key] = KeyLookups(
                self.backend,
                ttl=self.times["cache"],
                missing=self.times["cache_missing"],
                stale=self.times["stale"],
            )
        self.key_lookups, self.backend = shared, shared.backend
        return True

    def attach(self, note: Callable[[str], object]) -> None:
        """Set what takes texts for the log."""
        self._note = note
        if self._unsaid:
            note(self._unsaid)
            self._unsaid = ""
        if self.key_lookups is not None:
            self.key_lookups.note = note

    def declare(self, needs: Needs) -> None:
        """Declare what it needs after the start."""
        self.backend.declare(needs)
        if self.key_lookups is None:
            needs.to_allocate(_ROOM + _PER_ENTRY * self.entries)

    def probe(self) -> Probe:
        """Return a probe that asks for a key which no table has, or lists the entries."""
        from smtpd_filters.runtime.probes import Probe

        async def ask() -> str:
            if self.key_lookups is not None:
                return (await self.key_lookups.ask(PROBED)).cause
            await self.list()
            return self.down

        return Probe(f"table {self.spec}", ask)

    # -- a list ----------------------------------------------------------------------------

    def fetch(self, most: float = START_MAX) -> None:
        """List the entries at start, for `most` seconds, in a thread with a loop of its own.

        Raises ConfigError if the source can't list.
        """
        if not self.backend.lists:
            raise ConfigError(
                f"{shown(self.spec)}: this option loads all entries, which this source can't list"
            )
        from threading import Thread  # only here

        def run() -> None:
            asyncio.run(self._fetch_once(most))

        thread = Thread(target=run)
        thread.start()
        thread.join()

    async def _fetch_once(self, most: float) -> None:
        await self.list(most)
        await self.backend.aclose()

    async def list(self, most: float = float("inf")) -> None:
        """List the entries into `rows`; `down` says why that failed. Never raises.

        It takes `most` seconds, or less by the configuration.
        """
        seconds = min(LIST_FACTOR * self.backend.timeout, most)
        cause = ""
        try:
            async with asyncio.timeout(seconds):
                self.rows = await self.backend.entries(seconds)
        except BackendError as error:
            cause = str(error)
        except TimeoutError:
            cause = f"no list within {seconds:g} s"
        except Exception as error:  # noqa: BLE001  # of a library
            cause = unexpected(error)
        self.down = cause
        if cause and not self._logged:
            self._logged = cause
            self.say(f"{self.spec}: unavailable: {cause}")

    def failed(self, error: str, *, kept: bool = False) -> str:
        """Count entries that can't be loaded as a failure; return the cause, and log a new one."""
        cause = self.down = error.removeprefix(f"{self.spec}: ")
        if cause != self._logged:
            self._logged = cause
            what = f"{cause}; the entries are kept" if kept else f"unavailable: {cause}"
            self.say(f"{self.spec}: {what}")
        return cause

    def succeeded(self) -> None:
        """Log that the entries could be loaded after a failure."""
        if self._logged:
            self._logged = ""
            self.say(f"{self.spec}: answers again")

    def say(self, text: str) -> None:
        """Log a text, or keep it until there is a log."""
        if self._note is None:
            self._unsaid = text
        else:
            self._note(text)

    def changed(self) -> Generator[None, None, bool]:
        """Check, in steps, whether the rows differ from those loaded last."""
        digest = 0
        for number, row in enumerate(self.rows):
            digest = hash((digest, row))
            if not number % 1000:
                yield
        self._read = digest
        return digest != self._loaded

    def loaded(self) -> None:
        """Record that the table now has the rows."""
        self._loaded = self._read
        self.entries = len(self.rows)

    def unloaded(self) -> None:
        """Record that the table has no rows, so that the same ones are loaded again."""
        self._loaded = None

    def texts(self, add: Callable[[str], int]) -> Iterator[None]:
        """Read the rows of a list, in steps."""
        return self._rows(lambda row: add(row[0]))

    def pairs(self, add: Callable[[str, str], int]) -> Iterator[None]:
        """Read the rows of a mapping, in steps."""
        return self._rows(lambda row: add(*row))

    def _rows(self, add: Callable[[tuple[str, str]], int]) -> Iterator[None]:
        from smtpd_filters.tables.source import LINE, STEP

        left = STEP
        for number, row in enumerate(self.rows, 1):
            left -= LINE + len(row[0])
            if row[0]:
                try:
                    left -= add(row)
                except ValueError as error:
                    reason = f"{error}: {shown(row[0])}"
                    raise ConfigError(f"{self.spec}: entry {number}: {reason}") from None
            if left <= 0:
                left = STEP
                yield

    async def aclose(self) -> None:
        """Release everything; never raise."""
        if self.key_lookups is not None:
            await self.key_lookups.aclose()
        else:
            await self.backend.aclose()


#: The look-ups of tables by specification, service, and state of the file: tables of a process
#: that are configured alike share connections and caches.
_SHARED: WeakValueDictionary[tuple[str, str, tuple[int, ...]], KeyLookups] = WeakValueDictionary()


def _state(path: str) -> tuple[int, ...]:
    """Return what changes with a file; nothing for one that isn't there."""
    try:
        found = os.stat(path)  # noqa: PTH116  # a path as text
    except (OSError, ValueError):
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


class Unloaded:
    """The content of a table that has not been loaded: every use raises UnavailableError."""

    def __init__(self, cause: str) -> None:
        self._cause = cause

    def release(self) -> Iterator[None]:
        """Release nothing."""
        yield from ()

    def __len__(self) -> int:
        return 0

    def __getattr__(self, _name: str) -> NoReturn:
        raise UnavailableError(self._cause, _STATUS)


class AskedOnly(Unloaded):
    """The content of a table whose keys are looked up: every other use is a mistake of its caller.

    That raises RuntimeError, which the test kit reports, unlike a source that is unavailable.
    """

    def __init__(self, spec: str) -> None:
        super().__init__(
            f"{spec}: keys of this table are looked up one by one: await look_up() in place of "
            "match(), look_up_value() in place of get(), look_up_address() in place of find()"
        )

    def __getattr__(self, _name: str) -> NoReturn:
        raise RuntimeError(self._cause)


class Refresher:
    """Lists a table's source again and again, in the loop of its filter.

    `load` loads the rows into the table, in steps.
    """

    def __init__(
        self, table: Any, source: RemoteSource, load: Callable[[], Iterator[None]]
    ) -> None:
        self._table, self._load = table, load
        self._source = source
        self.refresh_interval = source.refresh_interval
        self._good = monotonic()

    @property
    def down(self) -> str:
        """Why the entries could not be loaded the last time; "" if they could."""
        return self._source.down

    async def refresh(self) -> None:
        """Load the entries if they have changed; never raises but for a cancellation."""
        source = self._source
        before = source.entries
        await source.list()
        if not source.down:
            try:
                for _ in self._load():
                    await asyncio.sleep(0)
            except Exception as error:  # noqa: BLE001  # it is tried again the next time
                known = isinstance(error, ConfigError)
                source.failed(str(error) if known else unexpected(error), kept=True)
        rows, source.rows = source.rows, []
        await release(rows)
        if not source.down:
            source.succeeded()
            if before and not source.entries:
                source.say(f"{source.spec}: the list is empty now; it had {before} entries")
            self._good = monotonic()
        elif monotonic() > self._good + source.refresh_interval + OLD_MAX:
            self._table.unload(source.down)
            source.unloaded()

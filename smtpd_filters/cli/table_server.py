"""`smtpd-filters table serve`: our tables as a table program of smtpd (7.6 and later).

smtpd waits for each answer with everything else that its look-up process does, and ends if the
program does. Hence:

Invariants
----------
*Answers in time*: each request is answered within `DEADLINE`, by an error if need be, which is
temporary to smtpd's clients.
*Ends with its input*: nothing but the end of the input ends it, once it is registered.
*Only what is configured*: it registers the services that were asked for.
*A start that fails is seen*: an smtpd that speaks another protocol gets no silence, in which every
session would hang.
"""

from __future__ import annotations

import asyncio
import os
import signal
import syslog
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.startup import ignore_strays
from smtpd_filters.tables import MappingTable
from smtpd_filters.tables.remote.lines import (
    ERROR,
    FOUND,
    NOT_FOUND,
    SERVICES,
    LineError,
    Program,
)
from smtpd_filters.tables.remote.source import Refresher

if TYPE_CHECKING:
    from smtpd_filters.tables import Table
    from smtpd_filters.tables.remote.lines import Request

#: Seconds for an answer.
DEADLINE = 1.5
_CHUNK = 1 << 16
#: Characters of the reason for an error.
_REASON = 2000
#: smtpd before 7.6 sends imsg's frames, whose headers have zeros; the line protocol is text.
_OLDER = (
    "smtpd is older than 7.6, and speaks another protocol to table programs: use one of "
    "opensmtpd-extras"
)
#: Requests in progress; smtpd sends one at a time.
_MAX = 100
#: smtpd converts keys to lower case, passwords included.
_REFUSED = {"auth": "smtpd converts passwords to lower case before it asks (OpenSMTPD #1268)"}
#: Services without a key of ours: `fetch` asks for any entry.
_FETCHED = frozenset({"source", "relayhost"})


def serve(spec: str, kind: str | None, services: str) -> int:
    """Serve a table until the input ends; return the exit status. Raises ConfigError."""
    from .table import opened, services_of

    chosen = services_of(kind, services)
    for each in chosen:
        if each in _REFUSED:
            raise ConfigError(f"--service {each}: {_REFUSED[each]}")
        if each not in SERVICES or each in _FETCHED:
            raise ConfigError(f"--service {each}: expected {', '.join(sorted(_possible()))}")
    tables = {each: opened(spec, kind, each, by_key=True) for each in chosen}
    syslog.openlog("smtpd-filters-table", syslog.LOG_PID, syslog.LOG_MAIL)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    ignore_strays()
    for table in tables.values():
        if table.remote is not None:
            table.remote.attach(_log)
    try:
        asyncio.run(_Server(tables).run())
    except ConfigError as error:
        _log(str(error))
        raise
    return 0


def _possible() -> set[str]:
    return set(SERVICES) - set(_REFUSED) - _FETCHED


def _log(text: str) -> None:
    syslog.syslog(syslog.LOG_WARNING, text)


class _Server:
    def __init__(self, tables: dict[str, Table]) -> None:
        #: The table of each service.
        self._tables = tables
        self._program = Program()
        self._answering: set[asyncio.Task[None]] = set()
        self._registered = False
        #: What lists remote tables again, and the lock for loading any table.
        self._refreshers = [
            each.refresher()
            for each in tables.values()
            if each.remote is not None and not each.by_key
        ]
        self._loading = asyncio.Lock()

    async def run(self) -> None:
        """Answer requests until the input ends. Raises ConfigError for another protocol."""
        refreshing = [asyncio.create_task(self._refresh(each)) for each in self._refreshers]
        while data := await asyncio.to_thread(os.read, 0, _CHUNK):
            if not self._registered and b"\0" in data:
                await self._close()
                raise ConfigError(_OLDER)
            self._receive(data)
        if self._answering:
            await asyncio.wait(self._answering, timeout=DEADLINE)
        for task in (*self._answering, *refreshing):
            task.cancel()
        await self._close()

    def _receive(self, data: bytes) -> None:
        try:
            for request in self._program.receive(data):
                if len(self._answering) >= _MAX:
                    _write(request.answer(ERROR, "too many requests"))
                    continue
                task = asyncio.get_running_loop().create_task(self._answer(request))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
        except LineError as error:
            self._program.invalid = str(error)
        if self._program.invalid:
            _log(self._program.invalid)
            self._program.invalid = ""
        if self._program.configured and not self._registered:
            self._registered = True
            _write(self._program.registration(self._tables))

    async def _close(self) -> None:
        for table in self._tables.values():
            if table.remote is not None:
                await table.remote.aclose()

    async def _answer(self, request: Request) -> None:
        """Answer a request; never raises."""
        try:
            async with asyncio.timeout(DEADLINE):
                status, value = await self._result(request)
        except UnavailableError as error:
            status, value = ERROR, str(error)
        except TimeoutError:
            status, value = ERROR, f"no answer within {DEADLINE:g} s"
        except Exception as error:  # noqa: BLE001  # smtpd ends if this program does
            status, value = ERROR, type(error).__name__
            _log(f"{type(error).__name__}: {error}")
        text = " ".join(value.split())[:_REASON] if status == ERROR else value
        _write(request.answer(status, text))

    async def _result(self, request: Request) -> tuple[str, str]:
        if request.verb == "update":
            # What takes longer than an answer may goes on.
            await asyncio.shield(asyncio.create_task(self._update()))
            return "ok", ""
        table = self._tables.get(request.service)
        if table is None or request.verb == "fetch":
            return ERROR, f"{request.verb} of {request.service} is not offered"
        if isinstance(table, MappingTable):
            found = await table.look_up_value(request.key)
        else:
            found = await table.look_up(request.key)
        if found is None or (not found and request.verb == "lookup"):
            return NOT_FOUND, ""
        return FOUND, found

    async def _update(self) -> None:
        """Load files and lists again, and forget answers. Raises UnavailableError."""
        causes = []
        async with self._loading:
            for table in self._tables.values():
                if table.remote is not None and table.remote.key_lookups is not None:
                    table.remote.key_lookups.forget()
                if table.is_file:
                    try:
                        for _ in table.reload():
                            await asyncio.sleep(0)
                    except ConfigError as error:
                        causes.append(str(error))
            for refresher in self._refreshers:
                await refresher.refresh()
                causes.append(refresher.down)
        if cause := "; ".join(filter(None, causes)):
            raise UnavailableError(cause)

    async def _refresh(self, refresher: Refresher) -> None:
        """List a remote table again and again."""
        while True:
            async with self._loading:
                await refresher.refresh()
            await asyncio.sleep(refresher.refresh_interval)


def _write(data: bytes) -> None:
    """Write to smtpd, which reads each answer before it sends the next request."""
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:
            continue
        except OSError:
            return  # smtpd has ended: so does the input

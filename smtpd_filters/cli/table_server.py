"""`smtpd-filters table serve`: our tables as a table program of smtpd (7.6 and later).

smtpd waits for each answer with everything else that its look-up process does, and ends if the
program does. Hence:

Invariants
----------
*Answers in time*: each request is answered within `DEADLINE`, by an error if need be, which is
temporary to smtpd's clients.
*Ends with its input*: nothing but the end of the input ends it, once it is registered.
*Only what is configured*: it registers the services that were asked for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import syslog
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError, UnavailableError
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
#: Requests in progress; smtpd sends one at a time.
_MAX = 100
#: The services of a kind of table in smtpd, if none are given.
_OF_KIND = {
    "domains": "domain",
    "hosts": "domain",
    "addresses": "mailaddr",
    "networks": "netaddr",
    "ips": "netaddr",
    "regex": "regex",
    "strings": "string",
    "mapping": "alias",
}
#: smtpd converts keys to lower case, passwords included.
_REFUSED = {"auth": "smtpd converts passwords to lower case before it asks (OpenSMTPD #1268)"}
#: Services without a key of ours: `fetch` asks for any entry.
_FETCHED = frozenset({"source", "relayhost"})


def serve(spec: str, kind: str, services: str) -> int:
    """Serve a table until the input ends; return the exit status. Raises ConfigError."""
    from .table import open_table

    chosen = [each for each in services.replace(",", " ").split() if each] or [_OF_KIND[kind]]
    for each in chosen:
        if each in _REFUSED:
            raise ConfigError(f"--service {each}: {_REFUSED[each]}")
        if each not in SERVICES or each in _FETCHED:
            raise ConfigError(f"--service {each}: expected {', '.join(sorted(_possible()))}")
    table = open_table(spec, kind, by_key=True)
    mapped = {"alias", "credentials", "userinfo", "addrname", "mailaddrmap"}
    if bool(mapped.intersection(chosen)) != isinstance(table, MappingTable):
        raise ConfigError(f"--kind {kind}: service {chosen[0]} needs another kind")
    syslog.openlog("smtpd-filters-table", syslog.LOG_PID, syslog.LOG_MAIL)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if table.remote is not None:
        table.remote.attach(_log)
    asyncio.run(_Server(table, chosen).run())
    return 0


def _possible() -> set[str]:
    return set(SERVICES) - set(_REFUSED) - _FETCHED


def _log(text: str) -> None:
    syslog.syslog(syslog.LOG_WARNING, text)


class _Server:
    def __init__(self, table: Table, services: list[str]) -> None:
        self._table = table
        self._services = services
        self._program = Program()
        self._answering: set[asyncio.Task[None]] = set()
        self._registered = False

    async def run(self) -> None:
        """Answer requests until the input ends."""
        refreshing = None
        if self._table.remote is not None and not self._table.asks:
            refreshing = asyncio.create_task(_refresh(self._table.refresher()))
        while data := await asyncio.to_thread(os.read, 0, _CHUNK):
            self._receive(data)
        if self._answering:
            await asyncio.wait(self._answering, timeout=DEADLINE)
        for task in (*self._answering, *([refreshing] if refreshing else [])):
            task.cancel()
        if self._table.remote is not None:
            await self._table.remote.aclose()

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
            _write(self._program.registration(self._services))

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
        text = " ".join(value.split()) if status == ERROR else value
        _write(request.answer(status, text[:2000]))

    async def _result(self, request: Request) -> tuple[str, str]:
        if request.verb == "update":
            return "ok", ""
        if request.service not in self._services or request.verb == "fetch":
            return ERROR, f"{request.verb} of {request.service} is not offered"
        table = self._table
        if isinstance(table, MappingTable):
            found = await table.look_up_value(request.key)
        else:
            found = await table.look_up(request.key)
        if found is None or (not found and request.verb == "lookup"):
            return NOT_FOUND, ""
        return FOUND, found


async def _refresh(refresher: Refresher) -> None:
    while True:
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

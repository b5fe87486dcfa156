"""Tables behind a program that speaks smtpd's line protocol: `proc:COMMAND ARGUMENTS`.

Every program for OpenSMTPD 7.6 and later works, as those of the packages opensmtpd-table-*. It is
started with the first look-up, and again after it has ended or stopped to answer.

Invariants
----------
*One child*: a table has at most one process, which ends with the filter.
*A silent child ends*: after a look-up without any answer within its time its socket is closed, and
`lookups.programs` ends it.
*Not confined*: the program has the rights that smtpd would start it with. What it needs, such as a
database or a server, is known to the program alone.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
from time import time
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError, os_reason
from smtpd_filters.lookups.programs.children import REST, Children
from smtpd_filters.lookups.stream.connection import LostError, UnconnectedError

from .backend import AnswerError, Backend, BackendError, value_of
from .configuration import TIMES
from .lines import ERROR, FOUND, NOT_FOUND, Host, LineError

if TYPE_CHECKING:
    from smtpd_filters.lookups.stream.connection import Connection
    from smtpd_filters.sandbox import Needs

    from .lines import Answer

#: smtpd's services for kinds of tables that it hasn't.
_SERVICES = {"mapping": "alias"}
_LOOKED_UP = frozenset({"alias", "credentials", "userinfo", "mailaddrmap", "addrname", "relayhost"})
_NAME = "smtpd-filters"
_ENDED = "the program has ended"


def open_backend(text: str, service: str) -> tuple[Backend, dict[str, float]]:
    """Return the back-end and its times. Raises ConfigError."""
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"proc:{text}: {error}") from None
    if not command:
        raise ConfigError("proc: needs a command")
    program = shutil.which(command[0])
    if program is None:
        raise ConfigError(f"proc:{text}: {command[0]} is not a program that can be run")
    return TableProgram([program, *command[1:]], _SERVICES.get(service, service)), dict(TIMES)


class TableProgram(Backend):
    """One table behind a program, which is started at most once in `pause` seconds."""

    lists = False

    def __init__(self, command: list[str], service: str, *, pause: float = REST) -> None:
        self._command = command
        self._service = service
        self._pause = pause
        self._verb = "lookup" if service in _LOOKED_UP else "check"
        self._children: Children | None = None
        self._child: _Child | None = None
        self._starting: asyncio.Task[_Child | str] | None = None
        self._started = float("-inf")

    async def look_up(self, key: str) -> str | None:
        """Return the value of a key, or None. Raises BackendError."""
        child = await self._running()
        asked = asyncio.get_running_loop().time()
        try:
            answer = await child.ask(self._verb, self._service, key)
        except asyncio.CancelledError:
            if child.heard <= asked:
                child.end("the program did not answer")
            raise
        if answer.status == ERROR:
            raise AnswerError(f"the program failed: {answer.value[:200] or 'no reason given'}")
        if answer.verb == self._verb and answer.status == NOT_FOUND:
            return None
        if answer.verb != self._verb or answer.status != FOUND:
            raise AnswerError(f"an answer to another request: {answer.verb} {answer.status}")
        if self._verb == "check":
            return ""
        return value_of([answer.value], joined=False)

    async def _running(self) -> _Child:
        if self._child is not None and not self._child.ended:
            return self._child
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        result = await asyncio.shield(self._starting)
        if isinstance(result, str):
            raise BackendError(result)
        return result

    async def _start(self) -> _Child | str:
        """Start the program; return it, or why that failed."""
        loop = asyncio.get_running_loop()
        child: _Child | None = None
        try:
            if loop.time() < self._started + self._pause:
                return _ENDED
            self._started = loop.time()
            async with asyncio.timeout(self.timeout):
                child = _Child(await self._starter().connect())
                await child.registered()
            if self._service not in child.host.services:
                child.end(_ENDED)
                return f"the program does not offer {self._service!r}"
        except UnconnectedError as error:
            return f"the program did not start: {os_reason(error.cause)}"
        except (ConfigError, LineError, TimeoutError) as error:
            if child is not None:
                child.end(str(error))
            return f"the program did not start: {str(error) or 'no registration'}"
        except asyncio.CancelledError:
            if child is not None:
                child.end("the filter ends")
            raise
        else:
            self._child = child
            return child
        finally:
            self._starting = None

    def _starter(self) -> Children:
        """Return the process that starts the program. Raises ConfigError if there can't be one."""
        if self._children is None:
            self._children = Children(self._command[0], self._command)
        return self._children

    def declare(self, needs: Needs) -> None:
        """Declare that a process with all rights, started here, sends the program's socket."""
        self._starter()
        needs.to_receive_descriptors()
        needs.to_open(3)

    async def aclose(self) -> None:
        """End the program."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None
        if self._child is not None:
            await self._child.aclose()
            self._child = None
        self._started = float("-inf")
        if self._children is not None:
            children, self._children = self._children, None
            await children.aclose()


class _Child:
    """A running program, of which the connection is stdin and stdout."""

    def __init__(self, connection: Connection) -> None:
        self.host = Host()
        #: Why it can't be asked any more; "" if it can.
        self.ended = ""
        self.heard = 0.0
        self._connection = connection
        self._pending: dict[str, asyncio.Future[Answer]] = {}
        self._ready = asyncio.Event()
        self._talking = asyncio.get_running_loop().create_task(self._talk())

    async def registered(self) -> None:
        """Wait until it is ready. Raises LineError if it ends before."""
        await self._ready.wait()
        if self.ended:
            raise LineError(self.ended)

    async def ask(self, verb: str, service: str, key: str) -> Answer:
        """Return the answer to a request. Raises BackendError if there is none."""
        if self.ended:
            raise BackendError(self.ended)
        number, line = self.host.request(time(), _NAME, verb, service, key)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            await self._connection.write(line)
            return await answer
        except LostError:
            raise BackendError(_ENDED) from None
        finally:
            self._pending.pop(number, None)

    async def _talk(self) -> None:
        cause = _ENDED
        try:
            await self._connection.write(self.host.configuration(_NAME))
            while data := await self._connection.read():
                self.heard = asyncio.get_running_loop().time()
                for answer in self.host.receive(data):
                    pending = self._pending.get(answer.number)
                    if pending is not None and not pending.done():
                        pending.set_result(answer)
                if self.host.ready:
                    self._ready.set()
        except LineError as error:
            cause = f"the program wrote {error}"
        except LostError:
            pass
        finally:
            self.end(cause)

    def end(self, cause: str) -> None:
        """Close its stdin and stdout at once; what waits for an answer has none, for this cause."""
        self.ended = self.ended or cause or _ENDED
        self._ready.set()
        self._connection.abort()
        for pending in self._pending.values():
            if not pending.done():
                pending.set_exception(BackendError(self.ended))
                pending.exception()  # its caller may still be writing, and give up then

    async def aclose(self) -> None:
        """Close its stdin and stdout."""
        self.end("the filter ends")
        self._talking.cancel()
        await asyncio.gather(self._talking, return_exceptions=True)

"""Tables behind a program that speaks smtpd's line protocol: `proc:COMMAND ARGUMENTS`.

Every program for OpenSMTPD 7.6 and later works, as those of the packages opensmtpd-table-*. It is
started with the first look-up, and again after it has ended or stopped to answer.

Invariants
----------
*One child*: a table has at most one process, which ends with the filter.
*A silent child ends*: after a look-up without any answer within its time it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import signal
from pathlib import Path
from threading import current_thread, main_thread
from time import time
from typing import TYPE_CHECKING

from smtpd_filters.errors import ConfigError

from .backend import AnswerError, Backend, BackendError, value_of
from .configuration import TIMES
from .lines import ERROR, FOUND, NOT_FOUND, Host, LineError

if TYPE_CHECKING:
    from smtpd_filters.sandbox import Needs

    from .lines import Answer

_CHUNK = 1 << 15
#: Seconds between two starts of the program, and for it to end.
_PAUSE = 1.0
#: smtpd's services for kinds of tables that it hasn't.
_SERVICES = {"mapping": "alias"}
_LOOKED_UP = frozenset({"alias", "credentials", "userinfo", "mailaddrmap", "addrname", "relayhost"})
_NAME = "smtpd-filters"


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
    """One table behind a program."""

    lists = False

    def __init__(self, command: list[str], service: str) -> None:
        self._command = command
        self._service = service
        self._verb = "lookup" if service in _LOOKED_UP else "check"
        self._child: _Child | None = None
        #: All that have been started and not been waited for.
        self._children: set[_Child] = set()
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
                child.kill()
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
            if loop.time() < self._started + _PAUSE:
                return "the program has ended"
            self._started = loop.time()
            _wait_for_children()
            async with asyncio.timeout(self.timeout):
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=_CHUNK,
                )
                child = _Child(process)
                self._forget()
                self._children.add(child)
                await child.registered()
            if self._service not in child.host.services:
                child.kill()
                return f"the program does not offer {self._service!r}"
            self._child = child
        except (OSError, LineError, TimeoutError) as error:
            if child is not None:
                child.kill()
            return f"the program did not start: {str(error) or 'no registration'}"
        except asyncio.CancelledError:
            if child is not None:
                child.kill()
            raise
        else:
            return child
        finally:
            self._starting = None

    def declare(self, needs: Needs) -> None:
        """Declare the program and the files that it is given; what else it needs isn't known."""
        needs.to_run(self._command[0])
        for word in self._command[1:]:
            if word[0:1] == "/" and Path(word).exists():
                needs.to_read(word)  # its configuration
        needs.to_start_threads(2)
        needs.to_open(4)

    async def aclose(self) -> None:
        """End the program."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None
        self._child = None
        self._started = float("-inf")
        while self._children:
            await self._children.pop().end()

    def _forget(self) -> None:
        """Drop the children that have ended."""
        self._children = {each for each in self._children if not each.reaped}


def _wait_for_children() -> None:
    """Have the system keep the status of ended children, if the parent has had it dropped."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN and current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class _Child:
    """A running program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.host = Host()
        self.ended = ""
        self.heard = 0.0
        self._process = process
        self._pending: dict[str, asyncio.Future[Answer]] = {}
        self._ready = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read())
        self._write(self.host.configuration(_NAME))

    @property
    def reaped(self) -> bool:
        """Whether nothing of it is left."""
        return self._reading.done() and self._process.returncode is not None

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
        self._write(line)
        try:
            return await answer
        finally:
            self._pending.pop(number, None)

    def _write(self, data: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(data)

    async def _read(self) -> None:
        cause, wrong = "the program has ended", False
        stdout = self._process.stdout
        try:
            while stdout is not None and (data := await stdout.read(_CHUNK)):
                self.heard = asyncio.get_running_loop().time()
                for answer in self.host.receive(data):
                    pending = self._pending.get(answer.number)
                    if pending is not None and not pending.done():
                        pending.set_result(answer)
                if self.host.ready:
                    self._ready.set()
                await asyncio.sleep(0)
        except LineError as error:
            cause, wrong = f"the program wrote {error}", True
        finally:
            self._end(cause, wrong=wrong)

    def _end(self, cause: str, *, wrong: bool) -> None:
        self.ended = self.ended or cause
        self._ready.set()
        for pending in self._pending.values():
            if not pending.done():
                pending.set_exception(BackendError(cause))
        if wrong:
            self.kill()
        elif self._process.stdin is not None:
            # It has ended, or only closed its output. One that has ended must not be killed: that
            # would take its status from asyncio.
            self._process.stdin.close()
            asyncio.get_running_loop().call_later(_PAUSE, self._kill_late)

    def _kill_late(self) -> None:
        if self._process.returncode is None:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.ended = self.ended or "the program was killed"
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """Close its input and wait; kill it if it doesn't end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_PAUSE):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

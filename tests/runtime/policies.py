"""Filters for tests of the runtime: `policies.py NAME [FLAGS]`, plain ones and with coroutines.

`--notes FILE` is where they write down what happens to them.
"""

# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtpd_filters import (
    JUNK,
    PROCEED,
    Answer,
    Filter,
    Headers,
    Junk,
    Message,
    Needs,
    Proceed,
    Reject,
    Session,
    Settings,
    option,
    run,
)
from smtpd_filters.journal import process_state
from smtpd_filters.runtime import asyncio_loop, poll_loop
from smtpd_filters.settings import PATH, table
from smtpd_filters.tables import StringTable

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Noting(Filter):
    """Records its calls."""

    class Options(Settings):
        """Where to."""

        notes = option(PATH, default=None, help="File for notes.")
        names = option(table(StringTable), default=None, help="Addresses that are junk.")

    settings: Options

    def needs(self, needs: Needs) -> None:
        if self.settings.notes:
            needs.to_write(str(Path(self.settings.notes).parent))

    def _note(self, text: str) -> None:
        if self.settings.notes:
            with Path(self.settings.notes).open("a") as notes:
                notes.write(text + "\n")

    def link_disconnect(self, session: Session) -> None:
        self._note(f"gone {session.id}")

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._note("closed")


class Plain(Noting):
    """Answers at once."""

    def rcpt_to(self, session: Session, address: str) -> Proceed | Junk:
        if self.settings.names is not None and self.settings.names.match(address):
            return JUNK
        return PROCEED


class Later(Noting):
    """Answers when another session says NOOP, in the next turn of the loop, or at once."""

    def setup(self) -> None:
        self._waiting: list[asyncio.Event] = []

    async def rcpt_to(self, session: Session, address: str) -> Proceed | Junk:
        if address.startswith("turn"):
            await asyncio.sleep(0)
        if address.startswith("wait"):
            event = asyncio.Event()
            self._waiting.append(event)
            self._note(f"waiting {session.id}")
            try:
                await event.wait()
            except asyncio.CancelledError:
                self._note(f"cancelled {session.id}")
                raise
        if self.settings.names is not None and self.settings.names.match(address):
            return JUNK
        return PROCEED

    def helo(self, session: Session, identity: str) -> Proceed:
        return PROCEED

    def noop(self, session: Session, text: str) -> Proceed:
        for event in self._waiting:
            event.set()
        self._waiting.clear()
        return PROCEED


class Refreshing(Noting):
    """Has background work, which fails."""

    refresh_interval = 0.01

    def setup(self) -> None:
        self._times = 0

    async def refresh(self) -> None:
        self._times += 1
        await asyncio.sleep(0)
        raise RuntimeError(f"{self._times} times")

    def rcpt_to(self, session: Session, address: str) -> Proceed:
        return PROCEED


class Uncancellable(asyncio.Future[None]):
    """A future whose `cancel` blocks."""

    def cancel(self, msg: object = None) -> bool:
        while True:
            pass


class Leaking(Noting):
    """Starts what blocks the process, and waits for none of it."""

    def helo(self, session: Session, identity: str) -> Proceed:
        loop = asyncio.get_running_loop()
        if identity == "task":
            loop.create_task(self._sleep())  # noqa: RUF006  # its failure is logged
        elif identity == "soon":
            loop.call_soon(self._loop)
        elif identity == "later":
            loop.call_later(0.01, self._loop)
        elif identity == "plain":
            loop.call_soon(time.sleep, 3600)
        return PROCEED

    async def rcpt_to(self, session: Session, address: str) -> Proceed | Junk:
        await (Uncancellable() if address.startswith("cancel") else asyncio.sleep(0))
        return PROCEED

    async def _sleep(self) -> None:
        time.sleep(3600)  # noqa: ASYNC251  # what is tested

    def _loop(self) -> None:
        while True:
            pass


class BlockingTextError(Exception):
    """An exception whose text is never finished, and which blocks when it is released."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._where = where

    def __str__(self) -> str:
        while self._where == "str":
            pass
        return self._where

    def __del__(self) -> None:
        while self._where == "del":
            pass


class Texts(Noting):
    """Blocks in code that runs after its handlers."""

    def setup(self) -> None:
        self._kept: dict[str, BlockingTextError] = {}

    def helo(self, session: Session, identity: str) -> Proceed | Junk:
        if identity == "raise":
            raise BlockingTextError("str")
        if identity == "because":
            return JUNK.because(BlockingTextError("str"))
        session.scratch[self] = BlockingTextError("del")
        return PROCEED


class TextsLater(Texts):
    """The same in coroutines."""

    async def ehlo(self, session: Session, identity: str) -> Proceed | Junk:
        await asyncio.sleep(0)
        return self.helo(session, identity)


class Alarming(Noting):
    """Stops the timer of the watchdog, and then blocks."""

    def helo(self, session: Session, identity: str) -> Proceed:
        if identity == "alarm":
            signal.alarm(0)
        elif identity == "ignore":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        elif identity == "default":
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        elif identity == "hangup":
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        elif identity == "block":
            while True:
                pass
        return PROCEED


class AlarmingLater(Alarming):
    """The same on asyncio."""

    async def ehlo(self, session: Session, identity: str) -> Proceed:
        await asyncio.sleep(0)
        return PROCEED


class Stubborn(Noting):
    """Never returns and ignores every exception."""

    def setup(self) -> None:
        for loop in (asyncio_loop, poll_loop):
            loop.ENDING = 1.0  # type: ignore[attr-defined]

    def helo(self, session: Session, identity: str) -> Proceed:
        self._note("begun")
        while True:
            try:
                while True:
                    pass
            except BaseException:  # noqa: BLE001, S110  # what is tested
                pass


class StubbornLater(Stubborn):
    """The same on asyncio."""

    async def ehlo(self, session: Session, identity: str) -> Proceed:
        return PROCEED


class Numbers(Noting):
    """Has invalid numbers."""

    refresh_interval = 0.01

    async def refresh(self) -> None:
        self.refresh_interval = float("nan")
        raise RuntimeError("refreshed")

    async def helo(self, session: Session, identity: str) -> Proceed:
        await asyncio.sleep(float("nan"))
        return PROCEED


class Reusing(Noting):
    """Closes stderr, and opens a file, which gets its number."""

    def helo(self, session: Session, identity: str) -> Proceed:
        os.close(2)
        assert os.open(str(self.settings.notes), os.O_WRONLY) == 2
        raise ValueError("for the log")


class Readable(Noting):
    """Watches a descriptor that is always readable, with a callback that blocks."""

    async def helo(self, session: Session, identity: str) -> Proceed:
        if identity == "watch":
            source, sink = os.pipe()
            os.write(sink, b"x")
            asyncio.get_running_loop().add_reader(source, self._loop)
        return PROCEED

    def _loop(self) -> None:
        while True:
            pass


class Exiting(Noting):
    """Exits wherever it can."""

    refresh_interval = 0.01

    async def refresh(self) -> None:
        self._note("refreshed")

    async def helo(self, session: Session, identity: str) -> Proceed:
        exits: Any = self._exit
        asyncio.get_running_loop().set_task_factory(exits)
        return PROCEED

    def _exit(self, _loop: object, work: Coroutine[Any, Any, Any], **_: object) -> Any:
        work.close()
        raise SystemExit(3)


async def _endless() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:  # noqa: BLE001, S110  # what is tested
            pass


class EndlessHandler(Filter):
    """Has a handler that ignores everything."""

    async def rcpt_to(self, session: Session, address: str) -> Proceed | Junk:
        await _endless()
        return PROCEED


class EndlessClose(Filter):
    """Ignores everything when it is closed."""

    def rcpt_to(self, session: Session, address: str) -> Proceed | Junk:
        return PROCEED

    async def close(self) -> None:
        await _endless()


class EndlessCloseLater(Filter):
    """The same on asyncio."""

    async def rcpt_to(self, session: Session, address: str) -> Proceed | Junk:
        return PROCEED

    async def close(self) -> None:
        await _endless()


class Head(Noting):
    """Adds a field and lets the body pass."""

    def headers(self, session: Session, headers: Headers) -> Answer:
        headers.prepend("X-Head", "1")
        return PROCEED


class HeadLater(Noting):
    """Adds a field in a coroutine that suspends."""

    async def headers(self, session: Session, headers: Headers) -> Answer:
        await asyncio.sleep(0)
        headers.prepend("X-Head", "1")
        return PROCEED


class Whole(Noting):
    """Reads whole messages."""

    def message(self, session: Session, message: Message) -> Answer:
        message.headers.append("X-Size", str(message.size))
        return PROCEED


class WholeLater(Noting):
    """Reads whole messages in a coroutine that suspends."""

    async def message(self, session: Session, message: Message) -> Answer:
        await asyncio.sleep(0)
        message.headers.append("X-Size", str(message.size))
        return Reject("550 5.7.1 No") if message.headers.get("Subject") == "no" else PROCEED


if __name__ == "__main__":
    kinds: tuple[type[Filter], ...] = (
        Plain,
        Later,
        Leaking,
        Refreshing,
        Head,
        HeadLater,
        Whole,
        WholeLater,
    )
    kinds += (EndlessHandler, EndlessClose, EndlessCloseLater, Texts, TextsLater, Exiting)
    kinds += (Alarming, AlarmingLater, Stubborn, StubbornLater, Readable, Numbers, Reusing)
    process_state.INTERVAL = float(os.environ.get("BEAT", process_state.INTERVAL))
    classes = {each.__name__: each for each in kinds}
    sys.exit(run(classes[sys.argv[1]], argv=sys.argv[2:]))

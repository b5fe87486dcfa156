"""The loop of a filter without coroutines: poll, read, answer, write.

It spares such a filter asyncio, which takes longer to start than all the rest.
"""

from __future__ import annotations

import select
from collections import deque
from time import monotonic

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.filter_side import UnsupportedProtocolError

from .channel import CLOSING, HIGH_WATER, LAST_WORDS, LOW_WATER, Signals
from .log import fold_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .channel import Channel
    from .engine import Engine
    from .interfaces import Service
    from .log import Log
    from .watchdog import Watchdog

#: Milliseconds without a round when there is no memory: what lacks it may have ended by then.
PAUSE = 20


def run(engine: Engine, channel: Channel, service: Service, log: Log, watchdog: Watchdog) -> int:
    """Serve until the input ends.  Returns the exit status."""
    signals = Signals()
    watchdog.install()
    try:
        _Loop(engine, channel, service, log, watchdog, signals).run()
    except UnsupportedProtocolError as error:
        raise ConfigError(str(error)) from None
    finally:
        watchdog.disarm()
        signals.close()
        channel.close()
    return 0


class _Loop:
    def __init__(  # noqa: PLR0913  # everything meets here
        self,
        engine: Engine,
        channel: Channel,
        service: Service,
        log: Log,
        watchdog: Watchdog,
        signals: Signals,
    ) -> None:
        self.engine, self.channel, self.service = engine, channel, service
        self.log, self.watchdog, self.signals = log, watchdog, signals
        self.poll, self.nap = select.poll(), select.poll()
        self.poll.register(signals.wakeup, select.POLLIN)
        self.reading = self.writing = self.ending = False
        #: What is done beside the sessions, a step per round: tables that are read again.
        self.chores: deque[Iterator[None]] = deque()

    def run(self) -> None:
        self._listen()
        short = False
        while not self.signals.stop:
            try:
                if short:
                    short = False
                    self.nap.poll(PAUSE)
                    self.engine.relieve()
                self._round()
                if self.signals.reload or self.chores:
                    self._tend()
            except MemoryError:  # nothing is done here that could lack memory as well
                short = True
            except SystemError:  # what becomes of one for which there is no memory
                short = True
        try:
            self._finish()
        except MemoryError:  # nobody is there any more
            pass

    def _round(self) -> None:
        """Hear what there is to be heard, answer it, then do a turn of what takes longer."""
        source, signals, engine = self.channel.source, self.signals, self.engine
        if engine.stalled:
            if engine.scarce:
                self.nap.poll(PAUSE)
            self._receive()
        busy = self.chores or engine.stalled or (engine.queue and may_work(engine, self.channel))
        for fd, _ in self.poll.poll(0 if busy else None):
            if fd == source:
                if engine.stalled:
                    continue
                size = hand_over(self.channel, engine)
                if size:
                    self._receive()
                elif size == 0:
                    signals.stop = True
            elif fd == signals.wakeup:
                signals.drain()
        self._write()

    def _tend(self) -> None:
        """Do a step of what is to be done beside the sessions."""
        if self.signals.reload:
            self.signals.reload = False
            add_chore(self.chores, self.service)
        if self.chores:
            do_chore(self.chores, self.log)

    def _receive(self) -> None:
        """Have the engine take in what was read."""
        if not self.watchdog.armed:
            self.watchdog.arm()
        try:
            self.engine.resume()
        except UnsupportedProtocolError:
            raise
        except Exception as error:  # noqa: BLE001  # never exits
            if not self.engine.ready:
                raise ConfigError(f"bug: {fold_traceback(error)}") from None
            self.log.limited("loop", "smtpd-filters", "bug", error=fold_traceback(error))

    def _write(self) -> None:
        """Write answers, then a turn of messages."""
        channel, engine = self.channel, self.engine
        send(engine, channel)
        if engine.queue and may_work(engine, channel):
            if not self.watchdog.armed:
                self.watchdog.arm()
            engine.work()
            send(engine, channel)
        if channel.size or self.writing or not self.reading or engine.stalled:
            self._listen()

    def _listen(self) -> None:
        """Wait for what can be gone on with: nothing is read while too much is to be written."""
        channel = self.channel
        self.writing = self._wait_for(channel.sink, select.POLLOUT, wanted=channel.size > 0)
        wanted = channel.size < HIGH_WATER and not (self.ending or self.engine.stalled)
        self.reading = self._wait_for(channel.source, select.POLLIN, wanted=wanted)

    def _wait_for(self, fd: int, mask: int, *, wanted: bool) -> bool:
        if wanted:
            self.poll.register(fd, mask)
        else:
            try:
                self.poll.unregister(fd)
            except KeyError:
                pass
        return wanted

    def _finish(self) -> None:
        """The input has ended: what has been answered is still written."""
        deadline = monotonic() + LAST_WORDS
        self.ending = True
        self.poll.unregister(self.signals.wakeup)
        self._listen()
        if not self.watchdog.armed:
            self.watchdog.arm()
        while (self.engine.busy or self.channel.size) and monotonic() < deadline:
            if self.channel.deserted():
                break
            self._write()
            if self.channel.size and not may_work(self.engine, self.channel):
                self.poll.poll(1000)
        self.engine.abandon()
        if self.service.closing:
            import asyncio  # at the end it costs nobody

            async def close() -> None:
                closing = asyncio.ensure_future(self.service.close())
                await asyncio.wait({closing}, timeout=CLOSING)
                closing.cancel()

            asyncio.run(close())


def may_work(engine: Engine, channel: Channel) -> bool:
    """Whether a turn of messages is due: not before smtpd has taken most of what is pending."""
    return bool(engine.queue) and channel.size < LOW_WATER


def send(engine: Engine, channel: Channel) -> None:
    """Write what an engine has to say.  Raises MemoryError; then the rest is written next time."""
    connection = engine.connection
    channel.scarce = engine.scarce
    channel.write(connection.answers, connection.lines)
    if connection.ended:
        connection.ended.clear()


def hand_over(channel: Channel, engine: Engine) -> int | None:
    """Read what is there into the engine's `unread`, of which there is none, for it to `resume`.

    How many bytes that is: None if there are none yet, 0 at the end of the input.  Raises
    MemoryError, and then nothing has been handed over.
    """
    channel.scarce = engine.scarce
    data = channel.read()
    if data is None:
        return None
    size = len(data)
    if size:
        # All of it or nothing, since none of it takes memory.
        engine.unread = data
        engine.stalled = True
        channel.unread = 0
    return size


def add_chore(chores: deque[Iterator[None]], service: Service) -> None:
    """Have tables read again: once more, if that goes on already, however often it is asked for."""
    if len(chores) <= 1:
        chores.append(service.reload())


def do_chore(chores: deque[Iterator[None]], log: Log) -> None:
    """Do a step of the first of them, which goes when it has come to its end."""
    try:
        next(chores[0])
    except StopIteration:
        chores.popleft()
    except Exception as error:  # noqa: BLE001  # never exits
        chores.popleft()
        log.event("smtpd-filters", "bug", error=fold_traceback(error))

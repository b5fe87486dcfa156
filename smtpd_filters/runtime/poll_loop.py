"""The poll loop, for filters without coroutines.

Such filters don't load asyncio, which would take longer than the rest of their start.
"""

from __future__ import annotations

import select
from collections import deque
from time import monotonic

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.versions import UnsupportedProtocolError

from .channel import CLOSING, ENDING, HIGH_WATER, LAST_WORDS, LEAVING, LOW_WATER, Signals
from .forks import exit_in_children
from .log import fold_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .channel import Channel
    from .engine import Engine
    from .interfaces import Service
    from .log import Log
    from .watchdog import Watchdog

#: Milliseconds to pause after a MemoryError, so that memory may be freed meanwhile.
PAUSE = 20


def run(engine: Engine, channel: Channel, service: Service, log: Log, watchdog: Watchdog) -> int:
    """Serve until the input ends; return the exit status."""
    signals = Signals(lambda: watchdog.exit_within(ENDING))
    protect(watchdog, channel, signals, log)
    watchdog.base = _Loop.run.__code__
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
        self.poll = select.poll()
        #: Watches nothing: its `poll` sleeps without taking memory.
        self.sleeper = select.poll()
        self.poll.register(signals.wakeup, select.POLLIN)
        self.reading = self.writing = self.ending = False
        #: Background work, one step per round: the reloading of tables.
        self.chores: deque[Iterator[None]] = deque()

    def run(self) -> None:
        self._listen()
        while not self.signals.stop:
            try:
                self._run_rounds()
            except (MemoryError, SystemError):
                # A signal's handler that runs out of memory raises anywhere, between two rounds
                # as well. Nothing here may allocate.
                continue
        try:
            self._finish()
        except MemoryError:  # smtpd has ended
            pass

    def _run_rounds(self) -> None:
        out_of_memory = False
        while not self.signals.stop:
            try:
                if out_of_memory:
                    out_of_memory = False
                    self._relieve()
                self._round()
            except MemoryError:  # nothing here may allocate
                out_of_memory = True
            except SystemError:  # raised if there is no memory for the MemoryError
                out_of_memory = True
            except UnsupportedProtocolError:
                raise
            except BaseException as error:
                if not self.engine.ready:
                    raise
                self._failed(error)

    def _relieve(self) -> None:
        self.sleeper.poll(PAUSE)
        self.engine.relieve()

    def _round(self) -> None:
        """Read what is there, answer requests, then do a turn of messages and of chores."""
        source, signals, engine = self.channel.source, self.signals, self.engine
        if engine.stalled:
            if engine.scarce:
                self.sleeper.poll(PAUSE)
            self._receive()
        busy = self.chores or engine.stalled or (engine.queue and may_work(engine, self.channel))
        self.watchdog.settle()
        beat = engine.beat()
        limit = None if beat is None else beat * 1000
        for fd, _ in self.poll.poll(0 if busy else limit):
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
        if signals.reload or self.chores:
            self._do_chores()

    def _do_chores(self) -> None:
        """Do a step of the background work."""
        if self.signals.reload:
            self.signals.reload = False
            add_chore(self.chores, self.service)
        if self.chores:
            do_chore(self.chores, self.log)

    def _receive(self) -> None:
        """Have the engine process what was read."""
        self.watchdog.tend()
        try:
            self.engine.resume()
        except UnsupportedProtocolError:
            raise
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001  # never exits
            if not self.engine.ready:
                raise ConfigError(f"bug: {fold_traceback(error)}") from None
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self.log.limited("loop", "smtpd-filters", "bug", error=fold_traceback(error))

    def _write(self) -> None:
        """Write answers, then a turn of messages."""
        channel, engine = self.channel, self.engine
        send(engine, channel)
        if engine.queue and may_work(engine, channel):
            self.watchdog.tend()
            engine.work()
            send(engine, channel)
        if channel.size or self.writing or not self.reading or engine.stalled:
            self._listen()

    def _listen(self) -> None:
        """Register the events to wait for: no input while too much output is pending."""
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
        """After the end of input: write pending output within LAST_WORDS, then release all."""
        deadline = monotonic() + LAST_WORDS
        self.ending = True
        self.poll.unregister(self.signals.wakeup)
        self._listen()
        self.watchdog.exit_within(ENDING)
        while (self.engine.busy or self.channel.size) and monotonic() < deadline:
            if self.channel.hung_up():
                break
            self._write()
            if self.channel.size and not may_work(self.engine, self.channel):
                self.poll.poll(1000)
        self.watchdog.exit_within(LEAVING)
        self.engine.abandon()
        if self.service.closing:
            import asyncio  # at the end its loading time doesn't matter

            async def close() -> None:
                closing = asyncio.ensure_future(self.service.close())
                await asyncio.wait({closing}, timeout=CLOSING)
                closing.cancel()

            asyncio.run(close())


def protect(
    watchdog: Watchdog,
    channel: Channel,
    signals: Signals,
    log: Log,
    leave: Callable[[], object] | None = None,
) -> None:
    """Protect a loop from its policies: install the watchdog, and see `exit_in_children`."""
    exit_in_children(channel, watchdog, leave)
    watchdog.hung_up = channel.hung_up
    watchdog.restore = signals.restore
    watchdog.report = lambda: log.limited(
        "watchdog", "smtpd-filters", "a policy stopped the timer that interrupts policies"
    )
    watchdog.install()


def may_work(engine: Engine, channel: Channel) -> bool:
    """Return whether to do a turn of messages: not before smtpd has read most of the output."""
    return bool(engine.queue) and channel.size < LOW_WATER


def send(engine: Engine, channel: Channel) -> None:
    """Write the output of the engine.  Raise MemoryError; then the rest is written next time."""
    connection = engine.connection
    channel.scarce = engine.scarce
    channel.write(connection.answers, connection.lines)
    if connection.ended:
        connection.ended.clear()


def hand_over(channel: Channel, engine: Engine) -> int | None:
    """Read into the engine's `unread`, which must be empty, for the engine to `resume`.

    Return the number of bytes: None if there are none yet, 0 at the end of input. Raise
    MemoryError, and then nothing has been handed over.
    """
    channel.scarce = engine.scarce
    data = channel.read()
    if data is None:
        return None
    size = len(data)
    if size:
        # None of these assignments takes memory, so all of them succeed.
        engine.unread = data
        engine.stalled = True
        channel.unread = 0
    return size


def add_chore(chores: deque[Iterator[None]], service: Service) -> None:
    """Schedule a reload of the tables; during a reload at most one further is scheduled."""
    if len(chores) <= 1:
        chores.append(service.reload())


def do_chore(chores: deque[Iterator[None]], log: Log) -> None:
    """Do a step of the first chore, and remove it at its end."""
    try:
        next(chores[0])
    except StopIteration:
        chores.popleft()
    except BaseException as error:  # noqa: BLE001  # never exits
        chores.popleft()
        log.event("smtpd-filters", "bug", error=fold_traceback(error))

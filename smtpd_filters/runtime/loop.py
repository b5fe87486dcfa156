"""The loop of a filter without coroutines: poll, read, answer, write.

It spares such a filter asyncio, which takes longer to start than all the rest.
"""

from __future__ import annotations

import select
from time import monotonic

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.filter_side import UnsupportedProtocolError

from .channel import CLOSING, HIGH_WATER, LAST_WORDS, Signals
from .log import fold_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .channel import Channel
    from .engine import Engine
    from .log import Log
    from .policy import Service
    from .watchdog import Watchdog

#: How many of smtpd's time-outs pass between two sweeps: a session is dropped when nothing was
#: heard of it between two of them.  smtpd itself ends a session that is idle for one, but need not
#: tell us of all that a busy one does, as of a slow DATA.
SWEEP = 24


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
        self.poll = select.poll()
        self.poll.register(signals.wakeup, select.POLLIN)
        self.reading = self.writing = self.ending = False
        self.next_sweep = monotonic() + SWEEP * engine.session_timeout

    def run(self) -> None:
        source, signals = self.channel.source, self.signals
        self._listen()
        while not signals.stop:
            now = monotonic()
            if now >= self.next_sweep:
                self.next_sweep = now + SWEEP * self.engine.session_timeout
                self.engine.sweep()
            for fd, _ in self.poll.poll((self.next_sweep - now) * 1000):
                if fd == source:
                    data = self.channel.read()
                    if data == b"":
                        signals.stop = True
                    elif data:
                        self._receive(data)
                elif fd == signals.wakeup:
                    signals.drain()
            try:
                self._write()
            except Exception as error:  # noqa: BLE001  # no memory, say: what is kept goes later
                self.log.limited("write", "smtpd-filters", "bug", error=fold_traceback(error))
            if signals.reload:
                signals.reload = False
                self.service.reload()
        self._finish()

    def _receive(self, data: bytes) -> None:
        if not self.watchdog.armed:
            self.watchdog.arm()
        try:
            self.engine.receive(data)
        except UnsupportedProtocolError:
            raise
        except Exception as error:  # noqa: BLE001  # promise 1: it never dies
            if not self.engine.ready:
                raise ConfigError(f"bug: {fold_traceback(error)}") from None
            self.log.limited("loop", "smtpd-filters", "bug", error=fold_traceback(error))

    def _write(self) -> None:
        """Write, and let held messages follow as fast as smtpd takes them."""
        channel, engine = self.channel, self.engine
        channel.write(engine.output())
        while engine.sending and channel.size < HIGH_WATER:
            engine.pump()
            channel.write(engine.output())
        if channel.size or self.writing or not self.reading:
            self._listen()

    def _listen(self) -> None:
        """Wait for what can be gone on with: nothing is read while too much is to be written."""
        channel = self.channel
        self.writing = self._wait_for(channel.sink, select.POLLOUT, wanted=channel.size > 0)
        wanted = channel.size < HIGH_WATER and not (self.engine.sending or self.ending)
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
            if self.channel.size:
                self.poll.poll(1000)
        self.engine.abandon()
        if self.service.closing:
            import asyncio  # at the end it costs nobody

            async def close() -> None:
                closing = asyncio.ensure_future(self.service.close())
                await asyncio.wait({closing}, timeout=CLOSING)
                closing.cancel()

            asyncio.run(close())

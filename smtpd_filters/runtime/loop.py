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
    from .channel import Channel, Service
    from .engine import Engine
    from .log import Log
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
        self.next_sweep = monotonic() + SWEEP * engine.session_timeout

    def run(self) -> None:
        engine, channel = self.engine, self.channel
        reading = False
        while not self.signals.stop:
            want = channel.size < HIGH_WATER and not engine.sending
            if want != reading:
                reading = want
                self._listen(channel.source, select.POLLIN, wanted=want)
            ready = self._wait()
            if channel.source in ready:
                data = channel.read()
                if data == b"":
                    break
                if data:
                    self._receive(data)
            self._write()
            if self.signals.reload:
                self.signals.reload = False
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
            self.log.limited("loop", "smtpd-filters", "bug", error=fold_traceback(error))

    def _write(self) -> None:
        """Write, and let held messages follow as fast as smtpd takes them."""
        channel, engine = self.channel, self.engine
        channel.write(engine.output())
        while engine.sending and channel.size < HIGH_WATER:
            engine.pump()
            channel.write(engine.output())
        self._listen(channel.sink, select.POLLOUT, wanted=channel.size > 0)

    def _listen(self, fd: int, mask: int, *, wanted: bool) -> None:
        if wanted:
            self.poll.register(fd, mask)
        else:
            try:
                self.poll.unregister(fd)
            except KeyError:
                pass

    def _wait(self) -> set[int]:
        now = monotonic()
        if now >= self.next_sweep:
            self.next_sweep = now + SWEEP * self.engine.session_timeout
            self.engine.sweep()
        ready = {fd for fd, _ in self.poll.poll((self.next_sweep - now) * 1000)}
        if self.signals.wakeup in ready:
            self.signals.drain()
        return ready

    def _finish(self) -> None:
        """The input has ended: what has been answered is still written."""
        deadline = monotonic() + LAST_WORDS
        self._listen(self.channel.source, select.POLLIN, wanted=False)
        self._listen(self.signals.wakeup, select.POLLIN, wanted=False)
        if not self.watchdog.armed:
            self.watchdog.arm()
        while (self.engine.busy or self.channel.size) and monotonic() < deadline:
            self._write()
            if self.channel.size:
                self.poll.poll(1000)
        self.engine.abandon()
        if self.service.closing:
            import asyncio  # noqa: PLC0415  # at the end it costs nobody

            async def close() -> None:
                closing = asyncio.ensure_future(self.service.close())
                await asyncio.wait({closing}, timeout=CLOSING)
                closing.cancel()

            asyncio.run(close())

"""The loop: waits for smtpd, the programs and signals, and moves bytes between them and the engine.

Invariants
----------
*Never blocks*: no read, write or wait for a process blocks; only `poll` waits.
*Bounded*: while smtpd does not read, programs are not read, and the clock of deadlines stands
still. While a program reads slowly, smtpd is not read; if it does not read for `CLOGGED` seconds,
lines of messages go to the spool, so that it doesn't delay the sessions of other programs.
"""

from __future__ import annotations

import select
import signal
from functools import partial
from select import POLLIN, POLLOUT
from time import monotonic

from smtpd_filters.runtime.channel import HIGH_WATER, LOW_WATER, Channel, Signals
from smtpd_filters.runtime.log import fold_traceback

from .fleet import Fleet, Worker
from .process import Process
from .transit import NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.runtime.channel import Ends
    from smtpd_filters.runtime.log import Log

    from .engine import Engine

#: Bytes of pending output to one program above which nothing more is read of smtpd.
PROGRAM_HIGH_WATER = 1 << 20
#: The same for one that has not read for so many seconds: it gets no lines of messages then.
CLOGGED, CLOGGED_HIGH_WATER = 1.0, 8 << 20
#: Seconds that may pass on the clock of deadlines between two rounds. More pass only if this
#: process was stopped, and probably the programs as well.
STEP = 1.5
#: Seconds between two looks at deadlines.
TICK = 1.0
#: Milliseconds to pause after a MemoryError, so that memory may be freed meanwhile.
PAUSE = 20
#: Seconds after the end of smtpd until programs get SIGTERM, and SIGKILL, and until those that
#: can't be killed are left.
ENDING, LEAVING, LEFT = 5.0, 7.0, 9.0
#: Reads of what a program has left in its socket, and in its log: more than their buffers hold.
LAST_READS = 64
#: Blocks of a message given again that are written in one round.
BLOCKS = 4
#: The name of the process on Linux.
MARK = b"smtpd-supervise"
_NONE: list[bytes] = []


class Loop:
    """Serves one smtpd until it ends."""

    def __init__(  # noqa: PLR0913  # everything meets here
        self,
        engine: Engine,
        ends: Ends,
        log: Log,
        spawn: Callable[[], Process],
        *,
        workers: int,
        drain: float,
    ) -> None:
        self.engine, self.log = engine, log
        self.smtpd = Channel(ends.source, ends.sink)
        self.signals = Signals(_nothing)
        _mark()
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # no watchdog uses it here
        # Its wake-up is all that is needed.
        signal.signal(signal.SIGCHLD, _ignore)
        self.poll = select.poll()
        #: Watches nothing: its `poll` sleeps without taking memory.
        self.sleeper = select.poll()
        self._masks: dict[int, int] = {}
        #: What to call when a descriptor is ready.
        self._by_fd: dict[int, Callable[[], object]] = {}
        self.fleet = Fleet(
            engine, spawn, log, size=workers, drain=drain, watch=self._watch, unwatch=self._unwatch
        )
        self._now = monotonic()
        self._tick_at = 0.0
        self._soon = True
        #: Something was ready in the last round, and no tick has been due since.
        self._brisk = False
        self.stop = False
        self._by_fd[self.signals.wakeup] = self._signalled
        self._by_fd[self.smtpd.source] = self._read_smtpd
        self._mask(self.signals.wakeup, POLLIN)

    def run(self) -> int:
        """Serve until the input of smtpd ends, or a program refuses to start; return the status."""
        out_of_memory = False
        while not (self.stop or self.signals.stop or self.fleet.refused):
            try:
                if out_of_memory:
                    out_of_memory = False
                    self._soon = True  # the tick is repeated
                    self.sleeper.poll(PAUSE)
                    self.engine.relieve()
                self._round()
            except MemoryError:  # nothing here may allocate
                out_of_memory = True
            except SystemError:  # raised if there is no memory for the MemoryError
                out_of_memory = True
            except Exception as error:  # noqa: BLE001  # Alive
                self.log.limited("loop", NAME, "bug", error=fold_traceback(error))
                self.sleeper.poll(PAUSE)
        self._finish()
        return self.fleet.refused

    def _round(self) -> None:
        engine, fleet = self.engine, self.fleet
        if engine.smtpd.stalled:
            engine.smtpd.resume()
        events = self.poll.poll(self._timeout())
        now = monotonic()
        if self.smtpd.size < HIGH_WATER:
            engine.transit.now += min(now - self._now, STEP)
        self._now = now
        self._brisk = bool(events)
        for fd, _ in events:
            handler = self._by_fd.get(fd)
            if handler is not None:
                handler()
        if self._soon or now >= self._tick_at:
            self._soon = self._brisk = False
            self._tick_at = now + TICK
            fleet.reap(now)
            if fleet.refused:
                return
            engine.expire()
            fleet.tick(now)
        self._flush()

    def _timeout(self) -> float | None:
        """Return the milliseconds to wait; None, for any time, while nothing is pending."""
        if self.engine.smtpd.stalled or self._soon:
            return 0
        workers = self.fleet.workers
        for worker in workers:
            if worker.link.feeding and worker.channel.size < LOW_WATER:
                return 0
        if self._brisk:
            # More will come, so the next look is at the next tick, even if nothing is pending.
            pause = self._tick_at - self._now
            if self.engine.holds:
                pause = min(pause, self.engine.beat(self.fleet.ends) or 0.0)
            return max(pause, 0.0) * 1000 + 1
        busy = bool(self.engine.waiting) or any(
            worker.link.open or worker.link.replaying or worker.link.messages or worker.channel.size
            for worker in workers
        )
        due = self.fleet.next_time(self._now)
        beat = self.engine.beat(self.fleet.ends)
        if beat is not None:
            due = beat if due is None else min(due, beat)
        if busy:
            due = min(TICK, due) if due is not None else TICK
        if due is None:
            self._tick_at = self._now + TICK
            return None
        self._tick_at = min(self._tick_at, self._now + due)
        return due * 1000 + 1

    # -- what is ready -----------------------------------------------------------------------

    def _signalled(self) -> None:
        self.signals.drain()
        self._soon = True
        if self.signals.reload:
            self.signals.reload = False
            self.fleet.reload()

    def _read_smtpd(self) -> None:
        if self.engine.smtpd.stalled:
            return
        data = self.smtpd.read()
        if data:
            self.engine.from_smtpd(data)
            self.smtpd.unread = 0
            # Programs work while the rest of this round is done.
            for worker in self.fleet.workers:
                if worker.link.out and not worker.kill:
                    self._write_program(worker)
        elif data is not None:
            self.stop = True
        if self.engine.handshake.starting:
            self._soon = True

    def _read_program(self, worker: Worker) -> bool:
        """Read once; return whether there was something."""
        link = worker.link
        if worker.closed or worker.kill or link.fault or self.smtpd.size >= HIGH_WATER:
            return False
        data = worker.channel.read()
        if data:
            was_ready = link.ready
            self.engine.from_program(link, data)
            worker.channel.unread = 0
            self._soon = self._soon or bool(link.fault) or link.ready is not was_ready
            if self.engine.answers or self.engine.lines:
                self.smtpd.write(self.engine.answers, self.engine.lines)
            return True
        if data is not None:
            worker.closed = self._now
            self._soon = True
        return False

    def _read_log(self, worker: Worker) -> None:
        lines = worker.process.log_lines()
        if lines:
            worker.log.write(lines, self._now)
        elif lines is None:
            self._forget(worker.process.stderr)
            worker.process.close_log()

    # -- descriptors -------------------------------------------------------------------------

    def _watch(self, worker: Worker) -> None:
        process = worker.process
        worker.moved = self.engine.now
        self._by_fd[process.fd] = partial(self._read_program, worker)
        self._by_fd[process.stderr] = partial(self._read_log, worker)
        self._mask(process.stderr, POLLIN)

    def _unwatch(self, worker: Worker) -> None:
        """Wait for a program no more; read what one has left that has exited."""
        process = worker.process
        exited = process.status is not None
        # A process that the program has left behind may go on writing.
        reads = LAST_READS if exited else 0
        for _ in range(reads):
            if not self._read_program(worker):
                break
        self._forget(process.fd)
        if exited and process.stderr >= 0:
            for _ in range(reads):
                if not (lines := process.log_lines()):
                    break
                worker.log.write(lines, self._now)
            self._forget(process.stderr)
            process.close_log()
        if exited:  # its log may have ended before
            worker.log.finish()

    def _mask(self, fd: int, mask: int) -> None:
        """Wait for these events of a descriptor, or for none."""
        if self._masks.get(fd, 0) == mask:
            return
        if mask:
            self.poll.register(fd, mask)
            self._masks[fd] = mask
        else:
            self.poll.unregister(fd)
            del self._masks[fd]

    def _forget(self, fd: int) -> None:
        if fd >= 0:
            self._mask(fd, 0)
            self._by_fd.pop(fd, None)

    # -- output ------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what can be written now, then choose what to wait for."""
        engine, smtpd, masks = self.engine, self.smtpd, self._masks
        if engine.answers or engine.lines or smtpd.size:
            smtpd.write(engine.answers, engine.lines)
        room = smtpd.size < HIGH_WATER
        full = engine.smtpd.stalled
        for worker in self.fleet.workers:
            if worker.kill:
                continue
            link, size = worker.link, worker.channel.size
            if size or link.out or link.feeding:
                self._write_program(worker)
                size = worker.channel.size
            full = full or size >= (CLOGGED_HIGH_WATER if link.clogged else PROGRAM_HIGH_WATER)
            mask = POLLOUT if size else 0
            if room and not (worker.closed or link.fault):
                mask |= POLLIN
            if masks.get(worker.process.fd, 0) != mask:
                self._mask(worker.process.fd, mask)
        mask = POLLOUT if smtpd.size else 0
        if masks.get(smtpd.sink, 0) != mask:
            self._mask(smtpd.sink, mask)
        mask = 0 if full else POLLIN
        if masks.get(smtpd.source, 0) != mask:
            self._mask(smtpd.source, mask)

    def _write_program(self, worker: Worker) -> None:
        link, channel = worker.link, worker.channel
        if link.feeding:
            for _ in range(BLOCKS):
                if channel.size >= LOW_WATER:
                    break
                self.engine.transit.feed(link)
                channel.write(link.out, _NONE)
        if link.out or channel.size:
            before = channel.size + sum(map(len, link.out)) if channel.size else 0
            channel.write(link.out, _NONE)
            size, now = channel.size, self.engine.now
            if not size or not worker.pending or size < before:
                worker.moved = now
            worker.pending = size
            link.clogged = size >= PROGRAM_HIGH_WATER and now - worker.moved >= CLOGGED
            if channel.broken:
                self._soon = True

    # -- the end -----------------------------------------------------------------------------

    def _finish(self) -> None:
        """After the end of smtpd: end the programs within bounds."""
        fleet = self.fleet
        started = monotonic()
        self.engine.flush()
        fleet.finish()
        for fd in (self.smtpd.source, self.smtpd.sink):
            self._forget(fd)
        while fleet.workers and self._now - started < LEFT:
            self._now = monotonic()
            self._end_late(self._now - started)
            for worker in fleet.workers:
                if not worker.kill:
                    self._discard(worker)
            fleet.reap(self._now)
            if fleet.workers:
                self.poll.poll(100)
                self.signals.drain()
        self.signals.close()

    def _end_late(self, seconds: float) -> None:
        """End the programs that still run so long after the end of their input."""
        for worker in self.fleet.workers:
            if seconds > LEAVING:
                worker.process.signal(signal.SIGKILL)
            elif seconds > ENDING:
                worker.process.terminate()

    def _discard(self, worker: Worker) -> None:
        """Write what waits for a program; read and drop what it writes."""
        worker.link.fault = worker.link.fault or "smtpd has ended"
        worker.channel.flush()
        data = worker.channel.read()
        worker.channel.unread = 0
        if data is not None and not data:
            self._mask(worker.process.fd, 0)


def _mark() -> None:
    """Name this process, so that `smtpd-filters reload` finds it; it handles SIGHUP by now."""
    try:
        with open("/proc/self/comm", "wb") as file:  # noqa: PTH123  # pathlib costs start-up
            file.write(MARK)
    except OSError:
        pass  # not Linux


def _nothing() -> None:
    """SIGTERM only ends the loop."""


def _ignore(_signal: int, _frame: object) -> None:
    """Only the wake-up of a signal is needed."""

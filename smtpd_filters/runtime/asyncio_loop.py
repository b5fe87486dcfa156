"""The asyncio loop, for filters with coroutines.

Invariants
----------
*Complete*: what asyncio and `socket` import late is loaded with this module, for threads and for
the names of hosts. A filter may run for longer than the interpreter's modules are installed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  # see "Complete"
import encodings.idna  # noqa: F401  # the same
import gc
import os
import select
import selectors
import socket
from collections import deque
from time import monotonic

from smtpd_filters.errors import ConfigError
from smtpd_filters.protocol.versions import UnsupportedProtocolError

from .channel import CLOSING, ENDING, HIGH_WATER, LAST_WORDS, LEAVING, READ, Signals, exit_now
from .jobs import Job
from .log import fold_traceback
from .pace import Pace
from .poll_loop import PAUSE, add_chore, do_chore, hand_over, may_work, protect, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context
    from types import FrameType
    from typing import Any

    from smtpd_filters.protocol.decisions import Decision

    from .channel import Channel
    from .coroutines import Pending
    from .engine import Engine
    from .interfaces import Refresher, Service
    from .log import Log
    from .watchdog import Watchdog

#: Threshold of the garbage collector for the youngest generation. Nearly all objects of a session
#: are freed without it; with Python's default of 700 it took a fifth of the time.
YOUNG = 10_000
#: Reads in a row while coroutines and messages are pending, and the seconds after which no further
#: one follows. With 4, requests wait twice as long behind the lines of other sessions' messages.
READS = 8
READING = 0.005
#: Units of work (`pace`) for the coroutines of messages in one round of the loop. With 1,000,
#: filter-rspamd takes a tenth more time for a message; with 5,000, a request waits a third longer.
STEPS = 2000
#: Seconds between two calls of a policy's `refresh`, at least.
SHORTEST = 0.01
#: The same if a policy has replaced its interval with something that is not a number.
UNKNOWN = 3600.0
#: Code of asyncio that runs a callback, or a step of a task.
_RUN = asyncio.Handle._run.__code__  # noqa: SLF001  # no public name
#: The modules whose callbacks are the framework's.
_OWN = __name__.rpartition(".")[0]


def run(engine: Engine, channel: Channel, service: Service, log: Log, watchdog: Watchdog) -> int:
    """Serve until the input ends; return the exit status."""
    signals, selector = Signals(lambda: watchdog.exit_within(ENDING)), _selector(channel)
    for end in socket.socketpair():
        # Raises here if descriptors run out: a loop without its socket pair stays half initialised
        # and warns when it is collected.
        end.close()
    _watch_wakeups(selector, watchdog, signals.wakeup)
    loop = _EventLoop(selector)
    protect(watchdog, channel, signals, log, lambda: _leave(loop, selector))
    watchdog.base = _Loop.run.__code__
    # Loaded modules stay, so the garbage collector needn't visit them.
    gc.freeze()
    gc.set_threshold(YOUNG)
    service_loop = _Loop(loop, selector, engine, channel, service, log, watchdog, signals)
    left: set[asyncio.Task[Any]] = set()
    try:
        service_loop.run()
        left = asyncio.all_tasks(loop)
    finally:
        watchdog.disarm()
        signals.close()
        channel.close()
        if left:
            exit_now(0)  # closing a coroutine that ignores its cancellation may never end
        loop.close()
    return 0


def _selector(channel: Channel) -> selectors.BaseSelector:
    """Return a selector for both ends: epoll rejects regular files and /dev/null, poll doesn't."""
    selector = selectors.DefaultSelector()
    for fd in (channel.source, channel.sink):
        try:
            selector.register(fd, selectors.EVENT_READ)
        except OSError:
            selector.close()
            return selectors.PollSelector()
        selector.unregister(fd)
    return selector


def _watch_wakeups(selector: Any, watchdog: Watchdog, signalled: int) -> None:
    """Start the watchdog's timer whenever the loop wakes up, except for a signal of it.

    So it checks the callbacks and tasks that a policy's own code schedules, too.
    """
    select = selector.select

    def selected(timeout: float | None = None) -> list[Any]:
        watchdog.settle()
        ready: list[Any] = select(timeout)
        watchdog.rounds += 1
        # The timer's own last signal must not start it again.
        if watchdog.armed or not (len(ready) == 1 and ready[0][0].fd == signalled):
            watchdog.tend()
        return ready

    selector.select = selected


def _leave(loop: asyncio.AbstractEventLoop, selector: Any) -> None:
    """Have the loop of a forked child run nothing more, and exit before it waits."""
    selector.select = lambda _timeout=None: os._exit(0)
    vars(loop)["_ready"].clear()


class _EventLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is not affected by a policy that patches `time`."""

    time = staticmethod(monotonic)

    def call_at(  # type: ignore[override]  # any arguments
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call a function at a time; raise ValueError for NaN, which hides timers after it."""
        if when != when:  # noqa: PLR0124
            raise ValueError("a time that is not a number")
        return super().call_at(when, callback, *args, context=context)


class _Loop:
    def __init__(  # noqa: PLR0913  # everything meets here
        self,
        loop: asyncio.AbstractEventLoop,
        selector: selectors.BaseSelector,
        engine: Engine,
        channel: Channel,
        service: Service,
        log: Log,
        watchdog: Watchdog,
        signals: Signals,
    ) -> None:
        self.loop, self.selector = loop, selector
        self.engine, self.channel = engine, channel
        self.service, self.log = service, log
        self.watchdog, self.signals = watchdog, signals
        self.failure: ConfigError | None = None
        self.ending = False
        self.reading = self.writing = False
        #: Whether heartbeats are scheduled, by which the watchdog notices that the loop is blocked.
        self.beating = False
        self.last_heartbeat = 0.0
        #: The timer of the next `engine.beat`, and whether it is for stories that the engine holds.
        self.journal_timer: asyncio.TimerHandle | None = None
        self.stories_due = False
        self.refreshing: set[asyncio.Task[None]] = set()
        self.draining: asyncio.Task[None] | None = None
        #: The scheduled turn of messages; only one is scheduled at a time.
        self.next_turn: asyncio.Handle | None = None
        #: Memory has run out since the last round.
        self.out_of_memory = False
        #: Watches nothing: its `poll` sleeps without taking memory.
        self.sleeper = select.poll()
        #: The budget of the coroutines of messages in one round of the loop.
        self.pace = Pace(STEPS)
        #: Background work, one step per round: the reloading of tables.
        self.chores: deque[Iterator[None]] = deque()
        engine.spawn = self.spawn
        watchdog.blocked = self.blocked
        watchdog.needed = lambda: self.beating

    def run(self) -> None:
        loop = self.loop
        loop.set_exception_handler(self._unhandled)
        loop.add_reader(self.signals.wakeup, self._signalled)
        for refresher in self.service.refreshing:
            loop.call_soon(self._refresh, refresher)
        self._send_journal()
        self._turn()
        self._forever(lambda: not self.ending)
        if self.failure is not None:
            raise self.failure
        try:
            self._finish()
        except MemoryError:  # smtpd has ended
            pass

    def _forever(self, going: Callable[[], bool]) -> None:
        """Run the loop while `going`, whatever is raised out of it.

        A signal's handler that runs out of memory raises anywhere, between two rounds as well.
        """
        while True:
            try:
                self._run_rounds(going)
            except BaseException:  # noqa: BLE001  # never exits; nothing here may allocate
                self.out_of_memory = True
            else:
                return

    def _run_rounds(self, going: Callable[[], bool]) -> None:
        """Run the loop while `going`, whatever a policy's own tasks raise out of it.

        On a MemoryError the loop is stopped, and continues here after a pause.
        """
        thrown: BaseException | None = None
        while True:
            try:
                if thrown is not None:
                    why = fold_traceback(thrown)
                    thrown = None
                    self.log.limited(
                        "loop", "smtpd-filters", "a task raised out of the event loop", error=why
                    )
                if self.out_of_memory:
                    self._resume()
                if not going():
                    return
                # If it is `out_of_memory` again, this is one round, so that deadlines can pass.
                self.loop.run_forever()
            except MemoryError:  # nothing here may allocate
                self.out_of_memory = True
            except SystemError:  # raised if there is no memory for the MemoryError
                self.out_of_memory = True
            except BaseException as error:  # noqa: BLE001  # never exits
                thrown = error

    def _resume(self) -> None:
        """Continue after a pause for lack of memory."""
        self.out_of_memory = False
        self.sleeper.poll(PAUSE)
        self.engine.relieve()
        # Replaces calls that could not be scheduled for lack of memory.
        if self.next_turn is not None:
            self.next_turn.cancel()
            self.next_turn = None
        self.pace.renew()
        self._restart_journal()
        self._turn()

    def _wait_for_memory(self) -> None:
        """Have `_forever` wait for memory and continue.  Takes none."""
        self.out_of_memory = True
        self.loop.stop()

    # -- reading and writing -------------------------------------------------------------

    def _readable(self) -> None:
        """Read what is there, and answer at once what needs no coroutine and no message."""
        engine, until = self.engine, monotonic() + READING
        for _ in range(READS):
            if engine.stalled:
                return
            size = hand_over(self.channel, engine)
            if size == 0:
                self._end()
                return
            if size:
                self._receive()
            self._turn()
            if size is None or size < READ or not self.reading or monotonic() > until:
                return

    def _receive(self) -> None:
        """Have the engine process what was read."""
        if not self.watchdog.armed:
            self.watchdog.arm()
        try:
            self.engine.resume()
        except UnsupportedProtocolError as error:
            self.failure = ConfigError(str(error))
            self._end()
            return
        except MemoryError:
            raise
        except BaseException as error:  # noqa: BLE001  # never exits
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        if not self.engine.ready:
            self.failure = ConfigError(f"bug: {fold_traceback(error)}")
            self._end()
            return
        self.log.limited("loop", "smtpd-filters", "bug", error=fold_traceback(error))

    def _turn(self) -> None:
        try:
            self._take_turn()
        except MemoryError:  # the rest is written later
            self._wait_for_memory()
        except SystemError:  # see `_forever`
            self._wait_for_memory()

    def _take_turn(self) -> None:
        """Write answers, do a turn of messages, and update what the loop waits for."""
        channel, engine = self.channel, self.engine
        if engine.stalled:
            self._receive()
            self._retry_input()
        send(engine, channel)
        if engine.holds and not self.stories_due:
            self._send_journal()
        if self.next_turn is None and may_work(engine, channel):
            self._watch()
            engine.work()
            send(engine, channel)
            if may_work(engine, channel):
                # The next turn comes after the requests that have arrived meanwhile.
                self._turn_soon()
        writing = channel.size > 0
        if writing != self.writing:
            if writing:
                self.loop.add_writer(channel.sink, self._turn)
            else:
                self.loop.remove_writer(channel.sink)
            self.writing = writing
        reading = channel.size < HIGH_WATER and not (self.ending or engine.stalled)
        if reading != self.reading:
            if reading:
                self.loop.add_reader(channel.source, self._readable)
            else:
                self.loop.remove_reader(channel.source)
            self.reading = reading

    def _retry_input(self) -> None:
        """Schedule another attempt at input that could not be processed, if there is some."""
        if self.engine.stalled:
            if self.engine.scarce:
                self._wait_for_memory()
            else:
                self._turn_soon()

    def _turn_soon(self) -> None:
        """Schedule a turn in the next round of the loop.

        One turn serves all coroutines that end in this round: a write costs as much as they do.
        """
        if self.next_turn is None:
            self.next_turn = self.loop.call_soon(self._run_turn)

    def _run_turn(self) -> None:
        self.next_turn = None
        self._turn()

    # -- coroutines ----------------------------------------------------------------------

    def spawn(self, pending: Pending, done: Callable[[Decision | None], None], price: int) -> Job:
        """Run pending work of the engine; work with a price shares a budget."""

        def decided(decision: Decision | None) -> None:
            done(decision)
            self._turn_soon()

        def failed(error: BaseException) -> None:
            self.log.limited("task", "smtpd-filters", "bug", error=fold_traceback(error))
            decided(None)

        job = Job(self.loop, pending, decided, failed, self.pace if price else None, price)
        self._watch()
        return job

    def _refresh(self, refresher: Refresher) -> None:
        """Call `refresh` of a policy, and again after its interval."""
        if self.ending:
            return
        # Not `create_task`: a policy's task factory may raise.
        task = asyncio.Task(self.service.refresh(refresher), loop=self.loop)
        self.refreshing.add(task)
        task.add_done_callback(self.refreshing.discard)
        pause = _pause(refresher)
        task.add_done_callback(lambda _: self.loop.call_later(pause, self._refresh, refresher))
        self._watch()

    def _watch(self) -> None:
        """Have the watchdog look for coroutines that block the loop."""
        if not self.beating:
            self.beating = True
            self._heartbeat()
        if not self.watchdog.armed:
            self.watchdog.arm()

    def _heartbeat(self) -> None:
        self.last_heartbeat = monotonic()
        try:
            # A policy's own tasks may block the process as well.
            self.beating = bool(asyncio.all_tasks(self.loop))
            if self.beating:
                self.loop.call_later(self.watchdog.tick, self._heartbeat)
        except MemoryError:  # the next coroutine restarts it
            self.beating = False

    def _send_journal(self) -> None:
        """Send the journal stories and the state that are due, and again when it is time."""
        if self.journal_timer is not None:
            self.journal_timer.cancel()
        # First: a MemoryError may end this anywhere.
        self.journal_timer, self.stories_due = None, False
        pause = self.engine.beat()
        if pause is not None and not self.ending:
            self.journal_timer = self.loop.call_later(pause, self._send_journal)
            self.stories_due = self.engine.holds

    def _restart_journal(self) -> None:
        """Go on to send the state after a lack of memory has ended that."""
        if self.journal_timer is None:
            self._send_journal()

    def blocked(self, frame: FrameType | None) -> float:
        """Return for how many seconds the interrupted coroutine or callback has blocked the loop.

        A descriptor's callback that is interrupted is removed, since it would be called again.
        """
        watchdog = self.watchdog
        task = asyncio.current_task(self.loop)
        if self.beating and task is not None and task is not self.draining:
            return monotonic() - self.last_heartbeat - watchdog.tick
        # A descriptor's callback has one handle for all its calls: in another round it is another.
        called = _callback(frame)
        seconds = watchdog.held(called or watchdog.policy(frame))
        if called is not None and seconds > watchdog.limit:
            self.loop.call_soon(self._remove, called)
        return seconds

    def _remove(self, handle: asyncio.Handle) -> None:
        """Remove the callback of a descriptor."""
        for key in list(self.selector.get_map().values()):
            fd, (reader, writer) = key.fd, key.data
            try:
                if reader is handle:
                    self.loop.remove_reader(fd)
                elif writer is handle:
                    self.loop.remove_writer(fd)
                else:
                    continue
            except RuntimeError:  # it is a transport's, which closes itself
                continue
            self.log.limited(
                "callback", "smtpd-filters", "removed a callback that blocked", fd=str(fd)
            )

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, MemoryError | SystemError):
            self._wait_for_memory()
        text = fold_traceback(error) if error is not None else str(context.get("message"))
        self.log.limited("unhandled", "smtpd-filters", "a task of a policy failed", error=text)

    # -- signals and time ----------------------------------------------------------------

    def _signalled(self) -> None:
        self.signals.drain()
        if self.signals.reload:
            self.signals.reload = False
            if not self.chores:
                self.loop.call_soon(self._do_chore)
            add_chore(self.chores, self.service)
        if self.signals.stop:
            self._end()

    def _do_chore(self) -> None:
        do_chore(self.chores, self.log)
        if self.chores:
            self.loop.call_soon(self._do_chore)

    def _end(self) -> None:
        self.ending = True
        self._turn()
        self.loop.stop()

    def _finish(self) -> None:
        """After the end of input: answer pending requests within LAST_WORDS, then release all."""

        async def drain() -> None:
            deadline = monotonic() + LAST_WORDS
            while (self.engine.busy or self.channel.size) and monotonic() < deadline:
                if self.channel.hung_up():
                    break
                await asyncio.sleep(0.01)
                self._turn()
            await self._release()

        self.watchdog.exit_within(ENDING)
        self.loop.set_task_factory(None)  # a policy's own may raise
        self.draining = task = self.loop.create_task(drain())
        task.add_done_callback(lambda _: self.loop.stop())
        self._forever(lambda: not task.done())

    async def _release(self) -> None:
        """Drop all sessions, close the service, and cancel the tasks that are left."""
        self.watchdog.exit_within(LEAVING)
        self.engine.abandon()
        closing = asyncio.ensure_future(self.service.close())
        await asyncio.wait({closing}, timeout=CLOSING)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=CLOSING)


def _pause(refresher: Refresher) -> float:
    """Return the seconds until the next call of `refresh`, whatever a policy has set."""
    try:
        seconds = float(refresher.refresh_interval)
    except Exception:  # noqa: BLE001  # a policy's own value
        return UNKNOWN
    return max(seconds, SHORTEST) if seconds == seconds else UNKNOWN  # noqa: PLR0124  # NaN


def _callback(frame: FrameType | None) -> asyncio.Handle | None:
    """Return the handle of the policy's callback that runs in a frame, or None."""
    inner = None
    while frame is not None and frame.f_code is not _RUN:
        inner, frame = frame, frame.f_back
    if frame is None:
        return None
    # The framework's own callbacks must not be interrupted; a policy's code within them may be.
    if inner is not None and inner.f_globals.get("__name__", "").startswith(_OWN):
        return None
    handle: asyncio.Handle = frame.f_locals["self"]
    return handle

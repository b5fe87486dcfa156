"""The fleet: which programs run, when one is started, replaced, drained or ended.

Invariants
----------
*Never given up*: a place in the fleet always has a program, or a time at which one is started.
*Bounded*: a program that is to end is killed `GRACE` seconds after SIGTERM. If it has not ended as
long after that (it runs as another user, or the system waits for a device), its place gets another.
*Old until new*: programs are replaced only when all of their successors are ready.
*Refused at first only*: a program with a wrong configuration prevents the start of smtpd. Once
smtpd has a registration, nothing that a program does ends this process.
"""

from __future__ import annotations

import signal

from smtpd_filters.runtime.log import show

from .link import Link
from .process import LogRate, Process
from .transit import NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from smtpd_filters.runtime.log import Log

    from .engine import Engine

    Spawn = Callable[[], Process]

#: Seconds that a program may take to start, at least: it may load large tables.
START = 60.0
#: Seconds between asking a program to end and killing it.
GRACE = 2.0
#: Programs that can't be killed, beyond which their places wait for their end.
UNKILLED = 8
#: Seconds for which a program with a closed input or output may take to exit.
CLOSING = 0.5
#: Seconds after which an end counts as the first one again.
STABLE = 10.0
#: The pause before a start, in seconds: doubled with each start that fails, up to a limit; the
#: limit after the end of a program that has worked.
PAUSE, LONGEST, SHORTEST = 0.1, 30.0, 1.0
#: The exit statuses of a program whose command line or configuration is wrong: EX_USAGE and
#: EX_CONFIG of sysexits(3).
REFUSALS = (64, 78)
#: Failed starts after which requests no longer wait for the next one.
PATIENCE = 3


class Worker:
    """A program that runs, and its place in the fleet."""

    def __init__(self, process: Process, log: Log, now: float) -> None:
        self.process, self.link = process, Link()
        self.channel = process.channel
        self.log = LogRate(log, NAME)
        self.started = now
        #: When it became ready, 0.0 before.
        self.ready = 0.0
        #: When its output ended, and its input; when it must have ended; when it is killed; 0.0
        #: before.
        self.closed = self.broken = self.until = self.kill = 0.0
        #: No session is given to it any more.
        self.draining = False
        #: Since when it has not read anything that waits for it, by the engine's clock.
        self.moved = 0.0
        self.pending = 0
        #: Why it is ended.
        self.why = ""


class Place:
    """A place in the fleet: its program, or when to start one."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.due = 0.0
        #: Starts that failed, and ends after a start that did not, in a row.
        self.failed = self.ends = 0

    def pause(self, worker: Worker, now: float) -> float:
        """Count the end of the worker; return the seconds until the next start."""
        if worker.ready and worker.link.useful:
            self.failed = 0
            self.ends = 1 if now - worker.ready >= STABLE else self.ends + 1
            return min(SHORTEST, PAUSE * 2.0 ** (min(self.ends, 10) - 2)) if self.ends > 1 else 0.0
        self.failed += 1
        return min(LONGEST, PAUSE * 2.0 ** min(self.failed, 10))

    @property
    def hopeful(self) -> bool:
        """Whether its next program can be expected to be ready soon."""
        return self.failed < PATIENCE


class Fleet:
    """The programs of one supervisor.

    `spawn` starts a program; it raises OSError. `watch` and `unwatch` are called with each worker
    whose descriptors are opened, and before they are closed.
    """

    def __init__(  # noqa: PLR0913  # what a supervisor has once
        self,
        engine: Engine,
        spawn: Spawn,
        log: Log,
        *,
        size: int,
        drain: float,
        watch: Callable[[Worker], None],
        unwatch: Callable[[Worker], None],
    ) -> None:
        self._engine, self._spawn, self._log = engine, spawn, log
        self._drain = drain
        self._watch, self._unwatch = watch, unwatch
        self.places = [Place() for _ in range(size)]
        #: All workers whose processes run: those in places, their successors, and those that end.
        self.workers: list[Worker] = []
        #: A program that was started and is no worker yet, because memory ran out.
        self._spawned: Process | None = None
        #: Successors that are not all ready yet.
        self.next: list[Worker] = []
        #: A reload is to begin once no other is under way, and no program starts.
        self.reloading = False
        #: The exit status of a program that refused to start before smtpd had a registration.
        self.refused = 0
        #: How often a program has failed, or could not be started.
        self.ends = 0

    # -- the course of time ----------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Start, end and replace programs whose time has come."""
        for worker in list(self.workers):
            self._check(worker, now)
        if 0 < len(self.next) < len(self.places):  # memory ran out when they were started or ended
            self._end_next("no memory", now)
        if self.reloading and not self.next and not self._starting:
            self._begin_reload(now)
        if self.next and all(worker.ready and not worker.kill for worker in self.next):
            self._replace(now)
        for place in self.places:
            if place.worker is None and now >= place.due:
                place.worker = self._start(now)
                if place.worker is None:
                    place.failed += 1
                    place.due = now + min(LONGEST, PAUSE * 2.0 ** min(place.failed, 10))
        engine = self._engine
        if engine.handshake.overdue:
            engine.handshake.register_all()
            self._log.event(
                NAME,
                "registered",
                phases="all",
                reason="the program has not started, so it is unknown what it needs",
            )
        engine.expecting = any(place.hopeful for place in self.places)
        engine.settle()

    def next_time(self, now: float) -> float | None:
        """Return the seconds until `tick` must be called, or None."""
        times = [place.due for place in self.places if place.worker is None]
        for worker in self.workers:
            times += [each for each in (worker.kill, worker.until) if each > now]
            if worker.closed or worker.broken:
                times.append((worker.closed or worker.broken) + CLOSING)
            if not worker.ready or worker.process.memory or worker.draining or worker.kill:
                times.append(now + 1.0)
        return max(min(times) - now, 0.0) if times else None

    def _check(self, worker: Worker, now: float) -> None:
        """Look after one worker."""
        process, link = worker.process, worker.link
        if worker.kill:
            if now >= worker.kill:
                process.signal(signal.SIGKILL)
            if now >= worker.kill + GRACE:
                self._leave(worker, now)
            return
        if link.ready and not worker.ready:
            self._became_ready(worker, now)
        fault = link.fault or self._failing(worker, now)
        if fault:
            self.end(worker, fault, now)
        elif worker.draining and not link.sessions:
            self._log.event(NAME, "drained", pid=str(process.pid))
            self._let_go(worker, now)

    def _failing(self, worker: Worker, now: float) -> str:
        """Return why a worker must be ended, or an empty string."""
        engine, process = self._engine, worker.process
        if worker.channel.broken:
            worker.broken = worker.broken or now
        if since := worker.closed or worker.broken:
            exits = now - since <= CLOSING  # probably
            return "" if exits else f"closed its {'output' if worker.closed else 'input'}"
        start = max(engine.deadline, START)
        if not worker.ready and now - worker.started > start:
            return f"not ready after {start:g} s"
        if process.memory and (used := process.resident()) > process.memory:
            return f"uses {used >> 20} MiB of memory, more than --memory-limit"
        if worker.until and now >= worker.until:
            return "sessions left after --drain-timeout"
        if worker.channel.size and engine.now - worker.moved > engine.deadline:
            return f"has not read for {engine.deadline:g} s"
        return engine.overdue(worker.link)

    # -- one program -----------------------------------------------------------------------

    def _start(self, now: float, *, successor: bool = False) -> Worker | None:
        if self._spawned is None:
            try:
                self._spawned = self._spawn()
            except OSError as error:
                self.ends += 1
                self._log.limited("spawn", NAME, "not started", error=show(error))
                return None
        worker = Worker(self._spawned, self._log, now)
        self.workers.append(worker)
        self._spawned = None
        try:
            self._engine.attach(worker.link)
            self._watch(worker)
            if successor:
                self.next.append(worker)
        except MemoryError:
            worker.link.fault = "no memory at its start"  # it has no place, and is ended
            raise
        return worker

    def _became_ready(self, worker: Worker, now: float) -> None:
        if worker not in self.next:
            self._engine.admit(worker.link)
        worker.ready = now
        took = f"{(now - worker.started) * 1000:.0f}ms"
        self._log.event(NAME, "ready", pid=str(worker.process.pid), took=took)

    def end(self, worker: Worker, why: str, now: float) -> None:
        """End a program, and answer in its place."""
        if worker.kill:
            return
        worker.why = worker.why or why
        if worker not in self.next:
            self._report(worker, now)
        worker.process.terminate()
        self._hang_up(worker, now)

    def _let_go(self, worker: Worker, now: float) -> None:
        """End a program that has nothing to do: its input ends first, as at the end of smtpd."""
        self._engine.lost(worker.link, "replaced")
        worker.why = "replaced"
        worker.process.end_input()
        self._hang_up(worker, now)

    def _hang_up(self, worker: Worker, now: float) -> None:
        kill = now + GRACE
        self._unwatch(worker)
        worker.process.hang_up()
        worker.kill, worker.until = kill, 0.0

    def _report(self, worker: Worker, now: float) -> None:
        """Answer for a program, and log its end."""
        self.ends += 1
        loss = self._engine.lost(worker.link, worker.why)
        ran = f"{now - worker.started:.1f}s"
        self._log.event(
            NAME, "ended", pid=str(worker.process.pid), reason=worker.why, ran=ran, **loss.values()
        )

    def reap(self, now: float) -> None:
        """Take note of the programs that have exited."""
        for worker in list(self.workers):
            if worker.process.reap():
                self._gone(worker, now)

    def _gone(self, worker: Worker, now: float) -> None:
        """Release what is left of a program that has exited, and plan its successor.

        It is one of `workers` until then, so that this is done again if memory runs out.
        """
        self._unwatch(worker)
        if not worker.kill:
            worker.why = worker.link.fault or worker.process.ended()
            status = worker.process.status or 0
            if status in REFUSALS and self._engine.handshake.registered is None:
                self.refused = status
                why = f"{worker.why}: its flags or its configuration are wrong"
                self._log.event(NAME, "smtpd is not started", reason=why)
            elif worker not in self.next:
                self._report(worker, now)
            worker.process.hang_up()
        if not self.refused:
            self._vacate(worker, now)
        self.workers.remove(worker)

    def _leave(self, worker: Worker, now: float) -> None:
        """Stop waiting for a program that can't be killed; it is reaped if it ends after all."""
        if worker in self.next or worker in self._placed():
            unkilled = sum(now >= each.kill + GRACE for each in self.workers if each.kill)
            if unkilled <= UNKILLED:
                pid = str(worker.process.pid)
                self._log.event(NAME, "not killed", pid=pid, reason="SIGKILL has no effect on it")
                self._vacate(worker, now)

    def _vacate(self, worker: Worker, now: float) -> None:
        """Plan the successor of a program that has ended, or end the reload that it is part of."""
        if worker in self.next:
            self._end_next(worker.why, now)
        for place in self.places:
            if place.worker is worker:
                place.worker = None
                place.due = now + place.pause(worker, now)

    # -- replacing -------------------------------------------------------------------------

    def reload(self) -> None:
        """Replace all programs; a second call while that is under way has it done once more.

        A program that starts at the moment may have read its old configuration, so it is replaced,
        too, once it is ready.
        """
        self.reloading = True

    def _begin_reload(self, now: float) -> None:
        if not any(worker.ready and not worker.kill for worker in self._placed()):
            self.reloading = False
            for place in self.places:
                place.failed = place.ends = 0
                place.due = min(place.due, now)
            self._log.event(NAME, "reload", result="started", reason="no program runs")
            return
        for _ in self.places:
            started = self._start(now, successor=True)
            self.reloading = False
            if started is None:
                self._end_next("can't be started", now)
                return

    def _end_next(self, why: str, now: float) -> None:
        while self.next:
            worker = self.next[-1]
            self._engine.lost(worker.link, why)
            worker.why = why
            worker.process.terminate()
            if not worker.kill:
                self._hang_up(worker, now)
            del self.next[-1]
        self._log.event(NAME, "reload failed", reason=why, result="the old program goes on")

    def _replace(self, now: float) -> None:
        until = now + self._drain
        for place, worker in zip(self.places, self.next, strict=True):
            self._engine.admit(worker.link)
            old = place.worker
            if old is not None and old is not worker and not old.kill:
                self._engine.dismiss(old.link)
                old.draining, old.until = True, until
            place.worker = worker
            place.failed = place.ends = 0
        self.next.clear()
        self._log.event(NAME, "reload", result="ok")

    @property
    def _starting(self) -> bool:
        """Whether a program in a place is not ready yet."""
        return any(not worker.ready and not worker.kill for worker in self._placed())

    def _placed(self) -> Iterator[Worker]:
        for place in self.places:
            if place.worker is not None:
                yield place.worker

    # -- the end ---------------------------------------------------------------------------

    def finish(self) -> None:
        """At the end of smtpd: let all programs read the end of their input."""
        self.places = []
        self.next = []
        for worker in self.workers:
            if not worker.kill:
                worker.process.end_input()

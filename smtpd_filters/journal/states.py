"""The states of processes, summed by the journal, and read by the page from its file.

The journal adds what each process's sums have gained since its last datagram, and writes the result
to a file beside the days, which replaces the one before as a whole.

Invariants
----------
*Untrusted*: a datagram is checked as those of stories: kinds and causes are from small sets, and
numbers, processes, names and servers are limited.
*Monotonic*: sums start at zero with the journal and only grow. Of a process that was there before
the journal, or was forgotten, only what it gains counts: nothing is counted twice.
"""

from __future__ import annotations

import json
import os
from collections import deque
from dataclasses import dataclass, field
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from smtpd_filters.runtime.counters import BUCKETS, FAILURES, KINDS, MAX_LABEL, MAX_SERVERS
from smtpd_filters.settings.files import create_file, open_file

from .process_state import INTERVAL
from .reception import OTHER, InvalidError, name, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: The name of the file, and the version of its format.
FILE, FORMAT = "state.json", 1
#: Seconds without a datagram after which a process counts as ended.
GONE = 2.5 * INTERVAL
#: Seconds after which the journal writes its file again, and after which it counts as stopped.
WRITTEN, STOPPED = 15.0, 60.0
#: Seconds within which the datagrams of one state come.
TOGETHER = 1.0
#: Seconds since its start up to which all that a new process has counted is new.
NEW = 60
#: Processes that are remembered, names of processes and servers that are shown, and bytes of a
#: file that is read.
MAX_PROCESSES, MAX_NAMES, MAX_SHOWN, MAX_FILE = 1024, 50, 64, 1 << 20
#: The largest number of events in a datagram, and of microseconds: in years no process reaches
#: them, and with a few hundred of them the sums are still exact as the floats of Prometheus.
MAX_EVENTS, MAX_TIME = 1 << 44, 1 << 56
#: The largest sum in the file.
MAX_SUM = 1 << 100
#: The sums of how long ago are kept for `recent`: seconds between two, and how many.
STEP, STEPS = 60.0, 10
_ID_LENGTH = 16


@dataclass(slots=True)
class Times:
    """Look-ups of one kind: the seconds of all, numbers by bucket, and failures by cause."""

    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))

    @property
    def count(self) -> int:
        """The number of look-ups."""
        return sum(self.buckets)

    @property
    def failed(self) -> int:
        """The number of look-ups that failed."""
        return sum(self.failures.values())

    def quantile(self, part: float) -> float | None:
        """Return the upper limit of the bucket with this part of all; None above the last one."""
        wanted, total = part * self.count, 0
        for limit, n in zip(BUCKETS, self.buckets, strict=False):
            total += n
            if total >= wanted:
                return limit
        return None

    def copy(self) -> Times:
        """Return a copy."""
        return Times(self.seconds, list(self.buckets), dict(self.failures))

    def add_gain(self, new: Times, old: Times) -> None:
        """Add what `new` has more than `old`."""
        self.seconds += max(new.seconds - old.seconds, 0.0)
        self.buckets = [
            mine + max(a - b, 0)
            for mine, a, b in zip(self.buckets, new.buckets, old.buckets, strict=True)
        ]
        for cause, n in new.failures.items():
            self.failures[cause] += max(n - old.failures[cause], 0)

    def plain(self) -> list[Any]:
        """Return it for JSON."""
        return [int(self.seconds * 1e6), self.buckets, self.failures]


@dataclass(frozen=True, slots=True)
class States:
    """The sums of all processes, and what they have at the moment."""

    #: When it was written, in seconds since 1970.
    at: float
    lookups: dict[str, Times]
    #: The look-ups of the last minutes, and how many seconds these are.
    recent: dict[str, Times]
    span: float
    #: Servers: kind and label, and whether some process passes it over.
    circuits: dict[tuple[str, str], bool]
    #: By the name of processes: open sessions of those that run, ends of supervised programs, and
    #: events that could not be sent to the journal.
    sessions: dict[str, int]
    ends: dict[str, int]
    dropped: dict[str, int]
    #: The journal's own counts (`Service.counts`).
    journal: dict[str, int]

    def is_current(self, now: float) -> bool:
        """Return whether the journal runs, `now` being seconds since 1970."""
        return abs(now - self.at) < STOPPED


class _Process:
    """A process: its last sums, and what it has now."""

    __slots__ = ("circuits", "dropped", "ends", "lookups", "name", "old_until", "seen", "sessions")

    def __init__(self, name: str) -> None:
        self.name = name
        #: When it was heard; and until when all that it has counted was there before the journal.
        self.seen = self.old_until = 0.0
        self.sessions = self.ends = self.dropped = 0
        self.lookups: dict[str, Times] = {}
        self.circuits: dict[tuple[str, str], bool] = {}


class Collected:
    """The states that have come, in the journal."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began = clock()
        #: When a process was last forgotten for lack of room.
        self._forgot = -inf
        #: By name and number, the one that was heard last at the end.
        self._processes: dict[tuple[str, str], _Process] = {}
        self._lookups: dict[str, Times] = {}
        self._ends: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._earlier: deque[tuple[float, dict[str, Times]]] = deque(maxlen=STEPS)
        self._earlier.append((self._began, {}))
        self._next_write = 0.0

    def add(self, found: Mapping[str, Any]) -> None:
        """Add a datagram, an object of JSON. Raises InvalidError; then nothing was added."""
        now = self._clock()
        number_of = found.get("n")
        if not isinstance(number_of, str) or not 0 < len(number_of) <= _ID_LENGTH:
            raise InvalidError("invalid number of a process")
        age, sessions, ends, dropped = (_count(found.get(key, 0)) for key in "aorx")
        lookups = _lookups(found.get("q", {}))
        circuits = _circuits(found.get("b", []))
        who = self._known(name(found.get("p")))
        key = who, number_of
        process = self._processes.pop(key, None)
        if process is None:
            process = _Process(who)
            # Ages are whole seconds: it may have started up to one earlier.
            if age > NEW or now - age < self._began or now - age - 1 < self._forgot:
                process.ends, process.dropped, process.old_until = ends, dropped, now + TOGETHER
        self._processes[key] = process
        if len(self._processes) > MAX_PROCESSES:
            del self._processes[next(iter(self._processes))]
            self._forgot = now
        self._count(process, lookups, ends, dropped)
        if now - process.seen > TOGETHER:
            process.circuits = {}
        if len(process.circuits) < MAX_SERVERS:
            process.circuits |= circuits
        process.seen, process.sessions = now, sessions

    def _known(self, who: str) -> str:
        """Return the name of a process, or "other" if too many are known."""
        if who in self._ends or len(self._ends) < MAX_NAMES:
            self._ends.setdefault(who, 0)
            return who
        self._ends.setdefault(OTHER, 0)
        return OTHER

    def _count(self, process: _Process, lookups: dict[str, Times], ends: int, dropped: int) -> None:
        who = process.name
        for kind, new in lookups.items():
            old = process.lookups.get(kind)
            if old is None:
                old = new if self._clock() <= process.old_until else Times()
            self._lookups.setdefault(kind, Times()).add_gain(new, old)
            process.lookups[kind] = new
        self._ends[who] += max(ends - process.ends, 0)
        self._dropped[who] = self._dropped.get(who, 0) + max(dropped - process.dropped, 0)
        process.ends, process.dropped = ends, dropped

    def states(self, journal: Mapping[str, int]) -> States:
        """Return the sums; `journal` are the journal's own counts."""
        now = self._clock()
        if now - self._earlier[-1][0] >= STEP:
            copied = {kind: each.copy() for kind, each in self._lookups.items()}
            self._earlier.append((now, copied))
        since, before = self._earlier[0]
        recent: dict[str, Times] = {}
        for kind, each in self._lookups.items():
            gained = recent[kind] = Times()
            gained.add_gain(each, before.get(kind, Times()))
        circuits: dict[tuple[str, str], bool] = {}
        sessions: dict[str, int] = {}
        for process in self._processes.values():
            if now - process.seen > GONE:
                continue
            sessions[process.name] = sessions.get(process.name, 0) + process.sessions
            for key, is_open in process.circuits.items():
                if key in circuits or len(circuits) < MAX_SHOWN:
                    circuits[key] = circuits.get(key, False) or is_open
        return States(
            time(),
            self._lookups,
            recent,
            now - since,
            circuits,
            sessions,
            self._ends,
            self._dropped,
            dict(journal),
        )

    def write(self, directory: str, journal: Mapping[str, int], interval: float) -> bool:
        """Write the file, unless this was tried in the last `interval` seconds. Raises OSError.

        Return whether it was written.
        """
        now = self._clock()
        if now < self._next_write:
            return False
        self._next_write = now + interval
        found = self.states(journal)
        content = {
            "version": FORMAT,
            "at": found.at,
            "lookups": {kind: each.plain() for kind, each in found.lookups.items()},
            "recent": {kind: each.plain() for kind, each in found.recent.items()},
            "span": found.span,
            "circuits": [[*key, int(is_open)] for key, is_open in found.circuits.items()],
            "sessions": found.sessions,
            "ends": found.ends,
            "dropped": found.dropped,
            "journal": found.journal,
        }
        path = os.path.join(directory, FILE)  # noqa: PTH118  # paths as text
        with os.fdopen(create_file(f"{path}.new"), "w", encoding="utf-8") as file:
            json.dump(content, file)
        os.replace(f"{path}.new", path)  # noqa: PTH105
        return True


def remove(directory: str) -> None:
    """Remove the file: the journal ends."""
    try:
        os.unlink(os.path.join(directory, FILE))  # noqa: PTH108, PTH118
    except OSError:
        pass


def read(directory: str) -> States | None:
    """Return the states in the file of a journal; None without one that can be read."""
    try:
        with open_file(os.path.join(directory, FILE)) as file:  # noqa: PTH118
            found = json.loads(file.read(MAX_FILE))
        if found["version"] != FORMAT:
            return None
        # Sums of many processes are larger than what one may send.
        return States(
            float(found["at"]),
            _lookups(found["lookups"], MAX_SUM, MAX_SUM),
            _lookups(found["recent"], MAX_SUM, MAX_SUM),
            float(found["span"]),
            {(kind, label): bool(is_open) for kind, label, is_open in found["circuits"]},
            *(
                {text(key): int(n) for key, n in found[part].items()}
                for part in ("sessions", "ends", "dropped", "journal")
            ),
        )
    except (
        OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError
    ):  # fmt: skip
        return None


def _count(value: object, largest: int = MAX_EVENTS) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise InvalidError("not a number, or too large")
    return value


def _lookups(found: object, events: int = MAX_EVENTS, time_: int = MAX_TIME) -> dict[str, Times]:
    """Return look-ups by kind. Raises InvalidError."""
    if not isinstance(found, dict) or len(found) > len(KINDS):
        raise InvalidError("invalid look-ups")
    return {kind: _times(each, events, time_) for kind, each in found.items() if kind in KINDS}


def _times(found: object, events: int, time_: int) -> Times:
    if not isinstance(found, list) or len(found) != 3:
        raise InvalidError("invalid look-ups")
    sum_, buckets, failures = found
    if not isinstance(buckets, list) or len(buckets) != len(BUCKETS) + 1:
        raise InvalidError("invalid buckets")
    if not isinstance(failures, dict) or not set(failures) <= set(FAILURES):
        raise InvalidError("unknown cause")
    times = Times(_count(sum_, time_) / 1e6, [_count(each, events) for each in buckets])
    times.failures |= {cause: _count(n, events) for cause, n in failures.items()}
    return times


def _circuits(found: object) -> dict[tuple[str, str], bool]:
    if not isinstance(found, list) or len(found) > MAX_SERVERS:
        raise InvalidError("invalid servers")
    circuits = {}
    for each in found:
        if not isinstance(each, list) or len(each) != 3 or each[0] not in KINDS:
            raise InvalidError("invalid server")
        circuits[each[0], text(each[1])[-MAX_LABEL:]] = each[2] == 1
    return circuits

"""The call sequence of a request and of a body, in order.

    python -m tests.bench.hops [--calls]

A filter is served on a socket pair, as smtpd would have it; once it is warm, what its loop calls
from one wait to the next is recorded. A hop is a call of a function of the package or of the
filter; calls of built-in functions are counted beside them. `--calls` prints each hop by its depth.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from smtpd_filters.chain import Chain
from smtpd_filters.runtime import serve
from smtpd_filters.runtime.channel import Ends
from smtpd_filters.runtime.log import Log
from smtpd_filters.runtime.watchdog import Watchdog
from tests.bench.filters import AddHeader, First, Second, SevenPhases, Waiting, Whole
from tests.bench.player import CONFIG, ROOT
from tests.bench.workloads import TOKEN, data_lines, message, stamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from smtpd_filters.filter import Filter

PACKAGE = f"{ROOT / 'smtpd_filters'}{os.sep}"
BENCH = f"{ROOT / 'tests' / 'bench'}{os.sep}"
#: Lines of a body in one read, of a message that has begun before and ends behind them.
LINES = 200
#: Sessions before the one that is recorded.
WARM = 3
#: Seconds without a turn after which the loop is waiting.
IDLE = 0.05
#: The calls in which a loop waits, and where they are made.
WAITS = frozenset({"poll", "control"})
LOOPS = ("loop.py", "selectors.py")


@dataclass
class Turn:
    """A turn, from one wait of the loop to the next: hops with their depth, and built-in calls."""

    hops: list[tuple[int, str]] = field(default_factory=list)
    builtin: int = 0


class Recorder:
    """A profile function that records calls, turn by turn."""

    def __init__(self) -> None:
        """Begin in the middle of a turn."""
        self.turns = [Turn()]
        self._frames: list[bool] = []

    def __call__(self, frame: FrameType, event: str, called: object) -> None:
        """Record a call; the parameters are those of `sys.setprofile`."""
        path = frame.f_code.co_filename
        turn = self.turns[-1]
        if event == "call":
            ours = path.startswith((PACKAGE, BENCH))
            if ours:
                module = path.removeprefix(PACKAGE).removeprefix(BENCH).removesuffix(".py")
                turn.hops.append((sum(self._frames), f"{module}.{frame.f_code.co_qualname}"))
            self._frames.append(ours)
        elif event == "return" and self._frames:
            self._frames.pop()
        elif event == "c_call":
            name = getattr(called, "__name__", "")
            if name in WAITS and path.endswith(LOOPS):
                self.turns.append(Turn())
            elif path.startswith((PACKAGE, BENCH)):
                turn.builtin += 1


class Smtpd(threading.Thread):
    """Plays smtpd's part of some sessions, and records the filter's calls in the last one."""

    def __init__(self, end: socket.socket, recorder: Recorder, phase: str) -> None:
        """Set the phase of the request; `data-line` for a message."""
        super().__init__()
        self.end, self.recorder, self.phase = end, recorder, phase
        self.steps: dict[str, list[Turn]] = {}

    def run(self) -> None:
        """Play the sessions, then close."""
        try:
            self.say(CONFIG, b"register|ready\n")
            for number in range(WARM + 1):
                self.steps = {name: self.say(*step) for name, *step in self.session(number)}
        finally:
            self.end.close()

    def session(self, number: int) -> Iterator[tuple[str, bytes, bytes]]:
        """Return the input of the filter, and the end of its output."""
        sid = b"7641df97%08x" % number
        report = (
            b"report|0.7|%b|smtp-in|link-connect|%b|mx.example|pass|192.0.2.1:25|192.0.2.2:25\n"
        )
        yield "connect", report % (stamp(), sid), b""
        if self.phase != "data-line":
            ask = b"filter|0.7|%b|smtp-in|%b|%b|%b|alice@example.net\n"
            data = ask % (stamp(), self.phase.encode(), sid, TOKEN)
            yield "request", data, b"proceed\n"
            return
        *lines, dot = data_lines(sid, message(LINES))
        yield "first", b"".join(lines[:20]), b""
        yield "body", b"".join(lines[20:]), b""
        yield "dot", dot, b"|.\n"

    def say(self, data: bytes, ending: bytes) -> list[Turn]:
        """Send data, wait for the answer and for the loop to wait again; return the turns."""
        turns = self.recorder.turns
        before = len(turns) - 1
        self.end.sendall(data)
        got = b""
        while not got.endswith(ending):
            got += self.end.recv(1 << 20)
        count = -1
        while count != len(turns):
            count = len(turns)
            time.sleep(IDLE)
        return turns[before : len(turns) - 1]


def record(filters: Sequence[Filter], phase: str) -> dict[str, list[Turn]]:
    """Serve these filters, and send them requests of a phase."""
    log, watchdog = Log(), Watchdog(5.0)
    watchdog.armed = True  # so that its timer never runs
    chain = Chain([(each, each.on_error, each.deadline) for each in filters], log, watchdog)
    ours, theirs = socket.socketpair()
    ends = Ends.__new__(Ends)
    ends.source = ends.sink = ours.detach()
    recorder = Recorder()
    smtpd = Smtpd(theirs, recorder, phase)
    smtpd.start()
    sys.setprofile(recorder)
    try:
        serve(chain, log, watchdog, ends=ends)
    finally:
        sys.setprofile(None)
        smtpd.join()
    return smtpd.steps


def show(title: str, turns: Sequence[Turn], *, calls: bool) -> None:
    """Print the number of hops, and with `calls` the hops."""
    hops = [hop for turn in turns for hop in turn.hops]
    modules = {name.split(".", 1)[0] for _, name in hops}
    builtin = sum(turn.builtin for turn in turns)
    least = min((depth for depth, _ in hops), default=0)
    deep = max((depth for depth, _ in hops), default=0) - least + 1
    print(
        f"{title:<48}{len(hops):>5} hops{len(modules):>4} modules{deep:>4} deep"
        f"{builtin:>5} built-in{len(turns):>3} turns"
    )
    if calls:
        for (depth, name), same in groupby(hops):
            count = len(list(same))
            times = f"  x {count}" if count > 1 else ""
            print(f"    {'  ' * (depth - least)}{name}{times}")


def main() -> int:
    """Record and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", action="store_true", help="print each hop")
    options = parser.parse_args()
    cases: tuple[tuple[str, list[Filter], str], ...] = (
        ("request, one filter", [First()], "mail-from"),
        ("request, two filters", [First(), Second()], "mail-from"),
        ("request, a coroutine", [Waiting()], "mail-from"),
        (f"body of {LINES} lines, passed", [SevenPhases()], "data-line"),
        (f"body of {LINES} lines, header edited", [AddHeader()], "data-line"),
        (f"body of {LINES} lines, whole message", [Whole()], "data-line"),
    )
    for title, filters, phase in cases:
        for step, turns in record(filters, phase).items():
            if step != "connect":
                show(f"{title}: {step}" if step != "request" else title, turns, calls=options.calls)
    return 0


if __name__ == "__main__":
    sys.exit(main())

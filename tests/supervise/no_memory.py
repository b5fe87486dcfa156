"""A supervised conversation while single allocations fail: a program for a test.

`no_memory.py KIND WIDTH`: each allocation in each step of two sessions is made to fail once, and
the `WIDTH` - 1 after it as well, in turn while smtpd's bytes and while the program's are processed.
The program returns lines at once (`Lines`), keeps whole messages (`Whole`), is not there when they
come (`Late`), ends within them (`Lost`), or ends at the start and has no successor (`Gone`).
Whatever fails, smtpd must not exit, every request must be answered, and an
accepted message must be whole. Prints what went wrong, and at the end how often something was
tried.
"""

# ruff: noqa: T201

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # CPython's own
import sys
from typing import TYPE_CHECKING, Any

from smtpd_filters.message.spool import Spool
from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.events import Line, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import REPORTS
from smtpd_filters.supervise.engine import Engine
from smtpd_filters.supervise.link import Link
from tests.effort import SHARE
from tests.runtime.steps import MAIL, ONE, SMTPD, STEPS, TWO
from tests.supervise.hostile import Program, nowhere

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

REGISTERED = (("mail-from", "data-line", "commit"), tuple(REPORTS))
#: More than most steps make before their effect is complete.
ALLOCATIONS = 60
#: Steps during which there is no program.
ABSENT: dict[str, Collection[int]] = {"Late": (3, 4), "Lost": (4,), "Gone": range(len(STEPS))}


class Stage:
    """An engine, its program, and smtpd's view of them."""

    def __init__(self, kind: str, failing: Callable[[Callable[[], None]], None]) -> None:
        self.engine = Engine(nowhere(), spool=Spool(memory=1 << 16))
        self.kind, self.echoes, self.failing = kind, kind in ("Lines", "Lost"), failing
        self.oracle, self.peer = Oracle(), SmtpdConnection()
        self.said: list[Any] = []
        self.program = self.start()

    def start(self) -> Program:
        link = Link()
        self.engine.attach(link)
        return Program(link, lambda options: options[0 if self.echoes else -1], REGISTERED)

    def step(self, data: bytes, *, absent: bool = False) -> None:
        """Pass on bytes of smtpd, and what the program says to them."""
        engine = self.engine
        self.oracle.from_smtpd(data)
        self.failing(lambda: self.receive(data))
        # As the loop does, as long as there is something to be tried again.
        while engine.smtpd.stalled:
            engine.smtpd.resume()
        if absent:
            if self.program.link in engine.links:
                engine.lost(self.program.link, "killed")
            if self.kind == "Gone":
                engine.expecting = False
                engine.settle()
        else:
            self.work()
        output = b"".join([*engine.answers, *engine.lines])
        engine.answers.clear()
        engine.lines.clear()
        self.oracle.from_filter(output)
        self.said += self.peer.receive(output)

    def receive(self, data: bytes) -> None:
        """Have bytes of smtpd processed, again if none were taken."""
        try:
            self.engine.from_smtpd(data)
        except MemoryError:
            _testcapi.remove_mem_hooks()
            self.engine.from_smtpd(data)

    def work(self) -> None:
        """Have the program work, and a new one when it is at fault, until all is done."""
        engine = self.engine
        for _ in range(20):
            program = self.program
            if program.link.fault:
                engine.lost(program.link, program.link.fault)
                program = self.program = self.start()
            engine.transit.feed(program.link)
            program.read()
            program.settle()
            output, program.output = program.output, b""
            self.failing(lambda: engine.from_program(self.program.link, output))  # noqa: B023  # called at once
            if program.link.ready and program.link not in engine.links:
                engine.admit(program.link)
            engine.settle()

    def wrong(self) -> list[str]:
        """What went wrong."""
        self.oracle.finish()
        wrong = [each.rule for each in self.oracle.complaints if each.rule != "mail-head-broken"]
        for session in (ONE, TWO):
            mine = [each for each in self.said if getattr(each, "session", b"") == session]
            lines = [each.line for each in mine if isinstance(each, Line)]
            verbs = [each.verb for each in mine if isinstance(each, Result)]
            if len(verbs) != 2:
                wrong.append(f"{len(verbs)} answers")
            elif verbs[1] == b"proceed" and lines != [*MAIL, b"."]:
                wrong.append("accepted a message that is not whole")
        return wrong


def play(kind: str, step: int, start: int, stop: int) -> list[str]:
    """Return what went wrong when these allocations failed in that step."""
    left = 0

    def failing(call: Callable[[], None]) -> None:
        nonlocal left
        left -= 1
        if left:
            call()
            return
        _testcapi.set_nomemory(start, stop)
        try:
            call()
        finally:
            _testcapi.remove_mem_hooks()

    stage = Stage(kind, failing)
    stage.step(SMTPD.configure())
    left = step % 2 + 1
    for number, data in enumerate(STEPS):
        if number != step // 2:
            held, left = left, 0
        stage.step(data, absent=number in ABSENT.get(kind, ()))
        if number != step // 2:
            left = held
    if kind != "Gone":
        stage.work()
    return stage.wrong()


def main() -> int:
    kind, width = sys.argv[1], int(sys.argv[2])
    tried = 0
    for step in range(2 * len(STEPS)):
        for start in range(0, ALLOCATIONS, SHARE):
            tried += 1
            try:
                wrong = play(kind, step, start, start + width)
            except MemoryError as error:
                wrong = [f"raised {error!r}"]
            for each in wrong:
                print(f"step {step}, allocation {start}: {each}")
    print(f"{tried} tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Sessions while single allocations fail: a program for a test.

`no_memory.py CHAIN WIDTH`: each allocation in each step of two sessions is made to fail once, and
the `WIDTH` - 1 after it as well.  Whatever fails, smtpd must not exit, every request must be
answered, and an accepted message must be whole.  Prints what went wrong, and at the end how often
something was tried.
"""

# ruff: noqa: ARG002, T201

from __future__ import annotations

import _testcapi  # type: ignore[import-not-found]  # CPython's own
import os
import sys
from collections.abc import Callable
from typing import Any

from smtpd_filters import PROCEED, Answer, Filter, Headers, Message, Proceed, Reject, Session
from smtpd_filters.chain import Chain
from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.events import Line, Result
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.runtime.log import Log
from smtpd_filters.scoring.chain import ScoringChain
from smtpd_filters.scoring.rules import FilterRules, Rules, RuleSettings
from tests.effort import SHARE
from tests.runtime.steps import MAIL, ONE, SMTPD, STEPS, TWO

#: More than the allocations that each of the steps makes.
ALLOCATIONS = (80, 100, 60, 160, 460, 460, 100)


class Sender(Filter):
    def mail_from(self, session: Session, address: str) -> Proceed | Reject:
        return PROCEED if address else Reject("550 5.7.1 no")


class Head(Sender):
    def headers(self, session: Session, headers: Headers) -> Answer:
        headers.prepend("X-Head", headers.get("subject", ""))
        return PROCEED


class Whole(Sender):
    def message(self, session: Session, message: Message) -> Answer:
        message.headers.append("X-Size", str(message.size))
        return PROCEED


def scored(log: Log) -> Chain:
    """Return a chain with a score, which it writes into the header."""
    rules = Rules(
        RuleSettings(junk_at=9, reject_at=20, score_header=True),
        {"head": FilterRules(score={"junk": 5.0, "reject": 20.0})},
    )
    return ScoringChain([(Head(), "tempfail", 5.0)], log, None, rules)


CHAINS: dict[str, Callable[[Log], Chain]] = {
    "Head": lambda log: Chain([(Head(), "tempfail", 5.0)], log),
    "Whole": lambda log: Chain([(Whole(), "tempfail", 5.0)], log),
    "Scored": scored,
}


def play(chain: Callable[[Log], Chain], step: int, start: int, stop: int, log: Log) -> list[str]:
    """Return what went wrong when these allocations failed in that step."""
    engine = Engine(chain(log), log)
    oracle, peer = Oracle(), SmtpdConnection()
    said: list[Any] = []
    for number, data in enumerate([SMTPD.configure(), *STEPS], -1):
        oracle.from_smtpd(data)
        receive, work = engine.receive, engine.work
        if number == step:
            _testcapi.set_nomemory(start, stop)
        try:
            receive(data)
            while engine.working:
                try:
                    work()
                except MemoryError:  # a loop comes back to it
                    pass
        finally:
            _testcapi.remove_mem_hooks()
        # As a loop does, as long as there is something to be tried again.
        while engine.stalled:
            engine.resume()
        engine.work()
        output = engine.output()
        oracle.from_filter(output)
        said += peer.receive(output)
    oracle.finish()
    # A header that is cut short is that of a message that is refused.
    wrong = [each.rule for each in oracle.complaints if each.rule != "mail-head-broken"]
    for session in (ONE, TWO):
        lines = [each.line for each in said if isinstance(each, Line) and each.session == session]
        verbs = [each.verb for each in said if isinstance(each, Result) and each.session == session]
        if len(verbs) != 2:
            wrong.append(f"{len(verbs)} answers")
        elif verbs[1] == b"proceed" and lines[lines.index(b"") :] != [*MAIL[2:], b"."]:
            wrong.append("accepted a message that is not whole")
    return wrong


def main() -> int:
    chain = CHAINS[sys.argv[1]]
    width = int(sys.argv[2])
    log = Log(fd=os.open(os.devnull, os.O_WRONLY))
    tried = 0
    for step in range(len(STEPS)):
        for start in range(0, ALLOCATIONS[step], SHARE):
            tried += 1
            try:
                wrong = play(chain, step, start, start + width, log)
            except MemoryError as error:
                trace = error.__traceback__
                while trace is not None and trace.tb_next is not None:
                    trace = trace.tb_next
                # What calls the engine is this program, and fails as well.
                ours = trace is not None and trace.tb_frame.f_code.co_filename == __file__
                wrong = [] if ours else [f"raised {error!r}"]
            except Exception as error:  # noqa: BLE001  # whatever it is
                wrong = [f"raised {error!r}"]
            if wrong:
                print(f"step {step}, allocations from {start}: {', '.join(wrong)}")
    print(f"{tried} tried")
    return 0


if __name__ == "__main__":
    sys.exit(main())

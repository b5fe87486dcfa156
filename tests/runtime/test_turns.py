"""No input of one session delays the others: work is done in turns of bounded size.

Counted, not timed: how many bytes and lines a turn writes, how many messages it has judged, how
many functions it calls.  What that takes in seconds is measured by `python -m tests.bench.run
--only stalls`.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from smtpd_filters import PROCEED, Answer, Filter, Headers, Message, Proceed, Session
from smtpd_filters.chain import Chain
from smtpd_filters.message import Spool
from smtpd_filters.message.spool import STORE_COST
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.runtime.channel import READ
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.pace import TURN as PACE
from smtpd_filters.runtime.pace import Pace
from tests.effort import part, some
from tests.runtime.process import TOKENS, sid

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from smtpd_filters.runtime.coroutines import Pending
    from tests.conftest import Logbook

CLEAN = sid(0)
#: What a turn may write at the most: bytes and lines.  A turn ends behind `messages.TURN`; one more
#: piece of a message may begin before that.
BYTES, LINES = 400_000, 4_500
#: What it may call.  10,000 calls take 1 to 2 ms; a header of the largest size has 16,000 lines.
CALLS = 50_000
#: Headers of the largest size that it may have judged: no two of them fit into a turn.
JUDGED = 1


def outgoing(engine: Engine) -> tuple[bytes, bytes]:
    """Return the pending output, and clear it: answers, and lines of messages."""
    said = b"".join(engine.connection.answers), b"".join(engine.connection.lines)
    engine.output()
    return said


class Judge(Filter):
    """Counts what it has judged."""

    def __init__(self) -> None:
        super().__init__()
        self.judged = 0

    def noop(self, session: Session, text: str) -> Proceed:  # noqa: ARG002
        return PROCEED


class Looks(Judge):
    """Looks for a field, as most filters do."""

    def headers(self, session: Session, headers: Headers) -> Answer:  # noqa: ARG002
        self.judged += 1
        headers.get_all("From")
        headers.remove("X-Mark")
        headers.prepend("X-Mark", "1")
        return PROCEED


class Reads(Judge):
    """Has the whole message."""

    def message(self, session: Session, message: Message) -> Answer:  # noqa: ARG002
        self.judged += 1
        message.headers.prepend("X-Mark", "1")
        return PROCEED


class Meter:
    """An engine whose turns are counted."""

    def __init__(self, filter_: Judge, book: Logbook, spool: Spool | None = None) -> None:
        self.filter = filter_
        self.smtpd = SmtpdConnection()
        self.spool = spool or Spool()
        chain = Chain([(filter_, "proceed", 5.0)], book.log)
        self.engine = Engine(chain, book.log, spool=self.spool)
        self.written = 0
        self._turn(self.smtpd.configure())
        self.connect(CLEAN)

    def connect(self, session: bytes) -> None:
        values = (b"mx.example.org", b"pass", b"192.0.2.1:25", b"192.0.2.2:25")
        self._turn(self.smtpd.report("link-connect", session, *values))

    def disconnect(self, sessions: list[bytes]) -> None:
        for session in sessions:
            self.engine.receive(self.smtpd.report("link-disconnect", session))

    def lines(self, session: bytes, lines: list[bytes], *, end: bool = False) -> bytes:
        return self.smtpd.lines(session, TOKENS["data-line"], lines, end=end)

    def feed(self, data: bytes) -> None:
        """Have it read, and the clean session asked behind each read."""
        for at in range(0, len(data), READ):
            self._turn(data[at : at + READ])
            if data[at + READ - 1 : at + READ] in (b"\n", b""):
                self._probe()

    def work_once(self) -> None:
        """Have a turn done."""
        self._turn(None)

    def work(self) -> int:
        """Have done what is left to do; in how many turns."""
        turns = 0
        while self.engine.working:
            turns += 1
            self._turn(None)
            self._probe()
        return turns

    def _probe(self) -> None:
        self.engine.receive(self.smtpd.request("noop", CLEAN, TOKENS["noop"]))
        answers, _ = outgoing(self.engine)
        assert answers == b"filter-result|%b|%b|proceed\n" % (CLEAN, TOKENS["noop"])

    def _turn(self, data: bytes | None) -> None:
        judged = self.filter.judged
        calls = 0

        def count(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            if data is None:
                self.engine.work()
            else:
                self.engine.receive(data)
        finally:
            sys.setprofile(before)
        _, lines = outgoing(self.engine)
        self.written += lines.count(b"\n")
        assert len(lines) <= BYTES
        assert lines.count(b"\n") <= LINES
        assert calls <= CALLS
        assert self.filter.judged - judged <= JUDGED or data is None
        # What is on disk counts, too: a store for the edited header of each message.
        stores = len(self.engine.messages.intakes)
        assert self.spool.used <= self.spool.memory + 2 * READ + STORE_COST * stores


BODIES = {
    "empty lines": [b""] * part(300_000),
    "lines of a byte": [b"x"] * part(300_000),
    "lines of dots": [b"." * 60] * part(50_000),
    "long lines": [b"x" * 65_000] * part(60),
    "ordinary lines": [b"x" * 70] * part(50_000),
}
BOTH = pytest.mark.parametrize("kind", [Looks, Reads])


@BOTH
@pytest.mark.parametrize("body", BODIES)
def test_a_large_message(kind: type[Judge], body: str, logbook: Logbook) -> None:
    meter = Meter(kind(), logbook)
    meter.connect(sid(1))
    message = [b"Subject: x", b"", *BODIES[body]]
    meter.feed(meter.lines(sid(1), message, end=True))
    turns = meter.work()
    assert meter.written >= len(message) + 2
    if kind is Reads:
        assert turns >= len(message) // LINES
    assert meter.filter.judged == 1


@BOTH
@pytest.mark.parametrize("field", [b"a:", b"X-Long: " + b"word " * 190, b" "])
def test_a_header_of_a_million_fields(kind: type[Judge], field: bytes, logbook: Logbook) -> None:
    meter = Meter(kind(), logbook)
    meter.connect(sid(1))
    count = 10 * part(100_000 if len(field) < 10 else 2_000)
    data = meter.lines(sid(1), [field] * (count // 10))
    for _ in range(10):
        meter.feed(data)
        meter.work()
    meter.feed(meter.lines(sid(1), [b"", b"body"], end=True))
    meter.work()
    # With the filter's own field, and the empty line that ends what is read as header.
    assert meter.written == count + 5
    assert meter.filter.judged == 1


@BOTH
def test_headers_that_end_at_the_same_moment(kind: type[Judge], logbook: Logbook) -> None:
    meter = Meter(kind(), logbook)
    sessions = [sid(number) for number in range(1, part(100) + 1)]
    for session in sessions:
        meter.connect(session)
        meter.feed(meter.lines(session, [b"a:"] * 15_000))
    end = kind is Reads
    # All of it in one read.
    meter.feed(b"".join(meter.lines(session, [b""], end=end) for session in sessions))
    assert meter.filter.judged == 0
    turns = meter.work()
    assert meter.filter.judged == len(sessions)
    assert turns >= len(sessions) * 15_000 // LINES


def test_small_messages_that_end_at_the_same_moment(logbook: Logbook) -> None:
    meter = Meter(Reads(), logbook)
    sessions = [sid(number) for number in range(1, 501)]
    for session in sessions:
        meter.connect(session)
        meter.feed(meter.lines(session, [b"Subject: x", b"", b"x"]))
    meter.feed(b"".join(meter.lines(session, [], end=True) for session in sessions))
    # Small ones share turns: one each would cost a system call each.
    assert 2 < meter.work() < 50
    assert meter.written == 5 * len(sessions)


@BOTH
def test_memory_is_bounded_however_many_messages_there_are(
    kind: type[Judge], logbook: Logbook
) -> None:
    spool = Spool(memory=part(2 << 20))
    meter = Meter(kind(), logbook, spool)
    sessions = [sid(number) for number in range(1, part(100) + 1)]
    piece = [b"X: " + b"x" * 900] * 100
    for session in sessions:
        meter.connect(session)
    for _ in range(5):
        for session in sessions:
            meter.feed(meter.lines(session, piece))
    assert spool.used <= spool.memory
    assert spool.on_disk > part(100) * 400_000
    for session in sessions:
        meter.feed(meter.lines(session, [b"", b"body"], end=True))
    meter.work()
    assert meter.written == len(sessions) * (500 + 4)
    assert (spool.used, spool.on_disk) == (0, 0)


class Verdicts:
    """Verdicts that are given by the test."""

    def __init__(self, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.verdicts: list[Callable[[Proceed], None]] = []
        self.prices: list[int] = []

        monkeypatch.setattr(Chain, "judge_headers", lambda *_: object())
        meter.engine.spawn = self._spawn

    def _spawn(self, _pending: object, done: Any, price: int) -> Verdicts:
        self.prices.append(price)
        self.verdicts.append(done)
        return self

    def cancel(self) -> None:
        """Nothing was begun."""

    def give(self) -> None:
        """Give the first one."""
        self.verdicts.pop(0)(PROCEED)


def test_headers_are_judged_within_a_budget(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool()
    meter = Meter(Looks(), logbook, spool)
    pending = Verdicts(meter, monkeypatch)
    # More than fit into the memory.
    sessions = [sid(number) for number in range(1, max(25, part(100)) + 1)]
    for session in sessions:
        meter.connect(session)
        meter.feed(meter.lines(session, [b"X: " + b"x" * 900] * 1000 + [b""]))
    for _ in sessions:
        meter.work()
        # A header of a megabyte counts twice: as it came, and as it is edited.
        assert 0 < len(pending.verdicts) <= spool.memory // (2 * 900_000)
        pending.give()
    meter.work()
    assert meter.written == 1001 * len(sessions)


def test_a_message_does_not_wait_for_ever_to_be_judged(
    logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(25, 25)
    monkeypatch.setattr("smtpd_filters.runtime.messages.monotonic", lambda: next(clock))
    meter = Meter(Looks(), logbook, Spool(memory=3 << 20))
    pending = Verdicts(meter, monkeypatch)
    header = [b"X: " + b"x" * 900] * 900
    sessions = [sid(number) for number in range(1, 6)]
    for session in sessions:
        meter.connect(session)
        meter.feed(meter.lines(session, [*header, b"", b"body"], end=True))
        meter.work()
    # The others do not fit in beside the first.
    assert len(pending.verdicts) == 1
    pending.give()
    meter.work()
    # The second has its turn; the third still does not fit in, and has waited for too long.
    assert len(pending.verdicts) == 1
    assert "too many messages are being judged" in logbook.lines[0]
    meter.engine.receive(meter.smtpd.request("commit", sid(3), TOKENS["commit"]))
    assert b"|reject|452 4.3.1 " in meter.engine.output()
    for session in sessions:
        meter.engine.receive(meter.smtpd.report("link-disconnect", session))


@BOTH
@pytest.mark.parametrize("number", some([200, 500]))
def test_edited_headers_wait_within_the_budget(
    kind: type[Judge], number: int, logbook: Logbook
) -> None:
    spool = Spool(memory=4 << 20)
    meter = Meter(kind(), logbook, spool)
    fields = 600
    sessions = [sid(each) for each in range(1, number + 1)]
    for session in sessions:
        meter.connect(session)
        meter.feed(meter.lines(session, [b"X-Mark: 1", *[b"X: a"] * (fields - 1)]))
    end = b"".join(meter.lines(session, [b""], end=kind is Reads) for session in sessions)
    gc.collect()
    tracemalloc.start()
    try:
        # All of them are judged before the first is sent.
        meter.feed(end)
        while meter.filter.judged < number:
            meter.work_once()
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # As lists of lines they would be 40 KB each.
    assert held <= most <= spool.memory
    assert spool.used <= spool.memory + STORE_COST * number
    assert most <= spool.memory + STORE_COST * number + (1 << 20)
    meter.work()
    assert meter.written >= number * fields
    meter.disconnect(sessions)
    assert (spool.used, spool.on_disk) == (0, 0)


@BOTH
def test_the_price_of_a_step_of_a_coroutine(
    kind: type[Judge], logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(kind(), logbook)
    pending = Verdicts(meter, monkeypatch)
    monkeypatch.setattr(Chain, "judge_message", Chain.judge_headers)
    bodies = {"small": 1, "large": 200, "huge": 2000}
    heads = {"few": 1, "many": 10_000}
    numbers = count(1)
    prices = {}
    for body, lines in bodies.items():
        for head, fields in heads.items():
            session = sid(next(numbers))
            meter.connect(session)
            message = [b"X: a"] * fields + [b""] + [b"x" * 998] * lines
            meter.feed(meter.lines(session, message, end=True))
            meter.work()
            prices[body, head] = pending.prices[-1]
    # Ordinary ones share a turn; none of those that are large do.
    assert prices["small", "few"] <= PACE // 40
    assert prices["small", "many"] > PACE
    if kind is Looks:
        assert prices["huge", "few"] == prices["small", "few"]
    else:
        assert prices["small", "few"] < prices["large", "few"] < prices["huge", "few"]
        assert prices["huge", "many"] <= 3 * PACE
    meter.disconnect([sid(number) for number in range(1, next(numbers))])


class Waits(Judge):
    """Reads a field in a coroutine that suspends, as for a look-up."""

    def __init__(self, event: asyncio.Event) -> None:
        super().__init__()
        self._event = event

    async def headers(self, session: Session, headers: Headers) -> Answer:  # noqa: ARG002
        await self._event.wait()
        self.judged += 1
        headers.remove("X-Mark")
        headers.prepend("X-Mark", "1")
        return PROCEED


def test_coroutines_of_messages_go_on_one_after_the_other(logbook: Logbook) -> None:
    async def main() -> None:
        loop, event, pace = asyncio.get_running_loop(), asyncio.Event(), Pace()
        meter = Meter(Waits(event), logbook)
        asked = 0

        def spawn(pending: Pending, done: Any, price: int) -> Job:
            nonlocal asked
            asked += 1
            assert price > PACE // 2
            return Job(loop, pending, done, done, pace, price)

        meter.engine.spawn = spawn
        fields = 12_000
        sessions = [sid(number) for number in range(1, 13)]
        for session in sessions:
            meter.connect(session)
            meter.feed(meter.lines(session, [b"X-Mark: 1", *[b"a:"] * (fields - 1), b""]))
            meter.work()
        assert asked == len(sessions)
        for _ in range(3 * asked):
            await asyncio.sleep(0)
        event.set()
        rounds = 0
        while meter.written < fields * len(sessions):
            judged = meter.filter.judged
            await asyncio.sleep(0)
            assert meter.filter.judged <= judged + 1
            meter.work()
            rounds += 1
            assert rounds < 1000
        meter.disconnect(sessions)

    asyncio.run(main())

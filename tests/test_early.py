"""Look-ups of all filters of a chain start together, and decide in order."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters import JUNK, PROCEED, Decision, Filter, Reject, Rewrite, Session
from smtpd_filters.chain import Chain
from smtpd_filters.chain.calls import EARLY
from smtpd_filters.filters.dnsbl.policy import Dnsbl
from smtpd_filters.filters.fcrdns import Fcrdns
from smtpd_filters.filters.helo import Helo
from smtpd_filters.filters.sender import Sender
from smtpd_filters.filters.senderscore import Senderscore
from smtpd_filters.main import make_chain, set_up
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.runtime.coroutines import Pending, decide_at_once
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.log import Log
from smtpd_filters.runtime.pace import TURN, pace
from smtpd_filters.session import FIELDS
from smtpd_filters.settings import Pool, from_mapping
from smtpd_filters.testing.dns import DNSServer

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from tests.conftest import Logbook

RCPT_TO = PHASES["rcpt-to"]
NO = Reject("550 5.7.1 No")
LATER = Reject("450 4.7.1 Later")


class Looks(Filter):
    """Decides when its answer arrives; `asked` has the parameters, `ended` how each call ended."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.answers: list[asyncio.Future[Decision]] = []
        self.asked: list[str] = []
        self.ended: list[str] = []
        self.over = asyncio.Event()

    async def rcpt_to(self, session: Session, address: str) -> Decision:  # noqa: ARG002
        self.asked.append(address)
        self.answers.append(asyncio.get_running_loop().create_future())
        try:
            decision = await self.answers[-1]
        except BaseException as error:
            self.ended.append(type(error).__name__)
            self.over.set()
            raise
        self.ended.append("answered")
        return decision

    @property
    def pending(self) -> int:
        return sum(not each.done() for each in self.answers)


def answer(looks: Looks, decision: Decision) -> None:
    looks.answers[-1].set_result(decision)


class Knows(Filter):
    """Decides at once: plain, or in the first step of a coroutine."""

    def __init__(self, name: str, decision: Any) -> None:
        super().__init__()
        self.name = name
        self.decision = decision
        self.asked: list[str] = []

    def _decide(self, address: str) -> Decision:
        self.asked.append(address)
        if isinstance(self.decision, BaseException):
            raise self.decision
        decision: Decision = self.decision
        return decision


class Plain(Knows):
    def rcpt_to(self, session: Session, address: str) -> Decision:  # noqa: ARG002
        return self._decide(address)


class Cached(Knows):
    async def rcpt_to(self, session: Session, address: str) -> Decision:  # noqa: ARG002
        return self._decide(address)


def session() -> Session:
    made = Session(b"7641df9771b4ed00").expect([f for fields in FIELDS.values() for f in fields])
    made.apply("link-connect", (b"mx.example.org", b"fail", b"192.0.2.1:25", b"192.0.2.2:25"))
    return made


class Asked:
    """A request that a chain of filters has been asked, in the running loop."""

    def __init__(
        self, log: Log, *filters: Filter, deadline: float = 10.0, run: bool = True
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.chain = Chain([(each, "tempfail", deadline) for each in filters], log)
        self.said = self.chain.ask[RCPT_TO](session(), b"you@example.org")
        self.decision: asyncio.Future[Decision] = self.loop.create_future()
        if not isinstance(self.said, Pending):
            self.decision.set_result(self.said)
        elif run:
            done = self.decision
            self.job = Job(self.loop, self.said, done.set_result, done.set_exception)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def played(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in a loop that must have nothing left to run at its end."""

    async def run() -> None:
        await test
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def verdicts(logbook: Logbook) -> list[str]:
    return [re.sub(r" took=\S+", "", line).partition(" ")[2] for line in logbook.lines]


def test_all_start_at_once_and_decide_in_order(logbook: Logbook) -> None:
    async def test() -> None:
        filters = [Looks(name) for name in "abcde"]
        asked = Asked(logbook.log, *filters)
        assert [each.pending for each in filters] == [1, 1, 1, 1, 1]
        for each in filters[:0:-1]:
            answer(each, JUNK.because(each.name))
            await settle()
        assert not asked.decision.done()
        assert logbook.lines == []
        answer(filters[0], PROCEED)
        assert (await asked.decision).verb == "junk"

    played(test())
    assert verdicts(logbook) == [f"{n} rcpt-to result=junk reason={n}" for n in "bcde"]


def test_the_first_refusal_cancels_the_rest(logbook: Logbook) -> None:
    first, second, third, last = Looks("a"), Looks("b"), Looks("c"), Cached("d", NO)

    async def test() -> None:
        asked = Asked(logbook.log, first, second, third, last)
        answer(second, NO.because("earlier in time, later in the chain"))
        await settle()
        answer(first, LATER)
        assert await asked.decision == LATER
        await settle()

    played(test())
    assert (first.ended, second.ended, third.ended) == (
        ["answered"],
        ["answered"],
        ["CancelledError"],
    )
    # What was found out needlessly has no line: it is not what became of the client.
    assert [line.split()[1] for line in logbook.lines] == ["a"]


def test_a_rewritten_parameter_is_what_is_asked_about(logbook: Logbook) -> None:
    first, second, third = Looks("a"), Looks("b"), Looks("c")

    async def test() -> None:
        asked = Asked(logbook.log, first, second, third)
        answer(third, NO)
        answer(first, Rewrite("me@example.org"))
        await settle()
        assert second.asked == third.asked == ["you@example.org", "me@example.org"]
        assert second.ended == ["CancelledError"]
        answer(second, PROCEED)
        answer(third, PROCEED)
        assert await asked.decision == Rewrite("me@example.org")

    played(test())


@pytest.mark.parametrize("kind", [Plain, Cached])
def test_who_must_not_be_asked_early_is_asked_in_turn(kind: type[Knows], logbook: Logbook) -> None:
    first, counts, last = Looks("a"), kind("b", PROCEED), Looks("c")
    counts.early = False

    async def test() -> None:
        asked = Asked(logbook.log, first, counts, last)
        assert (counts.asked, last.pending) == ([], 1)
        answer(first, PROCEED)
        await settle()
        assert counts.asked == ["you@example.org"]
        answer(last, JUNK)
        assert await asked.decision == JUNK

    played(test())


def test_a_failure_is_answered_for_in_turn(logbook: Logbook) -> None:
    first, fails = Looks("a"), Cached("b", ValueError("wrong"))

    async def test() -> None:
        asked = Asked(logbook.log, first, fails)
        await settle()
        assert logbook.lines == []
        answer(first, PROCEED)
        assert (await asked.decision).text.startswith("451")

    played(test())
    assert "error=" in logbook.lines[0]
    assert "ValueError" in logbook.lines[0]


def test_the_deadline_counts_from_the_call(logbook: Logbook) -> None:
    first, second = Looks("a"), Looks("b")

    async def test() -> None:
        asked = Asked(logbook.log, first, second, deadline=0.02)
        assert (await asked.decision).text.startswith("451")
        await settle()

    played(test())
    assert first.ended == second.ended == ["CancelledError"]
    assert len(logbook.lines) == 1


def test_one_that_misses_its_deadline_waits_for_its_turn(logbook: Logbook) -> None:
    first, second = Looks("a"), Looks("b")
    first.deadline = 10.0

    async def test() -> None:
        loop = asyncio.get_running_loop()
        chain = Chain([(first, "proceed", 10.0), (second, "tempfail", 0.01)], logbook.log)
        said = chain.ask[RCPT_TO](session(), b"you@example.org")
        assert isinstance(said, Pending)
        decision: asyncio.Future[Decision] = loop.create_future()
        Job(loop, said, decision.set_result, decision.set_exception)
        await second.over.wait()
        assert logbook.lines == []
        answer(first, PROCEED)
        assert (await decision).text.startswith("451")

    played(test())
    assert "not done after 0.01 s" in logbook.lines[0]


@pytest.mark.parametrize("answered", range(5))
def test_the_end_of_a_session_cancels_all(logbook: Logbook, answered: int) -> None:
    filters = [Looks(name) for name in "abcde"]

    async def test() -> None:
        asked = Asked(logbook.log, *filters)
        for each in filters[:answered]:
            answer(each, PROCEED)
            await settle()
        asked.job.cancel()
        await settle()
        assert not any(each.pending for each in filters)
        assert not asked.decision.done()

    played(test())
    cancelled = [["CancelledError"]] * (len(filters) - answered)
    assert [each.ended for each in filters] == [["answered"]] * answered + cancelled
    assert logbook.lines == []


def test_what_is_decided_at_once_leaves_nothing_open(logbook: Logbook) -> None:
    filters = [Looks(name) for name in "abc"]

    async def test() -> None:
        asked = Asked(logbook.log, *filters, run=False)
        assert isinstance(asked.said, Pending)
        assert decide_at_once(asked.said).text.startswith("451")
        assert [each.ended for each in filters] == [["GeneratorExit"]] * 3

    played(test())


def test_and_if_a_failure_is_no_refusal_all_fail_in_order(logbook: Logbook) -> None:
    filters = [Looks(name) for name in "abc"]

    async def test() -> None:
        chain = Chain([(each, "junk", 10.0) for each in filters], logbook.log)
        said = chain.ask[RCPT_TO](session(), b"you@example.org")
        assert isinstance(said, Pending)
        assert decide_at_once(said).verb == "junk"
        assert [each.ended for each in filters] == [["GeneratorExit"]] * 3

    played(test())
    assert [line.split()[1] for line in logbook.lines] == ["a", "b", "c"]


def test_without_memory_none_is_asked_early(logbook: Logbook) -> None:
    first, second = Looks("a"), Looks("b")

    async def test() -> None:
        chain = Chain([(first, "proceed", 10.0), (second, "proceed", 10.0)], logbook.log)
        chain.refuses_coroutines = lambda: bool(first.asked)
        said = chain.ask[RCPT_TO](session(), b"you@example.org")
        assert (first.pending, second.asked) == (1, [])
        assert isinstance(said, Pending)
        decide_at_once(said)

    played(test())


def test_beyond_the_budget_of_a_turn_they_are_asked_in_turn(logbook: Logbook) -> None:
    filters = [Looks(name) for name in "abc"]

    async def test() -> None:
        budget = pace()
        assert budget.take(TURN - EARLY)
        asked = Asked(logbook.log, *filters)
        assert [each.pending for each in filters] == [1, 1, 0]
        await settle()
        for each in filters:
            answer(each, PROCEED)
            await settle()
        assert await asked.decision == PROCEED

    played(test())


@pytest.mark.parametrize("error", [MemoryError(), SystemExit()])
def test_one_that_cannot_run_fails_in_turn(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, logbook: Logbook
) -> None:
    first, second = Looks("a"), Looks("b")
    made: list[object] = []
    make = asyncio.BaseEventLoop.create_task

    def fails(loop: Any, work: Any, **names: Any) -> Any:
        if work.__name__ == "_rest":
            made.append(work)
            if len(made) == 1:  # what runs beside is begun first
                raise error
        return make(loop, work, **names)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_task", fails)

    async def test() -> None:
        asked = Asked(logbook.log, first, second)
        answer(first, PROCEED)
        assert (await asked.decision).text.startswith("451")

    played(test())
    assert [line.split()[1] for line in logbook.lines] == ["b"]


DECISIONS = (PROCEED, PROCEED.because("so"), JUNK, NO, LATER, Rewrite("me@example.org"))


class Scripted(Filter):
    """Decides by the address it is asked about, after a number of steps."""

    def __init__(self, name: str, steps: int, first: Decision, rewritten: Decision) -> None:
        super().__init__()
        self.name = name
        self.steps = steps
        self.decisions = {"you@example.org": first}
        self.rewritten = rewritten

    async def rcpt_to(self, session: Session, address: str) -> Decision:  # noqa: ARG002
        for _ in range(self.steps):
            await asyncio.sleep(0)
        return self.decisions.get(address, self.rewritten)


class ScriptedPlain(Scripted):
    def rcpt_to(  # type: ignore[override]  # plain
        self,
        session: Session,  # noqa: ARG002
        address: str,
    ) -> Decision:
        return self.decisions.get(address, self.rewritten)


class Lines(Log):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(re.sub(r" took=\S+", "", text))


MADE = st.tuples(
    st.sampled_from([Scripted, Scripted, ScriptedPlain]),
    st.integers(0, 4),
    st.sampled_from(DECISIONS),
    st.sampled_from(DECISIONS),
)


@given(st.lists(MADE, min_size=1, max_size=5))
def test_they_decide_and_log_as_if_asked_one_after_another(made: Sequence[Any]) -> None:
    def outcome(*, early: bool) -> tuple[Decision, str, list[str]]:
        async def ask() -> tuple[Decision, str, list[str]]:
            filters = [kind(f"f{n}", *script) for n, (kind, *script) in enumerate(made)]
            for each in filters:
                each.early = early
            log = Lines()
            chain = Chain([(each, "proceed", 10.0) for each in filters], log)
            client, loop = session(), asyncio.get_running_loop()
            said = chain.ask[RCPT_TO](client, b"you@example.org")
            if isinstance(said, Pending):
                decision: asyncio.Future[Decision] = loop.create_future()
                Job(loop, said, decision.set_result, decision.set_exception)
                said = await decision
                await settle()
            return said, client.mark, log.lines

        return asyncio.run(ask())

    assert outcome(early=True) == outcome(early=False)


def test_five_filters_have_all_their_questions_at_the_name_server() -> None:
    """The name server holds its answers: what it has been asked by then does not depend on time."""
    chosen: list[tuple[type[Filter], dict[str, object]]] = [
        (Fcrdns, {"phase": "mail-from", "verify": True}),
        (Dnsbl, {"client": "list.example", "untested": ["list.example"], "phase": "mail-from"}),
        (Helo, {"phase": "mail-from", "unknown": "reject"}),
        (Sender, {"unknown": "reject"}),
        (Senderscore, {"blockBelow": 50, "blockPhase": "mail-from"}),
    ]

    async def ask(server: DNSServer) -> None:
        log = Log()
        pool = Pool(nameserver=((server.address, server.port),))
        ready = [
            set_up(kind(from_mapping(kind.Options, table, "")), log, None, pool)
            for kind, table in chosen
        ]
        chain = make_chain(ready, log)
        client, loop = session(), asyncio.get_running_loop()
        client.apply("link-identify", (b"EHLO", b"client.example"))
        said = chain.ask[PHASES["mail-from"]](client, b"you@sender.example")
        assert isinstance(said, Pending)
        job = Job(loop, said, lambda _: None, lambda _: None)
        wanted = {
            "1.2.0.192.in-addr.arpa",
            "1.2.0.192.list.example",
            "client.example",
            "sender.example",
            "1.2.0.192.score.senderscore.com",
        }
        async with asyncio.timeout(30):
            while not wanted <= {name for name, _ in server.queries}:  # noqa: ASYNC110  # a thread
                await asyncio.sleep(0)
        job.cancel()
        await settle()
        await chain.close()

    with DNSServer({"*": {"drop": True}}) as server:
        asyncio.run(ask(server))

"""The order of the filters of a chain, the decision that counts, and their failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from smtpd_filters import (
    JUNK,
    MARKED,
    PROCEED,
    Answer,
    ConfigError,
    Decision,
    Disconnect,
    Filter,
    FinalAnswer,
    Headers,
    Junk,
    Marked,
    Message,
    OwnField,
    ParameterAnswer,
    Proceed,
    Registration,
    Reject,
    Rewrite,
    Session,
    Settings,
    option,
)
from smtpd_filters.chain import Chain
from smtpd_filters.errors import UnavailableError
from smtpd_filters.main import run
from smtpd_filters.protocol.vocabulary import HANDLERS, PHASES
from smtpd_filters.runtime.coroutines import Pending
from smtpd_filters.runtime.jobs import Job
from smtpd_filters.runtime.watchdog import Watchdog
from smtpd_filters.session import FIELDS
from smtpd_filters.settings import TEXT, table
from smtpd_filters.tables import StringTable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from tests.conftest import Logbook

NO = Reject("550 5.7.1 No")
GO = Disconnect("421 4.7.0 Go")
CREDENTIALS = "AGEAcGFzc3dvcmQ="
# Longer than a step takes on a busy machine.
DEADLINE = 60.0


class Says(Filter):
    """Answers what it is made to, and takes note of what it is asked."""

    settings: Settings

    def __init__(self, name: str, *answers: Any) -> None:
        super().__init__()
        self.name = name
        self.answers = answers
        self.asked: list[Any] = []

    def _say(self, subject: Any) -> Any:
        self.asked.append(subject)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return answer(subject) if callable(answer) else answer


class Plain(Says):
    """Without coroutines."""

    def helo(self, session: Session, identity: str) -> ParameterAnswer:  # noqa: ARG002
        return cast("ParameterAnswer", self._say(identity))

    def rcpt_to(self, session: Session, address: str) -> ParameterAnswer:  # noqa: ARG002
        return cast("ParameterAnswer", self._say(address))

    def auth(self, session: Session, credentials: str) -> ParameterAnswer:  # noqa: ARG002
        return cast("ParameterAnswer", self._say(credentials))

    def data(self, session: Session) -> Answer:
        return cast("Answer", self._say(session))


class Later(Says):
    """With coroutines."""

    async def rcpt_to(self, session: Session, address: str) -> ParameterAnswer:  # noqa: ARG002
        await asyncio.sleep(0)
        said = self._say(address)
        return cast("ParameterAnswer", await said if isinstance(said, Awaitable) else said)

    async def auth(self, session: Session, credentials: str) -> ParameterAnswer:  # noqa: ARG002
        await asyncio.sleep(0)
        return cast("ParameterAnswer", self._say(credentials))

    def data(self, session: Session) -> Answer:
        return cast("Answer", self._say(session))


class Edits(Says):
    """Looks at headers."""

    def headers(self, session: Session, headers: Headers) -> Answer:  # noqa: ARG002
        return cast("Answer", self._say(headers))


class EditsLater(Says):
    """Looks at headers in its own time."""

    async def headers(self, session: Session, headers: Headers) -> Answer:  # noqa: ARG002
        await asyncio.sleep(0)
        return cast("Answer", self._say(headers))


class Reads(Says):
    """Looks at whole messages."""

    def message(self, session: Session, message: Message) -> Answer:  # noqa: ARG002
        return cast("Answer", self._say(message))


def session() -> Session:
    made = Session(b"7641df9771b4ed00").expect([f for fields in FIELDS.values() for f in fields])
    made.apply("link-connect", (b"mx.example.org", b"pass", b"192.0.2.1:25", b"192.0.2.2:25"))
    return made


def decided(work: Pending) -> asyncio.Future[Decision]:
    """Return the decision of a chain that waits."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Decision] = loop.create_future()
    Job(loop, work, future.set_result, future.set_exception)
    return future


class Asker:
    """A chain, a session, and who plays the engine. The deadline is that of the first filter."""

    def __init__(
        self, book: Logbook, *filters: Filter, deadline: float = DEADLINE, **on_error: str
    ) -> None:
        deadlines = [deadline, *[DEADLINE] * len(filters)]
        made = [
            (each, cast("Any", on_error.get(each.name, "proceed")), seconds)
            for each, seconds in zip(filters, deadlines, strict=False)
        ]
        self.chain = Chain(made, book.log)
        self.session = session()
        self.book = book

    def ask(self, phase: str, argument: bytes = b"") -> Decision:
        return self.wait(lambda: self.chain.ask[PHASES[phase]](self.session, argument))

    def headers(self, headers: Headers) -> Decision:
        return self.wait(lambda: self.chain.judge_headers(self.session, headers))

    def message(self, message: Message) -> Decision:
        return self.wait(lambda: self.chain.judge_message(self.session, message))

    @staticmethod
    def wait(ask: Callable[[], Any]) -> Decision:
        async def waited() -> Any:
            said = ask()
            said = said if isinstance(said, Decision) else await decided(said)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            if others:
                await asyncio.wait(others)
            return said

        said = asyncio.run(waited())
        assert isinstance(said, Decision)
        return said


BOTH = pytest.mark.parametrize("kind", [Plain, Later])


@BOTH
def test_a_filter_on_its_own(kind: type[Says], logbook: Logbook) -> None:
    filter_ = kind("one", PROCEED, NO)
    asker = Asker(logbook, filter_)
    assert asker.ask("rcpt-to", b"a\xff@example.org") == PROCEED
    assert asker.ask("rcpt-to", b"b@example.org") == NO
    assert filter_.asked == ["a\udcff@example.org", "b@example.org"]


@BOTH
def test_it_goes_on_after_junk(kind: type[Says], logbook: Logbook) -> None:
    first, second = kind("one", JUNK), kind("two", PROCEED)
    assert Asker(logbook, first, second).ask("rcpt-to", b"a@example.org") == JUNK
    assert second.asked == ["a@example.org"]


@BOTH
@pytest.mark.parametrize("refusal", [NO, GO])
def test_it_stops_at_the_first_refusal(
    kind: type[Says], refusal: Decision, logbook: Logbook
) -> None:
    first, second, third = kind("one", JUNK), kind("two", refusal), kind("three", NO)
    third.early = False
    assert Asker(logbook, first, second, third).ask("rcpt-to", b"a@example.org") == refusal
    assert (len(second.asked), len(third.asked)) == (1, 0)


@pytest.mark.parametrize("kinds", [(Plain, Plain), (Later, Later), (Plain, Later), (Later, Plain)])
@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("new@example.org", "new@example.org"),
        ("<new@example.org>", "new@example.org"),
        ("<new@example.org> NOTIFY=NEVER", "new@example.org"),
        ("<>", ""),
    ],
)
def test_a_rewritten_address_is_what_the_next_one_gets(
    kinds: tuple[type[Says], type[Says]], said: str, heard: str, logbook: Logbook
) -> None:
    first, second, third = (
        kinds[0]("one", Rewrite(said)),
        kinds[1]("two", PROCEED),
        Plain("x", PROCEED),
    )
    decision = Asker(logbook, first, second, third).ask("rcpt-to", b"old@example.org")
    assert decision == Rewrite(said)
    assert second.asked[-1:] == third.asked == [heard]


def test_another_parameter_is_handed_on_as_it_is(logbook: Logbook) -> None:
    second = Plain("two", Rewrite("last"))
    assert Asker(logbook, Plain("one", Rewrite("<odd>")), second).ask("helo") == Rewrite("last")
    assert second.asked == ["<odd>"]


@pytest.mark.parametrize(
    ("kind", "phase", "new", "why"),
    [
        (Plain, "helo", "two words", "is not one word"),
        (Plain, "helo", "", "is not one word"),
        (Plain, "auth", "CRAM-MD5 secret", "is not PLAIN or LOGIN, and one word at most"),
        (Later, "auth", "PLAIN secret word", "is not PLAIN or LOGIN, and one word at most"),
        (Later, "rcpt-to", "<a@b", "is not an address, or one in angle brackets"),
    ],
)
def test_a_parameter_that_smtpd_would_refuse_is_a_failure_of_the_handler(
    kind: type[Says], phase: str, new: str, why: str, logbook: Logbook
) -> None:
    second = Plain("two", PROCEED)
    asker = Asker(logbook, kind("one", Rewrite(new)), second)
    assert asker.ask(phase, b"old").verb == "proceed"
    # The next one gets what the client has said.
    assert second.asked == ["old"]
    (said,) = logbook.lines
    assert f"returned a Rewrite that {why}" in said
    assert "secret" not in said


@pytest.mark.parametrize("kinds", [(Plain, Plain), (Later, Later), (Plain, Later), (Later, Plain)])
@pytest.mark.parametrize("order", [(JUNK, Rewrite("new")), (Rewrite("new"), JUNK)])
def test_where_both_are_due_the_mark_is_made_later(
    kinds: tuple[type[Says], type[Says]], order: tuple[Decision, Decision], logbook: Logbook
) -> None:
    first, second = kinds[0]("one", order[0], PROCEED), kinds[1]("two", order[1], PROCEED)
    second.early = False
    asker = Asker(logbook, first, second)
    assert asker.ask("rcpt-to", b"old") == Rewrite("new")
    assert asker.ask("data") == JUNK
    assert asker.ask("data") == PROCEED


def test_the_mark_is_made_even_if_no_later_phase_was_wanted(logbook: Logbook) -> None:
    class Marks(Filter):
        def rcpt_to(self, session: Session, address: str) -> Junk:  # noqa: ARG002
            return JUNK

    class Renames(Filter):
        def rcpt_to(self, session: Session, address: str) -> Rewrite:  # noqa: ARG002
            return Rewrite("new")

    asker = Asker(logbook, Marks(), Renames())
    assert "data" in asker.chain.phases
    assert asker.ask("rcpt-to", b"old") == Rewrite("new")
    assert asker.ask("data") == JUNK
    assert asker.ask("data") == PROCEED
    assert Asker(logbook, Marks()).chain.phases == ("rcpt-to",)


def test_a_mark_due_from_the_envelope_is_made_in_the_header(logbook: Logbook) -> None:
    asker = Asker(logbook, Plain("one", JUNK), Plain("two", Rewrite("new")), Edits("e", PROCEED))
    asker.ask("rcpt-to", b"old")
    headers = Headers([b"Subject: x"])
    assert asker.headers(headers) == PROCEED
    assert headers.lines() == [b"X-Spam: Yes", b"Subject: x"]


class Own(BaseException):
    """An exception of a policy that isn't derived from Exception."""


class Mute(Exception):  # noqa: N818  # not an error of ours
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit(7)


RAISED = [
    ValueError("line\nbreak"),
    Own(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    MemoryError(),
    RecursionError(),
    Mute(),
    asyncio.CancelledError(),
]


@BOTH
@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_a_filter_that_raises_is_answered_for(
    kind: type[Says], error: BaseException, logbook: Logbook
) -> None:
    second = kind("two", PROCEED)
    asker = Asker(logbook, kind("one", error), second, one="junk")
    assert asker.ask("rcpt-to", b"a@example.org").verb == "junk"
    assert second.asked == ["a@example.org"]
    (line,) = logbook.lines
    assert line.startswith("7641df9771b4ed00 one rcpt-to result=junk error=")
    assert "\n" not in line


@BOTH
def test_each_filter_has_its_own_outcome(kind: type[Says], logbook: Logbook) -> None:
    broken = [kind(name, ValueError()) for name in ("one", "two", "three")]
    asker = Asker(logbook, *broken, one="proceed", two="junk", three="tempfail")
    decision = asker.ask("rcpt-to", b"a@example.org")
    assert decision.text.startswith("451 4.3.0 ")
    assert [line.split()[3] for line in logbook.lines] == [
        "result=proceed",
        "result=junk",
        "result=reject",
    ]


class Sneaky(Reject):
    """Passes for a decision, perhaps."""

    __slots__ = ()


NONSENSE: list[Any] = [
    *(None, "proceed", 250, Proceed, object(), (PROCEED,), b"", True),
    Sneaky("550 5.7.1 No"),
]


@BOTH
@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda value: repr(value).partition(" at ")[0])
def test_nonsense_is_answered_for(kind: type[Says], nonsense: Any, logbook: Logbook) -> None:
    answer = (lambda _: nonsense) if callable(nonsense) else nonsense
    asker = Asker(logbook, kind("one", answer), one="tempfail")
    assert asker.ask("rcpt-to", b"a@example.org").text.startswith("451 4.3.0 ")
    assert " error=" in logbook.lines[0]


def test_what_a_phase_does_not_allow_is_answered_for(logbook: Logbook) -> None:
    class Final(Filter):
        def commit(self, session: Session) -> FinalAnswer:  # noqa: ARG002
            return cast("FinalAnswer", JUNK)

    asker = Asker(logbook, Final(), final="tempfail")
    assert asker.ask("commit").text.startswith("451 4.3.0 ")


def test_a_coroutine_of_a_plain_handler_is_closed(logbook: Logbook) -> None:
    async def answer() -> Proceed:
        return PROCEED

    # It would warn that it was never awaited, and warnings are errors.
    asker = Asker(logbook, Plain("one", lambda _: answer()), one="junk")
    assert asker.ask("rcpt-to", b"a").verb == "junk"


def test_what_is_returned_is_not_made_to_run(logbook: Logbook) -> None:
    class Trap:
        def close(self) -> None:
            raise SystemExit(9)

    asker = Asker(logbook, Plain("one", Trap()), one="junk")
    assert asker.ask("rcpt-to", b"a").verb == "junk"


async def forever(_: object = None) -> None:
    await asyncio.Event().wait()


async def stubborn(_: object = None) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0)


async def cancel_oneself(_: object = None) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def await_what_was_cancelled(_: object = None) -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


@pytest.mark.parametrize(
    "work", [forever, stubborn, cancel_oneself, await_what_was_cancelled], ids=lambda w: w.__name__
)
def test_a_coroutine_that_does_not_come_back(work: Any, logbook: Logbook) -> None:
    second = Later("two", PROCEED)
    asker = Asker(logbook, Later("one", work), second, deadline=0.05, one="junk")
    assert asker.ask("rcpt-to", b"a@example.org").verb == "junk"
    assert second.asked == ["a@example.org"]
    assert len(logbook.lines) == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_coroutine_that_another_cancels(begun: object, logbook: Logbook) -> None:
    made = Chain([(Later("one", forever), "junk", 5.0)], logbook.log)

    async def ask() -> Decision:
        said = decided(cast("Any", made.ask[PHASES["rcpt-to"]](session(), b"a@example.org")))
        for _ in range(5 if begun else 0):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return await said

    assert asyncio.run(ask()).verb == "junk"
    assert "ancelled" in logbook.lines[0]


@pytest.mark.parametrize("begun", [False, True])
def test_a_coroutine_that_nobody_waits_for_is_given_up(begun: object, logbook: Logbook) -> None:
    made = Chain([(Later("one", forever), "junk", 5.0)], logbook.log)
    told: list[object] = []

    async def ask() -> None:
        work = cast("Any", made.ask[PHASES["rcpt-to"]](session(), b"a@example.org"))
        job = Job(asyncio.get_running_loop(), work, told.append, told.append)
        for _ in range(5 if begun else 0):
            await asyncio.sleep(0)
        job.cancel()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})

    asyncio.run(ask())
    assert told == []
    assert logbook.lines == []


def test_what_could_not_be_found_out_is_logged_as_its_cause(logbook: Logbook) -> None:
    asker = Asker(logbook, Plain("one", UnavailableError("no DNS", "4.4.3")), one="tempfail")
    assert asker.ask("rcpt-to", b"a").text.startswith("451 4.4.3 ")
    assert logbook.lines == [
        (
            '7641df9771b4ed00 one rcpt-to result=reject cause="no DNS" '
            'reply="451 4.4.3 Temporary failure, please try again later"'
        ),
    ]


@pytest.mark.parametrize("phase", ["auth", "rcpt-to", "data"])
def test_the_reply_of_a_refusal_is_in_the_log_whoever_gives_it(
    phase: str, logbook: Logbook
) -> None:
    asker = Asker(logbook, Plain("one", ValueError("secret")), one="tempfail")
    said = asker.ask(phase, *([b"a"] if phase in {"auth", "rcpt-to"} else []))
    assert f'reply="{said.text}"' in logbook.lines[0]
    asker = Asker(logbook, Plain("one", ValueError("secret")), one="proceed")
    asker.ask(phase, *([b"a"] if phase in {"auth", "rcpt-to"} else []))
    assert "reply=" not in logbook.lines[1]


# -- the log ------------------------------------------------------------------------------


def test_a_verdict_is_one_line(logbook: Logbook) -> None:
    said = Reject("550 5.7.1 No").because("it is Tuesday")
    Asker(logbook, Plain("one", said)).ask("rcpt-to", b"a")
    (line,) = logbook.lines
    head, _, took = line.rpartition(" ")
    assert head == (
        '7641df9771b4ed00 one rcpt-to result=reject reason="it is Tuesday" reply="550 5.7.1 No"'
    )
    assert took.startswith("took=")


@BOTH
def test_plain_proceeds_are_logged_when_asked_for(kind: type[Says], logbook: Logbook) -> None:
    asker = Asker(logbook, kind("one", PROCEED))
    asker.ask("rcpt-to", b"a")
    assert logbook.lines == []
    logbook.log.verbose = True
    Asker(logbook, kind("one", PROCEED)).ask("rcpt-to", b"a")
    assert logbook.lines[0].startswith("7641df9771b4ed00 one rcpt-to result=proceed took=")


def test_a_proceed_with_a_reason_is_logged(logbook: Logbook) -> None:
    said = PROCEED.because("in the allow table")
    assert Asker(logbook, Plain("one", said), Plain("two", PROCEED)).ask("helo") == PROCEED
    assert 'reason="in the allow table"' in logbook.lines[0]


@BOTH
@pytest.mark.parametrize(
    "answer",
    [
        ValueError(f"bad: {CREDENTIALS}"),
        KeyError(CREDENTIALS),
        UnavailableError(f"cannot ask about {CREDENTIALS}"),
        Rewrite(f"PLAIN {CREDENTIALS}"),
        Rewrite(f"PLAIN {CREDENTIALS}").because("other user"),
        Reject(f"535 5.7.8 {CREDENTIALS}"),
        Sneaky(f"535 5.7.8 {CREDENTIALS}"),
        JUNK,
        CREDENTIALS,
        PROCEED,
    ],
    ids=repr,
)
def test_credentials_are_never_logged(kind: type[Says], answer: Any, logbook: Logbook) -> None:
    logbook.log.verbose = True
    asker = Asker(logbook, kind("one", answer), kind("two", answer))
    asker.ask("auth", f"PLAIN {CREDENTIALS}".encode())
    assert logbook.lines
    assert not [line for line in logbook.lines if CREDENTIALS in line]


def test_causes_that_recur_are_logged_once(logbook: Logbook) -> None:
    def fail(address: str) -> Decision:
        raise KeyError(address)

    asker = Asker(logbook, Plain("one", fail))
    for address in (b"a", b"b", b"c"):
        asker.ask("rcpt-to", address)
    assert len(logbook.lines) == 1
    logbook.now += 100
    asker.ask("rcpt-to", b"d")
    assert "repeated=2" in logbook.lines[1]
    assert "KeyError: 'd'" in logbook.lines[1]


# -- messages -----------------------------------------------------------------------------

HEADS = pytest.mark.parametrize("kind", [Edits, EditsLater])


def prepend(name: str) -> Callable[[Headers], Decision]:
    def edit(headers: Headers) -> Decision:
        headers.prepend(name, "1")
        return PROCEED

    return edit


def edit_and_fail(headers: Headers) -> Decision:
    headers.prepend("X-Half", "1")
    headers.remove("Subject")
    raise ValueError


def garble(headers: Headers) -> Decision:
    headers._text = cast("bytes", None)
    headers._entries = None
    headers._changed = True
    return PROCEED


def lose(headers: Headers) -> Decision:
    del headers._text
    headers._entries = None
    return PROCEED


def break_a_line(headers: Headers) -> Decision:
    headers._text = b"\nSubject: x\n\nbody"
    headers._entries = None
    return PROCEED


def view(headers: Headers) -> Decision:
    headers.replace_text(cast("bytes", memoryview(b"\nSubject: y")))
    return PROCEED


@HEADS
def test_edits_add_up(kind: type[Says], logbook: Logbook) -> None:
    headers = Headers([b"Subject: x"])
    asker = Asker(logbook, kind("one", prepend("X-A")), kind("two", prepend("X-B")))
    assert asker.headers(headers) == PROCEED
    assert headers.lines() == [b"X-B: 1", b"X-A: 1", b"Subject: x"]


@HEADS
@pytest.mark.parametrize("hostile", [edit_and_fail, garble, lose, break_a_line, view])
def test_edits_of_a_filter_that_fails_are_undone(
    kind: type[Says], hostile: Any, logbook: Logbook
) -> None:
    headers = Headers([b"Subject: x"])
    filters = kind("one", prepend("X-A")), kind("two", hostile), kind("three", prepend("X-C"))
    assert Asker(logbook, *filters).headers(headers) == PROCEED
    assert headers.lines() == [b"X-C: 1", b"X-A: 1", b"Subject: x"]
    assert sum("result=proceed error=" in line for line in logbook.lines) == 1


def fail(_: Headers) -> Decision:
    raise UnavailableError("no answer")


class Owns(Edits):
    """Has a field of its own."""

    own_fields = (OwnField("X-Own"),)


class Clumsy(Owns):
    """Fails in `remove_forged` as well."""

    mishap: Callable[[Headers], object]

    def remove_forged(self, session: Session, headers: Headers) -> None:
        super().remove_forged(session, headers)
        type(self).mishap(headers)


def exit_there(headers: Headers) -> None:
    headers.append("X-Half", "1")
    raise SystemExit(1)


def exhaust(_: Headers) -> None:
    raise MemoryError


FORGED = [b"X-Own: 1", b"Subject: x", b"X-\0Own: 2"]


def test_a_filter_that_fails_removes_copies_of_its_fields(logbook: Logbook) -> None:
    headers = Headers([*FORGED, b"X-Other: 3"])
    filters = Edits("one", prepend("X-A")), Owns("two", fail), Edits("three", prepend("X-C"))
    assert Asker(logbook, *filters).headers(headers) == PROCEED
    assert headers.lines() == [b"X-C: 1", b"X-A: 1", b"Subject: x", b"X-Other: 3"]


def test_not_on_a_dry_run(logbook: Logbook) -> None:
    headers, owns = Headers(FORGED), Owns("two", fail)
    owns.dry_run = True
    assert Asker(logbook, owns).headers(headers) == PROCEED
    assert headers.lines() == FORGED
    assert not headers.changed


def test_not_from_a_message_that_is_refused(logbook: Logbook) -> None:
    headers = Headers(FORGED)
    assert Asker(logbook, Owns("two", fail), two="tempfail").headers(headers).verb == "reject"
    assert headers.lines() == FORGED


@pytest.mark.parametrize(
    ("mishap", "left"),
    [
        (exit_there, [b"Subject: x", b"X-Half: 1"]),
        (exhaust, [b"Subject: x"]),
        (break_a_line, FORGED),
        (lose, FORGED),
    ],
)
def test_a_removal_that_fails_decides_nothing(
    mishap: Any, left: list[bytes], logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clumsy, "mishap", staticmethod(mishap), raising=False)
    headers = Headers(FORGED)
    filters = Clumsy("one", fail), Edits("two", prepend("X-A"))
    assert Asker(logbook, *filters).headers(headers) == PROCEED
    assert headers.lines() == [b"X-A: 1", *left]
    assert sum("one remove_forged error=" in each for each in logbook.lines) == 1


@HEADS
def test_a_failing_filter_may_refuse_the_message(kind: type[Says], logbook: Logbook) -> None:
    asker = Asker(logbook, kind("one", edit_and_fail), one="tempfail")
    assert "commit" in asker.chain.phases
    assert asker.headers(Headers([b"Subject: x"])).text.startswith("451 4.3.0 ")


@HEADS
def test_junk_is_a_field_of_the_header(kind: type[Says], logbook: Logbook) -> None:
    headers = Headers([b"Subject: x"])
    second = kind("two", PROCEED)
    asker = Asker(logbook, kind("one", JUNK), second)
    assert asker.headers(headers) == PROCEED
    assert headers.lines() == [b"X-Spam: Yes", b"Subject: x"]
    assert len(second.asked) == 1
    # One field is enough, whichever filter added it.
    assert asker.headers(headers) == PROCEED
    assert headers.get_all("X-Spam") == ["Yes"]


def test_what_the_client_says_of_spam_counts_only_where_it_says_so(logbook: Logbook) -> None:
    headers = Headers([b"X-Spam: No"])
    Asker(logbook, Edits("one", JUNK)).headers(headers)
    assert headers.lines() == [b"X-Spam: Yes", b"X-Spam: No"]


@pytest.mark.parametrize(
    "field",
    [
        *(b"X-Spam:Yes", b"X-Spam:  Yes", b"X-Spam:\tYes", b"X-Spam: Yes ", b"X-Spam : Yes"),
        *(b"X-Spam:\n Yes", b"X-Spam: Yes\n ", b"X-Spam: No\nX-Spam: Yes"),
    ],
)
def test_a_field_that_maildir_does_not_take_for_a_mark_is_none(
    field: bytes, logbook: Logbook
) -> None:
    lines = field.split(b"\n")
    headers = Headers(lines)
    Asker(logbook, Edits("one", JUNK)).headers(headers)
    assert headers.lines() == [b"X-Spam: Yes", *lines]


@HEADS
def test_a_refused_message_ends_it(kind: type[Says], logbook: Logbook) -> None:
    third = kind("three", PROCEED)
    asker = Asker(logbook, kind("one", JUNK), kind("two", NO, PROCEED), third)
    assert asker.headers(Headers([b"Subject: x"])) == NO
    assert third.asked == []


@HEADS
def test_a_mark_is_not_kept_for_the_next_message(kind: type[Says], logbook: Logbook) -> None:
    asker = Asker(logbook, kind("one", JUNK, PROCEED), kind("two", NO, PROCEED))
    assert asker.headers(Headers([b"Subject: x"])) == NO
    headers = Headers([b"Subject: y"])
    assert asker.headers(headers) == PROCEED
    assert headers.lines() == [b"Subject: y"]


def test_headers_and_messages_are_asked_in_the_order_of_the_chain(logbook: Logbook) -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[Any], Decision]:
        def noted(_: object) -> Decision:
            order.append(name)
            return PROCEED

        return noted

    asker = Asker(
        logbook,
        Reads("one", note("message")),
        Edits("two", note("headers")),
        EditsLater("three", note("later")),
        Reads("four", note("last")),
    )
    assert asker.chain.content == "message"
    message = Message()
    message.feed([b"Subject: x", b"", b"body"])
    message.close()
    assert asker.message(message) == PROCEED
    assert order == ["message", "headers", "later", "last"]
    message.discard()


def test_a_filter_that_has_marked_the_message_itself(logbook: Logbook) -> None:
    class Marks(Filter):
        name = "marks"

        def headers(self, session: Session, headers: Headers) -> Proceed | Marked:  # noqa: ARG002
            headers.replace("Subject", "[SPAM] x", add=True)
            return MARKED.because("spam")

    asker = Asker(logbook, Marks(), Edits("two", PROCEED))
    headers = Headers([b"Subject: x"])
    assert asker.headers(headers) == PROCEED
    assert headers.lines() == [b"Subject: [SPAM] x"]
    assert "marks headers result=junk reason=spam" in logbook.lines[0]


def test_only_a_message_can_be_marked_by_a_filter_itself() -> None:
    with pytest.raises(TypeError, match="connect may not return Marked"):

        class Marks(Filter):
            def connect(self, session: Session) -> Marked:  # noqa: ARG002
                return MARKED


# -- the chain itself ---------------------------------------------------------------------


def test_two_filters_of_one_name(logbook: Logbook) -> None:
    with pytest.raises(ConfigError, match="two filters of the name 'one'"):
        Asker(logbook, Plain("one", PROCEED), Plain("one", PROCEED))


def test_an_outcome_that_a_filter_does_not_have(logbook: Logbook) -> None:
    class Final(Filter):
        def commit(self, session: Session) -> FinalAnswer:  # noqa: ARG002
            return PROCEED

    with pytest.raises(ConfigError, match=r"'final'.*'junk' is not one of .*proceed.*tempfail"):
        Asker(logbook, Final(), final="junk")


def test_handlers_that_a_filter_does_not_have(logbook: Logbook) -> None:
    filter_ = Plain("one", PROCEED)
    filter_.registration = Registration({"rcpt_too", "data"})
    with pytest.raises(TypeError, match=r"'one'.*no handler for \['rcpt_too'\]"):
        Asker(logbook, filter_)


@pytest.mark.parametrize("name", ["nonsense", "link-connect\nregister|ready", "x|y", 1])
def test_outgoing_reports_that_there_are_not(logbook: Logbook, name: Any) -> None:
    filter_ = Plain("one", PROCEED)
    filter_.registration = Registration(outgoing={name, "link-connect"})
    with pytest.raises(TypeError, match=r"'one': no report \[.*\] for outgoing, of \['filter-"):
        Asker(logbook, filter_)


@pytest.mark.parametrize("kind", ["phases", "reports"])
def test_what_a_tap_asks_for_and_there_is_not(logbook: Logbook, kind: str) -> None:
    tap: Any = SimpleNamespace(phases=frozenset(), reports=frozenset())
    setattr(tap, kind, frozenset({"link-connect" if kind == "reports" else "data-line", "x\ny"}))
    filter_ = Plain("one", PROCEED)
    filter_.registration = Registration(taps=[tap])
    with pytest.raises(TypeError, match=r"'one': no (phase|report) \['x\\ny'\] for a tap, of"):
        Asker(logbook, filter_)


def test_reports_and_events_that_there_are_not(logbook: Logbook) -> None:
    filter_ = Plain("one", PROCEED)
    filter_.registration = Registration(reports={"link-atuh", "link-tls"})
    with pytest.raises(TypeError, match=r"'one': no report \['link-atuh'\], of \['link-auth'"):
        Asker(logbook, filter_)
    filter_.registration = Registration(events={"gone", "close"})
    with pytest.raises(TypeError, match=r"'one': no method for \['close', 'gone'\]"):
        Asker(logbook, filter_)


def test_handlers_taken_away_are_not_registered(logbook: Logbook) -> None:
    filter_ = Plain("one", PROCEED)
    filter_.registration = Registration({"data"})
    asker = Asker(logbook, filter_)
    assert asker.chain.phases == ("data",)
    assert not asker.chain.waits


def test_what_is_asked_of_smtpd(logbook: Logbook) -> None:
    made = Asker(logbook, Plain("one", PROCEED), Later("two", PROCEED)).chain
    assert set(made.phases) == {"helo", "rcpt-to", "auth", "data"}
    assert made.waits
    assert made.content == ""
    assert {"link-connect", "link-disconnect", "tx-begin", "tx-mail", "tx-rcpt"} <= set(
        made.reports
    )
    assert len(set(made.reports)) == len(made.reports)
    edits = Asker(logbook, Edits("one", PROCEED)).chain
    assert edits.content == "headers"
    assert edits.phases == ("data-line", "commit")


@pytest.mark.parametrize("dry", [False, True])
def test_a_failure_of_our_own_code_is_decided_by_the_filters(
    logbook: Logbook, *, dry: bool
) -> None:
    """Mail is not accepted unchecked if a filter would not have it so."""
    filters = [Plain("one", PROCEED), Plain("two", PROCEED), Edits("three", PROCEED)]
    lenient = Asker(logbook, *filters).chain
    assert {*lenient.otherwise.values(), lenient.otherwise_content} == {PROCEED}
    for each in filters:
        each.dry_run = dry
    strict = Asker(logbook, *filters, two="tempfail", three="tempfail").chain
    every = [*strict.otherwise.values(), strict.otherwise_content]
    assert {each.verb for each in every} == ({"proceed"} if dry else {"reject"})


def test_who_looks_at_messages_is_asked_at_commit(logbook: Logbook) -> None:
    # What can't be kept has to be refused, even by a filter that refuses nothing itself.
    class Looks(Filter):
        def headers(self, session: Session, headers: Headers) -> Proceed:  # noqa: ARG002
            return PROCEED

    assert Asker(logbook, Looks()).chain.phases == ("data-line", "commit")


def test_those_who_hear_of_the_end(logbook: Logbook) -> None:
    heard: list[str] = []

    class Bad(Filter):
        def link_disconnect(self, session: Session) -> None:
            heard.append(session.id)
            raise SystemExit(1)

        async def close(self) -> None:
            heard.append("closed")
            raise KeyboardInterrupt

    class Good(Filter):
        def link_disconnect(self, session: Session) -> None:
            heard.append(session.id)

        async def close(self) -> None:
            heard.append("closed")

    asker = Asker(logbook, Bad(), Good(), Plain("one", PROCEED))
    asker.chain.gone(asker.session)
    asyncio.run(asker.chain.close())
    assert heard == ["7641df9771b4ed00"] * 2 + ["closed"] * 2
    assert len(logbook.lines) == 2


def test_leaving_is_watched_as_well(logbook: Logbook) -> None:
    watchdog = Watchdog()
    running: list[float] = []

    class Slow(Filter):
        def link_disconnect(self, session: Session) -> None:  # noqa: ARG002
            running.append(watchdog.running)
            raise ValueError

    made = Chain([(Slow(), "proceed", 1.0)], logbook.log, watchdog)
    made.gone(session())
    assert running[0] > 0
    assert watchdog.running == 0


def test_handlers_are_watched(logbook: Logbook) -> None:
    watchdog = Watchdog()
    running: list[float] = []
    filter_ = Plain("one", lambda _: running.append(watchdog.running))
    made = Chain([(filter_, "proceed", 1.0)], logbook.log, watchdog)
    made.ask[PHASES["data"]](session(), b"")
    made = Chain(
        [(filter_, "proceed", 1.0), (Plain("x", PROCEED), "junk", 1.0)], logbook.log, watchdog
    )
    made.ask[PHASES["data"]](session(), b"")
    assert all(running)
    assert watchdog.running == 0


class Lists(Filter):
    """Has tables."""

    class Options(Settings):
        """Two of them."""

        names = option(table(StringTable), required=True, help="Names.")
        more_names = option(table(StringTable), default=None, help="Others.")
        word = option(TEXT, default="", help="No table.")

    settings: Options

    def connect(self, session: Session) -> Proceed:  # noqa: ARG002
        return PROCEED


def test_tables_are_read_anew(tmp_path: Path, logbook: Logbook) -> None:
    path = tmp_path / "names"
    path.write_text("one\n")
    filter_ = Lists(Lists.Options(names=StringTable(f"file:{path}")))
    made = Chain([(filter_, "proceed", 1.0)], logbook.log)
    path.write_text("two\n")
    for _ in made.reload():
        pass
    assert "two" in filter_.settings.names
    assert "one" not in filter_.settings.names
    path.unlink()
    for _ in made.reload():
        pass
    assert "two" in filter_.settings.names
    assert logbook.lines[0] == f"lists reload table=names result=ok file={path} entries=1"
    assert logbook.lines[1].startswith("lists reload table=names error=")
    assert str(path) in logbook.lines[1]
    assert logbook.lines[1].endswith(f"result=kept file={path} entries=1")


def test_a_reload_is_logged_by_the_name_of_the_flag(
    tmp_path: Path, logbook: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "more"
    path.write_text("one\n")
    more = StringTable(f"file:{path}")
    filter_ = Lists(Lists.Options(names=StringTable("{ inline }"), more_names=more))
    made = Chain([(filter_, "proceed", 1.0)], logbook.log)

    def reload() -> str:
        before = len(logbook.lines)
        for _ in made.reload():
            pass
        # A table in place has nothing to reload.
        (said,) = logbook.lines[before:]
        return said

    assert reload() == f"lists reload table=more-names result=unchanged file={path} entries=1"
    path.write_text("# none\n")
    assert reload() == f"lists reload table=more-names result=ok file={path} entries=0"
    path.write_text("")
    assert f'error="{path}: no entries; ' in reload()
    path.write_text("two\n")
    fault: Exception

    def fail(*_: object) -> int:
        raise fault

    monkeypatch.setattr(StringTable.contents, "add", fail)
    fault = MemoryError()
    kept = f"result=kept file={path} entries=0"
    assert reload() == f'lists reload table=more-names error="out of memory" {kept}'
    fault = KeyError("bug")
    assert reload().startswith("lists reload table=more-names error=\"KeyError: 'bug' [table.py")


def test_a_filter_without_a_handler_is_said_to_do_nothing(logbook: Logbook) -> None:
    class Idle(Filter):
        """Has nothing."""

    class Counts(Filter):
        """Has no handler, and does something."""

        def link_disconnect(self, session: Session) -> None:
            pass

    Chain([(Idle(), "proceed", 1.0), (Counts(), "proceed", 1.0)], logbook.log)
    assert logbook.lines == ["idle nothing to do: it has no handler"]


def test_a_kind_of_table_of_ones_own_needs_no_more_than_to_reload(logbook: Logbook) -> None:
    class Own:
        is_file = True

        def reload(self) -> Generator[None, None, bool]:
            yield
            return True

    filter_ = Lists(Lists.Options(names=StringTable("{ inline }")))
    vars(filter_.settings)["names"] = Own()
    for _ in Chain([(filter_, "proceed", 1.0)], logbook.log).reload():
        pass
    assert logbook.lines == ["lists reload table=names result=ok"]


def test_every_outcome_is_legal_where_it_can_be_chosen() -> None:
    for handler, phase in HANDLERS.items():
        for outcome, decision in phase.fallbacks.items():
            assert type(decision) in phase.legal, (handler, outcome)
    assert all(phase.fallbacks for phase in HANDLERS.values())
    assert HANDLERS


# -- the main function --------------------------------------------------------------------


class Strict(Filter):
    """For the flags of an executable."""

    class Options(Settings):
        """One table."""

        names = option(table(StringTable), required=True, help="Names.")

    settings: Options

    def setup(self) -> None:
        if self.settings.names.match("broken"):
            raise ConfigError("--names: broken")
        if self.settings.names.match("bug"):
            raise OSError(13, "Permission denied", "/etc/mail/key")

    def commit(self, session: Session) -> FinalAnswer:  # noqa: ARG002
        return PROCEED


@pytest.mark.parametrize(
    ("argv", "culprit"),
    [
        (["--nmaes", "a"], "--nmaes"),
        ([], "--names"),
        (["--names", "file:/nonexistent/table"], "/nonexistent/table"),
        (["--names", "a", "--on-error", "junk"], "--on-error"),
        (["--names", "a", "--deadline", "soon"], "--deadline"),
        (["--names", "broken"], "--names: broken"),
        (["--names", "bug"], "Permission denied"),
        (["--names", "a", "stray"], "stray"),
    ],
)
def test_what_is_wrong_is_one_line(
    argv: list[str], culprit: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(Strict, argv=argv)
    assert ended.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("filter-strict: ")
    assert culprit in err


class MarksSenders(Filter):
    """Junk one sender."""

    name = "marks-senders"

    def mail_from(self, session: Session, address: str) -> Proceed | Junk:  # noqa: ARG002
        return JUNK if address == "bad@example.org" else PROCEED


def test_a_mark_of_a_sender_is_its_messages_alone(logbook: Logbook) -> None:
    asker = Asker(logbook, MarksSenders())
    assert asker.chain.phases == ("mail-from", "data")
    assert asker.ask("mail-from", b"bad@example.org") == PROCEED
    assert asker.ask("data") == JUNK
    assert asker.ask("mail-from", b"good@example.org") == PROCEED
    assert asker.ask("data") == PROCEED
    assert "marks-senders mail-from result=junk" in logbook.lines[0]


def test_a_mark_goes_with_the_sender_that_was_not_taken(logbook: Logbook) -> None:
    asker = Asker(logbook, MarksSenders())
    asker.ask("mail-from", b"bad@example.org")
    asker.ask("mail-from", b"good@example.org")
    assert asker.ask("data") == PROCEED
    asker.ask("mail-from", b"bad@example.org")
    asker.session.apply("tx-reset", (b"",))
    assert asker.ask("data") == PROCEED


def test_who_never_marks_needs_no_phase_for_it(logbook: Logbook) -> None:
    class Refuses(MarksSenders):
        name = "refuses"

        def setup(self) -> Registration:
            return Registration(junk=False)

    policy = Refuses()
    policy.registration = policy.setup()
    assert Asker(logbook, policy).chain.phases == ("mail-from",)

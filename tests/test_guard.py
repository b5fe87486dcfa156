"""The decision for a call of one handler, whatever it does, and the log of what it did."""

# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
import functools
import signal
from typing import TYPE_CHECKING, Any, cast

import pytest

from smtpd_filters import (
    JUNK,
    MARKED,
    PROCEED,
    ContentAnswer,
    Decision,
    Disconnect,
    Filter,
    FinalAnswer,
    Headers,
    Junk,
    Proceed,
    Registration,
    Reject,
    Session,
    Settings,
    option,
)
from smtpd_filters import guard as asked
from smtpd_filters.guard import Guard
from smtpd_filters.runtime.coroutines import CANCELLED, Pending, Raised
from smtpd_filters.runtime.log import FilterLog
from smtpd_filters.runtime.watchdog import Watchdog
from smtpd_filters.settings import SWITCH
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Logbook


class Closed(Filter):
    """Nothing that fails is accepted."""

    on_error = "tempfail"
    #: What the handlers return.
    result: Any = PROCEED


class Connects(Closed):
    """Returns what it is made to."""

    def connect(self, session: Session) -> Proceed | Reject:
        return cast("Proceed", self.result)


class Awaits(Closed):
    """Does so in a coroutine."""

    async def connect(self, session: Session) -> Proceed | Reject:
        return cast("Proceed", self.result)


class Waits(Closed):
    """Does so when it has waited."""

    async def connect(self, session: Session) -> Proceed | Reject:
        await asyncio.sleep(0)
        return cast("Proceed", self.result)


class Finds(Closed):
    """Is annotated with whatever its phase allows."""

    def commit(self, session: Session) -> Decision:
        return cast("Decision", self.result)


def place(handler: Any) -> str:
    return f"test_guard.py:{handler.__code__.co_firstlineno}"


def log_of(cls: type[Filter], result: object) -> str:
    """Return the only line that is logged of a connection whose handler returns this."""
    made: Any = cls
    made.result = result
    try:
        with Conversation(cls, errors=True) as smtpd:
            assert smtpd.connect().greeting.verb == "disconnect"
    finally:
        made.result = PROCEED
    [line] = smtpd.log
    return line


@pytest.mark.parametrize("cls", [Connects, Awaits, Waits])
@pytest.mark.parametrize(
    ("result", "error"),
    [
        (JUNK, 'returned Junk, but is annotated \\"-> Proceed | Reject\\" at {}'),
        (None, "returned NoneType, but may return Proceed | Reject, at {}"),
        ("proceed", "returned str, but may return Proceed | Reject, at {}"),
        (Proceed, "returned the class Proceed, but may return Proceed | Reject, at {}"),
    ],
)
def test_what_may_not_be_returned(cls: type[Filter], result: object, error: str) -> None:
    handler: Any = cls.handlers["connect"]
    assert f'error="{error.format(place(handler))}"' in log_of(cls, result)


def test_what_the_phase_does_not_allow() -> None:
    made: Any = Finds
    made.result = JUNK
    with Conversation(Finds, errors=True) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        assert client.message().refused
    allowed = "Disconnect | Proceed | Reject"
    handler = place(Finds.commit)
    assert f'error="returned Junk, but may return {allowed}, at {handler}"' in smtpd.log[0]


def unwrapped(function: Any) -> Any:
    def wrapper(*arguments: Any):  # type: ignore[no-untyped-def]  # noqa: ANN202
        return function(*arguments)

    return wrapper


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


@pytest.mark.parametrize("decorator", [wrapped, unwrapped])
def test_a_decorated_handler(decorator: Callable[[Any], Any]) -> None:
    class Decorated(Closed):
        @decorator
        def connect(self, session: Session) -> Decision:
            return JUNK.because("why not")

        @decorator
        def commit(self, session: Session) -> FinalAnswer:
            return cast("FinalAnswer", JUNK)

    with Conversation(Decorated, errors=True) as smtpd:
        client = smtpd.connect()
        assert client.greeting.verb == "junk"
        client.ehlo()
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        assert client.message().refused
    # Junk is legal at other phases, whatever the function is called.
    assert "returned Junk, but may return Disconnect | Proceed | Reject, at " in smtpd.log[-1]
    assert "test_guard.py:" in smtpd.log[-1]


def test_a_decorated_coroutine() -> None:
    class Decorated(Closed):
        @wrapped
        async def connect(self, session: Session) -> Junk:
            await asyncio.sleep(0)
            return JUNK

    with Conversation(Decorated, errors=True) as smtpd:
        assert smtpd.connect().greeting.verb == "junk"


@pytest.mark.parametrize("other", [False, True])
def test_a_decorator_that_hides_a_coroutine(*, other: bool) -> None:
    """It is found at the first request, whether or not something else in the process waits."""

    class Decorated(Closed):
        @unwrapped
        async def connect(self, session: Session) -> Proceed:
            return PROCEED

        async def helo(self, session: Session, identity: str) -> Proceed:
            return PROCEED

        def setup(self) -> Registration | None:
            return None if other else Registration({"connect"})

    with Conversation(Decorated, errors=True) as smtpd:
        assert smtpd.connect().greeting.verb == "disconnect"
    [line] = smtpd.log
    assert r'error="returned a coroutine; write \"async def\" at test_guard.py:' in line


def test_a_coroutine_that_is_not_awaited() -> None:
    class Forgets(Closed):
        async def connect(self, session: Session) -> Proceed:
            return cast("Proceed", self._ask())

        async def _ask(self) -> Proceed:
            raise AssertionError

    with Conversation(Forgets, errors=True) as smtpd:
        assert smtpd.connect().greeting.verb == "disconnect"
    error = rf'error="returned a coroutine; write \"await\" at {place(Forgets.connect)}"'
    assert error in smtpd.log[0]


def test_who_registers_that_it_never_waits_and_does() -> None:
    class Lies(Closed):
        waiting = True

        def setup(self) -> Registration:
            return Registration(waits=False)

        async def connect(self, session: Session) -> Proceed:
            try:
                if self.waiting:
                    await asyncio.sleep(0)
            except GeneratorExit:
                raise SystemExit(1) from None
            return PROCEED

    with Conversation(Lies, errors=True) as smtpd:
        assert not smtpd._served.chain.waits
        assert smtpd.connect().greeting.verb == "disconnect"
        Lies.waiting = False
        assert smtpd.connect().greeting.verb == "proceed"
    assert "error=" in smtpd.log[0]


def test_the_cause_if_it_waits() -> None:
    class Lies(Closed):
        def setup(self) -> Registration:
            return Registration(waits=False)

        async def connect(self, session: Session) -> Proceed:
            await asyncio.sleep(0)
            return PROCEED

    with Conversation(Lies, errors=True) as smtpd:
        assert smtpd.connect().greeting.verb == "disconnect"
        assert smtpd.connect().greeting.verb == "disconnect"
    assert "RuntimeError: waited, but setup returned Registration(waits=False)" in smtpd.log[0]


@pytest.mark.parametrize("coroutine", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_handler_that_holds_up_the_others_is_logged(
    monkeypatch: pytest.MonkeyPatch, *, coroutine: bool, fails: bool
) -> None:
    now = 100.0
    monkeypatch.setattr(asked, "monotonic", lambda: now)

    def work() -> Proceed:
        nonlocal now
        now += 3.25
        if fails:
            raise ValueError
        return PROCEED

    class Slow(Filter):
        def connect(self, session: Session) -> Proceed:
            return work()

        async def helo(self, session: Session, identity: str) -> Proceed:
            return work()

        def setup(self) -> Registration:
            return Registration({"helo"} if coroutine else {"connect"})

    with Conversation(Slow, errors=True) as smtpd:
        client = smtpd.connect()
        if coroutine:
            client.helo()
    phase, handler = ("helo", Slow.helo) if coroutine else ("connect", Slow.connect)
    slow = [line for line in smtpd.log if "held up" in line]
    assert slow == [
        f"{client.id} slow held up all sessions for 3.2 s phase={phase} at={place(handler)}"
    ]
    assert len(smtpd.log) == 1 + fails


@pytest.mark.parametrize("decides", [False, True])
def test_a_call_is_measured_if_the_watchdog_noticed_it(
    monkeypatch: pytest.MonkeyPatch, session: Session, logbook: Logbook, *, decides: bool
) -> None:
    now = 100.0
    monkeypatch.setattr(asked, "monotonic", lambda: now)
    watchdog = Watchdog(1000.0, clock=lambda: now)
    before = signal.getsignal(signal.SIGALRM)
    watchdog.install()
    check: Any = signal.signal(signal.SIGALRM, before)

    class Slow(Filter):
        def connect(self, session: Session) -> Proceed:
            nonlocal now
            check(signal.SIGALRM, None)
            now += 3.25
            return PROCEED

    filter_ = Slow()
    filter_.log = FilterLog(logbook.log, "slow")
    guard = Guard(filter_, "connect", "tempfail", 5.0, watchdog)
    assert [watchdog.noticed] == [False]
    result = guard.decide(session, b"") if decides else guard.ask(session)
    assert result is PROCEED
    [line] = logbook.lines
    assert "held up all sessions for 3.2 s" in line
    assert [watchdog.noticed] == [False]


def test_what_takes_its_time_without_holding_up_the_others_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(asked, "monotonic", lambda: now)

    class Patient(Filter):
        async def connect(self, session: Session) -> Proceed:
            nonlocal now
            await asyncio.sleep(0)
            now += 10
            return PROCEED

    with Conversation(Patient, errors=True) as smtpd:
        assert smtpd.connect().greeting.verb == "proceed"
    assert smtpd.log == []


ERRORS = [ValueError, SystemExit, KeyboardInterrupt, MemoryError, asyncio.CancelledError]


@pytest.mark.parametrize("error", [*ERRORS, GeneratorExit, StopIteration, StopAsyncIteration])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_whatever_is_raised_in_whichever_step(error: type[BaseException], steps: int) -> None:
    class Raises(Closed):
        async def connect(self, session: Session) -> Proceed:
            for _ in range(steps):
                await asyncio.sleep(0)
            raise error

    with Conversation(Raises, errors=True) as smtpd:
        assert smtpd.connect().greeting.verb == "disconnect"
        assert smtpd.connect().greeting.verb == "disconnect"
    assert error.__name__ in smtpd.log[0]


class Ends(Closed):
    """Does its worst when it is closed."""

    watched: list[float]

    async def connect(self, session: Session) -> Proceed | Disconnect:
        try:
            await asyncio.Event().wait()
        finally:
            self.watched.append(self.watchdog.running)
            raise SystemExit

    watchdog: Watchdog


@pytest.mark.parametrize("result", [CANCELLED, Raised(MemoryError())])
def test_what_is_closed_is_watched_and_may_raise(result: object, session: Session) -> None:
    filter_ = Ends()
    filter_.watched, filter_.watchdog = [], Watchdog()
    guard = Guard(filter_, "connect", "tempfail", 5.0, filter_.watchdog)

    async def main() -> object:
        from smtpd_filters.runtime.first_step import first_step

        guard.first_step = first_step
        pending = guard.ask(session)
        assert isinstance(pending, Pending)
        with pytest.raises(StopIteration) as end:
            pending.work.send(result)
        return end.value.value

    decision = asyncio.run(main())
    assert isinstance(decision, Disconnect)
    [running] = filter_.watched
    assert running > 0
    assert filter_.watchdog.running == 0


@pytest.fixture
def session() -> Session:
    return Session(b"7641df9771b4ed00")


class Marks(Closed):
    """Marks, though it registers that it does not."""

    def setup(self) -> Registration:
        return Registration(junk=False)

    def ehlo(self, session: Session, identity: str) -> Junk | Proceed:
        return JUNK

    def headers(self, session: Session, headers: Headers) -> ContentAnswer:
        return MARKED


def test_junk_of_a_filter_that_does_not_mark_is_an_error() -> None:
    with Conversation(Marks, errors=True) as smtpd:
        client = smtpd.connect()
        assert client.ehlo().reply.startswith("451 ")
        [error] = smtpd.errors
        assert error == (
            f"{client.id} marks ehlo: returned Junk, but setup returned Registration(junk=False), "
            f"at {place(Marks.ehlo)}"
        )


def test_a_marked_message_of_a_filter_that_does_not_mark_is_an_error() -> None:
    class Content(Marks):
        def ehlo(self, session: Session, identity: str) -> Proceed:
            return PROCEED

    with Conversation(Content, errors=True) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from()
        client.rcpt_to("you@example.org")
        assert client.message().reply.startswith("451 ")
        assert "returned Marked, but setup returned Registration(junk=False)" in smtpd.errors[0]


class Edits(Closed):
    """Edits the header, if it is to."""

    class Options(Settings):
        edit = option(SWITCH, default=False, help="Edit the header.")

    settings: Options

    def headers(self, session: Session, headers: Headers) -> Proceed:
        if self.settings.edit:
            headers.append("X-Edited", "yes")
        return PROCEED


@pytest.mark.parametrize("flags", [(), ("--edit",)])
def test_a_dry_run_leaves_a_header_that_is_too_long_as_it_is(flags: tuple[str, ...]) -> None:
    """Other filters end it where they stop reading."""
    content = b"A: 1\r\n" * 20_000 + b"\r\nbody\r\n"
    for dry in ((), ("--dry-run",)):
        with Conversation(Edits, *dry, *flags) as smtpd:
            client = smtpd.connect()
            client.ehlo()
            client.mail_from()
            client.rcpt_to("you@example.org")
            assert client.message(content).unchanged == bool(dry)


@pytest.mark.parametrize("edit", [False, True])
def test_an_edit_that_a_dry_run_undoes_is_logged(*, edit: bool) -> None:
    with Conversation(Edits, "--dry-run", *(["--edit"] if edit else [])) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from()
        client.rcpt_to("you@example.org")
        assert client.message().unchanged
    line = f"{client.id} edits headers result=proceed would=edit took="
    assert [each[: len(line)] for each in smtpd.log] == ([line] if edit else [])

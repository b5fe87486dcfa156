"""Filters of a chain that scan a message do it side by side, and edit it in turn."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from smtpd_filters import JUNK, PROCEED, Filter, Junk, Message, Proceed, Reject, Session
from smtpd_filters.errors import UnavailableError
from smtpd_filters.runtime.coroutines import my_turn
from smtpd_filters.testing import Conversation
from tests.effort import brief

if TYPE_CHECKING:
    from smtpd_filters.testing import Delivery

NO = Reject("550 5.7.1 No")
MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"


class Scanner(Filter):
    """Scans when all of `beside` have begun; then decides, and adds a field in its turn."""

    scans = True
    deadline = 5.0

    def __init__(
        self, name: str, *beside: str, decision: Proceed | Junk | Reject = PROCEED
    ) -> None:
        super().__init__()
        self.name = name
        self.beside, self.decision = beside, decision
        self.begun: dict[str, asyncio.Event] = {}
        self.saw: list[list[str]] = []
        self.ended = ""

    async def message(self, session: Session, message: Message) -> Proceed | Junk | Reject:
        del session
        self.begun[self.name].set()
        self.saw.append(message.headers.names())
        try:
            for name in self.beside:
                await self.begun[name].wait()
            early = await my_turn()
        except BaseException as error:
            self.ended = type(error).__name__
            raise
        self.ended = "early" if early else "in turn"
        message.headers.append(f"X-{self.name}", "scanned")
        return self.decision


class Events(dict[str, asyncio.Event]):
    """An event for each name."""

    def __missing__(self, name: str) -> asyncio.Event:
        self[name] = event = asyncio.Event()
        return event


class Stubborn(Scanner):
    """Continues after it was cancelled."""

    cancelled = 0

    async def message(self, session: Session, message: Message) -> Proceed | Junk | Reject:
        self.begun[self.name].set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            return await super().message(session, message)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self.cancelled = task.cancelling()


class Editor(Filter):
    """Edits without scanning."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    async def message(self, session: Session, message: Message) -> Proceed:
        del session
        await asyncio.sleep(0)
        message.headers.append(f"X-{self.name}", "edited")
        return PROCEED


def sent(*filters: Filter) -> Delivery:
    events = Events()
    for each in filters:
        if isinstance(each, Scanner):
            each.begun = events
    with Conversation(list(filters)) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("bob@example.net")
        client.rcpt_to("anna@example.org")
        return client.message(MESSAGE)


def added(delivery: Delivery) -> list[str]:
    return [name for name in delivery.headers.names() if name.startswith("X-")]


def test_they_scan_side_by_side_and_edit_in_turn() -> None:
    one, two, three = Scanner("a", "c"), Scanner("b", "a"), Scanner("c", "b")
    delivery = sent(one, two, three)
    assert added(delivery) == ["X-a", "X-b", "X-c"]
    assert [each.ended for each in (one, two, three)] == ["in turn", "early", "early"]
    assert not [name for each in (two, three) for name in each.saw[0] if name.startswith("X-")]


def test_the_first_refusal_ends_it() -> None:
    one, two = Scanner("a", "b", decision=NO), Scanner("b", "never")
    delivery = sent(one, two)
    assert delivery.reply == NO.text
    assert two.ended in {"CancelledError", "GeneratorExit"}


def test_a_later_refusal_waits_for_those_in_front() -> None:
    one, two = Scanner("a", "b", decision=JUNK), Scanner("b", "a", decision=NO)
    assert sent(one, two).reply == NO.text
    assert one.ended == "in turn"


def test_one_that_ignores_the_end_waits_for_no_turn() -> None:
    """Its turn will not come."""
    one, two = Scanner("a", "b", decision=NO), Stubborn("b")
    assert sent(one, two).reply == NO.text
    # Otherwise it would wait until the end of the process, which cancels it again.
    assert (two.cancelled, two.ended) == (1, "CancelledError")


def test_an_editor_between_them_is_called_in_turn() -> None:
    one, two = Scanner("a"), Scanner("b")
    delivery = sent(one, Editor("x"), two)
    assert added(delivery) == ["X-a", "X-x", "X-b"]
    assert two.ended == "in turn"
    assert "X-x" in two.saw[0]


class Failing(Scanner):
    """Fails in its turn."""

    async def message(self, session: Session, message: Message) -> Proceed | Junk | Reject:
        await super().message(session, message)
        raise UnavailableError("no server")


def test_the_edits_of_one_that_fails_are_undone() -> None:
    one, two = Failing("a", "b"), Scanner("b", "a")
    assert added(sent(one, two)) == ["X-b"]


class Keeping(Scanner):
    """Fails in its turn, and keeps its edits."""

    async def message(self, session: Session, message: Message) -> Proceed | Junk | Reject:
        await super().message(session, message)
        raise UnavailableError("no server", keeps_edits=True)


def test_unless_it_keeps_them() -> None:
    assert added(sent(Keeping("a", "b"), Scanner("b", "a"))) == ["X-a", "X-b"]


class Slow(Scanner):
    """Takes longer than the one behind it may."""

    deadline = 20.0

    async def message(self, session: Session, message: Message) -> Proceed | Junk | Reject:
        await asyncio.sleep(1.2 * Hasty.deadline)
        return await super().message(session, message)


class Hasty(Scanner):
    """Has less time than the one in front of it takes."""

    deadline = brief(1.0)


def test_waiting_for_the_turn_does_not_count_against_the_deadline() -> None:
    two = Hasty("b")
    assert added(sent(Slow("a"), two)) == ["X-a", "X-b"]
    assert two.ended == "early"

"""The events of a filter beside its phases: set-up, reports, reload, end of input."""

# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from smtpd_filters import (
    JUNK,
    PROCEED,
    Filter,
    Headers,
    Junk,
    Message,
    Proceed,
    Registration,
    Reject,
    Rewrite,
    Session,
)
from smtpd_filters.chain import Chain
from smtpd_filters.protocol.vocabulary import PHASES
from smtpd_filters.runtime.engine import Engine
from smtpd_filters.runtime.log import Log
from smtpd_filters.testing import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.runtime.coroutines import Pending
    from tests.conftest import Logbook

NO = Reject("550 5.7.1 No")


class Witness(Filter):
    """Takes note of everything."""

    refresh_interval = 1.0

    def setup(self) -> Registration | None:
        self.seen: list[str] = []
        return None

    async def refresh(self) -> None:
        await asyncio.sleep(0)
        self.seen.append("refresh")

    def link_connect(self, session: Session) -> None:
        # There is a loop, in which look-ups can be started.
        asyncio.get_running_loop()
        self.seen.append(f"link_connect {session.address}")

    def link_identify(self, session: Session) -> None:
        self.seen.append(f"link_identify {session.identity}")

    def link_auth(self, session: Session) -> None:
        self.seen.append(f"link_auth {session.username} {session.failed_username}")

    def mail_from(self, session: Session, address: str) -> Proceed:
        self.seen.append(f"mail-from {self.smtpd['admd']}")
        return PROCEED


def test_a_life() -> None:
    with Conversation(Witness, admd="mx.example.org") as smtpd:
        [filter_] = smtpd.filters
        assert isinstance(filter_, Witness)
        client = smtpd.connect(address="192.0.2.9")
        client.ehlo("mail.example.net")
        client.auth("jörg", "wrong", ok=False)
        client.auth("jörg", "right")
        client.mail_from("a@example.net")
        smtpd.refresh()
    assert filter_.seen == [
        "refresh",
        "link_connect 192.0.2.9",
        "link_identify mail.example.net",
        "link_auth None jörg",
        "link_auth jörg None",
        "mail-from mx.example.org",
        "refresh",
    ]


def test_nothing_is_asked_of_smtpd_that_nobody_hears() -> None:
    class Deaf(Filter):
        def connect(self, session: Session) -> Proceed:
            return PROCEED

    with Conversation(Deaf) as smtpd:
        assert smtpd.reports.isdisjoint({"link-identify", "link-auth"})
    with Conversation(Witness) as smtpd:
        assert smtpd.reports.issuperset({"link-identify", "link-auth"})


class Clumsy(Filter):
    """Fails at everything that nobody waits for."""

    async def refresh(self) -> None:
        raise RuntimeError("refresh")

    def link_connect(self, session: Session) -> None:
        raise RuntimeError("link_connect")

    def link_identify(self, session: Session) -> None:
        raise SystemExit("link_identify")

    def helo(self, session: Session, identity: str) -> Proceed:
        return PROCEED

    ehlo = helo


def test_failures_that_nobody_waits_for_are_logged_and_survived() -> None:
    with Conversation(Clumsy, errors=True) as smtpd:
        assert smtpd.connect().ehlo("mail.example.net").verb == "proceed"
    assert [line.partition("error=")[2][:26] for line in smtpd.log] == [
        '"RuntimeError: refresh [te',
        '"RuntimeError: link_connec',
        '"SystemExit: link_identify',
    ]


class Perhaps(Filter):
    """Knows some at once and has to wait for others."""

    async def mail_from(self, session: Session, address: str) -> Proceed | Junk | Reject:
        return JUNK if address == "known@example.net" else await self._wait(address)

    async def _wait(self, address: str) -> Proceed | Reject:
        await asyncio.sleep(0)
        if address == "fails@example.net":
            raise RuntimeError("failed")
        return NO


def test_a_coroutine_waits_only_if_it_must() -> None:
    with Conversation(Perhaps, errors=True) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        assert client.mail_from("unknown@example.net").reply == NO.text
        assert client.mail_from("fails@example.net").verb == "proceed"
        assert "RuntimeError: failed" in smtpd.log[-1]
        client.rset()
        client.mail_from("known@example.net")
        assert "result=junk" in smtpd.log[-1]


def test_a_plain_handler_may_not_return_a_coroutine() -> None:
    class Liar(Filter):
        on_error = "tempfail"

        def connect(self, session: Session) -> Proceed:
            return self._wait(session)  # type: ignore[return-value]  # that is the lie

        async def _wait(self, session: Session) -> Proceed:
            return PROCEED

    with Conversation(Liar, errors=True) as smtpd:
        assert smtpd.connect().greeting.verb == "disconnect"
    line = Liar.connect.__code__.co_firstlineno
    place = f"test_life.py:{line}"
    assert rf'error="returned a coroutine; write \"async def\" at {place}"' in smtpd.log[0]


class Busy(Filter):
    """Does something at each phase."""

    on_error = "tempfail"

    def connect(self, session: Session) -> Junk:
        return JUNK.because("why not")

    def ehlo(self, session: Session, identity: str) -> Rewrite:
        return Rewrite("other.example")

    def mail_from(self, session: Session, address: str) -> Reject:
        raise RuntimeError(address)

    def headers(self, session: Session, headers: Headers) -> Junk:
        headers.prepend("X-Busy", "yes")
        headers.remove("Subject")
        return JUNK


def test_a_dry_run_logs_and_lets_pass() -> None:
    with Conversation(Busy, "--dry-run", errors=True) as smtpd:
        assert smtpd.filters[0].dry_run
        client = smtpd.connect()
        assert client.greeting.verb == "proceed"
        assert client.ehlo("mail.example.net").verb == "proceed"
        assert client.mail_from("a@example.net").verb == "proceed"
        client.rcpt_to("b@example.org")
        done = client.message(b"Subject: kept\n\nbody\n")
        assert done.headers.get_all("Subject") == ["kept"]
        assert "X-Busy" not in done.headers
        assert "X-Spam" not in done.headers
        assert not done.refused
    log = [line.split(" ", 3)[2:] for line in smtpd.log]
    assert [phase for phase, _ in log] == ["connect", "ehlo", "mail-from", "headers", "headers"]
    assert log[0][1].startswith('result=proceed would=junk reason="why not" took=')
    assert log[1][1].startswith("result=proceed would=rewrite")
    assert log[2][1].startswith("result=proceed would=reject error=")
    assert log[3][1].startswith("result=proceed would=junk")
    assert log[4][1] == "result=proceed would=edit"


class Rewriter(Filter):
    """Replaces the whole message, and may fail behind that."""

    on_error = "proceed"
    fails = False

    def message(self, session: Session, message: Message) -> Proceed:
        message.headers.prepend("X-New", "yes")
        message.replace_body(b"new\n")
        message.replace_body(block.upper() for block in message.body())
        if self.fails:
            raise RuntimeError("too late")
        return PROCEED


class FailingRewriter(Rewriter):
    """Fails behind that."""

    fails = True


@pytest.mark.parametrize(
    ("kind", "flags", "body"),
    [
        (Rewriter, (), b"NEW\n"),
        (Rewriter, ("--dry-run",), b"old\n"),
        (FailingRewriter, (), b"old\n"),
    ],
)
def test_a_body_is_restored(kind: type[Filter], flags: tuple[str, ...], body: bytes) -> None:
    with Conversation(kind, *flags, errors=kind is not Rewriter) as smtpd:
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        done = client.message(b"Subject: kept\n\nold\n")
        assert done.body == body
        assert ("X-New" in done.headers) is (body == b"NEW\n")


class Choosy(Witness):
    """Finds that it has nothing to wait for, and registers no event."""

    def setup(self) -> Registration:
        super().setup()
        return Registration(waits=False, events=())

    async def close(self) -> None:
        """Nothing to release."""

    async def rcpt_to(self, session: Session, address: str) -> Proceed:
        return PROCEED


def test_what_a_filter_has_no_use_for_it_is_not_told() -> None:
    assert Choosy().waits
    with Conversation(Choosy) as smtpd:
        [filter_] = smtpd.filters
        assert isinstance(filter_, Choosy)
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
    chain = Chain([(filter_, "proceed", 1.0)], Log())
    # Without it no event loop is needed.
    assert not chain.waits
    assert not chain.closing
    assert not chain.hooks
    assert filter_.seen == ["mail-from mx.example.org"]


class Looks(Filter):
    """Looks at senders and messages."""

    def mail_from(self, session: Session, address: str) -> Proceed:
        return PROCEED

    def message(self, session: Session, message: Message) -> Proceed:
        return PROCEED


class Closed(Looks):
    """Would have nothing accepted that it has not seen."""

    on_error = "tempfail"


class Open(Looks):
    """Would rather have mail than look at it."""

    on_error = "proceed"


@pytest.mark.parametrize(("kind", "refused"), [(Closed, True), (Open, False)])
def test_a_fault_of_the_framework_is_answered_as_the_filters_own(
    kind: type[Filter],
    refused: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> Proceed:
        raise RuntimeError("ours")

    with Conversation(kind) as smtpd:
        chain = smtpd._served.chain
        client = smtpd.connect()
        client.ehlo("mail.example.net")
        with monkeypatch.context() as patch:
            patch.setitem(chain.ask, PHASES["mail-from"], fail)
            said = client.mail_from("a@example.net")
        assert said.reply.startswith("451 4.3.0 ") if refused else said.verb == "proceed"
        if refused:
            client.mail_from("a@example.net")
        client.rcpt_to("b@example.org")
        monkeypatch.setattr(chain, "judge_message", fail)
        done = client.message(b"Subject: seen by nobody\n\nbody\n")
        assert done.refused is refused
        assert done.body == b"body\n"
    assert all("RuntimeError: ours" in line for line in smtpd.log)


def test_what_comes_to_nothing_through_a_fault_of_ours_is_refused_likewise(
    logbook: Logbook,
) -> None:
    waiting: list[tuple[Pending, Callable[[Decision | None], None]]] = []

    class Job:
        def cancel(self) -> None:
            raise AssertionError

    class Waits(Closed):
        async def rcpt_to(self, session: Session, address: str) -> Proceed:
            await asyncio.sleep(0)
            raise AssertionError

    chain = Chain([(Waits(), "tempfail", 1.0)], logbook.log)
    engine = Engine(chain, logbook.log)

    def spawn(pending: Pending, done: Callable[[Decision | None], None], _price: int) -> Job:
        waiting.append((pending, done))
        return Job()

    async def receive() -> None:
        engine.receive(
            b"filter|0.7|1576146008.006099|smtp-in|rcpt-to|7641df9771b4ed00|1ef1c203cc576e5d|a@b\n"
        )

    engine.spawn = spawn
    engine.receive(b"config|smtpd-version|7.6\nconfig|protocol|0.7\nconfig|ready\n")
    asyncio.run(receive())
    engine.output()
    [(pending, done)] = waiting
    pending.work.close()
    done(None)
    assert b"|reject|451 4.3.0 " in engine.output()

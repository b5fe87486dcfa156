from __future__ import annotations

import asyncio
import doctest
import re
import subprocess
import sys
import warnings
from itertools import groupby
from pathlib import Path

import pytest

import smtpd_filters.testing as package
from smtpd_filters import (
    JUNK,
    PROCEED,
    Answer,
    ConfigError,
    Decision,
    Disconnect,
    Filter,
    FinalAnswer,
    Found,
    Headers,
    Junk,
    Message,
    ParameterAnswer,
    Proceed,
    Registration,
    Reject,
    Resolver,
    Rewrite,
    Session,
    Settings,
    UnavailableError,
    option,
)
from smtpd_filters.filters.dyndns import Dyndns
from smtpd_filters.filters.trace import Trace
from smtpd_filters.protocol.vocabulary import HANDLERS, REPORTS
from smtpd_filters.recording import Recording
from smtpd_filters.settings import TEXT, choice
from smtpd_filters.stores import Count, Store, join
from smtpd_filters.testing import Client, Conversation, DNSServer, Verdict
from smtpd_filters.testing import conversation as kit
from smtpd_filters.testing.client import TLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protocol" / "7.8.0p1"
PROTOCOLS = [(0, 5), (0, 6), (0, 7)]
ADDRESS = "you@example.org"
CONTENT = b"Subject: hello\r\n\r\n.dot\r\n..\r\n\xff|\r\nend\r\n"
BODY = b".dot\n..\n\xff|\nend\n"
NO = Reject("550 5.7.1 No")
GO = Disconnect("421 4.7.0 Go")


class Says(Filter):
    """Returns the given decision of each phase, and keeps its arguments."""

    name = "says"
    on_error = "tempfail"

    def __init__(self, **answers: object) -> None:
        super().__init__()
        self.answers = answers
        self.seen: list[tuple[str, object]] = []

    def setup(self) -> Registration:
        return Registration(HANDLERS)

    def _say(self, phase: str, seen: object = None) -> object:
        self.seen.append((phase, seen))
        return self.answers.get(phase, PROCEED)

    def connect(self, session: Session) -> Answer:
        return self._say("connect", session.src)  # type: ignore[return-value]

    def helo(self, _session: Session, identity: str) -> ParameterAnswer:
        return self._say("helo", identity)  # type: ignore[return-value]

    def ehlo(self, _session: Session, identity: str) -> ParameterAnswer:
        return self._say("ehlo", identity)  # type: ignore[return-value]

    def starttls(self, session: Session) -> Answer:
        return self._say("starttls", session.tls)  # type: ignore[return-value]

    def auth(self, _session: Session, credentials: str) -> ParameterAnswer:
        return self._say("auth", credentials)  # type: ignore[return-value]

    def mail_from(self, session: Session, _address: str) -> ParameterAnswer:
        seen = session.method, session.identity, session.tls, session.username
        return self._say("mail_from", seen)  # type: ignore[return-value]

    def rcpt_to(self, session: Session, _address: str) -> ParameterAnswer:
        return self._say("rcpt_to", session.tx and session.tx.sender)  # type: ignore[return-value]

    def data(self, session: Session) -> Answer:
        return self._say("data", session.tx and list(session.tx.recipients))  # type: ignore[return-value]

    def commit(self, session: Session) -> FinalAnswer:
        return self._say("commit", session.tx is not None)  # type: ignore[return-value]

    def rset(self, session: Session) -> FinalAnswer:
        return self._say("rset", session.tx is not None)  # type: ignore[return-value]

    def noop(self, _session: Session, text: str) -> Answer:
        return self._say("noop", text)  # type: ignore[return-value]

    def quit(self, session: Session) -> Proceed | Disconnect:
        return self._say("quit", session.tx is not None)  # type: ignore[return-value]


@pytest.fixture(params=PROTOCOLS, ids=lambda p: f"{p[0]}.{p[1]}")
def protocol(request: pytest.FixtureRequest) -> tuple[int, int]:
    version: tuple[int, int] = request.param
    return version


def test_the_documented_example_runs() -> None:
    tried = doctest.testmod(kit)
    assert tried.attempted > 4
    assert tried.failed == 0


def test_all_names_are_there() -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = package.nonsense


def test_the_dns_server_still_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "smtpd_filters.testing.dns", "--help"],
        check=False,
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_whole_session(protocol: tuple[int, int]) -> None:
    filter_ = Says()
    with Conversation(filter_, protocol=protocol) as smtpd:
        client = smtpd.connect(rdns=None, address="2001:db8::1")
        assert client.greeting.asked
        client.ehlo("a.example")
        client.tls("TLSv1.2:X:1")
        client.ehlo("b.example")
        assert client.auth("me|you", "pw", ok=False).reply.startswith("535 ")
        client.auth("me|you", "pw", mechanism="LOGIN")
        client.mail_from("me@example.com")
        assert client.rcpt_to("no@example.org", accepted=False).reply.startswith("550 ")
        client.rcpt_to(ADDRESS)
        delivery = client.message(CONTENT)
        assert (delivery.body, delivery.unchanged, delivery.reply) == (BODY, True, "")
        assert delivery.bytes.endswith(b"Subject: hello\n\n" + BODY)
        assert delivery.headers.get("Subject") == "hello"
        client.mail_from()
        client.rset()
        client.noop()
        client.noop("text")
        client.quit()
        assert client.closed
    last = [("noop", "text")] if protocol == (0, 7) else []
    assert filter_.seen == [
        ("connect", "[2001:db8::1]:33174"),
        ("ehlo", "a.example"),
        ("starttls", None),
        ("ehlo", "b.example"),
        ("auth", "PLAIN AG1lfHlvdQBwdw=="),
        ("auth", "LOGIN"),
        ("mail_from", ("EHLO", "b.example", "TLSv1.2:X:1", "me|you")),
        ("rcpt_to", "me@example.com"),
        ("rcpt_to", "me@example.com"),
        ("data", [ADDRESS]),
        ("commit", True),
        ("mail_from", ("EHLO", "b.example", "TLSv1.2:X:1", "me|you")),
        ("rset", True),
        ("noop", ""),
        *last,
        ("quit", False),
    ]


def upgrade(client: Client) -> Verdict:
    said = client.tls()
    if not said.refused:
        client.ehlo()
    return said


DOES: dict[str, Callable[[Client], Verdict]] = {
    "ehlo": Client.ehlo,
    "starttls": upgrade,
    "auth": lambda client: client.auth("me", mechanism="LOGIN"),
    "mail_from": lambda client: client.mail_from("me@example.com"),
    "rcpt_to": lambda client: client.rcpt_to(ADDRESS),
    "data": Client.data,
    "commit": lambda client: client.message(CONTENT),
    "noop": Client.noop,
    "quit": Client.quit,
}
STEPS = tuple(DOES)


def go(client: Client, step: str) -> Verdict:
    return DOES[step](client)


@pytest.mark.parametrize("answer", [NO, GO, JUNK, Reject("421 4.7.0 Bye")], ids=repr)
@pytest.mark.parametrize("step", STEPS)
def test_each_answer_at_each_phase(
    step: str, answer: Reject | Disconnect | Junk, protocol: tuple[int, int]
) -> None:
    legal = type(answer) in HANDLERS[step].legal
    with Conversation(Says(**{step: answer}), protocol=protocol, errors=True) as smtpd:
        client = smtpd.connect()
        for before in STEPS[: STEPS.index(step)]:
            assert go(client, before).verb == "proceed"
        said = go(client, step)
        expected = answer if legal else HANDLERS[step].fallbacks["tempfail"]
        if step == "mail_from" and answer is JUNK:
            expected = PROCEED  # the mark is made at data: smtpd takes it for the connection here
        assert (said.verb, said.reply) == (expected.verb, expected.text)
        assert said.refused == bool(expected.text)
        assert client.closed == ((step == "quit" and not said.refused) or said.closes)
        assert len(smtpd.log) == (1 if legal or expected.text else 0)
        assert client.id in smtpd.log[0]
        if client.closed:
            with pytest.raises(RuntimeError, match="closed"):
                client.noop()


def events(rows: list[bytes]) -> list[bytes]:
    """The names of events, without what is the business of smtpd's own talk with the client."""
    names = [row.split(b"|")[4] for row in rows if not row.startswith(b"config|")]
    # smtpd is not strict about when it reports that DATA was taken, beside the first lines.
    names = [name for name in names if name not in {b"protocol-server", b"tx-data"}]
    return [name for name, _ in groupby(names)]


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("ehlo-message", {}),
        ("reject-at-commit", {"commit": NO}),
        ("disconnect-at-commit", {"commit": GO}),
        ("disconnect-at-rcpt-to", {"rcpt_to": GO}),
        ("disconnect-at-ehlo", {"ehlo": GO}),
        ("disconnect-at-connect", {"connect": GO}),
        ("quit-in-transaction", {}),
        ("starttls", {}),
    ],
)
def test_events_come_in_the_order_in_which_smtpd_was_recorded(
    name: str, answers: dict[str, object]
) -> None:
    recording = Recording.read(FIXTURES / f"{name}.session")
    written = bytearray()
    with Conversation(Says(**answers)) as smtpd:
        smtpd.reports.update(REPORTS)
        smtpd.phases.add("data-line")
        original = smtpd._served.receive

        def receive(data: bytes) -> None:
            written.extend(data)
            original(data)

        smtpd._served.receive = receive  # type: ignore[method-assign]
        client = smtpd.connect()
        steps = ["ehlo", "mail_from", "rcpt_to", "commit", "quit"]
        if name == "starttls":
            steps.insert(1, "starttls")
        if name == "quit-in-transaction":
            steps.remove("commit")
        for step in steps:
            if not client.closed:
                go(client, step)
        if name == "reject-at-commit":
            # The recording goes on with a second message.
            assert client.closed
    recorded = events(recording.to_filter())
    played = events(bytes(written).split(b"\n")[:-1])
    if name == "reject-at-commit":
        recorded = [*recorded[: recorded.index(b"tx-reset") + 1], *recorded[-4:]]
    assert played == recorded


def test_a_refused_connection_is_closed() -> None:
    with Conversation(Says(connect=NO)) as smtpd:
        client = smtpd.connect(local=True)
        assert (client.greeting.verb, client.greeting.reply) == ("disconnect", NO.text)
        assert client.closed


def test_a_client_of_which_nothing_is_reported() -> None:
    says = Says()
    with Conversation(says) as smtpd:
        assert smtpd.connect(reported=False).greeting.asked
        assert smtpd.connect().greeting.asked
    assert says.seen == [("connect", ""), ("connect", "192.0.2.1:33174")]


def test_a_refused_command_can_be_said_again() -> None:
    filter_ = Says(ehlo=NO, mail_from=NO, rcpt_to=NO, data=NO, commit=NO, rset=NO)
    with Conversation(filter_) as smtpd:
        client = smtpd.connect(tls=TLS)
        for step in ("ehlo", "mail_from", "rcpt_to", "data", "commit"):
            assert go(client, step).refused
            del filter_.answers[step]
            if step != "commit":
                assert not go(client, step).refused
        assert client.mail_from("again@example.com").verb == "proceed"
        assert client.rset().refused
        with pytest.raises(RuntimeError, match="503"):
            client.mail_from("again@example.com")
        del filter_.answers["rset"]
        client.rset()
        client.disconnect()


def test_smtpd_shows_what_was_rewritten_as_it_does() -> None:
    rewriting = Says(
        ehlo=Rewrite("new.example"),
        mail_from=Rewrite("new@example.com"),
        rcpt_to=Rewrite("<new@example.org>"),
    )
    with Conversation(rewriting) as smtpd:
        client = smtpd.connect()
        assert client.ehlo("old.example").parameter == "new.example"
        assert client.mail_from("old@example.com").parameter == "<new@example.com>"
        assert client.rcpt_to("old@example.org").parameter == "<new@example.org>"
        assert client.message().verb == "proceed"
        client.quit()
    seen = dict(rewriting.seen)
    assert seen["mail_from"] == ("EHLO", "new.example", None, None)
    assert seen["rcpt_to"] == "new@example.com"
    assert seen["data"] == ["new@example.org"]


@pytest.mark.parametrize(
    ("phase", "second"), [("ehlo", True), ("mail_from", False), ("rcpt_to", False), ("data", False)]
)
def test_junk_marks_the_session_or_the_message(phase: str, second: bool) -> None:  # noqa: FBT001  # a case
    filter_ = Says(**{phase: JUNK})
    with Conversation(filter_) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        for marked in (True, second):
            client.mail_from("me@example.com")
            client.rcpt_to(ADDRESS)
            assert (client.message().headers.get("X-Spam") == "Yes") is marked
            filter_.answers.clear()
        client.timeout()


def test_steps_out_of_order_are_the_tests_mistake() -> None:
    with Conversation(Says()) as smtpd:
        client = smtpd.connect()
        for step in ("starttls", "auth", "mail_from", "rcpt_to", "data", "commit"):
            with pytest.raises(RuntimeError, match="503"):
                go(client, step)
        client.ehlo()
        with pytest.raises(RuntimeError, match="identified"):
            client.helo()
        with pytest.raises(RuntimeError, match="503"):
            client.write(b"")
        client.mail_from("me@example.com")
        client.rcpt_to(ADDRESS)
        client.data()
        with pytest.raises(RuntimeError, match="DATA"):
            client.noop()
        client.write(b"Subject: half\n")
        client.disconnect()
        with pytest.raises(RuntimeError, match="closed"):
            client.timeout()
        with pytest.raises(RuntimeError, match="closed"):
            client.disconnect()


class Stamps(Filter):
    """Edits the header, later than it is asked."""

    async def headers(self, _session: Session, headers: Headers) -> Answer:
        await asyncio.sleep(0)
        headers.append("X-Stamp", "1")
        return PROCEED


class Weighs(Filter):
    """Refuses messages by their bodies."""

    async def message(self, _session: Session, message: Message) -> Answer:
        await asyncio.sleep(0)
        return NO if b"bad" in b"".join(message.body()) else PROCEED


def test_a_chain_with_coroutines_and_several_clients() -> None:
    with Conversation([Stamps(), Weighs()]) as smtpd:
        assert [each.name for each in smtpd.filters] == ["stamps", "weighs"]
        clients = [smtpd.connect() for _ in range(2)]
        for client in clients:
            client.ehlo()
            client.mail_from("me@example.com")
            client.rcpt_to(ADDRESS)
            client.data()
            client.write(b"Subject: x\n")
        good = clients[0].message(b"\ngood\n")
        bad = clients[1].message(b"\nbad\n")
        assert (good.headers.get("X-Stamp"), good.unchanged, good.refused) == ("1", False, False)
        assert bad.reply == NO.text


class Fails(Filter):
    """Leaves a task behind, which fails, and never comes back."""

    async def connect(self, _session: Session) -> Answer:
        self._task = asyncio.ensure_future(self._raise())
        self._left = asyncio.ensure_future(asyncio.Event().wait())
        await asyncio.Event().wait()
        return PROCEED

    async def _raise(self) -> None:
        self._task = None  # type: ignore[assignment]  # so that nobody ever asks how it ended
        raise LookupError("lost")


class Prepares(Filter):
    """Keeps what it sees when it is set up, and logs it."""

    name = "prepares"

    def setup(self) -> None:
        seen = {"on_error": self.on_error, "deadline": f"{self.deadline:g}"}
        self.log.event("setup", **seen, dry=str(self.dry_run), verbose=str(self.log.verbose))
        self.log.limited("note", "noted")
        self.log.limited("note", "noted")

    def connect(self, session: Session) -> Proceed:
        self.log.event("seen", session.id, src=session.src)
        return PROCEED


def test_setup_sees_the_settings_and_the_log() -> None:
    flags = ("--on-error", "tempfail", "--deadline", "7s", "--dry-run", "-v")
    with Conversation(Prepares, *flags) as smtpd:
        seen = "prepares setup on_error=tempfail deadline=7 dry=True verbose=True"
        assert smtpd.log == [seen, "prepares noted"]
        client = smtpd.connect()
        assert smtpd.log[2] == f"{client.id} prepares seen src=192.0.2.1:33174"
    made = Prepares()
    made.on_error, made.deadline, made.name = "junk", 3.0, "other"
    with Conversation([Prepares(), made]) as smtpd:
        assert smtpd.log == [
            "prepares setup on_error=proceed deadline=30 dry=False verbose=False",
            "prepares noted",
            "other setup on_error=junk deadline=3 dry=False verbose=False",
            "other noted",
        ]


def test_what_fails_in_setup_is_said_as_at_a_start() -> None:
    class Broken(Filter):
        """Can't be set up."""

        def setup(self) -> None:
            raise KeyError("key")

        def connect(self, _session: Session) -> Proceed:
            return PROCEED

    with pytest.raises(ConfigError, match="cannot be set up: KeyError") as raised:
        Conversation(Broken)
    # A test shows where.
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_deadline_and_what_a_policy_leaves_behind() -> None:
    with Conversation(
        Fails, "--deadline", "0.01", "--on-error", "tempfail", "-v", errors=True
    ) as smtpd:
        client = smtpd.connect()
        assert client.greeting.reply.startswith("421 ")
        assert any("not done after 0.01 s" in line for line in smtpd.log)
    assert any("LookupError: lost" in line for line in smtpd.log)


class Breaks(Filter):
    """Fails in various ways."""

    def connect(self, _session: Session) -> Answer:
        raise ZeroDivisionError

    async def close(self) -> None:
        raise OSError("gone already")


def test_failures_are_in_the_log() -> None:
    with Conversation(Breaks(), errors=True) as smtpd:
        assert smtpd.connect().greeting.verb == "proceed"
        smtpd.reload()
    assert "ZeroDivisionError" in smtpd.log[0]
    assert "gone already" in smtpd.log[1]


def test_flags_and_settings_are_those_of_the_executable() -> None:
    settings = Dyndns.Options(action="reject", phase="helo")
    for conversation in (
        Conversation(Dyndns, "--action", "reject", "--phase", "helo"),
        Conversation(Dyndns, settings=settings),
        Conversation(Dyndns(settings)),
    ):
        with conversation as smtpd:
            assert smtpd.phases == {"helo", "ehlo"}
            client = smtpd.connect(rdns="1-2-0-192.dyn.example", address="192.0.2.1")
            assert client.helo().reply.startswith("550 5.7.1 ")
            assert client.quit().asked is False
    with pytest.raises(ConfigError, match="--nonsense"):
        Conversation(Dyndns, "--nonsense")
    with pytest.raises(TypeError, match="instance"):
        Conversation(Dyndns(settings), "--action", "reject")


def test_the_oracle_has_the_last_word() -> None:
    smtpd = Conversation(Dyndns)
    with smtpd:
        pass
    smtpd.oracle.from_filter(b"nonsense\n")
    with pytest.raises(AssertionError, match="line-unknown"):
        smtpd.verify()


def nonsense_then_failure() -> None:
    with Conversation(Dyndns) as smtpd:
        smtpd.oracle.from_filter(b"nonsense\n")
        raise LookupError


def test_the_oracle_does_not_hide_why_a_test_failed() -> None:
    with pytest.raises(LookupError):
        nonsense_then_failure()


def nonsense() -> None:
    with Conversation(Dyndns) as smtpd:
        smtpd.oracle.from_filter(b"nonsense\n")


def test_the_end_of_a_conversation_is_verified() -> None:
    with pytest.raises(AssertionError, match="line-unknown"):
        nonsense()


class Errs(Filter):
    """Fails in the given way."""

    deadline = 0.01

    class Options(Settings):
        at = option(TEXT, default="", help="Where it fails.")

    settings: Options

    def link_connect(self, _session: Session) -> None:
        if self.settings.at == "event":
            raise ValueError("at an event")

    async def ehlo(self, _session: Session, _identity: str) -> Proceed:
        match self.settings.at:
            case "handler":
                raise ValueError("in a handler")
            case "decision":
                return JUNK  # type: ignore[return-value]  # an error
            case "service":
                raise UnavailableError("no service")
            case "time":
                await asyncio.Event().wait()
        return PROCEED

    async def refresh(self) -> None:
        if self.settings.at == "refresh":
            raise ValueError("in refresh")
        if self.settings.at == "fetch":
            raise UnavailableError("no list")

    async def close(self) -> None:
        if self.settings.at == "close":
            raise ValueError("in close")


class Forgets(Filter):
    """A filter that forgets to await what it calls at a phase or an event."""

    store = Store.setting()

    class Options(Settings):
        at = option(choice("mail-from", "rcpt-to", "link-connect"), required=True, help="Where.")

    settings: Options

    async def mail_from(self, session: Session, address: str) -> Decision:
        assert address
        if self.settings.at == "mail-from":
            self._count(session)
        return PROCEED

    async def rcpt_to(self, session: Session, address: str) -> Decision:
        await asyncio.sleep(0)
        if self.settings.at == "rcpt-to" and self._count(session):
            return Reject("550 5.1.1 No")
        assert address
        return PROCEED

    def link_connect(self, session: Session) -> None:
        if self.settings.at == "link-connect":
            self._count(session)

    def _count(self, session: Session) -> bool:
        key = join("forgets", (session.address or "").encode())
        return bool(self.store.ask(Count(key, window=60)))


def send(smtpd: Conversation) -> None:
    client = smtpd.connect()
    client.ehlo()
    client.mail_from("a@example.net")
    client.rcpt_to("b@example.org")


@pytest.mark.parametrize("at", ["mail-from", "rcpt-to", "link-connect"])
@pytest.mark.parametrize("action", ["error", "ignore", "default"])
def test_a_forgotten_await_is_an_error(at: str, action: Any) -> None:
    """It is reported each time, whatever the test does with warnings."""
    where = r"\n  test_conversation\.py:\d+: coroutine 'Store\.ask' was never awaited$"
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        for _ in range(2):
            with (
                pytest.raises(AssertionError, match=where),
                Conversation(Forgets, "--at", at) as smtpd,
            ):
                send(smtpd)
        with Conversation(Forgets, "--at", at, errors=True) as smtpd:
            send(smtpd)
    assert len(smtpd.errors) == 1


def test_other_warnings_are_those_of_the_test() -> None:
    class Warns(Filter):
        """A filter with a warning."""

        def mail_from(self, session: Session, address: str) -> Proceed:
            assert session.address
            assert address
            warnings.warn("mind", RuntimeWarning, stacklevel=1)
            return PROCEED

    with pytest.warns(RuntimeWarning, match="mind"), Conversation(Warns) as smtpd:
        send(smtpd)
    assert smtpd.errors == []


def test_a_test_that_fails_shows_the_errors_of_the_filter() -> None:
    def fail(*flags: str) -> list[str]:
        with pytest.raises(AssertionError) as raised, Conversation(Errs, *flags) as smtpd:
            assert smtpd.connect().closed
        return getattr(raised.value, "__notes__", [])

    [note] = fail("--at", "event")
    assert note.startswith("errors in the filter:\n  ")
    assert " errs link_connect: ValueError: at an event [" in note
    assert fail() == []


@pytest.mark.parametrize(
    ("at", "error"),
    [
        ("event", "errs link_connect: ValueError: at an event ["),
        ("handler", "errs ehlo: ValueError: in a handler ["),
        ("decision", "errs ehlo: returned Junk, "),
        ("refresh", "errs refresh: ValueError: in refresh ["),
        ("close", "errs close: ValueError: in close ["),
    ],
)
def test_an_error_in_the_filter_fails_the_test(at: str, error: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(error)):  # noqa: SIM117  # its end raises
        with Conversation(Errs, "--at", at) as smtpd:
            smtpd.connect().ehlo()
    assert error in smtpd.errors[0]
    with Conversation(Errs, "--at", at, errors=True) as smtpd:
        smtpd.connect().ehlo()
    assert len(smtpd.errors) == 1


@pytest.mark.parametrize("at", ["service", "time", "fetch", ""])
def test_a_failure_that_a_filter_must_expect_is_no_error(at: str) -> None:
    with Conversation(Errs, "--at", at) as smtpd:
        smtpd.connect().ehlo()
    assert smtpd.errors == []


class Once(Filter):
    """Takes one greeting a minute."""

    def setup(self) -> None:
        self._next = 0.0

    def ehlo(self, _session: Session, _identity: str) -> Proceed | Reject:
        if self.now() < self._next:
            return NO
        self._next = self.now() + 60
        return PROCEED


def test_the_clock_of_a_filter_is_advanced() -> None:
    with Conversation(Once) as smtpd:
        client = smtpd.connect()
        assert smtpd.connect().ehlo().verb == "proceed"
        assert client.ehlo().verb == "reject"
        smtpd.advance(61)
        assert client.ehlo().verb == "proceed"


class Remembers(Filter):
    """Refuses the second greeting from an address."""

    early = False
    store = Store.setting()

    class Options(Settings):
        text = option(TEXT, default="550 5.7.1 No", help="The reply.")

    settings: Options

    async def ehlo(self, session: Session, _identity: str) -> Decision:
        key = join("test", (session.address or "").encode())
        if await self.store.ask(Count(key, window=60)) > 1:
            return Reject(self.settings.text)
        return PROCEED


def test_a_store_is_in_memory_and_of_one_conversation() -> None:
    for _ in range(2):
        with Conversation(Remembers) as smtpd:
            assert smtpd.connect().ehlo().verb == "proceed"
            assert smtpd.connect().ehlo().verb == "reject"
            smtpd.advance(61)
            assert smtpd.connect().ehlo().verb == "proceed"


def test_a_store_that_is_given_is_used(tmp_path: Path) -> None:
    for verb in ("proceed", "reject"):
        with Conversation(Remembers, "--store", f"sqlite:{tmp_path}/test.sqlite") as smtpd:
            assert smtpd.connect().ehlo().verb == verb


def test_the_filters_of_a_chain_have_flags() -> None:
    with Conversation([(Remembers, "--text", "450 4.7.1 Later"), Once]) as smtpd:
        assert smtpd.connect().ehlo().verb == "proceed"
        assert smtpd.connect().ehlo().reply == "450 4.7.1 Later"
        assert smtpd.connect(address="192.0.2.2").ehlo().reply == NO.text
    with Conversation([(Once, "--dry-run"), Dyndns(Dyndns.Options())]) as smtpd:
        smtpd.connect().ehlo()
        assert smtpd.connect().ehlo().verb == "proceed"


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--txt", "x"), 'filter-remembers: unknown flag --txt, did you mean "--text"?'),
        (("--verbose",), "filter-remembers: unknown flag --verbose"),
    ],
)
def test_a_wrong_flag_in_a_chain_is_an_error(flags: tuple[str, ...], error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        Conversation([(Remembers, *flags)])


class Asks(Filter):
    """Refuses clients whose greeting is not the name of a host."""

    dns = Resolver.setting()

    async def ehlo(self, _session: Session, identity: str) -> Decision:
        return PROCEED if isinstance(await self.dns.addresses(identity), Found) else NO


def test_a_recording_is_played_with_a_name_server() -> None:
    path = FIXTURES / "ehlo-message.session"
    for zone, reply in (({"client.test": {"A": "192.0.2.1"}}, ""), ({}, NO.text)):
        with DNSServer(zone) as server:
            at = server.address, server.port
            steps = kit.play(path, Asks, nameserver=at)
        [verdict] = [step.verdict for step in steps if step.phase == "ehlo"]
        assert verdict
        assert verdict.reply == reply


def test_a_file_without_a_session_is_not_played(tmp_path: Path) -> None:
    path = tmp_path / "hello"
    path.write_text("< hello\n")
    with pytest.raises(ConfigError, match=re.escape(f"{path}: no session in it")):
        kit.play(path, Once)


@pytest.mark.parametrize("address", ["<a@example.org>", "<>"])
def test_an_address_in_angle_brackets_is_a_mistake(address: str) -> None:
    with Conversation(Once) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        with pytest.raises(ValueError, match="without angle brackets"):
            client.mail_from(address)
        client.mail_from("")
        with pytest.raises(ValueError, match="without angle brackets"):
            client.rcpt_to(address)
        client.rcpt_to('"<a>"@example.org')


def test_a_chain_records_its_sessions(tmp_path: Path) -> None:
    with Conversation([(Trace, "--record", str(tmp_path)), Once]) as smtpd:
        client = smtpd.connect()
        client.ehlo()
        client.mail_from("a@example.org")
        client.quit()
    [path] = tmp_path.iterdir()
    steps = kit.play(path, Once)
    assert [step.phase for step in steps][:3] == ["connect", "ehlo", "mail-from"]

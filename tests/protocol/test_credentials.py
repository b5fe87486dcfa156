"""A refusal at `auth` never makes smtpd log the credentials, and is given at a later phase."""

from __future__ import annotations

import pytest

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.credentials import SPOILT, Refusals, holds_credentials
from smtpd_filters.protocol.decisions import JUNK, PROCEED, Decision, Disconnect, Reject, Rewrite
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import PHASES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.protocol.events import Report
    from smtpd_filters.protocol.vocabulary import Phase

A, B, C = b"7641df9700000001", b"7641df9700000002", b"7641df9700000003"
T = b"00000000000000a0"
SECRET = b"PLAIN AGFsaWNlAHNlY3JldA=="
NO, GO = Reject("450 4.7.1 No"), Disconnect("421 4.7.0 Go")
PASSED = "proceed"
WITHHELD = "rewrite|PLAIN *"


class Client:
    """A client of a filter that decides as told, at once or `late`."""

    def __init__(self, *, late: bool = False) -> None:
        self.decision: Decision = PROCEED
        self.late = late
        self.asked_at: list[str] = []
        self.smtpd = SmtpdConnection()
        self.connection = FilterConnection(self)
        self.oracle = Oracle()
        self.registered = self._say(self.smtpd.configure())
        for session in (A, B):
            self.begin(session)

    def configured(self, key: str, _value: str) -> None:
        if key == "ready":
            self.connection.register(["auth", "helo"], ["link-connect", "link-disconnect"])

    def reported(self, report: Report) -> None:
        pass

    def asked(self, phase: Phase, _session: bytes, _argument: bytes) -> Decision | None:
        self.asked_at.append(phase.name)
        return None if self.late else self.decision

    def content(self, *_: object, **__: object) -> None:
        raise AssertionError

    def _say(self, data: bytes) -> list[bytes]:
        self.oracle.from_smtpd(data)
        self.connection.receive(data)
        written = self.connection.data_to_send()
        self.oracle.from_filter(written)
        return written.split(b"\n")[:-1]

    def ask(
        self, phase: str, argument: bytes = b"", decision: Decision = PROCEED, session: bytes = A
    ) -> str:
        """Return the answer to a request."""
        self.decision = decision
        lines = self._say(self.smtpd.request(phase, session, T, argument))
        if not lines:
            self.connection.answer(session, decision)
            written = self.connection.data_to_send()
            self.oracle.from_filter(written)
            lines = written.split(b"\n")[:-1]
        self.oracle.verify()
        [line] = lines
        return line.removeprefix(b"filter-result|%b|%b|" % (session, T)).decode()

    def begin(self, session: bytes) -> None:
        self._say(self.smtpd.report("link-connect", session, b"x", b"pass", b"a:1", b"b:25"))

    def end(self, session: bytes) -> None:
        self._say(self.smtpd.report("link-disconnect", session))


@pytest.fixture(params=[False, True], ids=["at once", "late"])
def client(request: pytest.FixtureRequest) -> Client:
    return Client(late=request.param)


@pytest.mark.parametrize(
    ("parameter", "holds"),
    [
        (b"", False),
        (b"PLAIN", False),
        (b"login ", False),
        (b"PLAIN AA==", True),
        (b"PLAIN\tAA==", True),
        (b"LOGIN YQ==", True),
        (b"XOAUTH2 YQ==", True),
        (b"AGFsaWNlAHNlY3JldA==", True),
    ],
)
def test_what_holds_credentials(parameter: bytes, holds: bool) -> None:  # noqa: FBT001  # a table
    assert holds_credentials(parameter) is holds


def test_the_phases_at_which_a_refusal_is_given_are_registered(client: Client) -> None:
    phases = [line for line in client.registered if line.startswith(b"register|filter|")]
    assert phases == [
        b"register|filter|smtp-in|" + name
        for name in (b"auth", b"helo", b"mail-from", b"rset", b"noop")
    ]


def test_a_rejection_is_given_at_the_next_mail_from(client: Client) -> None:
    assert client.ask("auth", SECRET, NO) == WITHHELD
    assert client.ask("rset") == PASSED
    assert client.ask("mail-from", b"a@b") == "reject|450 4.7.1 No"
    assert client.ask("mail-from", b"a@b") == PASSED
    assert client.asked_at == ["auth", "rset", "mail-from"]


@pytest.mark.parametrize("phase", ["helo", "mail-from", "rset", "noop"])
def test_a_client_is_disconnected_at_its_next_command(client: Client, phase: str) -> None:
    assert client.ask("auth", SECRET, GO) == WITHHELD
    assert client.ask(phase, b"x") == "disconnect|421 4.7.0 Go"
    assert client.asked_at == ["auth"]


def test_a_client_that_quits_is_let_go(client: Client) -> None:
    assert client.ask("auth", SECRET, GO) == WITHHELD
    assert client.ask("quit") == PASSED


def test_a_client_that_is_to_be_disconnected_cannot_authenticate(client: Client) -> None:
    assert client.ask("auth", SECRET, GO) == WITHHELD
    assert client.ask("auth", SECRET) == WITHHELD
    assert client.ask("auth", b"LOGIN") == "disconnect|421 4.7.0 Go"
    assert client.asked_at == ["auth"]


def test_a_rejected_client_may_try_again(client: Client) -> None:
    assert client.ask("auth", SECRET, NO) == WITHHELD
    assert client.ask("auth", SECRET) == PASSED
    assert client.ask("mail-from", b"a@b") == PASSED


@pytest.mark.parametrize("decision", [NO, GO])
def test_a_command_without_credentials_is_refused_at_once(
    client: Client, decision: Decision
) -> None:
    assert client.ask("auth", SECRET) == PASSED
    assert client.ask("auth", b"PLAIN", decision) == decision.wire.decode()
    assert client.ask("mail-from", b"a@b") == PASSED


class Full(list[bytes]):
    """Pending answers for which there is no memory the first time."""

    full = True

    def append(self, line: bytes) -> None:
        if self.full:
            self.full = False
            raise MemoryError
        super().append(line)


@pytest.mark.parametrize("decision", [NO, GO])
def test_a_refusal_is_given_although_memory_was_lacking(decision: Decision) -> None:
    client = Client()
    assert client.ask("auth", SECRET, decision) == WITHHELD
    client.connection.answers = Full()
    client.connection.receive(client.smtpd.request("mail-from", A, T, b"a@b"))
    assert client.connection.stalled
    client.connection.resume()
    assert client.connection.answers == [
        b"filter-result|%b|%b|%b\n" % (A, T, decision.wire),
    ]
    assert client.asked_at == ["auth"]


def test_a_pending_answer_for_which_memory_was_lacking_is_sent_later() -> None:
    client = Client(late=True)
    client.connection.receive(client.smtpd.request("auth", A, T, SECRET))
    client.connection.answers = Full()
    with pytest.raises(MemoryError):
        client.connection.answer(A, NO)
    assert client.connection.busy(A)
    client.connection.answer(A, NO)
    assert client.connection.answers == [b"filter-result|%b|%b|%b\n" % (A, T, SPOILT.wire)]


@pytest.mark.parametrize("decision", [NO, GO])
def test_a_session_whose_refusal_is_not_given_yet_is_busy(
    client: Client, decision: Decision
) -> None:
    assert not client.connection.busy(A)
    assert client.ask("auth", SECRET, decision) == WITHHELD
    assert client.connection.busy(A)
    client.end(A)
    assert not client.connection.busy(A)


def test_other_decisions_are_sent(client: Client) -> None:
    assert client.ask("auth", SECRET, JUNK) == "junk"
    assert client.ask("auth", SECRET, Rewrite("PLAIN AA==")) == "rewrite|PLAIN AA=="
    assert client.ask("mail-from", b"a@b") == PASSED


def test_sessions_are_told_apart(client: Client) -> None:
    assert client.ask("auth", SECRET, GO) == WITHHELD
    assert client.ask("noop", session=B) == PASSED
    assert client.ask("auth", SECRET, session=B) == PASSED
    client.end(A)
    client.begin(C)
    assert client.ask("noop", session=C) == PASSED
    assert not client.connection._refusals.later
    client.end(B)
    assert not client.connection._refusals._asked


def test_a_session_that_ends_while_a_decision_is_pending_leaves_nothing() -> None:
    refusals = Refusals()
    auth = PHASES["auth"]
    assert refusals.due(auth, A, SECRET) == b""
    refusals.forget(A)
    assert refusals.answer(auth, A, NO.wire) == NO.wire


@pytest.mark.parametrize(
    ("wire", "sent"),
    [
        (b"proceed", b"proceed"),
        (b"rewrite|LOGIN", b"rewrite|LOGIN"),
        (b"rewrite|plain AA==", b"rewrite|plain AA=="),
        (b"rewrite|", SPOILT.wire),
        (b"rewrite|PLAINLY", SPOILT.wire),
        (b"rewrite|X AA==", SPOILT.wire),
    ],
)
def test_an_unknown_mechanism_is_refused_without_credentials(wire: bytes, sent: bytes) -> None:
    """As smtpd would refuse it, with 504; only a foreign program rewrites to one."""
    refusals = Refusals()
    refusals.due(PHASES["auth"], A, SECRET)
    assert refusals.answer(PHASES["auth"], A, wire) == sent
    assert not refusals.later

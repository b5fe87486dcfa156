"""A legal smtpd and a hostile listener, both driven by choices from outside.

The smtpd follows its own rules whatever the answers are: it waits for an answer before it continues
a session, sends `commit` after both final dots, and so on; the oracle has no complaint about it.
The listener follows no rule: it answers with any decision, twice, never, later, or for invented
sessions, and sends any lines at any time.
"""

from __future__ import annotations

from smtpd_filters.oracle import Complaint, Oracle
from smtpd_filters.oracle.rules import Kind
from smtpd_filters.protocol.decisions import (
    JUNK,
    MAX_PARAMETER,
    PROCEED,
    Decision,
    Disconnect,
    Reject,
    Rewrite,
)
from smtpd_filters.protocol.events import Line, Malformed, Result
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import PHASES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from smtpd_filters.protocol.events import Report
    from smtpd_filters.protocol.vocabulary import Phase

    T = TypeVar("T")

#: Complaints of the oracle that no listener may cause, whatever it does.
DEADLY = frozenset({Kind.ENDS_SERVER, Kind.HANGS_SERVER, Kind.WRECKS_SESSION, Kind.LEAKS})
#: Damage to mail that the connection must prevent as well.
ALWAYS = frozenset({"mail-cut", "mail-cut-short", "session-unknown", "line-unfinished"})

#: Versions of smtpd by the protocol that they speak; those below 7.4 cut lines.
SERVERS = {(0, 5): ("6.6.4",), (0, 6): ("6.7.1", "6.8.0p2"), (0, 7): ("7.0.0", "7.3.0", "7.8.0")}

DECISIONS: tuple[Decision | None, ...] = (
    PROCEED,
    None,
    JUNK,
    Reject("550 5.7.1 No"),
    Disconnect("421 4.7.0 Go"),
    Rewrite("a@b.example"),
    Rewrite("<a@b.example> BODY=8BITMIME"),
    Rewrite(""),
    Rewrite("\udcff|x"),
    Rewrite("x" * MAX_PARAMETER),
    PROCEED.because("text"),
    Decision(),
    "proceed",  # type: ignore[assignment]  # no decision at all
)
LINES = (
    b"",
    b"Subject: x",
    b" folded",
    b"body",
    b".",
    b"..",
    b".x",
    b"a|b|c|",
    b"\xff\xfe",
    b"a\nb",
    b"\n.\n",
    b"nul\0nul",
    b"\0.",
    b"cr\r",
    b"x" * 998,
    b"Long: " + b"word " * 400,
    b"y" * 1998,
    b"z" * 65485,
    b"z" * 65486,
    b"w " * 40000,
)
#: Those of them that smtpd writes: without line ends, and a dot is stuffed.
BODY = tuple(line for line in LINES if b"\n" not in line and b"\0" not in line and line != b".")
ARGUMENTS = (b"", b"a@b.example", b"x|y", b"\xff", b"mail.example", b"PLAIN AGEAYg==", b"a b")
ASKED = (
    *("helo", "ehlo", "starttls", "auth", "mail-from", "rcpt-to", "data", "rset", "noop"),
    *("mail-from", "rcpt-to", "data", "quit"),
)


class Choices:
    """Choices made by bytes; when these run out, always the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def below(self, count: int) -> int:
        """Return a number from 0 to `count` - 1; `count` is at most 256."""
        at, self._at = self._at, self._at + 1
        return self._data[at] % count if at < len(self._data) else 0

    def of(self, options: Sequence[T]) -> T:
        """One of these."""
        return options[self.below(len(options))]


class Hostile:
    """A listener that misbehaves.  `choose` picks one of a sequence."""

    def __init__(self, choose: Callable[[Sequence[T]], T], *, refuse: bool, pass_all: bool) -> None:
        self.choose: Callable[[Sequence[object]], object] = choose  # type: ignore[assignment]
        self.connection = FilterConnection(self, refuse_long_lines=refuse, pass_all=pass_all)
        self.pass_all = pass_all
        #: All sessions so far, in order.
        self.sessions: dict[bytes, None] = {b"00000000000000ee": None}
        #: It forgot sessions that live on: these may hang.
        self.forgot = False
        self.depth = 0

    def pick(self, options: Sequence[T]) -> T:
        """One of these."""
        return self.choose(options)  # type: ignore[return-value]

    def outgoing(self) -> tuple[bytes, bytes]:
        """Return the pending output, and clear it: answers, and lines of messages."""
        connection = self.connection
        said = b"".join(connection.answers), b"".join(connection.lines)
        connection.data_to_send()
        return said

    # -- the listener --------------------------------------------------------------------

    def configured(self, key: str, _value: str) -> None:
        """Register everything, some of it twice."""
        if key == "ready":
            self.connection.register(
                [*PHASES, "data-line", "connect"], ["link-connect", "tx-reset"]
            )

    def reported(self, report: Report) -> None:
        """Do something else."""
        self.sessions[report.session] = None
        self.mischief()

    def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:
        """Answer with anything."""
        assert isinstance(argument, bytes)
        assert PHASES[phase.name] is phase
        self.sessions[session] = None
        self.mischief(asked=session)
        return self.pick(DECISIONS)

    def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
        """Send lines back, or others, or none."""
        assert all(type(line) is bytes and b"\n" not in line for line in lines)
        assert lines or end
        match self.pick(range(5)):
            case 0:
                self.connection.send_lines(session, lines, end=end)
            case 1:
                self.connection.pass_through(session)
            case 2:
                self.connection.send_lines(session, [self.pick(LINES)], end=end)
            case _:
                pass
        self.mischief()

    # -- and what else it does -----------------------------------------------------------

    def mischief(self, asked: bytes = b"") -> None:
        """Make a call without a request; `asked` is the session whose request is being read."""
        # What it says has no consequence within the connection that calls it back, but once is
        # enough in any case.
        if self.depth:
            return
        self.depth += 1
        connection, session = self.connection, self.pick(list(self.sessions))
        match self.pick(range(12)):
            case 1:
                connection.answer(session, self.pick(DECISIONS) or PROCEED)
            case 2:
                connection.send_lines(session, [self.pick(LINES), self.pick(LINES)])
            case 3:
                connection.send_lines(session, [self.pick(LINES)], end=True)
            case 4:
                connection.send_lines(session, [], end=True)
            case 5:
                connection.pass_through(session)
            case 6:
                connection.rescue(session)
            case 7:
                assert isinstance(connection.busy(session), bool)
            case 8 if session != asked:  # which can't have ended
                self.forgot = True
                connection.forget(session)
            case _:
                pass
        self.depth -= 1


class Session:
    """One session of the smtpd: what it waits for, and what it may send next."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        #: The phase of the open request; "data-line" while the filter's final dot is pending.
        self.waiting = ""
        #: Lines are being sent.
        self.sending = False
        #: The message has been returned: commit comes next.
        self.done = False
        self.gone = False


class Smtpd:
    """A legal smtpd with several sessions, and the oracle between it and the listener."""

    def __init__(
        self,
        choose: Callable[[Sequence[T]], T],
        protocol: tuple[int, int],
        server: str,
        receive: Callable[[bytes], None],
        output: Callable[[], tuple[bytes, bytes]],
    ) -> None:
        self.choose: Callable[[Sequence[object]], object] = choose  # type: ignore[assignment]
        self.side = SmtpdConnection(protocol, server)
        self.oracle = Oracle()
        self.sessions: list[Session] = []
        self._receive, self._output = receive, output
        self._tokens = {
            name: b"%016x" % (0xA0 + at) for at, name in enumerate((*PHASES, "data-line"))
        }
        self._clock = 0
        self._held = self._late = b""
        self.send(self.side.configure())

    def pick(self, options: Sequence[T]) -> T:
        """One of these."""
        return self.choose(options)  # type: ignore[return-value]

    def send(self, data: bytes) -> None:
        """Write, perhaps in two parts, of which the second is read with what comes next."""
        self.oracle.from_smtpd(data)
        data = self._held + data
        cut = self.pick((len(data), len(data), len(data) // 2, len(data) - 1, 0))
        self._held = data[cut:]
        if cut:
            self._receive(data[:cut])
        self.collect()

    def flush(self) -> None:
        """Write what was held back."""
        held, self._held = self._held, b""
        self._receive(held)
        self.collect(late=True)

    def collect(self, *, late: bool = False) -> None:
        """Read the filter's output; answers overtake lines of messages unless they are late."""
        answers, lines = self._output()
        self._late += lines
        data = answers
        if late or self.pick((True, True, False)):
            data += self._late
            self._late = b""
        self.oracle.from_filter(data)
        by_name = {session.name: session for session in self.sessions if not session.gone}
        for answer in self.side.receive(data):
            assert not isinstance(answer, Malformed), answer
            if not isinstance(answer, (Result, Line)):
                continue
            session = by_name.get(answer.session)
            if session is None:
                continue
            if isinstance(answer, Result):
                session.waiting = ""
            elif answer.line == b".":
                session.waiting, session.done = "", True

    # -- actions of smtpd ----------------------------------------------------------------

    def act(self) -> None:
        """Do anything that is legal now."""
        idle = [each for each in self.sessions if not each.gone]
        which = self.pick(range(8))
        if not idle or (which == 7 and len(idle) < 5):
            self.connect()
            return
        session = self.pick(idle)
        if which == 6:
            self.leave(session)
        elif session.waiting:
            self.flush()
        elif session.done:
            session.done = False
            self.request(session, "commit", b"")
        elif session.sending or which == 5:
            end = session.sending and which < 2
            session.sending = True
            self.lines(session, end=end)
        elif which == 4:
            self.report(session)
        else:
            self.request(session, self.pick(ASKED), self.pick(ARGUMENTS))

    def connect(self) -> None:
        """Connect a client."""
        session = Session(b"%016x" % (0x7641DF97 << 32 | len(self.sessions) + 1))
        self.sessions.append(session)
        where = (b"mail.example", b"pass", b"192.0.2.1:25", b"192.0.2.2:25")
        self.send(self.side.report("link-connect", session.name, *where, time=self._time()))
        self.request(session, "connect", b"mail.example|192.0.2.1")

    def request(self, session: Session, phase: str, argument: bytes) -> None:
        """Send a request."""
        session.waiting = phase
        token = self._tokens[phase]
        self.send(self.side.request(phase, session.name, token, argument, self._time()))

    def lines(self, session: Session, *, end: bool) -> None:
        """Send lines of a message."""
        lines = [self.pick(BODY) for _ in range(self.pick(range(4)))]
        if end:
            session.sending, session.waiting = False, "data-line"
        token = self._tokens["data-line"]
        data = self.side.lines(session.name, token, lines, end=end, time=self._time())
        if data:
            self.send(data)

    def report(self, session: Session) -> None:
        """Report something."""
        name, *values = self.pick(
            (
                (b"tx-reset", b"0000000a"),
                (b"tx-begin", b"0000000a"),
                (b"tx-mail", b"0000000a", b"ok", b"a|b"),
                (b"tx-rcpt", b"0000000a", b"permfail", b"a@b"),
                (b"link-auth", b"pass", b"me|you"),
                (b"link-identify", b"EHLO", b"x"),
                (b"timeout",),
            )
        )
        self.send(self.side.report(name.decode(), session.name, *values, time=self._time()))

    def leave(self, session: Session) -> None:
        """Disconnect the client."""
        session.gone = True
        for name, *values in ((b"tx-rollback", b"0000000a"), (b"tx-reset", b"0000000a")):
            self.send(self.side.report(name.decode(), session.name, *values, time=self._time()))
        self.send(self.side.report("link-disconnect", session.name, time=self._time()))

    def _time(self) -> bytes:
        self._clock += 1
        # Now and then the width changes, as no smtpd's does for years.
        return b"%d.%06d" % (99 if self._clock % 97 == 0 else 1700000000, self._clock)

    # -- complaints ----------------------------------------------------------------------

    def broken(self) -> list[Complaint]:
        """Complaints that no policy may cause."""
        assert not self.oracle.oddities, self.oracle.oddities
        return [
            complaint
            for complaint in self.oracle.complaints
            if complaint.kind in DEADLY or complaint.rule in ALWAYS
        ]


def play(data: bytes) -> None:
    """Run one conversation, chosen by these bytes; raise AssertionError if a rule is broken."""
    choices = Choices(data)
    protocol = choices.of(tuple(SERVERS))
    server = choices.of(SERVERS[protocol])
    hostile = Hostile(choices.of, refuse=choices.below(2) == 1, pass_all=choices.below(4) == 1)
    connection = hostile.connection
    smtpd = Smtpd(choices.of, protocol, server, connection.receive, hostile.outgoing)
    while choices.left:
        smtpd.act()
        if choices.below(4) == 0:
            hostile.mischief()
            smtpd.collect()
    finish(smtpd, hostile)


def finish(smtpd: Smtpd, hostile: Hostile) -> None:
    """End it: pending sessions are rescued, and no rule was broken."""
    smtpd.flush()
    for session in smtpd.sessions:
        hostile.connection.rescue(session.name)
    smtpd.collect(late=True)
    smtpd.oracle.finish()
    assert not smtpd.broken(), smtpd.broken()
    if not hostile.forgot:
        hanging = [c for c in smtpd.oracle.complaints if c.kind is Kind.HANGS_SESSION]
        assert not hanging, hanging
        assert not any(session.waiting for session in smtpd.sessions if not session.gone)

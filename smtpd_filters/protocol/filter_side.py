"""The filter's end of the conversation: bytes from smtpd in, events out; decisions in, bytes out.

Law
---
1. Nothing that arrives raises.  What makes no sense is a `Remark`, and is answered when it
   has a session and a token.
2. A request is answered once, with a decision that is legal for its phase; whatever else is
   asked for is replaced by the nearest legal one, and remarked upon as our bug.
3. A message comes back as it came, or as the listener sends it: see `transit`.

How it works
------------
`FilterConnection` holds no file descriptor and no clock.  `receive` takes what was read and tells
a `Listener` everything that somebody must look at; what the listener says to a request is the
answer, unless it says None, and then `answer` comes later.  `outgoing` has what is to be written:
answers apart from lines of messages, for an answer may overtake them (smtpd asks nothing of a
session whose message has not come back yet).

Chunks all of whose lines belong to messages that are known go to `transit` as a whole; others are
taken apart.  A request whose session and token have been seen before takes a short way; it
has the same result as the long one.
"""

from __future__ import annotations

from .codec import decode
from .decisions import PROCEED, Decision, Disconnect, Proceed, Reject, Rewrite
from .dialect import DIALECTS, NEWEST, OLDEST, cuts_lines, dialect, version
from .events import Config, Lines, Malformed, Report, Request
from .remark import Remarks
from .transit import TOO_LONG, Transit
from .vocabulary import PHASES_ON_WIRE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .dialect import Dialect
    from .remark import Listener
    from .vocabulary import Phase

#: Bytes of a line that are kept; smtpd's longest, a body line, has 65,616.
MAX_INPUT = 4 << 20
#: Tokens that are remembered as valid; there are as many as phases.
MAX_TOKENS = 64
_DATA_LINE = b"data-line"
_ROLLED_BACK = frozenset({"tx-reset", "tx-rollback"})


class UnsupportedProtocolError(Exception):
    """The server speaks a protocol too old to be a filter of; said before ``register|ready``."""


class FilterConnection:
    """One conversation with smtpd, from the first ``config`` line to the end of input.

    ``refuse_long_lines``: a message with a line too long for the server is refused at
    ``commit``; otherwise the line is broken.  ``pass_all``: messages go back as they come, and
    the listener is not told of them.
    """

    def __init__(
        self, listener: Listener, *, refuse_long_lines: bool = False, pass_all: bool = False
    ) -> None:
        self._listener = listener
        self.config: dict[str, str] = {}
        self.dialect: Dialect = DIALECTS[NEWEST]
        self.remarks = Remarks()
        #: The version as the last event line had it, and what stood in its place.
        self._spoken = self._mark = b""
        #: What smtpd has sessions of: "smtp-in", and "smtp-out" where it is the client.
        self.subsystems: set[str] = set()
        self._ready = False
        #: The beginning of a line, and whether the rest of it is dropped.
        self._partial = bytearray()
        self._dropping = False
        #: Frees memory when there is none.
        self.relieve: Callable[[], object] = bool
        self._open: dict[bytes, tuple[Phase, bytes]] = {}
        #: Sessions and tokens that were found to be such.
        self._sessions: set[bytes] = set()
        self._tokens: set[bytes] = set()
        #: Sessions whose answers may not overtake lines, since smtpd has asked before it can have
        #: had their message back.  No server does.
        self._ordered: set[bytes] = set()
        self._answers: list[bytes] = []
        self._lines: list[bytes] = []
        self._transit = Transit(
            self._lines,
            listener,
            self.remarks,
            pass_all=pass_all,
            refuse_long_lines=refuse_long_lines,
        )

    # -- what the caller says ------------------------------------------------------------

    def register(
        self, phases: Iterable[str], reports: Iterable[str], outgoing: Iterable[str] = ()
    ) -> None:
        """Tell smtpd what we want to be asked and told, in reply to ``config|ready``.

        ``phases`` may hold ``data-line``; ``outgoing`` are reports of the sessions in which smtpd
        is the client.  Nothing is registered of a subsystem that the server has not announced: an
        unknown one would end it.  Raises UnsupportedProtocolError when the server has said that it
        speaks a protocol below 0.5.
        """
        if self.config.get("protocol") and self.dialect.version < OLDEST:
            spoken = self.config["protocol"]
            raise UnsupportedProtocolError(f"smtpd speaks filter protocol {spoken}; 0.5 is needed")
        wanted = dict.fromkeys(phases)
        if self.refuse_long_lines and "data-line" in wanted:
            wanted["commit"] = None
        announced = self.subsystems or {"smtp-in"}
        for kind, subsystem, names in (
            ("report", "smtp-in", reports),
            ("report", "smtp-out", outgoing),
            ("filter", "smtp-in", wanted),
        ):
            if subsystem in announced:
                self._answers += [f"register|{kind}|{subsystem}|{n}\n".encode() for n in names]
        self._answers.append(b"register|ready\n")
        self._ready = True

    def answer(self, session: bytes, decision: Decision) -> None:
        """Answer the request of a session to which the listener said None."""
        opened = self._open.pop(session, None)
        if opened is None:
            self.remarks.bug("answer without a request", session)
            return
        phase, token = opened
        self._result(session, token, self._sayable(phase, session, decision).wire)

    def _sayable(self, phase: Phase, session: bytes, decision: Decision) -> Decision:
        """The decision in the form in which smtpd does what it says."""
        if type(decision) not in phase.legal:
            self.remarks.bug(f"{type(decision).__name__} at {phase.name}", session)
            refuses = isinstance(decision, (Reject, Disconnect))
            decision = phase.fallbacks["tempfail"] if refuses else PROCEED
        if phase.name == "connect" and type(decision) is Reject:
            return Disconnect(decision.text)
        if type(decision) is Rewrite:
            if not phase.takes(decision.text):
                self.remarks.bug(f"{phase.name} rewritten to what smtpd does not take", session)
                return PROCEED
            if phase.argument == "address":
                return decision.in_brackets()
        if phase.name == "commit" and session in self._transit.refused:
            refusal = self._transit.refused.pop(session)
            if type(decision) is Proceed:
                return refusal
        return decision

    def send_lines(self, session: bytes, lines: list[bytes], *, end: bool = False) -> None:
        """Send lines of the session's message; see `Transit.send`."""
        self._transit.send(session, lines, end=end)

    def pass_through(self, session: bytes) -> None:
        """From here on the lines of the session's message go back as they come."""
        self._transit.pass_through(session)

    def spoil(self, session: bytes) -> None:
        """Have the session's message refused, since lines of it are lost.  Takes no memory."""
        self._transit.spoil(session)

    def forget(self, session: bytes) -> None:
        """The session is gone: nothing of it is answered any more."""
        self._sessions.discard(session)
        self._ordered.discard(session)
        self._open.pop(session, None)
        self._transit.drop(session)

    def rescue(self, session: bytes) -> None:
        """Leave nobody of the session waiting, whatever became of its policy."""
        if session in self._open:
            self.answer(session, PROCEED)
        if self._transit.collects(session):
            self._transit.pass_through(session)

    def busy(self, session: bytes) -> bool:
        """Whether smtpd waits for something of the session: an answer, or lines of its message."""
        return session in self._open or session in self._transit.streams

    @property
    def losses(self) -> int:
        """How often something that was read has been lost for want of memory."""
        return self._transit.losses

    @property
    def cuts(self) -> bool:
        """Whether the server cuts long lines that it gets back from a filter."""
        return self._transit.cuts

    @property
    def refuse_long_lines(self) -> bool:
        """Whether a message with a line too long for the server is refused."""
        return self._transit.refuse_long_lines

    def outgoing(self) -> tuple[bytes, bytes]:
        """What is to be written, once: answers, and lines of messages, which may come behind."""
        answers, lines = self._answers, self._lines
        said = b"".join(answers), b"".join(lines)
        answers.clear()
        lines.clear()
        self._transit.ended.clear()
        return said

    def data_to_send(self) -> bytes:
        """What is to be written, once, in one piece."""
        return b"".join(self.outgoing())

    # -- what smtpd says -----------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from smtpd in.

        Raises MemoryError if there is no memory to begin with; then nothing has been taken in.
        """
        *rows, rest = data.split(b"\n")
        cut = False
        if rows:
            if self._partial:
                cut = self._dropping
                rows[0] = bytes(self._partial) + (b"" if cut else rows[0])
            elif self._dropping:
                del rows[0]
            self._partial, self._dropping = bytearray(), False
        if rest:
            self._keep(rest)
        transit = self._transit
        if not transit.nul_seen and b"\0" in data:
            transit.nul_seen = True
        if not rows:
            return
        # A line within one read cannot be too long for a server that does not cut.
        transit.may_be_long = transit.cuts or len(data) + len(rows[0]) > transit.limit
        try:
            run = bool(transit.known) and not cut and transit.all_known(rows, data)
        except MemoryError:
            run = False
        if run:
            transit.run(rows)
        else:
            self._take_apart(rows)
        if cut:
            self._refuse_cut(rows[0])

    def lose(self) -> None:
        """What was read last is lost: what follows is dropped up to the next line end.

        Otherwise the rest of a line of mail could be taken for a line of the protocol.  The
        messages that are on their way are refused.
        """
        self._dropping = True
        self._partial.clear()
        self._transit.losses += 1

    def _take_apart(self, rows: list[bytes]) -> None:
        """Lines of all kinds; those of known messages are handled together where they can be."""
        transit = self._transit
        known = transit.known
        run: list[bytes] = []
        for row in rows:
            try:
                # The key is asked for anew each time: an answer given meanwhile may have changed
                # it.
                if known and transit.key(row) in known and len(row) != transit.dot_size:
                    run.append(row)
                    continue
                if run:
                    transit.run(run)
                    run.clear()  # which takes no memory
                if not (row.startswith(b"f") and self._ask(row)):
                    self._take(row)
            except MemoryError:
                self._take_again(run, row)
                run.clear()
        if run:
            transit.run(run)

    def _take_again(self, run: list[bytes], row: bytes) -> None:
        """Take lines for which there was no memory, now that some has been freed."""
        self.relieve()
        try:
            if run:
                self._transit.run(run)
            self._take(row)
        except MemoryError:
            self._transit.losses += 1

    def _refuse_cut(self, row: bytes) -> None:
        """A line of a message was longer than is kept: the message is refused."""
        event = decode(row, self.dialect)
        if type(event) is Lines:
            self._transit.refused.setdefault(event.session, TOO_LONG)

    def _ask(self, row: bytes) -> bool:
        """Take a request as nearly all are; what is odd about one is found out by `_take`."""
        try:
            word, spoken, _, subsystem, name, session, token, argument = row.split(b"|", 7)
        except ValueError:
            return False
        if (
            session not in self._sessions
            or token not in self._tokens
            or spoken != self._spoken
            or word != b"filter"
            or subsystem != b"smtp-in"
        ):
            return False
        if name == _DATA_LINE:
            self._transit.line(session, token, argument, row)
            return True
        phase = PHASES_ON_WIRE.get(name)
        transit = self._transit
        if phase is None or session in self._open or session in transit.streams:
            return False
        if transit.ended and session in transit.ended:
            self._ordered.add(session)
        decision = self._listener.asked(phase, session, argument)
        if decision is PROCEED and not (transit.refused or self._ordered):
            self._answers.append(b"filter-result|%b|%b|proceed\n" % (session, token))
        elif decision is None:
            self._open[session] = phase, token
        else:
            self._result(session, token, self._sayable(phase, session, decision).wire)
        return True

    def _keep(self, rest: bytes) -> None:
        """Keep the beginning of a line until its end comes, in bounded memory."""
        if self._dropping:
            return
        room = MAX_INPUT - len(self._partial)
        if len(rest) > room:
            self.remarks.odd("line without an end", detail=rest)
            self._dropping = True
            rest = rest[:room]
        self._partial += rest

    def _take(self, row: bytes) -> None:
        """One line that is not a body line of a known message."""
        if row[7:11] != self._mark and not row.startswith(b"config"):
            self._speak(row)
        event = decode(row, self.dialect)
        if type(event) is Config:
            self._configured(event)
        elif not self._ready:
            self.remarks.odd("line before the hand-shake", detail=row)
        elif type(event) is Report:
            self._reported(event)
        elif type(event) is Request:
            self._request(event)
        elif type(event) is Lines:
            self._confirm(event.session, event.token)
            line = b"." if event.end else event.lines[0]
            self._transit.line(event.session, event.token, line, row)
        elif type(event) is Malformed:
            self.remarks.odd(event.kind, event.session, event.line)
            if event.token:
                self._result(event.session, event.token, PROCEED.wire)

    def _reported(self, report: Report) -> None:
        name, session = report[0], report[3]
        if name == "link-connect":
            self._sessions.add(session)
        elif name == "link-disconnect":
            self.forget(session)
        elif name in _ROLLED_BACK:
            self._transit.drop(session)
        self._listener.reported(report)

    def _configured(self, event: Config) -> None:
        self.config[event.key] = event.value
        if event.key == "subsystem":
            self.subsystems.add(event.value)
        if event.key == "protocol":
            self._choose(version(event.value), event.value)
        elif event.key == "smtpd-version" and cuts_lines(event.value):
            self._transit.server_cuts()
        self._listener.configured(event.key, event.value)

    def _speak(self, row: bytes) -> None:
        """The version stands in each event line; 6.8 and before say it nowhere else."""
        fields = row.split(b"|", 2)
        if len(fields) == 3 and fields[0] in (b"report", b"filter"):
            name = fields[1].decode("latin-1")
            self._mark = row[7:11]
            self._spoken = fields[1]
            if name != self.dialect.name:
                self._choose(version(name), name)

    def _choose(self, spoken: tuple[int, int] | None, name: str) -> None:
        if spoken is None:
            self.remarks.odd(
                "protocol version that is none", detail=name.encode("utf-8", "replace")
            )
            return
        if spoken > NEWEST:
            self.remarks.odd(f"protocol version {name} is spoken as {self.dialect.name}")
        elif spoken < OLDEST and self._ready:
            self.remarks.odd(f"protocol version {name} is older than this filter")
        self.dialect = dialect(spoken)
        self._transit.token_first = self.dialect.token_first

    def _request(self, event: Request) -> None:
        phase, session, token = event.phase, event.session, event.token
        if session in self._transit.streams:
            # Nothing but the dot ends a message for smtpd, and a result before it ends smtpd.
            self.remarks.odd("request within a message", session)
            self._transit.finish(session)
        if phase is None or session in self._open:
            kind = "unknown phase" if phase is None else "request before the answer to the last"
            self.remarks.odd(kind, session)
            self._result(session, token, PROCEED.wire)
            return
        self._confirm(session, token)
        if session in self._transit.ended:
            self._ordered.add(session)
        decision = self._listener.asked(phase, session, event.argument)
        if decision is None:
            self._open[session] = phase, token
        else:
            self._result(session, token, self._sayable(phase, session, decision).wire)

    def _confirm(self, session: bytes, token: bytes) -> None:
        """Remember that these are a session and a token: smtpd has one of these for each phase."""
        if not self.dialect.token_first and len(self._tokens) < MAX_TOKENS:
            self._sessions.add(session)
            self._tokens.add(token)

    # -- what is written -----------------------------------------------------------------

    def _result(self, session: bytes, token: bytes, wire: bytes) -> None:
        out = self._lines if session in self._ordered else self._answers
        if self.dialect.token_first:
            session, token = token, session
        out.append(b"filter-result|%b|%b|%b\n" % (session, token, wire))

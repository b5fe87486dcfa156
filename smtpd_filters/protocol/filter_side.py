"""The filter's end of the conversation: parses smtpd's bytes to events, encodes decisions.

Invariants
----------
*No raise*: no input raises. Invalid input becomes a `Remark`, and is answered if it has a session
and a token.
*Answered once*: a request is answered once, with a decision that is legal in its phase. An illegal
decision is replaced by the nearest legal one and logged as a bug.
*Messages returned*: a message is returned unchanged, or as the listener sends it (`data_lines`).
*Same result*: the fast path of requests (`_ask`) has the result of the complete one (`_take`).
*No credential logged*: a refusal that smtpd would log with a password is given later
(`credentials`).

How it works
------------
`FilterConnection` has no file descriptor and no clock. `receive` parses what was read and calls a
`Listener`. The listener returns its decision on a request, or None and calls `answer` later. The
output is in `answers` and `lines`. They are separate because an answer may overtake lines of
messages of other sessions. Of its own session there are none: smtpd sends no request for a session
while its message has not been returned. If it does, the answers of the session follow the lines.

A chunk goes to `data_lines` as a whole if all its lines belong to known messages; otherwise it is
processed line by line. A request whose session and token are known takes the fast path.
"""

from __future__ import annotations

from itertools import chain

from .anomalies import Remarks
from .codec import decode
from .credentials import AUTH, Refusals, with_later_phases
from .data_lines import TOO_LONG, Transit
from .decisions import PROCEED, Decision, Disconnect, Reject, Rewrite
from .events import Config, Lines, Malformed, Report, Request
from .versions import DIALECTS, NEWEST, OLDEST, cuts_lines, dialect, require_supported, version
from .vocabulary import PHASES, PHASES_ON_WIRE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .anomalies import Listener
    from .versions import Dialect
    from .vocabulary import Phase

#: Bytes kept of a line; smtpd's longest, a body line, has 65,616.
MAX_INPUT = 4 << 20
#: Tokens remembered as valid; smtpd has one for each phase.
MAX_TOKENS = 64
COMMIT = PHASES["commit"]
_DATA_LINE = b"data-line"
#: An octet: with bytes, `in` raises and drops a TypeError first.
_NUL = 0
#: The reports with which a message that has not been returned is abandoned.
ROLLED_BACK = frozenset({"tx-reset", "tx-rollback"})


class FilterConnection:
    """One conversation with smtpd, from the first `config` line to the end of input.

    With `refuse_long_lines` a message with a line too long for the server is refused at `commit`;
    without, the line is broken. With `pass_all` messages are returned unchanged, without the
    listener.
    """

    def __init__(
        self, listener: Listener, *, refuse_long_lines: bool = False, pass_all: bool = False
    ) -> None:
        self._listener = listener
        self.config: dict[str, str] = {}
        self.dialect: Dialect = DIALECTS[NEWEST]
        self.remarks = Remarks()
        #: The version of the last event line, and the bytes of that line at its place.
        self._version = self._version_bytes = b""
        #: Announced subsystems: "smtp-in", and "smtp-out" for sessions with smtpd as the client.
        self.subsystems: set[str] = set()
        #: Whether the report of a reply which isn't a refusal is skipped: most of them say nothing.
        self.skips_replies = False
        #: The verbs of the commands whose reports are wanted; others are skipped. None: all.
        self.commands: frozenset[bytes] | None = None
        self._ready = False
        #: The beginning of an incomplete line, and whether the rest of it is dropped.
        self._partial = bytearray()
        self._dropping = False
        #: Lines to process; lines of known messages, processed in bulk; and the first line of a
        #: read if it was truncated.
        self._rows: Iterator[bytes] = iter(())
        self._run: list[bytes] = []
        self._cut = b""
        #: The line to process again, and a list for it, so that keeping it takes no memory.
        self._again: Sequence[bytes] = ()
        self._one = [b""]
        #: Whether lines are left unprocessed, and whether that is for lack of memory.
        self.stalled = self.failing = False
        self._open: dict[bytes, tuple[Phase, bytes]] = {}
        #: Valid sessions and tokens. Not sets: one that can't grow for lack of memory takes the
        #: element all the same, and the next look-up in a full one never ends (CPython 3.11,
        #: set_add_entry).
        self._sessions: dict[bytes, None] = {}
        #: By token: the rest of the line that answers proceed.
        self._tokens: dict[bytes, bytes] = {}
        #: Sessions whose answers may not overtake lines, since a request or an answer came before
        #: their message was returned, or the message was abandoned. No known server causes the
        #: former.
        self._ordered: dict[bytes, None] = {}
        self._refusals = Refusals()
        #: Pending output: answers, and lines of messages, which answers may overtake. The writer
        #: empties both lists, and `ended`.
        self.answers: list[bytes] = []
        self.lines: list[bytes] = []
        self._transit = Transit(
            self.lines,
            listener,
            self.remarks,
            pass_all=pass_all,
            refuse_long_lines=refuse_long_lines,
        )
        #: Sessions whose final dot is in the pending output.
        self.ended = self._transit.ended

    # -- calls of the listener -----------------------------------------------------------

    def register(
        self, phases: Iterable[str], reports: Iterable[str], outgoing: Iterable[str] = ()
    ) -> None:
        """Register phases and reports, in reply to `config|ready`.

        `phases` may contain `data-line`; with `auth` others are registered as well (`credentials`).
        `outgoing` are reports of the sessions with smtpd as the client. Nothing is registered for a
        subsystem that the server has not announced, since the server exits on an unknown one. Raise
        UnsupportedProtocolError if the server has announced a protocol below 0.5.
        """
        if announced := self.config.get("protocol"):
            require_supported(self.dialect, announced)
        wanted = with_later_phases(phases)
        if self.refuse_long_lines and "data-line" in wanted:
            wanted["commit"] = None
        subsystems = self.subsystems or {"smtp-in"}
        for kind, subsystem, names in (
            ("report", "smtp-in", reports),
            ("report", "smtp-out", outgoing),
            ("filter", "smtp-in", wanted),
        ):
            if subsystem in subsystems:
                self.answers += [f"register|{kind}|{subsystem}|{n}\n".encode() for n in names]
        self.answers.append(b"register|ready\n")
        self._ready = True

    def answer(self, session: bytes, decision: Decision) -> None:
        """Answer the open request of a session, for which the listener returned None."""
        opened = self._open.get(session)
        if opened is None:
            self.remarks.bug("answer without a request", session)
            return
        phase, token = opened
        self._decided(phase, session, token, decision)
        del self._open[session]

    def _effective(self, phase: Phase, session: bytes, decision: Decision) -> Decision:
        """Return the decision in a form that has the intended effect in smtpd."""
        if type(decision) not in phase.legal:
            self.remarks.bug(f"illegal {type(decision).__name__} at {phase.name}", session)
            refuses = isinstance(decision, (Reject, Disconnect))
            decision = phase.fallbacks["tempfail"] if refuses else PROCEED
        if phase.name == "connect" and type(decision) is Reject:
            return Disconnect(decision.text)
        if type(decision) is Rewrite:
            if not phase.takes(decision.text):
                self.remarks.bug(f"invalid rewrite at {phase.name}", session)
                return PROCEED
            if phase.argument == "address":
                return decision.in_brackets()
        return decision

    def send_lines(self, session: bytes, lines: list[bytes], *, end: bool = False) -> None:
        """Send lines of the session's message; see `Transit.send`."""
        self._transit.send(session, lines, end=end)

    def pass_through(self, session: bytes) -> None:
        """Return the further lines of the session's message unchanged."""
        self._transit.pass_through(session)

    def refuse(self, session: bytes, decision: Decision) -> None:
        """Refuse the session's message: answer `commit` with this, without the listener."""
        self._transit.refused[session] = decision

    def spoil(self, session: bytes) -> None:
        """Have the session's message refused because lines of it are lost.  Takes no memory."""
        self._transit.spoil(session)

    def forget(self, session: bytes) -> None:
        """Forget a session that has ended: nothing of it is answered any more."""
        self._sessions.pop(session, None)
        self._ordered.pop(session, None)
        self._open.pop(session, None)
        self._refusals.forget(session)
        self._transit.drop(session)

    def rescue(self, session: bytes) -> None:
        """Answer an open request of the session with proceed, and return its message unchanged."""
        if session in self._open:
            self.answer(session, PROCEED)
        if self._transit.collects(session):
            self._transit.pass_through(session)

    def busy(self, session: bytes) -> bool:
        """Return whether the session has an open request, a message, or a refusal to be given."""
        transit = self._transit
        return (
            session in self._open
            or session in transit.streams
            or session in transit.refused
            or session in self._refusals.later
        )

    @property
    def cuts(self) -> bool:
        """Whether the server truncates long lines that a filter returns."""
        return self._transit.cuts

    @property
    def refuse_long_lines(self) -> bool:
        """Whether a message with a line too long for the server is refused."""
        return self._transit.refuse_long_lines

    def data_to_send(self) -> bytes:
        """Return the pending output in one piece, and clear it."""
        output = b"".join([*self.answers, *self.lines])
        self.answers.clear()
        self.lines.clear()
        self.ended.clear()
        return output

    # -- input ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Process bytes of smtpd.

        Raise MemoryError if there is no memory to begin with; then nothing has been processed. If
        memory runs out later, the remaining lines are kept (`stalled`).
        """
        rows = data.split(b"\n")
        rest = rows.pop()
        if rest or self._partial or self._transit.known:
            self._receive_some(data, rows, rest)
            return
        transit = self._transit
        if _NUL in data:
            transit.nul_seen = True
        transit.may_be_long = transit.cuts or len(data) > transit.limit
        self._rows = iter(rows)
        try:
            self._process_lines()
        except MemoryError:
            pass

    def _receive_some(self, data: bytes, rows: list[bytes], rest: bytes) -> None:
        """Process bytes with incomplete lines or lines of known messages."""
        partial, dropping = self._partial, self._dropping
        cut = dropping and bool(rows)
        if rows and partial:
            rows[0] = bytes(partial) + (b"" if cut else rows[0])
            partial, dropping = bytearray(), False
        transit = self._transit
        if not transit.nul_seen and _NUL in data:
            transit.nul_seen = True
        # A line within one read cannot be too long for a server that does not truncate.
        size = len(data) + (len(rows[0]) if rows else 0)
        transit.may_be_long = transit.cuts or size > transit.limit
        known = False
        if rows and transit.known and not cut:
            known = self._all_known(rows, data)
        every = iter(rows)
        if rest and not dropping:
            dropping = self._keep_partial(partial, rest)
        # From here on the input counts as received; the assignments take no memory.
        self._partial, self._dropping = partial, dropping
        if rows:
            if cut:
                self._cut = rows[0]
            if known:
                self._run = rows
            else:
                self._rows = every
            self.resume()

    def _all_known(self, rows: list[bytes], data: bytes) -> bool:
        try:
            return self._transit.all_known(rows, data)
        except MemoryError:  # then they are processed one by one
            return False

    def _keep_partial(self, partial: bytearray, rest: bytes) -> bool:
        """Keep the beginning of a line; return whether the rest of it is to be dropped."""
        room = MAX_INPUT - len(partial)
        if len(rest) <= room:
            partial += rest
            return False
        self.remarks.unexpected("line too long", detail=rest)
        partial += rest[:room]
        return True

    def resume(self) -> None:
        """Process the lines left for lack of memory.  To be called before further `receive`."""
        try:
            self._process_lines()
        except MemoryError:
            pass

    def _process_lines(self) -> None:
        """Process the lines, those of known messages in bulk where possible.

        If it raises MemoryError, the current line is processed `_again`. A line on which our own
        code fails is not.
        """
        self.stalled, self.failing = True, False
        run = self._run
        try:
            self._process_rows(chain(self._again, self._rows) if self._again else self._rows)
            self._again = ()
            if run:
                self._transit.run(run)
            if self._cut:
                self._refuse_cut(self._cut)
                self._cut = b""
        except MemoryError:
            self.failing = True
            raise
        except Exception:
            self._again = ()
            raise
        self.stalled = False

    def _process_rows(self, rows: Iterator[bytes]) -> None:
        """Process lines, and leave those of known messages at their end in `_run`."""
        transit, run = self._transit, self._run
        known = transit.known
        row: bytes | None = None
        try:
            for row in rows:
                # `transit.key` is read each time: an answer in between may have changed it.
                if known and transit.key(row) in known and len(row) != transit.dot_size:
                    run.append(row)
                    continue
                if run:
                    transit.run(run)
                if not (row[:1] == b"f" and self._ask(row)):
                    self._take(row)
        except MemoryError:  # *Short handlers* (`runtime.engine`)
            self._again = self._one if row is not None else ()
            self._one[0] = row or b""
            raise

    def _refuse_cut(self, row: bytes) -> None:
        """Refuse the message of a line that was longer than `MAX_INPUT`."""
        event = decode(row, self.dialect)
        if type(event) is Lines:
            self._transit.refused.setdefault(event.session, TOO_LONG)

    def _ask(self, row: bytes) -> bool:
        """Process an ordinary request; return False for any other line, which is for `_take`."""
        fields = row.split(b"|", 7)
        if len(fields) != 8:
            return False
        word, spoken, _, subsystem, name, session, token, argument = fields
        if (
            session not in self._sessions
            or token not in self._tokens
            or spoken != self._version
            or word != b"filter"
            or subsystem != b"smtp-in"
        ):
            return False
        if name == _DATA_LINE:
            self._transit.line(session, token, argument, row)
            return True
        phase = PHASES_ON_WIRE.get(name)
        transit = self._transit
        if (
            phase is None
            or session in self._open
            or session in transit.streams
            or (phase is COMMIT and session in transit.refused)
            or phase is AUTH
            or session in self._refusals.later
        ):
            return False
        if transit.ended and session in transit.ended:
            self._ordered[session] = None
        decision = self._listener.asked(phase, session, argument)
        if decision is PROCEED and not self._ordered:
            self.answers.append(b"filter-result|" + session + self._tokens[token])
        elif decision is None:
            self._open[session] = phase, token
        else:
            self._decided(phase, session, token, decision)
        return True

    def _take(self, row: bytes) -> None:
        """Process any line that is not a body line of a known message."""
        if row.startswith(b"report|") and (
            (self.commands is not None and _is_other_command(row, self.commands))
            or (self.skips_replies and _is_plain_reply(row))
        ):
            return
        if row[7:11] != self._version_bytes and not row.startswith(b"config"):
            self._read_version(row)
        event = decode(row, self.dialect)
        if type(event) is Config:
            self._configured(event)
        elif not self._ready:
            self.remarks.unexpected("line before the handshake", detail=row)
        elif type(event) is Report:
            self._reported(event)
        elif type(event) is Request:
            self._request(event)
        elif type(event) is Lines:
            self._remember(event.session, event.token)
            line = b"." if event.end else event.lines[0]
            self._transit.line(event.session, event.token, line, row)
        elif type(event) is Malformed:
            self.remarks.unexpected(event.kind, event.session, event.line)
            if event.token:
                self._result(event.session, event.token, PROCEED.wire)

    def _reported(self, report: Report) -> None:
        name, session = report[0], report[3]
        if name == "link-connect":
            self._sessions[session] = None
        elif name == "link-disconnect":
            self.forget(session)
        elif name in ROLLED_BACK:
            if session in self._transit.streams:
                # Lines of the abandoned message may still be in the pending output.
                self._ordered[session] = None
            self._transit.drop(session)
        self._listener.reported(report)

    def _configured(self, event: Config) -> None:
        self.config[event.key] = event.value
        if event.key == "subsystem":
            self.subsystems.add(event.value)
        if event.key == "protocol":
            self._set_version(version(event.value), event.value)
        elif event.key == "smtpd-version" and cuts_lines(event.value):
            self._transit.server_cuts()
        self._listener.configured(event.key, event.value)

    def _read_version(self, row: bytes) -> None:
        """Read the version in an event line; smtpd 6.8 and older give it nowhere else."""
        fields = row.split(b"|", 2)
        if len(fields) == 3 and fields[0] in (b"report", b"filter"):
            name = fields[1].decode("latin-1")
            self._version_bytes = row[7:11]
            self._version = fields[1]
            if name != self.dialect.name:
                self._set_version(version(name), name)

    def _set_version(self, spoken: tuple[int, int] | None, name: str) -> None:
        if spoken is None:
            self.remarks.unexpected(
                "invalid protocol version", detail=name.encode("utf-8", "replace")
            )
            return
        if spoken > NEWEST:
            self.remarks.unexpected(f"protocol version {name} is treated as {self.dialect.name}")
        elif spoken < OLDEST and self._ready:
            self.remarks.unexpected(
                f"protocol version {name} is older than the oldest supported one"
            )
        self.dialect = dialect(spoken)
        self._transit.token_first = self.dialect.token_first

    def _request(self, event: Request) -> None:
        phase, session, token = event.phase, event.session, event.token
        if session in self._transit.streams:
            # smtpd exits on a result before the final dot of a message.
            self.remarks.unexpected("request within a message", session)
            self._transit.finish(session)
        if phase is None or session in self._open:
            kind = (
                "unknown phase"
                if phase is None
                else "request before the answer to the previous one"
            )
            self.remarks.unexpected(kind, session)
            self._result(session, token, PROCEED.wire)
            return
        self._remember(session, token)
        if session in self._transit.ended:
            self._ordered[session] = None
        refused = self._transit.refused
        if phase is COMMIT and session in refused:
            self._decided(phase, session, token, refused[session])
            del refused[session]
            return
        if due := self._refusals.due(phase, session, event.argument):
            self._result(session, token, due)
            self._refusals.given(session)
            return
        decision = self._listener.asked(phase, session, event.argument)
        if decision is None:
            self._open[session] = phase, token
        else:
            self._decided(phase, session, token, decision)

    def _remember(self, session: bytes, token: bytes) -> None:
        """Remember a valid session and a valid token; smtpd has one token for each phase."""
        if not self.dialect.token_first and len(self._tokens) < MAX_TOKENS:
            self._sessions[session] = None
            self._tokens[token] = b"|%b|proceed\n" % token

    # -- output --------------------------------------------------------------------------

    def _decided(self, phase: Phase, session: bytes, token: bytes, decision: Decision) -> None:
        wire = self._effective(phase, session, decision).wire
        self._result(session, token, self._refusals.answer(phase, session, wire))

    def _result(self, session: bytes, token: bytes, wire: bytes) -> None:
        transit = self._transit
        if session in transit.streams:
            # smtpd exits on a result before the final dot of a message.
            self.remarks.unexpected("answer within a message", session)
            transit.finish(session)
        if session in transit.ended:
            self._ordered[session] = None
        out = self.lines if session in self._ordered else self.answers
        if self.dialect.token_first:
            session, token = token, session
        out.append(b"filter-result|%b|%b|%b\n" % (session, token, wire))


#: Where the name of a report is if its version and its time have their usual lengths, and where
#: what follows the name of a report of a command or a reply, and its session, is then.
_NAME, _COMMAND = 36, 70


def _is_other_command(row: bytes, verbs: frozenset[bytes]) -> bool:
    """Whether this surely reports a command with another verb, of four letters, than these."""
    return (
        row.startswith(b"|protocol-client|", _NAME)
        and row[_COMMAND - 1 : _COMMAND] == b"|"
        and row[_COMMAND : _COMMAND + 4].upper() not in verbs
    )


#: The first digits of replies that accept a command, or ask for more (RFC 5321 section 4.2.1).
_PLAIN = (b"2", b"3")


def _is_plain_reply(row: bytes) -> bool:
    """Whether this surely reports a reply of smtpd that accepts a command, or asks for more."""
    return (
        row.startswith(b"|protocol-server|", _NAME)
        and row[_COMMAND - 1 : _COMMAND] == b"|"
        and row[_COMMAND : _COMMAND + 1] in _PLAIN
    )

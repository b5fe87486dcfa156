"""The filter's end of the conversation: bytes from smtpd in, events out; decisions in, bytes out.

Law
---
1. Nothing that arrives raises.  What makes no sense is a `Remark`, and is answered when it
   has a session and a token.
2. A request is answered once, with a decision that is legal for its phase; whatever else is
   asked for is replaced by the nearest legal one, and remarked upon as our bug.
3. Lines of a message go out only between its first line and its dot; one dot ends them.
4. No line leaves that smtpd would not take: see `lines`.

How it works
------------
`FilterConnection` holds no file descriptor and no clock.  `receive` takes what was read and tells
a `Listener` everything that somebody must look at; what the listener says to a request is the
answer, unless it says None, and then `answer` comes later.  `data_to_send` has what is to be
written.

Messages arrive a line at a time, from many sessions at once, and most of their lines nobody
looks at.  So a message in its body has a key: the bytes of its lines from the bar before
``smtp-in`` to the one behind the token.  They stand at the same place in each line as long as
version and time stamp keep their width, and no text of the message can get there.  A chunk all
of whose lines have known keys is handled without a look at any single line; where a line is
not of that kind, or might be a final dot, the chunk is taken apart.  A request whose session and
token have been seen before takes a short way as well.  A line that takes the long way gives the
same result as one that takes the short way.
"""

from __future__ import annotations

from operator import itemgetter

from . import lines as long_lines
from .codec import decode
from .decisions import PROCEED, Decision, Disconnect, Proceed, Reject, Rewrite
from .dialect import DIALECTS, NEWEST, OLDEST, cuts_lines, dialect, version
from .events import Config, Lines, Malformed, Report, Request
from .vocabulary import PHASES_ON_WIRE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from .dialect import Dialect
    from .vocabulary import Phase

    class Listener(Protocol):
        """Who looks at what smtpd says.  None of its methods raises."""

        def configured(self, key: str, value: str) -> None:
            """A line of the hand-shake; `FilterConnection.register` answers ``ready``."""

        def reported(self, report: Report) -> None:
            """Something happened."""

        def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:
            """Smtpd waits for this decision; None to give it later."""

        def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
            """Lines of a message, dot-stuffed; ``end``: its dot has come."""


#: Bytes of a line that are kept; smtpd's longest, a body line, has 65,616.
MAX_INPUT = 4 << 20

#: Tokens that are remembered as valid; there are as many as phases.
MAX_TOKENS = 64
_DATA_LINE = b"data-line"
_MARK = b"|smtp-in|data-line|"
#: Session and token with a bar behind each, as smtpd writes them.
_PAIR = 2 * (16 + 1)

_ROLLED_BACK = frozenset({"tx-reset", "tx-rollback"})

TOO_LONG = Reject("554 5.6.0 Message has a line that is too long")


class UnsupportedProtocolError(Exception):
    """The server speaks a protocol too old to be a filter of; said before ``register|ready``."""


class Remark:
    """Something to be logged: of smtpd's ("odd"), of our own ("bug"), or of a message ("mail")."""

    __slots__ = ("detail", "kind", "session", "sort")

    def __init__(self, sort: str, kind: str, session: bytes = b"", detail: bytes = b"") -> None:
        self.sort, self.kind, self.session, self.detail = sort, kind, session, detail

    def __repr__(self) -> str:
        return f"<{self.sort}: {self.kind} {self.session!r} {self.detail!r}>"


class _Stream:
    """The lines of one message on their way."""

    __slots__ = ("broken", "ended", "header", "key", "passing", "prefix", "session")

    def __init__(self, session: bytes, prefix: bytes, *, passing: bool) -> None:
        self.session = session
        self.prefix = prefix
        #: Nobody looks at the lines: they go back as they come.
        self.passing = passing
        #: What was sent so far is the header.
        self.header = True
        #: smtpd's dot has come.
        self.ended = False
        #: Its place in FilterConnection._known, once it has one.
        self.key = b""
        #: Lines that were too long for the server.
        self.broken = 0


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
        self.remarks: list[Remark] = []
        self._pass_all = pass_all
        self.refuse_long_lines = refuse_long_lines
        #: The version as the last event line had it, and what stood in its place.
        self._spoken = self._mark = b""
        self._ready = False
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._open: dict[bytes, tuple[Phase, bytes]] = {}
        #: Sessions and tokens that were found to be such.
        self._sessions: set[bytes] = set()
        self._tokens: set[bytes] = set()
        self._streams: dict[bytes, _Stream] = {}
        self._refused: set[bytes] = set()
        self._known: dict[bytes, _Stream] = {}
        #: Of these: how many are not passing; how many are, and have not ended their header.
        self._collecting = self._headers_open = 0
        self._key_at = 0
        self._key = self._tail = itemgetter(slice(0, 0))
        self._body_at = 0
        #: The server cuts lines that it gets back from a filter.
        self.cuts = False
        self._limit = long_lines.content_limit(cuts=False)
        self._may_be_long = False
        self._nul_seen = False
        self._out: list[bytes] = []

    # -- what the caller says ------------------------------------------------------------

    def register(
        self, phases: Iterable[str], reports: Iterable[str], outgoing: Iterable[str] = ()
    ) -> None:
        """Tell smtpd what we want to be asked and told, in reply to ``config|ready``.

        ``phases`` may hold ``data-line``; ``outgoing`` are reports of the sessions in which smtpd
        is the client.  Raises UnsupportedProtocolError when the server has
        said that it speaks a protocol below 0.5.
        """
        if self.config.get("protocol") and self.dialect.version < OLDEST:
            spoken = self.config["protocol"]
            raise UnsupportedProtocolError(f"smtpd speaks filter protocol {spoken}; 0.5 is needed")
        wanted = dict.fromkeys(phases)
        if self.refuse_long_lines and "data-line" in wanted:
            wanted["commit"] = None
        self._out += [b"register|report|smtp-in|%s\n" % name.encode() for name in reports]
        self._out += [b"register|report|smtp-out|%s\n" % name.encode() for name in outgoing]
        self._out += [b"register|filter|smtp-in|%s\n" % name.encode() for name in wanted]
        self._out.append(b"register|ready\n")
        self._ready = True

    def answer(self, session: bytes, decision: Decision) -> None:
        """Answer the request of a session to which the listener said None."""
        opened = self._open.pop(session, None)
        if opened is None:
            self._bug("answer without a request", session)
            return
        phase, token = opened
        self._result(session, token, self._sayable(phase, session, decision).wire)

    def _sayable(self, phase: Phase, session: bytes, decision: Decision) -> Decision:
        """The decision in the form in which smtpd does what it says."""
        if type(decision) not in phase.legal:
            self._bug(f"{type(decision).__name__} at {phase.name}", session)
            refuses = isinstance(decision, (Reject, Disconnect))
            decision = phase.fallbacks["tempfail"] if refuses else PROCEED
        if phase.name == "connect" and type(decision) is Reject:
            return Disconnect(decision.text)
        if type(decision) is Rewrite and phase.argument == "address":
            return decision.in_brackets()
        if phase.name == "commit" and session in self._refused:
            self._refused.discard(session)
            if type(decision) is Proceed:
                return TOO_LONG
        return decision

    def send_lines(self, session: bytes, lines: list[bytes], *, end: bool = False) -> None:
        """Send lines of the session's message in their dot-stuffed form; ``end``: then its dot.

        Before smtpd's own dot has come nothing may be ended: what is left would be lost.
        """
        stream = self._streams.get(session)
        if stream is None or stream.passing:
            self._bug("lines without a message", session)
            return
        if lines:
            self._write_lines(stream, self._legal(session, lines))
        if end:
            if stream.ended:
                self._end(stream)
            else:
                self._bug("end of a message that has not ended", session)

    def pass_through(self, session: bytes) -> None:
        """From here on the lines of the session's message go back as they come."""
        stream = self._streams.get(session)
        if stream is None or stream.passing:
            self._bug("pass through without a message", session)
        elif stream.ended:
            self._end(stream)
        else:
            if stream.key:
                self._collecting -= 1
                self._headers_open += stream.header
            stream.passing = True

    def forget(self, session: bytes) -> None:
        """The session is gone: nothing of it is answered any more."""
        self._sessions.discard(session)
        self._open.pop(session, None)
        self._rolled_back(session)

    def rescue(self, session: bytes) -> None:
        """Leave nobody of the session waiting, whatever became of its policy."""
        if session in self._open:
            self.answer(session, PROCEED)
        stream = self._streams.get(session)
        if stream is not None and not stream.passing:
            self.pass_through(session)

    def heard_of(self) -> set[bytes]:
        """The sessions whose messages had lines since this was last asked.

        Lines that go the short way leave no trace.  So each message is made to take the long
        way once, with its next line.
        """
        heard = {session for session, stream in self._streams.items() if stream.key}
        for stream in list(self._known.values()):
            self._unlearn(stream)
        return heard

    def data_to_send(self) -> bytes:
        """What is to be written, once."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def waiting(self, session: bytes) -> bool:
        """Whether the session's client waits for us: a request is open, or a message is held."""
        stream = self._streams.get(session)
        return session in self._open or (stream is not None and stream.ended)

    # -- what smtpd says -----------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes from smtpd in."""
        *rows, rest = data.split(b"\n")
        if self._partial and rows:
            rows[0] = b"".join((*self._partial, rows[0]))
            self._partial.clear()
            self._partial_size = 0
        if rest:
            self._keep(rest)
        if not rows:
            return
        if not self._nul_seen and b"\0" in data:
            self._nul_seen = True
        # A line within one read cannot be too long for a server that does not cut.
        self._may_be_long = self.cuts or len(data) + len(rows[0]) > self._limit
        known = self._known
        maybe_dot = b"|.\n" in data or rows[0].endswith(b"|.")
        if known and not maybe_dot and all(map(known.__contains__, map(self._key, rows))):
            self._run(rows)
            return
        self._take_apart(rows, maybe_dot=maybe_dot)

    def _take_apart(self, rows: list[bytes], *, maybe_dot: bool) -> None:
        """Lines of all kinds; those of known messages are handled together where they can be."""
        known = self._known
        run: list[bytes] = []
        for row in rows:
            # The key is asked for anew each time: an answer given meanwhile may have changed it.
            if known and self._key(row) in known and not (maybe_dot and row.endswith(b"|.")):
                run.append(row)
                continue
            if run:
                self._run(run)
                run = []
            if not self._ask(row):
                self._take(row)
        if run:
            self._run(run)

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
            self._line(session, token, argument, row)
            return True
        phase = PHASES_ON_WIRE.get(name)
        if (
            phase is None
            or (self._open and session in self._open)
            or (self._streams and session in self._streams)
        ):
            return False
        decision = self._listener.asked(phase, session, argument)
        if decision is PROCEED and not self._refused:
            self._out.append(b"filter-result|%b|%b|proceed\n" % (session, token))
        elif decision is None:
            self._open[session] = phase, token
        else:
            self._result(session, token, self._sayable(phase, session, decision).wire)
        return True

    def _keep(self, rest: bytes) -> None:
        room = MAX_INPUT - self._partial_size
        if len(rest) > room:
            self._odd("line without an end", detail=rest)
            rest = rest[: max(room, 0)]
        if rest:
            self._partial.append(rest)
            self._partial_size += len(rest)

    def _run(self, rows: list[bytes]) -> None:
        """Body lines of messages that are known: nobody looks at them one by one."""
        if not self._collecting:
            if self._headers_open:
                self._mind_headers(rows)
            tails = list(map(self._tail, rows))
            if not self._may_be_long or max(map(len, tails)) <= self._limit + _PAIR:
                self._out += (b"filter-dataline|", b"\nfilter-dataline|".join(tails), b"\n")
                return
        by_key: dict[bytes, list[bytes]] = {}
        for row in rows:
            by_key.setdefault(self._key(row), []).append(row[self._body_at :])
        for key, content in by_key.items():
            stream = self._known[key]
            if stream.passing:
                self._write_lines(stream, content)
            else:
                self._listener.content(stream.session, content, end=False)

    def _mind_headers(self, rows: list[bytes]) -> None:
        """Take note of the empty lines that end a header: a long line is broken otherwise there."""
        for row in rows:
            if len(row) == self._body_at:
                stream = self._known[self._key(row)]
                if stream.header:
                    self._end_header(stream)

    def _take(self, row: bytes) -> None:
        """One line that is not a body line of a known message."""
        if row[7:11] != self._mark and not row.startswith(b"config"):
            self._speak(row)
        event = decode(row, self.dialect)
        if type(event) is Config:
            self._configured(event)
        elif not self._ready:
            self._odd("line before the hand-shake", detail=row)
        elif type(event) is Report:
            self._reported(event)
        elif type(event) is Request:
            self._request(event)
        elif type(event) is Lines:
            self._confirm(event.session, event.token)
            line = b"." if event.end else event.lines[0]
            self._line(event.session, event.token, line, row)
        elif type(event) is Malformed:
            self._odd(event.kind, event.session, event.line)
            if event.token:
                self._result(event.session, event.token, PROCEED.wire)

    def _reported(self, report: Report) -> None:
        name, session = report[0], report[3]
        if name == "link-connect":
            self._sessions.add(session)
        elif name == "link-disconnect":
            self.forget(session)
        elif name in _ROLLED_BACK:
            self._rolled_back(session)
        self._listener.reported(report)

    def _configured(self, event: Config) -> None:
        self.config[event.key] = event.value
        if event.key == "protocol":
            self._choose(version(event.value), event.value)
        elif event.key == "smtpd-version" and cuts_lines(event.value):
            self.cuts = True
            self._limit = long_lines.content_limit(cuts=True)
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
            self._odd("protocol version that is none", detail=name.encode("utf-8", "replace"))
            return
        if spoken > NEWEST:
            self._odd(f"protocol version {name} is spoken as {self.dialect.name}")
        elif spoken < OLDEST and self._ready:
            self._odd(f"protocol version {name} is older than this filter")
        self.dialect = dialect(spoken)

    def _request(self, event: Request) -> None:
        phase, session, token = event.phase, event.session, event.token
        if session in self._streams:
            # Nothing but the dot ends a message for smtpd, and a result before it ends smtpd.
            self._odd("request within a message", session)
            self._end(self._streams[session])
        if phase is None or session in self._open:
            kind = "unknown phase" if phase is None else "request before the answer to the last"
            self._odd(kind, session)
            self._result(session, token, PROCEED.wire)
            return
        self._confirm(session, token)
        decision = self._listener.asked(phase, session, event.argument)
        if decision is None:
            self._open[session] = phase, token
        else:
            self._result(session, token, self._sayable(phase, session, decision).wire)

    def _line(self, session: bytes, token: bytes, line: bytes, row: bytes) -> None:
        """One line of a message, or its dot."""
        stream = self._streams.get(session)
        if stream is None:
            prefix = b"filter-dataline|%b|" % self._pair(session, token)
            stream = _Stream(session, prefix, passing=self._pass_all)
            self._streams[session] = stream
            self._refused.discard(session)
        elif stream.ended:
            self._odd("line behind the final dot", session)
            return
        end = line == b"."
        if end:
            stream.ended = True
            self._unlearn(stream)
            if stream.passing:
                self._end(stream)
                return
        elif not stream.key:
            self._learn(stream, row)
        if not stream.passing:
            self._listener.content(session, [] if end else [line], end=end)
        else:
            self._write_lines(stream, [line])

    def _confirm(self, session: bytes, token: bytes) -> None:
        """Remember that these are a session and a token: smtpd has one of these for each phase."""
        if not self.dialect.token_first and len(self._tokens) < MAX_TOKENS:
            self._sessions.add(session)
            self._tokens.add(token)

    def _learn(self, stream: _Stream, row: bytes) -> None:
        """Remember what the message's lines have in common, so that they go the short way."""
        if self.dialect.token_first or len(stream.prefix) != len(b"filter-dataline|") + _PAIR:
            return
        at = row.find(_MARK)
        body_at = at + len(_MARK) + _PAIR
        if at != self._key_at or body_at != self._body_at:
            if self._known:
                return
            self._key_at, self._body_at = at, body_at
            self._key = itemgetter(slice(at, body_at))
            self._tail = itemgetter(slice(body_at - _PAIR, None))
        stream.key = row[at:body_at]
        self._known[stream.key] = stream
        if not stream.passing:
            self._collecting += 1
        elif stream.header:
            self._headers_open += 1

    def _unlearn(self, stream: _Stream) -> None:
        if stream.key:
            del self._known[stream.key]
            stream.key = b""
            if not stream.passing:
                self._collecting -= 1
            elif stream.header:
                self._headers_open -= 1

    # -- what is written -----------------------------------------------------------------

    def _pair(self, session: bytes, token: bytes) -> bytes:
        if self.dialect.token_first:
            return token + b"|" + session
        return session + b"|" + token

    def _result(self, session: bytes, token: bytes, wire: bytes) -> None:
        if self.dialect.token_first:
            session, token = token, session
        self._out.append(b"filter-result|%b|%b|%b\n" % (session, token, wire))

    def _legal(self, session: bytes, lines: list[bytes]) -> list[bytes]:
        """Lines with nothing in them that smtpd would take for something else."""
        text = b"\n".join(lines)
        if text.count(b"\n") != len(lines) - 1:
            self._bug("line break in a line of a message", session)
            text = b" ".join(text.split(b"\n"))
            lines = [text]
        if b"\0" in text and not self._nul_seen:
            self._bug("NUL in a line of a message", session)
            lines = [line.replace(b"\0", b"") for line in lines]
        if text.startswith(b".") or b"\n." in text:
            for at, line in enumerate(lines):
                if line.startswith(b".") and not line.startswith(b".."):
                    self._bug("line with a bare dot", session)
                    lines[at] = b"." + line
        return lines

    def _write_lines(self, stream: _Stream, lines: list[bytes]) -> None:
        if max(map(len, lines)) > self._limit:
            lines = self._break_lines(stream, lines)
        elif stream.header and b"" in lines:
            self._end_header(stream)
        prefix = stream.prefix
        self._out += (prefix, (b"\n" + prefix).join(lines), b"\n")

    def _break_lines(self, stream: _Stream, lines: list[bytes]) -> list[bytes]:
        kept: list[bytes] = []
        for line in lines:
            if len(line) > self._limit:
                stream.broken += 1
                kept += long_lines.break_line(line, header=stream.header)
            else:
                if stream.header and not line:
                    self._end_header(stream)
                kept.append(line)
        return kept

    def _end_header(self, stream: _Stream) -> None:
        stream.header = False
        if stream.key and stream.passing:
            self._headers_open -= 1

    def _end(self, stream: _Stream) -> None:
        session = stream.session
        self._out.append(stream.prefix + b".\n")
        if stream.broken:
            done = "refused" if self.refuse_long_lines else "broken"
            self._remark("mail", f"long lines {done}", session, b"%d" % stream.broken)
            if self.refuse_long_lines:
                self._refused.add(session)
        self._unlearn(stream)
        del self._streams[session]

    def _rolled_back(self, session: bytes) -> None:
        """The transaction is over: of its message nothing is sent any more."""
        if session in self._streams:
            self._unlearn(self._streams.pop(session))
        self._refused.discard(session)

    # -- what is remarked ----------------------------------------------------------------

    def _odd(self, kind: str, session: bytes = b"", detail: bytes = b"") -> None:
        self._remark("odd", kind, session, detail[: Malformed.SHOWN])

    def _bug(self, kind: str, session: bytes) -> None:
        self._remark("bug", kind, session, b"")

    def _remark(self, sort: str, kind: str, session: bytes, detail: bytes) -> None:
        self.remarks.append(Remark(sort, kind, session, detail))

"""Return path of messages to smtpd: body lines are passed on in bulk, or given to the listener.

Invariants
----------
*Framed*: lines of a message are written only between its first line and its dot, and exactly one
dot ends it.
*Unchanged*: the lines written are the lines received, unless the listener takes the message and
sends others.
*Accepted*: no line is written that smtpd would reject (`long_lines`) or misinterpret.
*Same result*: the bulk path (`run`) writes what the path for single lines (`line`) writes.

How it works
------------
Each message is a `_Stream`. Either its lines are given to the listener, which sends lines of its
own, or they pass without being looked at. After its first line a message has a key: the bytes of
its lines from the bar before `smtp-in` to the bar after the token. The key is at the same offset
in each line as long as version and time stamp keep their width, and no text of the message can get
there. Lines with known keys are processed in bulk, in C (`run`). What is before the key isn't
looked at, since smtpd writes nothing but these lines with it.
"""

from __future__ import annotations

from operator import itemgetter

from . import long_lines
from .decisions import Reject

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .anomalies import Listener, Remarks
    from .decisions import Decision

_MARK = b"|smtp-in|data-line|"
#: Length of session and token with a bar after each, as smtpd writes them.
_PAIR = 2 * (16 + 1)
_PREFIX = b"filter-dataline|"
_NONE: Sequence[tuple[_Stream, list[bytes]]] = ()

TOO_LONG = Reject("554 5.6.0 Message has a line that is too long")
#: RFC 3463 section 3.4, X.3.1: "Mail system full".
LOST = Reject("452 4.3.1 Insufficient system storage")


class _Stream:
    """The state of one message on its way back."""

    __slots__ = ("broken", "ended", "header", "key", "passing", "prefix", "session", "whole")

    def __init__(self, session: bytes, prefix: bytes, *, passing: bool) -> None:
        self.session = session
        self.prefix = prefix
        #: No line has been lost for lack of memory.
        self.whole = True
        #: The lines are returned unchanged, without the listener.
        self.passing = passing
        #: Only header lines have been sent so far.
        self.header = True
        #: The final dot has been received.
        self.ended = False
        #: The key in `Transit.known`, or empty.
        self.key = b""
        #: Number of lines that were too long for the server.
        self.broken = 0


class Transit:
    """The messages of one conversation.

    Output is appended to `out`. With `pass_all` the listener gets no messages. With
    `refuse_long_lines` a message with a line too long for the server is refused; without, the line
    is broken.
    """

    def __init__(
        self,
        out: list[bytes],
        listener: Listener,
        remarks: Remarks,
        *,
        pass_all: bool,
        refuse_long_lines: bool,
    ) -> None:
        self.refuse_long_lines = refuse_long_lines
        #: By session: the answer to `commit` if the message is refused, whatever the cause (long
        #: lines, the listener's decision, lack of memory or storage).
        self.refused: dict[bytes, Decision] = {}
        #: Sessions whose final dot is in the pending output.
        self.ended: set[bytes] = set()
        #: The messages by session.
        self.streams: dict[bytes, _Stream] = {}
        #: The messages by key, and the functions that extract the key of a line, all from its
        #: session on, and its content.
        self.known: dict[bytes, _Stream] = {}
        self.key = self._tail = self._body = itemgetter(slice(0, 0))
        #: Before protocol 0.5 the token precedes the session.
        self.token_first = False
        #: The server truncates long lines returned by a filter.
        self.cuts = False
        #: smtpd itself has sent a NUL.
        self.nul_seen = False
        #: A line of the current read may exceed the limit.
        self.may_be_long = False
        self.limit = long_lines.content_limit(cuts=False)
        self._out = out
        self._listener = listener
        self._remarks = remarks
        self._pass_all = pass_all
        #: Messages in `known` that don't pass; messages in it that pass and are in their header.
        self._collecting = self._headers_open = 0
        self._key_at = self._body_at = 0
        #: The length of the data-line of a final dot.
        self.dot_size = 0

    def server_cuts(self) -> None:
        """Set the limit for a server that truncates long lines."""
        self.cuts = self.may_be_long = True
        self.limit = long_lines.content_limit(cuts=True)

    # -- input ---------------------------------------------------------------------------

    def all_known(self, rows: list[bytes], data: bytes) -> bool:
        """Return whether all rows belong to known messages and none is a final dot.

        `data` is the read that was split into `rows`.
        """
        if not self.known.keys() >= set(map(self.key, rows)):
            return False
        # Finding the shortest line is cheaper than searching for a dot.
        return min(map(len, rows)) > self.dot_size or not (
            b"|.\n" in data or rows[0].endswith(b"|.")
        )

    def run(self, rows: list[bytes]) -> None:
        """Process body lines of known messages in bulk, and clear the list."""
        try:
            runs = self._passed(rows)
        except MemoryError:  # nothing has been passed on yet
            runs = [(self.known[self.key(row)], [row[self._body_at :]]) for row in rows]
        if not runs:  # an iterator would take memory
            rows.clear()
            return
        for stream, content in runs:
            if self.streams.get(stream.session) is not stream:
                continue  # the listener has dropped it while it handled another message
            try:
                if stream.passing:
                    self._write_lines(stream, content)
                else:
                    self._listener.content(stream.session, content, end=False)
            except MemoryError:
                stream.whole = False
        rows.clear()

    def _passed(self, rows: list[bytes]) -> Sequence[tuple[_Stream, list[bytes]]]:
        """Pass the rows on in one piece if possible; otherwise return them grouped by message.

        If it raises MemoryError, nothing has been passed on.
        """
        if not self._collecting:
            tails = list(map(self._tail, rows))
            if not self.may_be_long or max(map(len, tails)) <= self.limit + _PAIR:
                text = b"\nfilter-dataline|".join(tails)
                if self._headers_open:
                    self._track_headers(rows)
                self._out += (b"filter-dataline|", text, b"\n")
                return _NONE
        keys = set(map(self.key, rows))
        if len(keys) == 1:  # the usual case, in C
            return [(self.known[keys.pop()], list(map(self._body, rows)))]
        by_key: dict[bytes, list[bytes]] = {}
        for row in rows:
            by_key.setdefault(self.key(row), []).append(row[self._body_at :])
        return [(self.known[key], by_key[key]) for key in by_key]

    def _track_headers(self, rows: list[bytes]) -> None:
        """Notice empty lines that end a header: long lines are broken differently before them."""
        for row in rows:
            if len(row) == self._body_at:
                stream = self.known[self.key(row)]
                if stream.header:
                    self._end_header(stream)

    def line(self, session: bytes, token: bytes, line: bytes, row: bytes) -> None:
        """Process one line of a message, or its final dot."""
        stream = self.streams.get(session)
        if stream is None:
            pair = (token, session) if self.token_first else (session, token)
            prefix = b"filter-dataline|%b|%b|" % pair
            stream = _Stream(session, prefix, passing=self._pass_all)
            self.streams[session] = stream
            self.refused.pop(session, None)
        elif stream.ended:
            self._remarks.unexpected("line after the final dot", session)
            return
        end = line == b"."
        if end:
            stream.ended = True
            self._remove_key(stream)
            if stream.passing:
                self._end(stream)
                return
        elif not stream.key:
            self._add_key(stream, row)
        if not stream.passing:
            self._listener.content(session, [] if end else [line], end=end)
        else:
            self._write_lines(stream, [line])

    def _add_key(self, stream: _Stream, row: bytes) -> None:
        """Store the key of the message's lines, so that further lines are processed in bulk."""
        if self.token_first or len(stream.prefix) != len(_PREFIX) + _PAIR:
            return
        at = row.find(_MARK)
        body_at = at + len(_MARK) + _PAIR
        if at != self._key_at or body_at != self._body_at:
            if self.known:
                return
            # Allocate everything before assigning anything: a MemoryError changes nothing.
            cut, tail = itemgetter(slice(at, body_at)), itemgetter(slice(body_at - _PAIR, None))
            body, size = itemgetter(slice(body_at, None)), body_at + len(b".")
            self._key_at, self._body_at, self.dot_size = at, body_at, size
            self.key, self._tail, self._body = cut, tail, body
        key = row[at:body_at]
        self.known[key] = stream
        stream.key = key
        if not stream.passing:
            self._collecting += 1
        elif stream.header:
            self._headers_open += 1

    def _remove_key(self, stream: _Stream) -> None:
        if stream.key:
            del self.known[stream.key]
            stream.key = b""
            if not stream.passing:
                self._collecting -= 1
            elif stream.header:
                self._headers_open -= 1

    # -- output --------------------------------------------------------------------------

    def send(self, session: bytes, lines: list[bytes], *, end: bool = False) -> None:
        """Send dot-stuffed lines of the session's message, and then the final dot if `end`.

        `end` is an error before smtpd has sent the final dot: the rest would be lost.
        """
        stream = self.streams.get(session)
        if stream is None or stream.passing:
            self._remarks.bug("lines without a message", session)
            return
        if lines:
            self._write_lines(stream, self._legal(session, lines))
        if end:
            if stream.ended:
                self._end(stream)
            else:
                self._remarks.bug("end of a message before its final dot", session)

    def pass_through(self, session: bytes) -> None:
        """Return the further lines of the session's message unchanged."""
        stream = self.streams.get(session)
        if stream is None or stream.passing:
            self._remarks.bug("pass through without a message", session)
        elif stream.ended:
            self._end(stream)
        else:
            if stream.key:
                self._collecting -= 1
                self._headers_open += stream.header
            stream.passing = True

    def spoil(self, session: bytes) -> None:
        """Mark the session's message as incomplete, to be refused.  Takes no memory."""
        stream = self.streams.get(session)
        if stream is not None:
            stream.whole = False

    def finish(self, session: bytes) -> None:
        """End the session's message now, if there is one."""
        if session in self.streams:
            self._end(self.streams[session])

    def drop(self, session: bytes) -> None:
        """Forget the session's message without sending anything."""
        if session in self.streams:
            self._remove_key(self.streams.pop(session))
        self.refused.pop(session, None)

    def collects(self, session: bytes) -> bool:
        """Return whether the listener has a message of the session."""
        stream = self.streams.get(session)
        return stream is not None and not stream.passing

    def _legal(self, session: bytes, lines: list[bytes]) -> list[bytes]:
        """Return the lines without anything that smtpd would misinterpret."""
        text = b"\n".join(lines)
        if text.count(b"\n") != len(lines) - 1:
            self._remarks.bug("line break in a line of a message", session)
            text = b" ".join(text.split(b"\n"))
            lines = [text]
        if b"\0" in text and not self.nul_seen:
            self._remarks.bug("NUL in a line of a message", session)
            lines = [line.replace(b"\0", b"") for line in lines]
        # Other lines that begin with a single dot are the client's, which need not stuff dots.
        if b"." in lines:
            self._remarks.bug("lone dot within a message", session)
            lines = [b".." if line == b"." else line for line in lines]
        return lines

    def _write_lines(self, stream: _Stream, lines: list[bytes]) -> None:
        if max(map(len, lines)) > self.limit:
            lines = self._break_lines(stream, lines)
        elif stream.header and b"" in lines:
            self._end_header(stream)
        prefix = stream.prefix
        self._out += (prefix, (b"\n" + prefix).join(lines), b"\n")

    def _break_lines(self, stream: _Stream, lines: list[bytes]) -> list[bytes]:
        kept: list[bytes] = []
        for line in lines:
            if len(line) > self.limit:
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
        self.ended.add(session)
        if not stream.whole:
            self.refused.setdefault(session, LOST)
            self._remarks.mail("refused: lines lost for lack of memory", session, b"")
        if stream.broken:
            done = "refused" if self.refuse_long_lines else "broken"
            self._remarks.mail(f"long lines {done}", session, b"%d" % stream.broken)
            if self.refuse_long_lines:
                self.refused.setdefault(session, TOO_LONG)
        self._remove_key(stream)
        del self.streams[session]

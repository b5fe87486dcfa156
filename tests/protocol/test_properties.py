"""Invariants for any input: the cutting into reads, the number of answers, the content."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from smtpd_filters.oracle import Oracle
from smtpd_filters.protocol.decisions import PROCEED, Reject
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.long_lines import break_line, content_limit
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import PHASES
from tests.effort import part
from tests.protocol.test_hostile import RECORDED, mutated
from tests.protocol.test_long_lines import unbroken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.protocol.anomalies import Listener
    from smtpd_filters.protocol.decisions import Decision
    from smtpd_filters.protocol.events import Report
    from smtpd_filters.protocol.vocabulary import Phase

HANDSHAKE = SmtpdConnection().configure()
TOKEN = b"00000000000000a0"
LINE_TOKEN = b"00000000000000a1"
A, B = b"7641df9700000001", b"7641df9700000002"
HEAD = b"filter|0.7|1700000000.000001|smtp-in|"
LINE = HEAD + b"data-line|%b|%b|" % (A, LINE_TOKEN)
#: The beginning of a message's line as smtpd writes it.
WRITTEN = re.compile(rb"filter\|0\.[567]\|[0-9]+\.[0-9]+\|smtp-in\|data-line\|")
#: `Deterministic` answers this request later.
LATE = HEAD + b"noop|%b|%b|x\n" % (A, TOKEN)
RESET = b"report|0.7|1700000000.000001|smtp-in|tx-reset|%b|0000000a\n"


class Thorough(FilterConnection):
    """A connection without the fast paths that `ways` leaves out."""

    def __init__(self, listener: Listener, *, pass_all: bool, ways: frozenset[str]) -> None:
        super().__init__(listener, pass_all=pass_all)
        self.ways = ways
        if "known" in ways:
            # No message has a key, so that each of its lines is handled alone.
            self._transit._add_key = lambda *_: None  # type: ignore[method-assign]

    def receive(self, data: bytes) -> None:
        if "receive" not in self.ways:
            super().receive(data)
            return
        rows = data.split(b"\n")
        rest = rows.pop()
        self._receive_some(data, rows, rest)

    def _ask(self, row: bytes) -> bool:
        return "ask" not in self.ways and super()._ask(row)


class Deterministic:
    """A listener whose answers depend on its input alone; it records all calls.

    `messages` is its way with them: "echo" line by line, "hold" until the end, "pass" from the
    first line on, "drop" all but the end.
    """

    def __init__(
        self, messages: str, *, pass_all: bool = False, without: frozenset[str] = frozenset()
    ) -> None:
        self.messages = messages
        self.connection = Thorough(self, pass_all=pass_all, ways=without)
        self.calls: dict[bytes, list[object]] = {}
        self.lines: dict[bytes, list[bytes]] = {}
        self.late: list[bytes] = []
        self.out = b""

    def _note(self, session: bytes, call: object) -> None:
        calls = self.calls.setdefault(session, [])
        if isinstance(call, list) and calls and isinstance(calls[-1], list):
            calls[-1] = calls[-1] + call
        else:
            calls.append(call)

    def configured(self, key: str, value: str) -> None:
        self._note(b"", (key, value))
        if key == "ready":
            self.connection.register([*PHASES, "data-line"], ["link-connect"])

    def reported(self, report: Report) -> None:
        self._note(report.session, report)
        for session in self.late:
            self.connection.answer(session, PROCEED)
        self.late = []

    def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:
        self._note(session, (phase.name, argument))
        if len(argument) % 4 == 1 and session not in self.late:
            self.late.append(session)
            return None
        return Reject("550 No") if len(argument) % 4 == 2 else PROCEED

    def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
        if lines:
            self._note(session, list(lines))
        if end:
            self._note(session, "end")
        match self.messages:
            case "echo":
                self.connection.send_lines(session, lines, end=end)
            case "pass":
                self.connection.send_lines(session, lines)
                self.connection.pass_through(session)
            case _:
                held = self.lines.setdefault(session, [])
                held += lines if self.messages == "hold" else []
                if end:
                    self.connection.send_lines(session, self.lines.pop(session), end=True)

    def receive(self, data: bytes) -> None:
        self.connection.receive(data)
        self.out += self.connection.data_to_send()

    def written(self) -> dict[bytes, list[bytes]]:
        """Return its output, by session."""
        by_session: dict[bytes, list[bytes]] = {}
        for line in self.out.split(b"\n"):
            fields = line.split(b"|", 2)
            key = fields[1] if fields[0].startswith(b"filter") and len(fields) > 1 else b""
            by_session.setdefault(key, []).append(line)
        return by_session

    def remarked(self) -> list[tuple[str, str, bytes, bytes]]:
        """Return its remarks."""
        remarks = self.connection.remarks.take()
        return sorted((each.sort, each.kind, each.session, each.detail) for each in remarks)


BODY = st.one_of(
    st.sampled_from(
        (b"", b"..", b"..x", b".x", b"|", b"|.", b"a|.", b"\r", b"\0", b"\xff", b"x" * 1998)
    ),
    st.binary(max_size=20).filter(lambda line: b"\n" not in line and line != b"."),
)


@st.composite
def traffic(draw: st.DrawFn) -> bytes:
    """Return the output of a legal smtpd in two sessions, answered at once or not."""
    smtpd = SmtpdConnection(draw(st.sampled_from(((0, 5), (0, 6), (0, 7)))))
    stream = [smtpd.configure()] if draw(st.booleans()) else [HANDSHAKE]
    open_lines: dict[bytes, bool] = {A: False, B: False}
    where = (b"rdns", b"pass", b"a:1", b"b:2")
    stream += [smtpd.report("link-connect", session, *where) for session in (A, B)]
    for _ in range(draw(st.integers(0, 25))):
        session = draw(st.sampled_from((A, B)))
        time = draw(st.sampled_from((b"1700000000.000001", b"1700000000.000002", b"99.000001")))
        if open_lines[session]:
            end = draw(st.integers(0, 3)) == 0
            open_lines[session] = not end
            lines = draw(st.lists(BODY, max_size=5))
            stream.append(smtpd.lines(session, LINE_TOKEN, lines, end=end, time=time))
        elif draw(st.integers(0, 2)) == 0:
            open_lines[session] = True
            stream.append(smtpd.lines(session, LINE_TOKEN, [b"A: b"], end=False, time=time))
        else:
            phase = draw(st.sampled_from(tuple(PHASES)))
            argument = draw(st.sampled_from((b"", b"abc", b"abcde", b"abcdef", b"a|b\xff")))
            stream.append(smtpd.request(phase, session, TOKEN, argument, time))
            if draw(st.booleans()):
                stream.append(smtpd.report("tx-reset", session, b"0000000a", time=time))
    return b"".join(stream)


@pytest.mark.parametrize("messages", ["echo", "hold", "pass", "drop", "all"])
@given(
    stream=st.one_of(traffic(), mutated(), st.sampled_from(RECORDED), st.binary(max_size=200)),
    cuts=st.lists(st.integers(0, 1 << 14), max_size=12),
)
# An invalid data-line, an invalid request, and a late answer within a message.
@example(stream=LINE + b"x\n" + HEAD + b"data-line|%b|c\nhello\n" % A, cuts=[])
@example(stream=LINE + b"x\n" + HEAD + b"helo|%b|c\n" % A, cuts=[])
@example(stream=LATE + LINE + b"x\n" + RESET % B, cuts=[])
# An invalid request behind a message.
@example(stream=LINE + b"x\n" + LINE + b".\n" + HEAD + b"helo|%b|c\n" % A, cuts=[])
@settings(max_examples=part(120), deadline=None)
def test_cutting_the_input_changes_nothing(messages: str, stream: bytes, cuts: list[int]) -> None:
    stream = HANDSHAKE + stream
    whole, parts, bytewise = (Deterministic(messages, pass_all=messages == "all") for _ in range(3))
    whole.receive(stream)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        parts.receive(stream[start:end])
    expected = whole.written(), whole.calls, whole.remarked()
    assert (parts.written(), parts.calls, parts.remarked()) == expected
    if len(stream) < 5000:
        for at in range(len(stream)):
            bytewise.receive(stream[at : at + 1])
        assert (bytewise.written(), bytewise.calls, bytewise.remarked()) == expected


@pytest.mark.parametrize("messages", ["echo", "hold", "pass", "drop", "all"])
@given(
    stream=st.one_of(traffic(), mutated(), st.sampled_from(RECORDED)),
    without=st.frozensets(st.sampled_from(("ask", "known", "receive")), min_size=1),
    size=st.sampled_from((50, 1000, 1 << 16)),
)
@settings(max_examples=part(120), deadline=None)
def test_the_short_ways_have_the_result_of_the_long_ones(
    messages: str, stream: bytes, without: frozenset[str], size: int
) -> None:
    # Of a line of a message, what is before `smtp-in` is looked at only in the long way.
    lines = [row for row in stream.split(b"\n") if b"|smtp-in|data-line|" in row]
    assume(all(WRITTEN.match(row) for row in lines))
    listeners = [
        Deterministic(messages, pass_all=messages == "all", without=left_out)
        for left_out in (frozenset[str](), without)
    ]
    for listener in listeners:
        listener.receive(HANDSHAKE)
        for at in range(0, len(stream), size):
            listener.receive(stream[at : at + size])
    short, long = listeners
    assert short.written() == long.written()
    assert short.calls == long.calls
    assert short.remarked() == long.remarked()


@pytest.mark.parametrize("messages", ["echo", "hold", "pass", "drop", "all"])
@given(stream=traffic())
@settings(max_examples=part(100), deadline=None)
def test_every_request_gets_one_answer(messages: str, stream: bytes) -> None:
    listener = Deterministic(messages, pass_all=messages == "all")
    oracle = Oracle()
    # A report lets the late answers out; smtpd waits for them before it asks again.
    for row in stream.splitlines(keepends=True):
        oracle.from_smtpd(row)
        listener.out = b""
        listener.receive(row)
        for session in listener.late:
            listener.connection.answer(session, PROCEED)
        listener.late = []
        listener.out += listener.connection.data_to_send()
        oracle.from_filter(listener.out)
        if row.startswith(b"filter|") and b"|data-line|" not in row:
            fields = row.rstrip(b"\n").split(b"|")
            answers = listener.out.count(b"filter-result|%b|%b|" % (fields[5], fields[6]))
            assert answers == listener.out.count(b"filter-result") == 1
    for session in (A, B):
        oracle.from_smtpd(SmtpdConnection().report("link-disconnect", session))
    oracle.finish()
    # What it drops, it drops.
    assert {complaint.rule for complaint in oracle.complaints} <= {"mail-head-broken"}


CONTENT = st.lists(
    st.one_of(
        BODY,
        st.builds(
            lambda piece, size: (piece * size)[:size],
            st.sampled_from((b"x", b"word ", "ü".encode(), b"\t", b" ", b"|.")),
            st.sampled_from((997, 998, 999, 1997, 1998, 65484, 65485, 65486, 70000)),
        ),
    ),
    max_size=12,
)


def sent_back(lines: list[bytes], messages: str, server: str, size: int) -> list[bytes]:
    """Return the lines that a filter returns for these."""
    protocol = (0, 7) if server.startswith("7") else (0, 6)
    smtpd = SmtpdConnection(protocol, server)
    listener = Deterministic(messages, pass_all=messages == "all")
    listener.receive(smtpd.configure())
    listener.out = b""
    stream = smtpd.lines(A, LINE_TOKEN, lines)
    for at in range(0, len(stream), size):
        listener.receive(stream[at : at + size])
    head = b"filter-dataline|%b|%b|" % (A, LINE_TOKEN)
    rows = listener.out.split(b"\n")
    assert rows[-2:] == [head + b".", b""]
    assert all(row.startswith(head) and len(row) < 65536 for row in rows[:-2])
    return [row[len(head) :] for row in rows[:-2]]


@pytest.mark.parametrize("messages", ["echo", "hold", "pass", "all"])
@given(
    lines=CONTENT,
    server=st.sampled_from(("6.8.0p2", "7.3.0", "7.8.0")),
    size=st.sampled_from((1000, 1 << 16, 1 << 20)),
)
@example(lines=[b""], server="7.8.0", size=1 << 20)
@settings(max_examples=part(80), deadline=None)
def test_a_message_passes_byte_for_byte(
    messages: str, lines: list[bytes], server: str, size: int
) -> None:
    limit = content_limit(cuts=not server.startswith("7.8"))
    returned = sent_back(lines, messages, server, size)
    assert all(len(line) <= limit for line in returned)
    if all(len(line) <= limit for line in lines):
        assert returned == lines
    else:
        assert unbroken(lines, returned, limit)


@pytest.mark.parametrize("messages", ["echo", "hold", "pass", "all"])
@pytest.mark.parametrize("server", ["6.8.0p2", "7.8.0"])
@pytest.mark.parametrize("size", [500, 60 << 10])
def test_long_lines_of_the_body_are_broken_as_such(messages: str, server: str, size: int) -> None:
    short = [*[b"X: y"] * 20, b"", *[b"z"] * 20]
    long = b"y z " * (20 << 10)
    returned = sent_back([*short, long], messages, server, size)
    assert returned == [*short, *break_line(long, header=False)]
    assert returned != [*short, *break_line(long, header=True)]


@pytest.mark.parametrize("messages", ["echo", "hold", "pass", "all"])
@pytest.mark.parametrize("server", ["6.8.0p2", "7.8.0"])
def test_lines_of_a_megabyte_pass(messages: str, server: str) -> None:
    lines = [b"Subject: x", b"", b"y" * (1 << 20), b"|" * (1 << 20), b""]
    limit = content_limit(cuts=server.startswith("6"))
    returned = sent_back(lines, messages, server, 60 << 10)
    assert unbroken(lines, returned, limit)
    assert len(returned) > 2000

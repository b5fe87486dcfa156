"""Examples for the filter's end, whose invariants are in `test_properties` and `test_hostile`."""

from __future__ import annotations

import pytest

from smtpd_filters.protocol.data_lines import Transit
from smtpd_filters.protocol.decisions import (
    JUNK,
    PROCEED,
    Decision,
    Disconnect,
    Reject,
    Rewrite,
)
from smtpd_filters.protocol.filter_side import (
    MAX_INPUT,
    MAX_TOKENS,
    FilterConnection,
)
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.versions import UnsupportedProtocolError
from smtpd_filters.protocol.vocabulary import PHASES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.protocol.events import Report
    from smtpd_filters.protocol.vocabulary import Phase

A, B = b"7641df9700000001", b"7641df9700000002"
T, L = b"00000000000000a0", b"00000000000000a1"
SMTPD = SmtpdConnection()
SHAKE = SMTPD.configure()


class Script:
    """A listener with one answer for all requests, which records its calls."""

    def __init__(
        self,
        decision: Decision | None = PROCEED,
        *,
        pass_all: bool = False,
        refuse: bool = False,
        handshake: bytes = SHAKE,
    ) -> None:
        self.decision = decision
        self.connection = FilterConnection(self, pass_all=pass_all, refuse_long_lines=refuse)
        self.reports: list[Report] = []
        self.asked_for: list[tuple[str, bytes, bytes]] = []
        self.told: list[tuple[bytes, list[bytes], bool]] = []
        self.then: Callable[[bytes], None] = lambda _session: None
        self.connection.receive(handshake)
        self.shaken = self.connection.data_to_send()

    def configured(self, key: str, _value: str) -> None:
        if key == "ready":
            self.connection.register(["connect", "data-line"], ["tx-mail"], ["link-connect"])

    def reported(self, report: Report) -> None:
        self.reports.append(report)

    def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:
        self.asked_for.append((phase.name, session, argument))
        return self.decision

    def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None:
        self.told.append((session, list(lines), end))
        self.then(session)

    def say(self, data: bytes) -> list[bytes]:
        """Return the answers to this."""
        self.connection.receive(data)
        return self.written()

    def written(self) -> list[bytes]:
        """Return the pending output, in lines."""
        return self.connection.data_to_send().split(b"\n")[:-1]

    def remarks(self) -> list[str]:
        """Return the remarks since the last call."""
        return [f"{each.sort}: {each.kind}" for each in self.connection.remarks.take()]


def result(wire: bytes, session: bytes = A, token: bytes = T) -> bytes:
    return b"filter-result|%b|%b|%b" % (session, token, wire)


def back(*lines: bytes, session: bytes = A) -> list[bytes]:
    return [b"filter-dataline|%b|%b|%b" % (session, L, line) for line in lines]


def request(phase: str, argument: bytes = b"", session: bytes = A, token: bytes = T) -> bytes:
    return SMTPD.request(phase, session, token, argument)


def lines(*content: bytes, end: bool = False, session: bytes = A) -> bytes:
    return SMTPD.lines(session, L, content, end=end)


# -- the hand-shake ----------------------------------------------------------------------


def test_it_registers_when_smtpd_is_ready() -> None:
    script = Script(handshake=SMTPD.configure(subsystems=["smtp-in", "smtp-out", "queue"]))
    assert script.shaken == (
        b"register|report|smtp-in|tx-mail\n"
        b"register|report|smtp-out|link-connect\n"
        b"register|filter|smtp-in|connect\n"
        b"register|filter|smtp-in|data-line\n"
        b"register|ready\n"
    )


@pytest.mark.parametrize(
    ("subsystems", "kept"),
    [
        ([], b"smtp-in"),
        (["smtp-in"], b"smtp-in"),
        (["smtp-out"], b"smtp-out"),
        (["queue", "smtp-in", "stats"], b"smtp-in"),
        (["queue"], b""),
    ],
)
def test_nothing_is_registered_of_a_subsystem_that_is_not_announced(
    subsystems: list[str], kept: bytes
) -> None:
    rows = Script(handshake=SMTPD.configure(subsystems=subsystems)).shaken.splitlines()
    assert rows.pop() == b"register|ready"
    assert {row.split(b"|")[2] for row in rows} == ({kept} if kept else set())


@pytest.mark.parametrize(
    "row",
    [
        b"report|0.8|1.0|queue|msg-new|0a0b0c0d\n",
        b"report|0.8|1.0|stats|tick\n",
        b"report|0.8|1.0|queue|tx-mail|7641df9700000001|0a0b0c0d|ok|a@b\n",
    ],
)
def test_reports_of_other_subsystems_are_passed_over(row: bytes) -> None:
    script = Script()
    assert script.say(row + request("ehlo")) == [result(b"proceed")]
    assert script.reports == []
    assert [each for each in script.remarks() if "0.8" not in each] == []


def test_refusing_long_lines_registers_commit() -> None:
    script = Script(refuse=True)
    assert b"register|filter|smtp-in|commit\n" in script.shaken
    assert script.connection.refuse_long_lines


def test_unknown_configuration_is_kept() -> None:
    script = Script(handshake=b"config|new|a|b\nconfig|admd|mx\n" + SHAKE)
    config = script.connection.config
    assert (config["new"], config["admd"]) == ("a|b", "mx.example.org")
    assert script.remarks() == []


def test_an_old_protocol_is_refused_before_smtpd_relies_on_us() -> None:
    with pytest.raises(UnsupportedProtocolError, match=r"0\.4; at least 0\.5 is required"):
        Script(handshake=b"config|protocol|0.4\nconfig|ready\n")


def test_a_new_protocol_is_treated_as_the_newest_known() -> None:
    script = Script(handshake=b"config|protocol|0.9\nconfig|ready\n")
    assert script.remarks() == ["unexpected: protocol version 0.9 is treated as 0.7"]
    asked = request("connect", b"x|y").replace(b"|0.7|", b"|0.9|", 1)
    assert script.say(asked + asked) == [result(b"proceed")] * 2
    assert len(script.remarks()) <= 1


@pytest.mark.parametrize("name", ["", "x", "7", "0.x"])
def test_an_invalid_version_changes_nothing(name: str) -> None:
    script = Script(handshake=f"config|protocol|{name}\nconfig|ready\n".encode())
    assert script.remarks() == ["unexpected: invalid protocol version"]
    assert script.say(request("connect")) == [result(b"proceed")]


def test_an_old_protocol_is_used_when_it_is_too_late_to_refuse() -> None:
    script = Script(None)
    asked = request("connect").replace(b"|0.7|", b"|0.4|", 1)
    assert script.say(asked) == []
    script.connection.answer(A, JUNK)
    assert script.written() == [result(b"junk", T, A)]
    row = lines(b"x").replace(b"|0.7|", b"|0.4|", 1)
    script.say(row + row)
    script.connection.pass_through(A)
    end = lines(end=True).replace(b"|0.7|", b"|0.4|", 1)
    assert script.say(row + end) == [
        b"filter-dataline|%b|%b|%b" % (L, A, line) for line in (b"x", b".")
    ]
    assert script.remarks() == [
        "unexpected: protocol version 0.4 is older than the oldest supported one"
    ]


def test_lines_before_the_hand_shake_are_dropped() -> None:
    script = Script(handshake=request("connect"))
    assert (script.shaken, script.asked_for) == (b"", [])
    assert script.remarks() == ["unexpected: line before the handshake"]


# -- requests ----------------------------------------------------------------------------


def test_a_request_is_answered_at_once() -> None:
    script = Script(Reject("550 No"))
    assert script.say(request("ehlo", b"a|b")) == [result(b"reject|550 No")]
    assert script.say(request("rset")) == [result(b"reject|550 No")]
    assert script.asked_for == [("ehlo", A, b"a|b"), ("rset", A, b"")]


def test_a_request_is_answered_later() -> None:
    script = Script(None)
    assert script.say(request("ehlo") + request("ehlo", session=B)) == []
    script.connection.answer(B, PROCEED)
    script.connection.answer(A, JUNK)
    assert script.written() == [result(b"proceed", B), result(b"junk")]
    assert script.say(request("noop")) == []
    script.connection.answer(A, PROCEED)
    assert script.written() == [result(b"proceed")]
    assert script.remarks() == []


def test_no_request_is_answered_twice() -> None:
    script = Script()
    script.say(request("ehlo"))
    script.connection.answer(A, PROCEED)
    script.connection.answer(B, PROCEED)
    assert script.written() == []
    assert script.remarks() == ["bug: answer without a request"] * 2


@pytest.mark.parametrize(
    ("phase", "decision", "wire"),
    [
        ("connect", Reject("550 No"), b"disconnect|550 No"),
        ("mail-from", Rewrite("a@b"), b"rewrite|<a@b>"),
        ("mail-from", Rewrite("x" * 512), b"rewrite|<" + b"x" * 512 + b">"),
        ("rcpt-to", Rewrite("<a@b> X=1"), b"rewrite|<a@b> X=1"),
        ("ehlo", Rewrite("a.b"), b"rewrite|a.b"),
    ],
)
def test_a_decision_is_sent_in_its_effective_form(
    phase: str, decision: Decision, wire: bytes
) -> None:
    script = Script(decision)
    assert script.say(request(phase)) == [result(wire)]
    assert script.remarks() == []


@pytest.mark.parametrize(
    ("phase", "decision", "wire"),
    [
        ("commit", JUNK, b"proceed"),
        ("commit", Rewrite("x"), b"proceed"),
        ("quit", JUNK, b"proceed"),
        (
            "quit",
            Reject("550 No"),
            b"disconnect|421 4.3.0 Temporary failure, please try again later",
        ),
        ("data", Rewrite("x"), b"proceed"),
        ("ehlo", Decision(), b"proceed"),
    ],
)
def test_an_illegal_decision_is_replaced(phase: str, decision: Decision, wire: bytes) -> None:
    script = Script(decision)
    assert script.say(request(phase)) == [result(wire)]
    assert script.remarks() == [f"bug: illegal {type(decision).__name__} at {phase}"]


def test_a_parameter_that_smtpd_would_not_take_is_not_sent() -> None:
    script = Script(Rewrite("two words"))
    assert script.say(request("helo")) == [result(b"proceed")]
    assert script.remarks() == ["bug: invalid rewrite at helo"]


def test_an_unknown_phase_is_let_pass() -> None:
    script = Script(JUNK)
    assert script.say(request("new-phase", b"x")) == [result(b"proceed")]
    assert script.remarks() == ["unexpected: unknown phase"]


def test_a_second_request_before_the_answer_to_the_first_is_let_pass() -> None:
    script = Script()
    script.say(request("noop", token=L))
    script.decision = None
    assert script.say(request("ehlo") + request("noop", token=L)) == [result(b"proceed", token=L)]
    assert script.remarks() == ["unexpected: request before the answer to the previous one"]
    script.connection.answer(A, JUNK)
    assert script.written() == [result(b"junk")]


def test_a_malformed_request_is_answered_when_it_can_be() -> None:
    script = Script()
    asked = b"filter|0.7|1.0|smtp-out|ehlo|%b|%b|x\n" % (A, T)
    assert script.say(asked) == [result(b"proceed")]
    assert script.say(b"filter|0.7|1.0|smtp-in|ehlo|x|y|z\nnonsense\n\n") == []
    assert script.remarks() == [
        "unexpected: request without its last field",
        "unexpected: request without session or token",
        "unexpected: unknown keyword",
        "unexpected: unknown keyword",
    ]


def test_more_tokens_than_there_are_phases_are_answered_as_well() -> None:
    script = Script()
    assert len(PHASES) < MAX_TOKENS
    for number in range(2 * MAX_TOKENS):
        token = b"%016x" % number
        for _ in range(2):
            assert script.say(request("noop", token=token)) == [result(b"proceed", token=token)]


def test_known_reports_reach_the_listener_unknown_ones_do_not() -> None:
    script = Script()
    script.say(SMTPD.report("tx-mail", A, b"0000000a", b"ok", b"a|b"))
    script.say(b"report|0.7|1.0|smtp-in|tx-new|%b|x\n" % A)
    assert [(each.name, each.values) for each in script.reports] == [
        ("tx-mail", (b"0000000a", b"ok", b"a|b"))
    ]
    assert script.remarks() == []


def test_an_ended_session_is_not_answered() -> None:
    script = Script(None)
    script.say(request("ehlo") + SMTPD.report("link-disconnect", A))
    script.connection.answer(A, PROCEED)
    assert script.written() == []
    assert script.remarks() == ["bug: answer without a request"]


def test_a_line_without_an_end_takes_no_more_memory_than_it_may() -> None:
    script = Script()
    assert script.say(b"x" * (MAX_INPUT - 1)) == []
    assert script.remarks() == []
    assert script.say(b"x" * 100) == script.say(b"x" * 100) == []
    assert script.remarks() == ["unexpected: line too long"]
    assert script.say(b"tail\n" + request("ehlo")) == [result(b"proceed")]


def test_a_line_of_a_message_that_is_cut_off_has_it_refused() -> None:
    script = Script(pass_all=True)
    script.say(lines(b"A: 1", b""))
    row = lines(b"x" * MAX_INPUT)
    script.say(row[:-100])
    script.say(b"y" * 100)
    # Neither the tail nor text in it that looks like a line is treated as a line.
    script.say(b"z\n")
    script.say(lines(end=True))
    assert script.say(request("commit")) == [
        result(b"reject|554 5.6.0 Message has a line that is too long")
    ]


class Failing(Script):
    """Raises these errors, one for each call, before it answers."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    def asked(self, phase: Phase, session: bytes, argument: bytes) -> Decision | None:
        if self.errors:
            raise self.errors.pop(0)
        return super().asked(phase, session, argument)


def resumed(script: Script) -> bool:
    """Resume; return whether that was enough."""
    script.connection.resume()
    return not script.connection.stalled


def test_input_without_memory_is_kept() -> None:
    script = Failing(MemoryError(), MemoryError())
    rows = request("ehlo") + request("noop", token=L) + lines(b"A: b") + request("quit")[:9]
    assert script.say(rows) == []
    assert not resumed(script)
    assert script.told == []
    assert resumed(script)
    assert script.written() == [result(b"proceed"), result(b"proceed", token=L)]
    assert [name for name, _, _ in script.asked_for] == ["ehlo", "noop"]
    assert [some for _, some, _ in script.told] == [[b"A: b"]]
    # The line that had only begun goes on.
    script.connection.pass_through(A)
    assert script.say(request("quit")[9:])[-1] == result(b"proceed")


def test_whole_lines_without_memory_are_kept() -> None:
    script = Failing(MemoryError())
    assert script.say(request("ehlo")) == []
    assert resumed(script)
    assert script.written() == [result(b"proceed")]


def test_a_line_on_which_our_code_fails_does_not_hold_up_the_others() -> None:
    script = Failing(ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        script.say(request("ehlo") + request("noop", token=L))
    assert resumed(script)
    assert script.written() == [result(b"proceed", token=L)]


LOST = b"reject|452 4.3.1 Insufficient system storage"


def no_memory(*_: object) -> None:
    raise MemoryError


def test_a_message_of_which_lines_are_lost_for_want_of_memory_is_refused() -> None:
    script = Script()
    script.say(lines(b"A: 1"))
    script.then = no_memory
    script.say(lines(b"x", b"y"))
    script.then = lambda _session: None
    script.connection.pass_through(A)
    script.say(lines(end=True))
    assert script.say(request("commit")) == [result(LOST)]
    assert script.remarks() == ["mail: refused: lines lost for lack of memory"]
    # The next one is whole.
    script.say(lines(b"A: 1", session=B))
    script.connection.spoil(b"0000000000000000")
    script.connection.pass_through(B)
    script.say(lines(end=True, session=B))
    assert script.say(request("commit", session=B)) == [result(b"proceed", session=B)]


def test_a_nul_may_come_with_requests() -> None:
    script = Script(pass_all=True)
    assert script.say(request("ehlo", b"a\0b")) == [result(b"proceed")]
    # smtpd has sent one, so it takes one.
    assert script.say(lines(b"x\0y", end=True)) == back(b"x\0y", b".")


def test_a_message_that_is_spoilt_is_refused() -> None:
    script = Script(pass_all=True)
    script.say(lines(b"A: 1"))
    script.connection.spoil(A)
    script.say(lines(end=True))
    assert script.say(request("commit")) == [result(LOST)]


@pytest.mark.parametrize("method", ["all_known", "_passed"])
def test_lines_that_cannot_be_handled_together_are_handled_one_by_one(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(pass_all=True)
    script.say(lines(b"A: 1"))
    monkeypatch.setattr(Transit, method, no_memory)
    assert script.say(lines(b"x", b"y")) == back(b"x", b"y")
    monkeypatch.undo()
    assert script.say(lines(b"z", b"", end=True)) == back(b"z", b"", b".")


# -- messages ----------------------------------------------------------------------------


def test_a_message_that_passes_is_returned() -> None:
    script = Script(pass_all=True)
    stream = lines(b"A: b", b"", b"x|y", b"..", end=True)
    assert script.say(stream) == back(b"A: b", b"", b"x|y", b"..", b".")
    assert script.told == []


def test_the_listener_gets_a_message_and_sends_another() -> None:
    script = Script()
    assert script.say(lines(b"A: b", b"", b"x", end=True)) == []
    told = [line for _, some, _ in script.told for line in some]
    assert told == [b"A: b", b"", b"x"]
    assert [end for _, _, end in script.told][-1]
    script.connection.send_lines(A, [b"C: d", b"", b".", b"y"])
    script.connection.send_lines(A, [], end=True)
    assert script.written() == back(b"C: d", b"", b"..", b"y", b".")
    assert script.remarks() == ["bug: lone dot within a message"]


def test_lines_of_several_messages_are_separated() -> None:
    script = Script()
    script.say(lines(b"A: 1") + lines(b"B: 1", session=B))
    script.told = []
    mixed = lines(b"a2") + lines(b"b2", session=B) + lines(b"a3") + lines(b"b3", session=B)
    script.say(mixed)
    assert script.told == [(A, [b"a2", b"a3"], False), (B, [b"b2", b"b3"], False)]


def test_a_listener_may_forget_another_session_in_a_callback() -> None:
    script = Script()
    script.say(lines(b"A: 1") + lines(b"B: 1", session=B))
    script.told = []
    script.then = lambda _session: script.connection.forget(B)
    script.say(lines(b"a2") + lines(b"b2", session=B))
    script.then = lambda _session: None
    script.say(lines(b"a3") + lines(b"b3", session=B))
    assert (A, [b"a2"], False) in script.told
    assert script.remarks() == []


def test_one_message_passes_while_another_is_looked_at() -> None:
    script = Script()
    script.say(lines(b"A: 1") + lines(b"B: 1", session=B))
    script.connection.pass_through(B)
    script.connection.pass_through(B)
    assert script.remarks() == ["bug: pass through without a message"]
    assert script.say(lines(b"a2") + lines(b"b2", session=B)) == back(b"b2", session=B)
    assert script.say(lines(end=True) + lines(end=True, session=B)) == back(b".", session=B)
    script.connection.pass_through(A)
    assert script.written() == back(b".")


def test_a_message_that_passes_is_recognised_after_its_header() -> None:
    """Its lines have other places than those of a message before it, which ends first."""
    script = Script()
    script.say(lines(b"A: 1"))
    other = [SMTPD.lines(B, L, [each], end=False, time=b"1.5") for each in (b"B: 1", b"", b"b2")]
    script.say(other[0])
    script.connection.pass_through(B)
    assert script.say(other[1]) == back(b"", session=B)
    script.connection.pass_through(A)
    assert script.say(lines(b"a2", end=True)) == back(b"a2", b".")
    for _ in range(2):
        assert script.say(other[2]) == back(b"b2", session=B)


def test_accepting_replies_are_skipped_on_request() -> None:
    script = Script()
    script.connection.skips_replies = True
    replies = (b"250 2.0.0 Ok", b"354 Go on", b"550 5.7.1 No", b"")
    for each in replies:
        script.say(SMTPD.report("protocol-server", A, each))
    # A session whose id isn't as long as usual is too rare to be looked at.
    script.say(SMTPD.report("protocol-server", b"1f", b"250 2.0.0 Ok"))
    script.say(SMTPD.report("link-disconnect", A))
    assert [(each.name, each.values) for each in script.reports] == [
        ("protocol-server", (b"550 5.7.1 No",)),
        ("protocol-server", (b"",)),
        ("protocol-server", (b"250 2.0.0 Ok",)),
        ("link-disconnect", ()),
    ]


def test_commands_are_skipped_on_request() -> None:
    script = Script()
    script.connection.commands = frozenset({b"MAIL", b"RCPT"})
    script.say(SMTPD.report("link-connect", A, b"x", b"pass", b"192.0.2.1:1", b"192.0.2.2:25"))
    commands = (b"mail FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA", b"AUTH PLAIN", b"mai", b"", b"a|b")
    for each in commands:
        script.say(SMTPD.report("protocol-client", A, each))
    # A session whose id isn't as long as usual is too rare to be looked at.
    script.say(SMTPD.report("protocol-client", b"1f", b"DATA"))
    script.say(SMTPD.report("protocol-server", A, b"250 |protocol-client|"))
    assert [each.values for each in script.reports[1:]] == [
        (b"mail FROM:<a@b>",),
        (b"RCPT TO:<c@d>",),
        (b"DATA",),
        (b"250 |protocol-client|",),
    ]


def test_nothing_is_sent_outside_a_message() -> None:
    script = Script()
    script.connection.send_lines(A, [b"x"])
    script.connection.pass_through(A)
    script.say(lines(b"x"))
    script.connection.send_lines(A, [], end=True)
    script.say(lines(end=True))
    script.connection.send_lines(A, [], end=True)
    script.connection.send_lines(A, [b"x"])
    assert script.written() == back(b".")
    assert script.remarks() == [
        "bug: lines without a message",
        "bug: pass through without a message",
        "bug: end of a message before its final dot",
        "bug: lines without a message",
    ]


def test_lines_that_smtpd_would_misinterpret_are_not_sent() -> None:
    script = Script()
    script.say(lines(b"A: b"))
    script.connection.send_lines(A, [b"two\nlines", b"more"])
    script.connection.send_lines(A, [b"nul\0", b"\0."])
    assert script.written() == back(b"two lines more", b"nul", b"..")
    assert script.remarks() == [
        "bug: line break in a line of a message",
        "bug: NUL in a line of a message",
        "bug: lone dot within a message",
    ]


@pytest.mark.parametrize("size", [1, 1 << 16])
def test_a_nul_of_smtpd_is_returned(size: int) -> None:
    script = Script()
    script.then = lambda session: script.connection.send_lines(session, script.told[-1][1])
    stream = lines(b"nul\0")
    got = [row for at in range(0, len(stream), size) for row in script.say(stream[at : at + size])]
    assert got == back(b"nul\0")
    assert script.remarks() == []


def test_lines_behind_the_dot_are_dropped() -> None:
    script = Script()
    script.say(lines(b"x", end=True))
    assert script.say(lines(b"y")) == []
    assert script.remarks() == ["unexpected: line after the final dot"]
    script.connection.send_lines(A, [b"x"], end=True)
    assert script.written() == back(b"x", b".")


def test_a_request_within_a_message_ends_the_message() -> None:
    script = Script()
    script.say(lines(b"x"))
    assert script.say(request("commit")) == [*back(b"."), result(b"proceed")]
    assert script.remarks() == ["unexpected: request within a message"]
    script.connection._transit.finish(B)
    assert script.written() == []


def test_an_answer_within_a_message_ends_the_message() -> None:
    script = Script(pass_all=True)
    invalid = b"filter|0.7|1.0|smtp-in|helo|%b|%b\n" % (A, T)
    assert script.say(lines(b"x") + invalid) == [*back(b"x", b"."), result(b"proceed")]
    assert script.remarks() == [
        "unexpected: request without its last field",
        "unexpected: answer within a message",
    ]
    script.decision = None
    script.say(request("noop", session=B) + lines(b"x", session=B))
    script.connection.answer(B, PROCEED)
    assert script.written() == [*back(b".", session=B), result(b"proceed", session=B)]
    assert script.remarks() == ["unexpected: answer within a message"]


def test_an_answer_does_not_overtake_the_message_of_its_session() -> None:
    script = Script(pass_all=True)
    invalid = b"filter|0.7|1.0|smtp-in|helo|%b|%b\n" % (A, T)
    assert script.say(lines(b"x", end=True) + invalid) == [*back(b"x", b"."), result(b"proceed")]
    script = Script(pass_all=True)
    both = lines(b"x") + request("noop", session=B)
    assert script.say(both) == [result(b"proceed", session=B), *back(b"x")]


@pytest.mark.parametrize("report", ["tx-reset", "tx-rollback"])
def test_an_answer_does_not_overtake_the_lines_of_an_abandoned_message(report: str) -> None:
    script = Script(pass_all=True)
    reset = SMTPD.report(report, A, b"0000000a")
    other = request("noop", session=B)
    assert script.say(lines(b"x") + reset + request("noop") + other) == [
        result(b"proceed", session=B),
        *back(b"x"),
        result(b"proceed"),
    ]
    assert script.remarks() == []


def test_an_invalid_data_line_is_not_answered() -> None:
    script = Script(pass_all=True)
    invalid = b"filter|0.7|1.0|smtp-in|data-line|%b|%b\n" % (A, L)
    assert script.say(invalid + lines(b"x") + invalid) == back(b"x")
    assert script.say(lines(b"y", end=True)) == back(b"y", b".")
    assert script.remarks() == ["unexpected: invalid data-line"] * 2


@pytest.mark.parametrize("report", ["tx-reset", "tx-rollback", "link-disconnect"])
def test_a_message_of_an_ended_transaction_is_not_sent(report: str) -> None:
    script = Script()
    script.say(lines(b"x"))
    values = () if report == "link-disconnect" else (b"0000000a",)
    script.say(SMTPD.report(report, A, *values))
    script.connection.send_lines(A, [b"x"])
    assert script.written() == []
    assert script.remarks() == ["bug: lines without a message"]
    script.say(lines(b"y", end=True))
    assert script.told[-1] == (A, [], True)


def test_rescue_answers_a_pending_session() -> None:
    script = Script(None)
    script.say(request("ehlo"))
    script.connection.rescue(A)
    script.connection.rescue(A)
    assert script.written() == [result(b"proceed")]
    script.say(lines(b"x"))
    script.connection.rescue(A)
    assert script.say(lines(b"y", end=True)) == back(b"y", b".")
    script.say(lines(b"x", end=True))
    script.connection.rescue(A)
    assert script.written() == back(b".")
    assert script.remarks() == []


def test_lines_pass_though_the_time_changes_its_width() -> None:
    script = Script(pass_all=True)
    wide = [SMTPD.lines(A, L, [b"x"], end=False, time=time) for time in (b"99.9", b"100.0", b"5.0")]
    other = SMTPD.lines(B, L, [b"y"], end=False, time=b"5.0")
    expected = back(b"x", b"x", b"x") + back(b"y", session=B)
    assert script.say(b"".join(wide) + other) == expected
    assert script.say(b"".join(wide) + other) == expected


def test_ids_of_other_lengths_pass_as_well() -> None:
    script = Script(pass_all=True)
    stream = SMTPD.lines(b"a1", b"b2", [b"x", b"y"])
    assert script.say(stream) == [b"filter-dataline|a1|b2|" + line for line in (b"x", b"y", b".")]


def test_no_text_gets_into_the_place_of_the_key() -> None:
    script = Script(pass_all=True)
    text = b"|smtp-in|data-line|%b|%b|" % (B, L)
    assert script.say(lines(b"x", b"y", session=B) + lines(b"x", text, text)) == (
        back(b"x", b"y", session=B) + back(b"x", text, text)
    )


# -- lines that are too long -------------------------------------------------------------

CUTTING = SmtpdConnection((0, 6))


@pytest.mark.parametrize("pass_all", [False, True])
@pytest.mark.parametrize(("smtpd", "limit"), [(SMTPD, 65484), (CUTTING, 1997)])
def test_a_line_is_broken_when_smtpd_would_not_take_it(
    smtpd: SmtpdConnection, limit: int, *, pass_all: bool
) -> None:
    script = Script(pass_all=pass_all, handshake=smtpd.configure())
    assert script.connection.cuts == (limit == 1997)
    script.then = lambda session: script.connection.send_lines(
        session, script.told[-1][1], end=script.told[-1][2]
    )
    longest, longer = b"x" * limit, b"y" * (limit + 1)
    assert script.say(smtpd.lines(A, L, [b"A: b", b"", longest])) == back(
        b"A: b", b"", longest, b"."
    )
    assert script.remarks() == []
    rows = script.say(smtpd.lines(A, L, [b"A: b", b"", longer, longer, longest]))
    assert len(rows) > 8
    assert all(len(row) < 65535 for row in rows)
    assert script.remarks() == ["mail: long lines broken"]


@pytest.mark.parametrize("pass_all", [False, True])
@pytest.mark.parametrize("end_of_header", [True, False])
def test_a_header_field_is_folded_and_a_body_line_is_not(
    *, pass_all: bool, end_of_header: bool
) -> None:
    script = Script(pass_all=pass_all, handshake=CUTTING.configure())
    script.then = lambda session: script.connection.send_lines(
        session, script.told[-1][1], end=script.told[-1][2]
    )
    words = b"A: " + b"word " * 500
    before = [b"A: b", b"B: c", *([b""] if end_of_header else []), b"C: d"]
    rows = script.say(CUTTING.lines(A, L, [*before, b"D: e", words]))
    pieces = [row.split(b"|", 3)[3] for row in rows][len(before) + 1 : -1]
    assert len(pieces) > 2
    assert (b"".join(pieces) == words) is not end_of_header


def test_a_message_with_a_long_line_is_refused_when_that_is_wanted() -> None:
    script = Script(refuse=True, pass_all=True, handshake=CUTTING.configure())
    long = CUTTING.lines(A, L, [b"x", b"y" * 2000])
    commit = request("commit").replace(b"|0.7|", b"|0.6|", 1)
    script.say(long)
    assert script.remarks() == ["mail: long lines refused"]
    (refusal,) = script.say(commit)
    assert refusal.startswith(result(b"reject|554 5.6.0 "))
    script.say(CUTTING.lines(A, L, [b"x"]))
    assert script.say(commit) == [result(b"proceed")]
    # The end of the transaction drops a refusal.
    script.say(long + CUTTING.report("tx-reset", A, b"0000000a"))
    assert script.say(commit) == [result(b"proceed")]


@pytest.mark.parametrize("before", [request("helo"), b""], ids=["known token", "new token"])
def test_a_refused_message_is_not_asked_about(before: bytes) -> None:
    script = Script(handshake=SHAKE)
    script.then = lambda session: script.connection.send_lines(session, [], end=True)
    script.say(before + lines(end=True))
    script.connection.refuse(A, Disconnect("421 Go"))
    assert script.connection.busy(A)
    script.asked_for.clear()
    assert script.say(request("commit")) == [result(b"disconnect|421 Go")]
    assert not script.connection.busy(A)
    assert script.asked_for == []
    # Once, and not of the next message.
    assert script.say(request("commit")) == [result(b"proceed")]
    script.say(lines(end=True))
    script.connection.refuse(A, Reject("550 No"))
    script.say(lines(end=True))
    assert script.say(request("commit")) == [result(b"proceed")]


def test_a_refusal_that_commit_does_not_take_is_replaced() -> None:
    script = Script()
    script.connection.refuse(A, JUNK)
    assert script.say(request("commit")) == [result(b"proceed")]
    assert script.remarks() == ["bug: illegal Junk at commit"]


def test_the_repr_of_a_remark() -> None:
    script = Script()
    script.say(b"nonsense" * 100 + b"\n")
    (remark,) = script.connection.remarks.take()
    assert repr(remark).startswith("<unexpected: unknown keyword b'' b'nonsensenonsense")
    assert len(remark.detail) == 200
    assert script.connection.remarks.kept == []


def test_every_phase_is_asked_by_its_name() -> None:
    script = Script()
    for name in PHASES:
        assert script.say(request(name)) == [result(b"proceed")]
    assert [name for name, _, _ in script.asked_for] == list(PHASES)

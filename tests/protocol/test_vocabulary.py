"""The tables are complete, and agree with the oracle's own rules."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.oracle import Oracle, rules
from smtpd_filters.protocol.decisions import (
    JUNK,
    PROCEED,
    Decision,
    Disconnect,
    Junk,
    Proceed,
    Reject,
    Rewrite,
)
from smtpd_filters.protocol.filter_side import FilterConnection
from smtpd_filters.protocol.smtpd_side import SmtpdConnection
from smtpd_filters.protocol.vocabulary import (
    DATA_LINE,
    FORMS,
    HANDLERS,
    NEVER_REQUESTED,
    PHASES,
    PHASES_ON_WIRE,
    REPORTS,
    Phase,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from smtpd_filters.protocol.events import Report

KINDS: tuple[type[Decision], ...] = (Proceed, Junk, Reject, Disconnect, Rewrite)
#: What a client sends at a phase, and what it may be rewritten to.
PARAMETERS = {
    "helo": "mail.example",
    "ehlo": "mail.example",
    "auth": "PLAIN AGEAYg==",
    "mail-from": "a@b.example",
    "rcpt-to": "a@b.example",
}
SAMPLES: dict[type[Decision], Decision] = {
    Proceed: PROCEED,
    Junk: JUNK,
    Reject: Reject("550 5.7.1 No"),
    Disconnect: Disconnect("421 4.7.0 Go"),
}


def sample(kind: type[Decision], phase: Phase) -> Decision:
    return SAMPLES.get(kind) or Rewrite(PARAMETERS.get(phase.name, "x"))


class Answers:
    """A listener that answers each request with the one decision."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.connection = FilterConnection(self)

    def configured(self, key: str, _value: str) -> None:
        if key == "ready":
            self.connection.register(PHASES, [])

    def reported(self, report: Report) -> None: ...

    def asked(self, _phase: Phase, _session: bytes, _argument: bytes) -> Decision | None:
        return self.decision

    def content(self, session: bytes, lines: list[bytes], *, end: bool) -> None: ...


def complaints(phase: Phase, decision: Decision, protocol: tuple[int, int] = (0, 7)) -> list[str]:
    """Return the complaints of the oracle about this answer at that phase."""
    smtpd, oracle, listener = SmtpdConnection(protocol), Oracle(), Answers(decision)
    argument = PARAMETERS.get(phase.name, "").encode()
    data = smtpd.configure() + smtpd.request(phase.name, b"a" * 16, b"b" * 16, argument)
    oracle.from_smtpd(data)
    listener.connection.receive(data)
    oracle.from_filter(listener.connection.data_to_send())
    oracle.finish()
    return [complaint.rule for complaint in oracle.complaints]


@pytest.mark.parametrize("phase", PHASES.values(), ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_each_phase_with_each_decision(phase: Phase, kind: type[Decision]) -> None:
    unfit = (kind.verb.encode(), phase.wire) in rules.UNFIT
    conditional = (kind.verb.encode(), phase.wire) in rules.NEEDS
    if kind in phase.legal:
        assert not unfit
    elif not unfit:
        # The only decisions that smtpd would take and we do not offer are those that it takes
        # under a condition, or where it has no parameter to be rewritten.
        assert conditional or (kind, phase.name) == (Rewrite, "noop")
    # Whatever is asked for, what is sent is fit.
    assert complaints(phase, sample(kind, phase)) == []


@given(
    st.sampled_from([phase for phase in PHASES.values() if Rewrite in phase.legal]),
    st.text(st.sampled_from("<>a@. =:|é\udcff\u2003"), max_size=12)
    | st.sampled_from(["PLAIN", "LOGIN ", "PLAIN a b", "PLAIN AGEAYg=="]),
)
@example(PHASES["helo"], "two words")
@example(PHASES["helo"], "")
@example(PHASES["mail-from"], "<a@b.example")
def test_an_invalid_parameter_is_never_sent(phase: Phase, new: str) -> None:
    assert complaints(phase, Rewrite(new)) == []


@pytest.mark.parametrize("phase", PHASES.values(), ids=str)
def test_a_phase_takes_its_own_parameters(phase: Phase) -> None:
    assert (phase.argument in FORMS) == phase.takes(PARAMETERS.get(phase.name, "x"))


@pytest.mark.parametrize("phase", PHASES.values(), ids=str)
def test_every_outcome_of_a_failure_is_legal(phase: Phase) -> None:
    assert phase.fallbacks.keys() >= {"proceed", "tempfail"}
    assert ("junk" in phase.fallbacks) == (Junk in phase.legal)
    for outcome, fallback in phase.fallbacks.items():
        assert type(fallback) in phase.legal
        assert outcome in {fallback.verb, "tempfail"}
        for protocol in ((0, 5), (0, 6), (0, 7)):
            assert complaints(phase, fallback, protocol) == []
    assert phase.fallbacks["tempfail"].text.startswith("4")


def test_the_oracle_knows_the_same_phases() -> None:
    assert {*PHASES, DATA_LINE, *NEVER_REQUESTED} == {name.decode() for name in rules.PHASES}
    for verb, phase in [*rules.UNFIT, *rules.NEEDS]:
        assert phase in PHASES_ON_WIRE
        assert verb in {kind.verb.encode() for kind in KINDS} | {b"report"}


def test_the_oracle_knows_the_same_reports() -> None:
    assert set(REPORTS) == {name.decode() for name in rules.REPORTS - {b"*"}}


def test_names_are_found_in_both_directions() -> None:
    assert PHASES
    assert REPORTS
    for name, phase in PHASES.items():
        assert PHASES_ON_WIRE[name.encode()] is HANDLERS[name.replace("-", "_")] is phase
        assert repr(phase) == f"<phase {name}>"
    for name, form in REPORTS.items():
        assert form.wire == name.encode()
        assert repr(form) == f"<report {name}>"
        assert form.wide == 0 or form.wide < len(form.fields)
        assert form.optional <= len(form.fields)


def test_only_addresses_get_brackets() -> None:
    assert [phase.name for phase in PHASES.values() if phase.argument == "address"] == [
        "mail-from",
        "rcpt-to",
    ]

"""An answer of a program is passed unchanged, made safe, or a fault: smtpd survives the result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.oracle.decision import faults, is_decision
from smtpd_filters.oracle.rules import RULES, Kind
from smtpd_filters.protocol.decisions import MAX_REPLY
from smtpd_filters.protocol.vocabulary import PHASES, Phase
from smtpd_filters.supervise.answers import MAX_REWRITE, FaultError, check

SURVIVED = {Kind.MISLEADS}
VERBS = (b"proceed", b"junk", b"reject", b"disconnect", b"rewrite", b"report", b"", b"PROCEED")
MAIL, COMMIT, CONNECT = PHASES["mail-from"], PHASES["commit"], PHASES["connect"]


@pytest.mark.parametrize(
    "parameter", [b"550 5.7.1 No", b"421 Go", b"451 caf\xc3\xa9 | x", b"550 x" + b"y" * 500]
)
def test_a_valid_reply_is_unchanged(parameter: bytes) -> None:
    assert check(MAIL, b"reject", parameter) == b"reject|" + parameter
    assert check(MAIL, b"disconnect", parameter) == b"disconnect|" + parameter


@pytest.mark.parametrize(
    ("parameter", "sent"),
    [
        (b"", b"451 Refused"),
        (b"550", b"550 Refused"),
        (b"550 ", b"550 Refused"),
        (b"550-x", b"550 x"),
        (b"Go away", b"451 Go away"),
        (b"250 x", b"451 250 x"),
        (b"550 a\rb\0c", b"550 a b?c"),
        (b"5501 x", b"451 5501 x"),
    ],
)
def test_a_reply_is_made_safe(parameter: bytes, sent: bytes) -> None:
    assert check(MAIL, b"reject", parameter) == b"reject|" + sent


def test_a_long_reply_is_cut() -> None:
    assert check(MAIL, b"reject", b"550 " + b"x" * 20000) == b"reject|550 " + b"x" * (MAX_REPLY - 4)


def test_a_rejected_connection_is_closed() -> None:
    assert check(CONNECT, b"reject", b"550 No") == b"disconnect|550 No"
    assert check(CONNECT, b"reject", b"421 No") == b"reject|421 No"


@pytest.mark.parametrize("phase", PHASES.values(), ids=str)
def test_a_report_counts_as_proceed(phase: Phase) -> None:
    assert check(phase, b"report", b"text") == b"proceed"


@pytest.mark.parametrize(
    ("phase", "verb", "parameter"),
    [
        (MAIL, b"proceed", b""),
        (MAIL, b"junk", b"x"),
        (MAIL, b"", None),
        (MAIL, b"PROCEED", None),
        (MAIL, b"reject", None),
        (MAIL, b"rewrite", None),
        (MAIL, b"report", None),
        (MAIL, b"rewrite", b"a\rb"),
        (MAIL, b"rewrite", b"x" * (MAX_REWRITE + 1)),
        (COMMIT, b"junk", None),
        (COMMIT, b"rewrite", b"x"),
    ],
)
def test_faults(phase: Phase, verb: bytes, parameter: bytes | None) -> None:
    with pytest.raises(FaultError):
        check(phase, verb, parameter)


@given(
    st.sampled_from(list(PHASES.values())),
    st.sampled_from(VERBS),
    st.none() | st.binary(max_size=40) | st.binary(max_size=40).map(lambda text: b"550 " + text),
    st.sampled_from([(6, 8), (7, 8)]),
)
def test_smtpd_survives(
    phase: Phase, verb: bytes, parameter: bytes | None, server: tuple[int, int]
) -> None:
    parameter = parameter if parameter is None else parameter.replace(b"\n", b"")
    try:
        wire = check(phase, verb, parameter)
    except FaultError:
        return
    sent, bar, text = wire.partition(b"|")
    assert b"\n" not in wire
    assert is_decision(sent, text if bar else None)
    broken = faults(phase.wire, sent, text, server)
    assert all(RULES[name].kind in SURVIVED for name in broken), broken
    assert not {"reply-no-code", "reply-too-long", "text-control", "reject-at-connect"} & {*broken}

from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.protocol.decisions import (
    JUNK,
    MAX_PARAMETER,
    MAX_REPLY,
    PROCEED,
    Decision,
    Disconnect,
    Junk,
    Proceed,
    Reject,
    Rewrite,
    reply,
)

REPLY = re.compile(r"[45][0-9][0-9] [ -~]+")

GOOD = [
    "550 5.7.1 No",
    "421 x",
    "550 5.1.1",
    "450 1.2.3 x",
    "550 4.4444.1 x",
    "550 4.7 x",
    "599 \\|%s",
    "450 " + "x" * (MAX_REPLY - 4),
]
BAD = [
    "",
    "550",
    "550 ",
    "550  ",
    "250 ok",
    "650 no",
    "5x0 no",
    "550-no",
    "no",
    "\u066550 no",
    "550 two\nlines",
    "550 carriage\rreturn",
    "550 nul\0",
    "550 tab\t",
    "550 ümlaut",
    "550 \udcff",
    "550 " + "x" * (MAX_REPLY - 3),
]


@pytest.mark.parametrize("kind", [Reject, Disconnect])
@pytest.mark.parametrize("text", GOOD)
def test_a_reply_is_sent_as_it_is(kind: type[Reject | Disconnect], text: str) -> None:
    decision = kind(text)
    assert decision.wire == decision.verb.encode() + b"|" + text.encode()
    assert decision.text == text


@pytest.mark.parametrize("kind", [Reject, Disconnect])
@pytest.mark.parametrize("text", BAD)
def test_an_invalid_reply_raises_where_it_is_created(
    kind: type[Reject | Disconnect], text: str
) -> None:
    with pytest.raises(ValueError, match="a reply"):
        kind(text)


@pytest.mark.parametrize("kind", [Reject, Disconnect])
@pytest.mark.parametrize("text", ["452 5.2.2 Full", "550 4.2.2", "550 2.0.0 x", "421 5.999.0 x"])
def test_codes_that_contradict_each_other_raise(kind: type[Reject | Disconnect], text: str) -> None:
    code, status = text.split()[:2]
    with pytest.raises(ValueError, match=f"^the codes {code} and {status} contradict each other"):
        kind(text)


@pytest.mark.parametrize(
    ("code", "enhanced", "text", "line"),
    [
        (452, "5.2.2", "Full", "452 4.2.2 Full"),
        (550, "", "4.7.1 No", "550 5.7.1 No"),
        (550, "", "\n2.0.0", "550 5.0.0"),
        (550, "5.7.1", "4.7.1 No", "550 5.7.1 4.7.1 No"),
        (450, "", "1.2.3 x", "450 1.2.3 x"),
    ],
)
def test_a_status_gets_the_class_of_the_code(
    code: int, enhanced: str, text: str, line: str
) -> None:
    assert reply(code, enhanced, text) == line


@given(
    st.integers(400, 599),
    st.sampled_from(("", "5.7.1", "4.3.0")),
    st.text(max_size=700) | st.from_regex(r"[2-6]\.[0-9]{1,4}\.[0-9]{1,4}( x)?"),
)
def test_any_text_makes_a_reply(code: int, enhanced: str, text: str) -> None:
    line = reply(code, enhanced, text)
    enhanced = enhanced and f"{code // 100}{enhanced[1:]}"
    assert REPLY.fullmatch(line)
    assert len(line) <= MAX_REPLY
    assert Reject(line).text == line
    assert line.startswith(f"{code} {enhanced}")


def test_a_text_from_outside_is_made_safe() -> None:
    assert reply(550, "5.7.1", "two\r\nlines\tand  ü\0") == "550 5.7.1 two lines and ??"
    assert reply(451, "", " ") == "451 Refused"


@pytest.mark.parametrize("code", [0, 55, 200, 399, 600, 5500])
def test_a_reply_needs_a_code_that_refuses(code: int) -> None:
    with pytest.raises(ValueError, match="4xx or 5xx"):
        reply(code, "", "x")


@pytest.mark.parametrize("text", ["a" * (8 << 20), "a " * (4 << 20)])
def test_a_reply_of_a_long_text_takes_no_more_work_than_one_of_a_short_text(text: str) -> None:
    tracemalloc.start()
    try:
        line = reply(550, "5.7.1", text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line.startswith("550 5.7.1 ")
    assert peak < 1 << 18


@pytest.mark.parametrize(
    "text", ["", "a@b", "<a@b> SIZE=1", "a|b", "ü", "\udcff", "x" * MAX_PARAMETER]
)
def test_a_parameter_is_sent_as_the_bytes_it_stands_for(text: str) -> None:
    assert Rewrite(text).wire == b"rewrite|" + text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("text", ["a\nb", "\r", "\0", "\x7f", "\t", "x" * 513, "ü" * 257])
def test_a_parameter_is_one_line_of_bounded_length(text: str) -> None:
    with pytest.raises(ValueError, match="a rewritten parameter"):
        Rewrite(text)


def test_missing_brackets_are_added() -> None:
    assert Rewrite("").in_brackets().text == "<>"
    assert Rewrite("a@b").because("why").in_brackets() == Rewrite("<a@b>").because("why")
    bracketed = Rewrite("<a@b> BODY=8BITMIME")
    assert bracketed.in_brackets() is bracketed


def test_brackets_do_not_count() -> None:
    longest = Rewrite("x" * MAX_PARAMETER).because("why").in_brackets()
    assert longest.wire == b"rewrite|<" + b"x" * MAX_PARAMETER + b">"
    assert (longest.text, longest.reason) == (f"<{'x' * MAX_PARAMETER}>", "why")


ALL = [PROCEED, JUNK, Reject("550 a"), Disconnect("550 a"), Rewrite("550 a")]


@pytest.mark.parametrize("decision", ALL)
def test_a_reason_is_for_the_log_alone(decision: Decision) -> None:
    reasoned = decision.because("the reason")
    assert type(reasoned) is type(decision)
    assert (reasoned.wire, reasoned.text, reasoned.verb) == (
        decision.wire,
        decision.text,
        decision.verb,
    )
    assert reasoned.reason == "the reason"
    assert decision.reason == ""
    assert reasoned != decision
    assert reasoned.because("") == decision
    for reason, shown in ((ValueError("why"), "why"), (None, ""), (5, "5")):
        assert type(decision.because(reason).reason) is str
        assert decision.because(reason).reason == shown
    assert "reason='the reason'" in repr(reasoned)


def test_decisions_are_values() -> None:
    assert len({*ALL, *(one.because("") for one in ALL)}) == len(ALL)
    assert (PROCEED == "proceed") is False
    assert repr(PROCEED) == "Proceed()"
    assert repr(Reject("550 a").because("b")) == "Reject('550 a', reason='b')"
    assert Proceed() == PROCEED
    assert Junk() == JUNK
    match Reject("550 a"):
        case Reject(text):
            assert text == "550 a"


def test_a_decision_never_changes() -> None:
    with pytest.raises(AttributeError, match="decisions are immutable"):
        PROCEED.wire = b"junk"
    with pytest.raises(AttributeError, match="decisions are immutable"):
        del PROCEED.reason
    assert PROCEED.wire == b"proceed"

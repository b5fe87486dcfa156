"""The actions of access(5), and the decisions that they become."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.errors import UnavailableError
from smtpd_filters.filters.policy.actions import DEFAULTS, Action, decide, field, parse
from smtpd_filters.protocol.decisions import Decision
from tests.effort import part


def decision(text: str, phase: str = "rcpt_to", **outcomes: str) -> Decision:
    return decide(parse(text), phase, DEFAULTS | outcomes)


@pytest.mark.parametrize(
    "text",
    ["OK", "ok", "DUNNO", "dunno some text", "PERMIT", "1", "1669852800", "450", "WARN look here",
     "INFO x", "DEFER_IF_REJECT 4.2.0 later", "PREPEND X-A: b", "RELAY"],
)  # fmt: skip
def test_what_accepts(text: str) -> None:
    assert decision(text).verb == "proceed"


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("REJECT", "554 5.7.1 Access denied"),
        ("reject go away", "554 5.7.1 go away"),
        ("REJECT 5.1.1 no such user", "554 5.1.1 no such user"),
        ("REJECT 4.2.0 no such user", "554 5.2.0 no such user"),
        ("DEFER", "450 4.7.1 Try again later"),
        ("DEFER_IF_PERMIT 4.2.0 Greylisted, see http://x/y.html",
         "450 4.2.0 Greylisted, see http://x/y.html"),
        ("DEFER_IF_PERMIT 5.2.0", "450 4.2.0 Try again later"),
        ("552 5.2.2 Mailbox is full", "552 5.2.2 Mailbox is full"),
        ("550 no", "550 5.7.1 no"),
        ("452 not now", "452 4.7.1 not now"),
        ("\tREJECT\t no ", "554 5.7.1 no"),
        ("550\tno", "550 5.7.1 no"),
        ("450  4.1.1 twice", "450 4.1.1 twice"),
        ("451 5.1.1 contradictory", "451 4.1.1 contradictory"),
        ("554 5.7.1", "554 5.7.1 Access denied"),
        ("550 \xfc\x07 text\udcff", "550 5.7.1 ?? text?"),
        ("550 " + "x" * 5000, "550 5.7.1 " + "x" * 500),
    ],
)  # fmt: skip
def test_what_refuses(text: str, reply: str) -> None:
    refused = decision(text)
    assert (refused.verb, refused.text) == ("reject", reply)


@pytest.mark.parametrize("text", ["421 4.7.0 enough", "521 5.7.1 go away"])
def test_what_closes_the_connection(text: str) -> None:
    refused = decision(text)
    assert (refused.verb, refused.text) == ("disconnect", text)


@pytest.mark.parametrize(
    "text",
    ["FILTER smtp:[127.0.0.1]:10025", "BCC archive@example.org", "permit_mynetworks", "DELAY 1h",
     "", "650 text", "200 text", "1234 text", "reject_unverified_sender", "STRIP X-A"],
)  # fmt: skip
def test_what_is_not_possible_fails(text: str) -> None:
    with pytest.raises(UnavailableError, match="is not possible") as failed:
        decision(text)
    assert failed.value.status == "4.3.5"


@pytest.mark.parametrize(
    ("outcome", "verb", "reply"),
    [
        ("proceed", "proceed", ""),
        ("junk", "junk", ""),
        ("tempfail", "reject", "450 4.7.1 Try again later"),
        ("reject", "reject", "554 5.7.1 Access denied"),
    ],
)
@pytest.mark.parametrize("name", DEFAULTS)
def test_outcomes_that_the_operator_chooses(name: str, outcome: str, verb: str, reply: str) -> None:
    made = decision(f"{name} something", **{name: outcome})
    assert (made.verb, made.text) == (verb, reply)
    assert name in made.reason


def test_what_smtpd_lacks_by_default() -> None:
    assert decision("HOLD for review").verb == "junk"
    assert decision("DISCARD quietly").text.startswith("554 ")


def test_a_recipient_is_replaced_where_there_is_one() -> None:
    made = decision("REDIRECT postmaster@example.org")
    assert (made.verb, made.text) == ("rewrite", "<postmaster@example.org>")
    for phase in ("connect", "mail_from", "data", "message"):
        with pytest.raises(UnavailableError):
            decision("REDIRECT postmaster@example.org", phase)


@pytest.mark.parametrize("text", ["", "postmaster", "a@b> SIZE=1", "a b@c", "@c", "a@", "ä@b"])
def test_nobody_is_redirected_to_what_is_not_an_address(text: str) -> None:
    with pytest.raises(UnavailableError):
        decision(f"REDIRECT {text}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("X-Greylist: delayed 3 seconds: x", ("X-Greylist", "delayed 3 seconds: x")),
        ("Received-SPF: None (mailfrom); ", ("Received-SPF", "None (mailfrom);")),
        ("X-Empty:", ("X-Empty", "")),
        ("no field", None),
        ("X Y: z", None),
        (": z", None),
        ("", None),
        ("X\xfc: z", None),
    ],
)
def test_fields(text: str, expected: tuple[str, str] | None) -> None:
    assert field(Action("PREPEND", text)) == expected


@settings(max_examples=part(2000))
@given(
    st.sampled_from(["REJECT", "550", "421", "PREPEND", "REDIRECT", "HOLD", "WARN", "x", "4.2.0"]),
    st.text(max_size=40),
    st.sampled_from(["connect", "rcpt_to", "message"]),
)
def test_whatever_a_server_says(word: str, text: str, phase: str) -> None:
    action = parse(f"{word} {text}")
    field(action)
    try:
        made = decide(action, phase)
    except UnavailableError as error:
        assert str(error).isascii()  # noqa: PT017  # one of two outcomes
    else:
        assert made.text.isprintable()
        assert made.verb != "rewrite" or phase == "rcpt_to"

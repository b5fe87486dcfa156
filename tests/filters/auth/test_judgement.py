from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.authentication import dmarc, spf
from smtpd_filters.authentication.dkim.arc import ArcResult, ArcSet
from smtpd_filters.authentication.dkim.driver import Verified
from smtpd_filters.authentication.dkim.signatures import Signature
from smtpd_filters.authentication.results import parse, write
from smtpd_filters.filters.auth.authors import Authors
from smtpd_filters.filters.auth.evidence import Evidence
from smtpd_filters.filters.auth.fields import results
from smtpd_filters.filters.auth.judgement import ACTIONS, Actions, Judgement
from smtpd_filters.session import Session

if TYPE_CHECKING:
    from smtpd_filters.protocol.decisions import Decision

STRICT = Actions("log", "log", "log", "junk", "reject", "log")
FAIL = dmarc.Verdict(
    "fail",
    dmarc.Policy("example.org", dmarc.Record(p="reject"), "example.org", "example.org",
                 "reject", "reject"),
    "reject",
)  # fmt: skip
PASSED = "mx.list.example; spf=pass smtp.mailfrom=example.org; dmarc=pass header.from=example.org"


def judged(arc: ArcResult, trusted: tuple[str, ...]) -> Judgement:
    evidence = Evidence(Authors(("example.org",)), verified=Verified((), 0, arc), verdicts=(FAIL,))
    return Judgement(
        STRICT,
        evidence,
        excepts=lambda _: None,
        trusts=lambda domain: domain if domain in trusted else None,
    )


def chain(*sets: tuple[str, str], result: str = "pass") -> ArcResult:
    made = [ArcSet(number, domain, "s", text) for number, (domain, text) in enumerate(sets, 1)]
    return ArcResult(result, "", tuple(made))


@pytest.mark.parametrize(
    ("arc", "trusted", "overridden"),
    [
        (chain(("list.example", PASSED)), ("list.example",), True),
        (chain(("list.example", PASSED)), (), False),
        (chain(("list.example", PASSED)), ("other.example",), False),
        (chain(("list.example", PASSED), result="fail"), ("list.example",), False),
        (chain(("list.example", PASSED.replace("dmarc=pass", "dmarc=fail"))), ("list.example",),
         False),
        (chain(("list.example", PASSED.replace("from=example.org", "from=evil.example"))),
         ("list.example",), False),
        (chain(("list.example", PASSED + "; (")), ("list.example",), False),
        (chain(("list.example", "")), ("list.example",), False),
        # The newest sealer is trusted to have checked the older ones, and only then are they.
        (chain(("a.example", PASSED), ("b.example", "mx.b.example; arc=pass")),
         ("a.example", "b.example"), True),
        (chain(("a.example", PASSED), ("b.example", "mx.b.example; arc=pass")), ("a.example",),
         False),
        (chain(("a.example", PASSED), ("b.example", "mx.b.example; arc=pass")), ("b.example",),
         False),
        (ArcResult("none"), ("list.example",), False),
    ],
)  # fmt: skip
def test_a_trusted_sealer_changes_the_action_and_not_the_result(
    arc: ArcResult, trusted: tuple[str, ...], *, overridden: bool
) -> None:
    judgement = judged(arc, trusted)
    decision: Decision = judgement.decision("proceed")
    assert decision.verb == ("proceed" if overridden else "reject")
    assert ("overridden by ARC sealer" in decision.reason) is overridden
    assert judgement.overridden == (["example.org"] if overridden else [])
    session = Session(b"0").expect(["username"])
    evidence = Evidence(Authors(("example.org",)), verified=Verified((), 0, arc), verdicts=(FAIL,))
    content = parse(write("mx", results(session, evidence, judgement.overridden)))
    assert content is not None
    found = [each for each in content.results if each.method == "dmarc"]
    assert [(each.result, dict(each.properties)["policy.dmarc"]) for each in found] == [
        ("fail", "none" if overridden else "reject")
    ]


@given(st.lists(st.sampled_from(ACTIONS), min_size=6, max_size=6), st.sampled_from(
    ["proceed", "junk", "tempfail"]))  # fmt: skip
def test_the_strictest_action_is_taken(actions: list[str], on_error: str) -> None:
    evidence = Evidence(
        Authors(problem="no From field"),
        mail=spf.Verdict("softfail", "example.org"),
        verified=Verified((Signature("fail", "example.org", reason="x"),), 0, ArcResult("none")),
        verdicts=(FAIL,),
    )
    made = Actions(*actions)
    judgement = Judgement(made, evidence, excepts=lambda _: None, trusts=lambda _: None)
    decision = judgement.decision(on_error)
    taken = [made.spf_softfail, made.dkim_fail, made.reject, made.bad_from]
    strictest = max(taken, key=ACTIONS.index)
    codes = {"tempfail": "451 4.7.", "reject": "550 5.7."}
    assert decision.text.startswith(codes.get(strictest, ""))
    verbs = {"junk": "junk", "tempfail": "reject", "reject": "reject"}
    assert decision.verb == verbs.get(strictest, "proceed")
    assert len(list(filter(None, decision.reason.split("; ")))) == sum(
        each != "ignore" for each in taken
    )


@given(st.text(), st.text(), st.text(), st.text())
def test_no_text_of_a_sender_is_a_result(domain: str, identity: str, user: str, why: str) -> None:
    evidence = Evidence(
        Authors((domain,)),
        helo=spf.Verdict("fail", identity, problem=why),
        mail=spf.Verdict("temperror", domain, problem=why),
        verified=Verified(
            (Signature("permerror", domain, identity, identity, why, why, user),), 3,
            ArcResult("fail", why),
        ),
        verdicts=(dmarc.Verdict("fail", dmarc.Policy(domain)),),
    )  # fmt: skip
    session = Session(b"0").expect(["username"])
    session.username = user
    written = results(session, evidence, ())
    content = parse(write("mx.example.org", written))
    if content is not None:  # too large
        assert [(each.method, each.result) for each in content.results] == [
            (each.method, each.result) for each in written
        ]
    assert ("dmarc", "pass") not in [(each.method, each.result) for each in written]

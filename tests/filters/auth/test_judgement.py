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
from smtpd_filters.errors import UnavailableError
from smtpd_filters.filters.auth.actions import points_of
from smtpd_filters.filters.auth.authors import Authors
from smtpd_filters.filters.auth.evidence import Evidence
from smtpd_filters.filters.auth.fields import results
from smtpd_filters.filters.auth.judgement import ACTIONS, MAX_UNKNOWN, Actions, Judgement
from smtpd_filters.protocol.decisions import Points
from smtpd_filters.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

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


WORDS = [word for word in ACTIONS if word != "points"]


@given(
    st.lists(st.sampled_from([*WORDS, "points=1.5", "points=0.25"]), min_size=6, max_size=6),
    st.sampled_from(["proceed", "junk", "tempfail"]),
)
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
    strictest = max((each.partition("=")[0] for each in taken), key=ACTIONS.index)
    codes = {"tempfail": "451 4.7.", "reject": "550 5.7."}
    assert decision.text.startswith(codes.get(strictest, ""))
    verbs = {"junk": "junk", "tempfail": "reject", "reject": "reject"}
    assert decision.verb == verbs.get(strictest, "proceed")
    if strictest == "points":
        assert isinstance(decision, Points)
        assert decision.points == sum(map(points_of, taken))
        assert decision.points <= made.points
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


def test_of_several_authors_the_most_points_count() -> None:
    others = [
        dmarc.Verdict("fail", dmarc.Policy(name, dmarc.Record(p=p), requested=p, applied=p), p)
        for name, p in (("a.example", "quarantine"), ("b.example", "reject"), ("c.example", "none"))
    ]
    evidence = Evidence(
        Authors(tuple(each.policy.domain for each in others)),
        mail=spf.Verdict("fail", "x.example"),
        verdicts=tuple(others),
    )
    actions = Actions("points=1", "points=9", "log", "points=2", "points=4", "log")

    def excepts(domain: str) -> str | None:
        return domain if domain == "x.example" else None

    for exceptions, points in ((lambda _: None, 5.0), (excepts, 4.0)):
        judgement = Judgement(actions, evidence, excepts=exceptions, trusts=lambda _: None)
        decision = judgement.decision("tempfail")
        assert isinstance(decision, Points)
        assert (decision.points, actions.points) == (points, 13.0)


@pytest.mark.parametrize(
    ("actions", "trusted", "sealer", "expected"),
    [
        (STRICT, True, PASSED, "451 4.4.3 DMARC of example.org "),
        (Actions("log", "log", "log", "junk", "junk", "log"), True, PASSED, "451 4.4.3 "),
        (STRICT, False, PASSED, "550 5.7.26 "),
        (STRICT, True, PASSED.replace("dmarc=pass", "dmarc=fail"), "550 5.7.26 "),
        (Actions("log", "log", "log", "junk", "reject", "log", "log"), True, PASSED, "550 5.7.26 "),
    ],
)
def test_a_trusted_chain_that_can_not_be_validated_now(
    actions: Actions, sealer: str, expected: str, *, trusted: bool
) -> None:
    sets = (ArcSet(1, "a.example", "s", sealer),)
    arc = ArcResult("fail", "seal 1: key: timeout", sets, temporary=True)
    evidence = Evidence(Authors(("example.org",)), verified=Verified((), 0, arc), verdicts=(FAIL,))
    judgement = Judgement(
        actions,
        evidence,
        excepts=lambda _: None,
        trusts=lambda domain: domain if trusted else None,
    )
    decision = judgement.decision("proceed")
    assert decision.text.startswith(expected)
    known = decision.text.startswith("550")
    assert ("ARC sealer a.example: seal 1: key: timeout" in decision.reason) is not known
    session = Session(b"0").expect(["username"])
    for sealed, result in ((False, "temperror"), (True, "fail")):
        found = results(session, evidence, (), sealed=sealed)
        assert [each.result for each in found if each.method == "arc"] == [result]


def test_the_sets_of_a_chain_that_is_not_valid_are_hardly_read() -> None:
    """Anybody can write 50 of them, and the results in one take some milliseconds."""
    text = PASSED.replace("dmarc=pass", "dmarc=fail")
    sets = tuple(ArcSet(number, "a.example", "s", text) for number in range(1, 51))
    asked: list[str] = []

    def trusts(domain: str) -> str:
        asked.append(domain)
        return domain

    for temporary, number in ((False, 0), (True, MAX_UNKNOWN)):
        arc = ArcResult("fail", "x", sets, temporary=temporary)
        verified = Verified((), 0, arc)
        evidence = Evidence(Authors(("example.org",)), verified=verified, verdicts=(FAIL,))
        Judgement(STRICT, evidence, excepts=lambda _: None, trusts=trusts)
        assert len(asked) == number


@pytest.mark.parametrize(
    ("on_error", "verb"), [("proceed", "proceed"), ("junk", "junk"), ("tempfail", "reject")]
)
@pytest.mark.parametrize("which", ["excepts", "trusts"])
def test_a_table_whose_server_is_down(which: str, on_error: str, verb: str) -> None:
    def down(domain: str) -> str | None:
        raise UnavailableError(f"redis: {domain}")

    arc = chain(("list.example", PASSED))
    evidence = Evidence(Authors(("example.org",)), verified=Verified((), 0, arc), verdicts=(FAIL,))
    finders: dict[str, Callable[[str], str | None]]
    finders = {"excepts": lambda _: None, "trusts": lambda _: None, which: down}
    judgement = Judgement(STRICT, evidence, **finders)
    decision = judgement.decision(on_error)
    assert decision.verb == verb
    assert decision.text.startswith("451 4.3.0 ") is (verb == "reject")
    assert decision.reason.startswith("dmarc=fail example.org policy=reject; redis: ")
    assert not judgement.trusts("other.example")
    # Nothing depends on it.
    record = Actions("log", "log", "log", "log", "log", "log")
    assert Judgement(record, evidence, **finders).decision(on_error).verb == "proceed"
    # The results are stated all the same.
    session = Session(b"0").expect(["username"])
    assert ("dmarc", "fail") in [(e.method, e.result) for e in results(session, evidence, ())]


@pytest.mark.parametrize("on_error", ["proceed", "junk", "tempfail"])
@pytest.mark.parametrize(
    ("actions", "verb"),
    [
        (Actions("log", "log", "log", "log", "junk", "log"), "reject"),
        (Actions("log", "log", "log", "log", "reject", "log"), "reject"),
        (Actions("log", "log", "log", "junk", "log", "log"), "proceed"),
        (Actions("log", "log", "log", "log", "junk", "log", "junk"), "junk"),
        (Actions("log", "log", "log", "log", "points=5", "log"), "proceed"),
        (Actions("log", "log", "log", "log", "points=5", "log", "points=2"), "points"),
        (Actions("log", "log", "log", "log", "ignore", "log", "ignore"), "proceed"),
        # What is known comes first.
        (Actions("junk", "log", "log", "log", "reject", "log"), "junk"),
    ],
)
def test_a_policy_at_stake_has_an_action_of_its_own(
    actions: Actions, verb: str, on_error: str
) -> None:
    unknown = dmarc.Verdict("temperror", FAIL.policy, problem="timeout", at_stake="reject")
    spf_result = spf.Verdict("fail", "x.example")
    for arc, trusted in ((ArcResult("none"), False), (chain(("list.example", PASSED)), True)):
        evidence = Evidence(
            Authors(("example.org",)),
            mail=spf_result,
            verified=Verified((), 0, arc),
            verdicts=(unknown,),
        )
        judgement = Judgement(
            actions, evidence, excepts=lambda _: None, trusts=lambda domain: domain
        )
        decision = judgement.decision(on_error)
        logged = trusted or actions.dmarc_error != "ignore"
        assert ("dmarc=temperror example.org policy=reject: timeout" in decision.reason) is logged
        if trusted and actions.spf_fail != "junk":
            assert decision.verb == "proceed"
        elif verb == "points":
            assert isinstance(decision, Points)
            assert decision.points == 2
        else:
            assert decision.verb == verb
        if decision.verb == "reject":
            assert decision.text.startswith("451 4.4.3 DMARC of example.org ")


def test_no_points_depend_on_a_failed_look_up() -> None:
    evidence = Evidence(Authors(), mail=spf.Verdict("temperror", "x.example", problem="x"))
    actions = Actions("points=1", "points=9", "log", "log", "log", "log")
    judgement = Judgement(actions, evidence, excepts=lambda _: None, trusts=lambda _: None)
    assert judgement.decision("tempfail").verb == "proceed"

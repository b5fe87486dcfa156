"""DMARC: the examples of RFC 9989's appendix B.4, and each rule of its sections 4.5 to 4.10."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpd_filters.authentication.dmarc import (
    MAX_QUERIES,
    Identifier,
    Policy,
    Record,
    Verdict,
    align,
    discover,
    evaluate,
    parse,
)
from smtpd_filters.lookups.outcome import Found
from tests.authentication.zones import TIMEOUT, Steps, Zone, solve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smtpd_filters.authentication.inquiry import Question
    from smtpd_filters.lookups.outcome import Outcome


def records_at(records: dict[str, Any], *existing: str) -> Zone:
    return Zone(
        {
            **{name: {"A": ["192.0.2.1"]} for name in existing},
            **{f"_dmarc.{name}": {"TXT": text} for name, text in records.items()},
        }
    )


def spf(domain: str, result: str = "pass") -> Identifier:
    return Identifier("spf", domain, result)


def dkim(domain: str, result: str = "pass") -> Identifier:
    return Identifier("dkim", domain, result)


NONE = "v=DMARC1; p=none"
REJECT = "v=DMARC1; p=reject"


# -- RFC 9989 appendix B.4 -------------------------------------------------------------------


def walked(steps: Steps, domain: str) -> list[str]:
    asked = [name.removeprefix("_dmarc.") for name, rdtype in steps.questions if rdtype == "TXT"]
    return [name for name in asked if domain == name or domain.endswith(f".{name}")]


def test_b_4_1_simple_organizational_and_policy_example() -> None:
    steps = Steps(records_at({"example.com": NONE, "signing.example.com": NONE}))
    policy = steps.solve(discover("example.com"))
    assert walked(steps, "example.com") == ["example.com", "com"]
    assert (policy.organization, policy.source) == ("example.com", "example.com")
    verdict = steps.solve(align(policy, [spf("example.com"), dkim("signing.example.com")]))
    assert verdict.aligned == (spf("example.com"), dkim("signing.example.com"))
    assert steps.steps[-1] == [
        ("_dmarc.signing.example.com", "TXT"),
        ("_dmarc.example.com", "TXT"),
        ("_dmarc.com", "TXT"),
    ]


def test_b_4_2_deep_tree_walk_example() -> None:
    author = "a.b.c.d.e.f.g.h.i.j.k.example.com"
    steps = Steps(records_at({"example.com": NONE, "signing.example.com": NONE}))
    policy = steps.solve(discover(author))
    assert steps.steps == [
        [
            (f"_dmarc.{name}", "TXT")
            for name in (
                author,
                "g.h.i.j.k.example.com",
                "h.i.j.k.example.com",
                "i.j.k.example.com",
                "j.k.example.com",
                "k.example.com",
                "example.com",
                "com",
            )
        ]
    ]
    assert (policy.organization, policy.source) == ("example.com", "example.com")
    verdict = steps.solve(align(policy, [spf("example.com"), dkim("signing.example.com")]))
    assert verdict.aligned == (spf("example.com"), dkim("signing.example.com"))


def test_b_4_3_example_with_a_psd_policy_record() -> None:
    answers = records_at({"bank.example": "v=DMARC1; p=reject; psd=y", "giant.bank.example": NONE})
    policy = solve(discover("giant.bank.example"), answers)
    assert (policy.organization, policy.source) == ("giant.bank.example", "giant.bank.example")
    identifiers = [spf("mail.giant.bank.example"), dkim("mail.mega.bank.example")]
    assert solve(align(policy, identifiers), answers).aligned == (spf("mail.giant.bank.example"),)
    other = solve(discover("mail.mega.bank.example"), answers)
    assert (other.organization, other.source) == ("mega.bank.example", "bank.example")


@pytest.mark.parametrize(
    ("domain", "count"),
    [("com", 1), ("example.com", 2), ("a.b.c.d.e.f.g", 7), ("a.b.c.d.e.f.g.h", 8),
     ("a.b.c.d.e.f.g.h.i", 8), (".".join("a" * 120), 8)],
)  # fmt: skip
def test_a_walk_is_short(domain: str, count: int) -> None:
    steps = Steps(Zone({}))
    assert steps.solve(discover(domain)) == Policy(domain, organization=domain)
    assert len(steps.steps) == 1
    assert len(steps.questions) == count <= MAX_QUERIES


# -- records ---------------------------------------------------------------------------------

RECORDS: dict[str, Record | None] = {
    "v=DMARC1": Record(),
    "v=DMARC1;": Record(),
    "v = DMARC1 ; p = Reject ; ": Record(p="reject"),
    "V=DMARC1; p=reject": None,
    "v=dmarc1; p=reject": None,
    "v=DMARC10; p=reject": None,
    "v=DMARC1 p=reject": None,
    " v=DMARC1; p=reject": None,
    "p=reject; v=DMARC1": None,
    "v=spf1 -all": None,
    "": None,
    "v=DMARC1; P=QUARANTINE; SP=None": Record(p="quarantine", sp="none"),
    "v=DMARC1; p=deny; sp=; np=reject": Record(p="invalid", sp="invalid", np="reject"),
    "v=DMARC1; adkim=s; aspf=S": Record(strict_dkim=True, strict_spf=True),
    "v=DMARC1; adkim=strict; aspf=r": Record(),
    "v=DMARC1; t=y": Record(testing=True),
    "v=DMARC1; t=yes": Record(),
    "v=DMARC1; pct=0": Record(testing=True),
    "v=DMARC1; pct=50; rf=afrf; ri=86400; fo=1:D; x=y": Record(fo="1:d"),
    "v=DMARC1; psd=y": Record(psd="y"),
    "v=DMARC1; psd=N": Record(psd="n"),
    "v=DMARC1; psd=u": Record(),
    "v=DMARC1; psd=1": Record(),
    "v=DMARC1; rua=mailto:A@example.com": Record(rua=("mailto:A@example.com",)),
    "v=DMARC1; rua=a@example.com": Record(),
    "v=DMARC1; rua=a@example.com, mailto:b@example.com!10m": Record(
        rua=("mailto:b@example.com!10m",)
    ),
    "v=DMARC1; rua=" + ",".join(["mailto:a@example.com"] * 9): Record(
        rua=("mailto:a@example.com",) * 8
    ),
    f"v=DMARC1; rua=mailto:{'a' * 320}@example.com": Record(),
    "v=DMARC1; p=reject; p=none": Record(p="reject"),
    "v=DMARC1; =; ;;p=reject": Record(p="reject"),
    "v=DMARC1; p=reject\u00fc": Record(p="invalid"),
}


@pytest.mark.parametrize(("text", "record"), RECORDS.items(), ids=[repr(each) for each in RECORDS])
def test_records(text: str, record: Record | None) -> None:
    assert parse(text.encode()) == record


@given(st.binary(max_size=200))
def test_any_text_is_a_record_or_none(text: bytes) -> None:
    assert parse(text) is None
    assert isinstance(parse(b"v=DMARC1;" + text), Record)


# -- policies --------------------------------------------------------------------------------

#: The author's domain; records; domains that exist; the name of the record, the policy requested
#: and applied.
POLICIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...], tuple[str, str, str]]] = {
    "no record": ("a.example.com", {}, (), ("", "none", "none")),
    "own record": ("example.com", {"example.com": REJECT}, (), ("example.com", "reject", "reject")),
    "sp is not for the domain itself": (
        "example.com", {"example.com": "v=DMARC1; p=none; sp=reject; np=reject"}, (),
        ("example.com", "none", "none"),
    ),
    "p for a subdomain": (
        "a.example.com", {"example.com": REJECT}, (), ("example.com", "reject", "reject"),
    ),
    "sp": (
        "a.example.com", {"example.com": "v=DMARC1; p=none; sp=quarantine"}, (),
        ("example.com", "quarantine", "quarantine"),
    ),
    "np for a domain that does not exist": (
        "a.example.com", {"example.com": "v=DMARC1; p=none; sp=quarantine; np=reject"},
        (), ("example.com", "reject", "reject"),
    ),
    "np for a domain that exists": (
        "a.example.com", {"example.com": "v=DMARC1; p=none; sp=quarantine; np=reject"},
        ("a.example.com",), ("example.com", "quarantine", "quarantine"),
    ),
    "np for an empty non-terminal": (
        "a.example.com", {"example.com": "v=DMARC1; p=none; np=reject"},
        ("b.a.example.com",), ("example.com", "none", "none"),
    ),
    "a record of the subdomain wins": (
        "a.example.com", {"example.com": REJECT, "a.example.com": NONE}, (),
        ("a.example.com", "none", "none"),
    ),
    "the organization's record, not one in between": (
        "a.b.example.com", {"example.com": REJECT, "b.example.com": NONE}, (),
        ("example.com", "reject", "reject"),
    ),
    "psd=n in between ends the walk": (
        "a.b.example.com", {"example.com": REJECT, "b.example.com": "v=DMARC1; p=none; psd=n"}, (),
        ("b.example.com", "none", "none"),
    ),
    "the suffix's record": (
        "a.b.example", {"example": "v=DMARC1; p=reject; sp=quarantine; psd=y"}, (),
        ("example", "quarantine", "quarantine"),
    ),
    "the suffix's record after the organization's": (
        "a.b.example", {"example": "v=DMARC1; p=reject; psd=y", "b.example": NONE}, (),
        ("b.example", "none", "none"),
    ),
    "a record of a top-level domain without psd": (
        "a.example", {"example": REJECT}, (), ("example", "reject", "reject"),
    ),
    "psd=y at the author's domain": (
        "b.example", {"b.example": "v=DMARC1; p=reject; psd=y", "example": NONE}, (),
        ("b.example", "reject", "reject"),
    ),
    "several records at one name are dropped": (
        "a.example.com", {"a.example.com": [NONE, REJECT], "example.com": REJECT}, (),
        ("example.com", "reject", "reject"),
    ),
    "other texts are dropped": (
        "example.com", {"example.com": ["v=spf1 -all", REJECT, "verification=1"]}, (),
        ("example.com", "reject", "reject"),
    ),
    "t=y makes reject quarantine": (
        "example.com", {"example.com": "v=DMARC1; p=reject; t=y"}, (),
        ("example.com", "reject", "quarantine"),
    ),
    "t=y makes quarantine none": (
        "a.example.com", {"example.com": "v=DMARC1; p=reject; sp=quarantine; t=y"}, (),
        ("example.com", "quarantine", "none"),
    ),
    "pct=0 is like t=y": (
        "example.com", {"example.com": "v=DMARC1; p=reject; pct=0"}, (),
        ("example.com", "reject", "quarantine"),
    ),
    "pct is ignored": (
        "example.com", {"example.com": "v=DMARC1; p=reject; pct=1"}, (),
        ("example.com", "reject", "reject"),
    ),
    "no p, with reports": (
        "example.com", {"example.com": "v=DMARC1; rua=mailto:a@example.com"}, (),
        ("example.com", "none", "none"),
    ),
    "no p, without reports": ("example.com", {"example.com": "v=DMARC1"}, (), ("", "none", "none")),
    "invalid sp that applies, with reports": (
        "a.example.com", {"example.com": "v=DMARC1; p=reject; sp=x; rua=mailto:a@example.com"}, (),
        ("example.com", "none", "none"),
    ),
    "invalid sp that applies, without reports": (
        "a.example.com", {"example.com": "v=DMARC1; p=reject; sp=x"}, (), ("", "none", "none"),
    ),
    "invalid sp that doesn't apply": (
        "example.com", {"example.com": "v=DMARC1; p=reject; sp=x"}, (),
        ("example.com", "reject", "reject"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("author", "records", "existing", "expected"), POLICIES.values(), ids=POLICIES
)
def test_policies(
    author: str, records: dict[str, Any], existing: tuple[str, ...], expected: tuple[str, str, str]
) -> None:
    for spelled in (author, author.upper(), f"{author}."):
        policy = solve(discover(spelled), records_at(records, *existing))
        assert (policy.source, policy.requested, policy.applied) == expected
        assert policy.failure == policy.walk_failure == ""


def test_existence_is_asked_for_only_if_it_matters() -> None:
    with_np = {"example.com": "v=DMARC1; p=none; np=reject"}
    steps = Steps(records_at(with_np))
    steps.solve(discover("a.example.com"))
    assert steps.steps[1:] == [[("a.example.com", "A")]]
    for author, records in (("example.com", with_np), ("a.example.com", {"example.com": REJECT})):
        steps = Steps(records_at(records))
        steps.solve(discover(author))
        assert len(steps.steps) == 1


def test_an_internationalised_domain() -> None:
    policy = solve(discover("B\u00fccher.example"), records_at({"xn--bcher-kva.example": REJECT}))
    assert (policy.domain, policy.requested) == ("xn--bcher-kva.example", "reject")


# -- alignment -------------------------------------------------------------------------------

STRICT = "v=DMARC1; p=reject; adkim=s; aspf=s"
TREE = {
    "example.com": REJECT,
    "news.example.com": "v=DMARC1; p=reject; psd=n",
    "strict.example.net": STRICT,
    "example.net": "v=DMARC1; p=quarantine; adkim=s",
    "city.example": "v=DMARC1; p=none; psd=y",
}

#: The author's domain, identifiers, and the result.
ALIGNMENTS: dict[str, tuple[str, list[Identifier], str]] = {
    "nothing": ("example.com", [], "fail"),
    "SPF equal": ("example.com", [spf("example.com")], "pass"),
    "SPF below": ("example.com", [spf("bounce.example.com")], "pass"),
    "SPF above": ("a.example.com", [spf("example.com")], "pass"),
    "SPF beside": ("a.example.com", [spf("b.example.com")], "pass"),
    "SPF of others": ("example.com", [spf("example.net")], "fail"),
    "SPF of a similar name": ("example.com", [spf("badexample.com")], "fail"),
    "SPF of a top-level domain": ("example.com", [spf("com")], "fail"),
    "SPF fail": ("example.com", [spf("example.com", "fail")], "fail"),
    "SPF softfail": ("example.com", [spf("example.com", "softfail")], "fail"),
    "SPF without a domain": ("example.com", [spf("")], "fail"),
    "DKIM equal": ("example.com", [dkim("EXAMPLE.com.")], "pass"),
    "DKIM of one of several": (
        "example.com", [dkim("a.test"), dkim("example.com", "fail"), dkim("m.example.com")], "pass",
    ),
    "DKIM permerror": ("example.com", [dkim("example.com", "permerror")], "fail"),
    "DKIM policy": ("example.com", [dkim("example.com", "policy")], "fail"),
    "SPF fails, DKIM passes": ("example.com", [spf("example.com", "fail"), dkim("a.example.com")],
                               "pass"),
    "below psd=n, from outside": ("example.com", [dkim("a.news.example.com")], "fail"),
    "below psd=n, from inside": ("b.news.example.com", [dkim("a.news.example.com")], "pass"),
    "psd=n itself": ("news.example.com", [dkim("example.com")], "fail"),
    "strict, equal": ("strict.example.net", [dkim("strict.example.net")], "pass"),
    "strict, DKIM below": ("strict.example.net", [dkim("a.strict.example.net")], "fail"),
    "strict, SPF above": ("strict.example.net", [spf("example.net")], "fail"),
    "strict for DKIM, SPF below": ("example.net", [spf("a.example.net")], "pass"),
    "strict for DKIM, DKIM below": ("example.net", [dkim("a.example.net")], "fail"),
    "of a public suffix": ("a.city.example", [dkim("city.example")], "fail"),
    "in one public suffix": ("a.city.example", [dkim("b.city.example")], "fail"),
    "in one organization": ("m.a.city.example", [dkim("x.a.city.example")], "pass"),
    "no policy": ("example.org", [spf("example.org")], "none"),
    "temperror": ("example.com", [spf("example.com", "temperror")], "temperror"),
    "temperror below": ("example.com", [dkim("a.example.com", "temperror")], "temperror"),
    "temperror of others": ("example.com", [spf("example.net", "temperror")], "fail"),
    "temperror beside a pass": (
        "example.com", [spf("example.com", "temperror"), dkim("example.com")], "pass",
    ),
    "temperror, strict, below": (
        "strict.example.net", [spf("a.strict.example.net", "temperror")], "fail",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("author", "identifiers", "result"), ALIGNMENTS.values(), ids=ALIGNMENTS)
def test_alignment(author: str, identifiers: list[Identifier], result: str) -> None:
    verdict = solve(evaluate(author, identifiers), records_at(TREE))
    assert verdict.result == result
    assert bool(verdict.aligned) is (result == "pass")
    assert bool(verdict.problem) is (result == "temperror")
    assert verdict.disposition == (verdict.policy.applied if result == "fail" else "none")


def test_domains_that_cannot_be_aligned_are_not_asked_about() -> None:
    steps = Steps(records_at(TREE))
    policy = steps.solve(discover("example.com"))
    del steps.steps[:]
    others = [dkim(f"{number}.example.org") for number in range(100)]
    assert steps.solve(align(policy, [spf("example.com"), *others])).result == "pass"
    assert not steps.steps
    near = [dkim("a.example.com"), spf("a.b.example.com")]
    assert steps.solve(align(policy, near)).result == "pass"
    assert len(steps.steps) == 1
    assert len(set(steps.questions)) == len(steps.questions) == 5


# -- failures of the DNS ---------------------------------------------------------------------


def failing(records: dict[str, str], *failing_names: str) -> Zone:
    return records_at({**records, **dict.fromkeys(failing_names, TIMEOUT)})


FAILURES: dict[str, tuple[dict[str, str], tuple[str, ...], list[Identifier], str]] = {
    "of the author's own record": ({}, ("a.example.com",), [dkim("a.example.com")], "temperror"),
    "of the parent's": ({}, ("example.com",), [], "temperror"),
    "of the parent's, own record": (
        {"a.example.com": REJECT}, ("example.com",), [dkim("a.example.com")], "pass",
    ),
    "of the parent's, own record, not aligned": (
        {"a.example.com": REJECT}, ("example.com",), [dkim("example.net")], "fail",
    ),
    "of the parent's, own record, perhaps aligned": (
        {"a.example.com": REJECT}, ("example.com",), [dkim("b.example.com")], "temperror",
    ),
    "of the parent's, own record, strict": (
        {"a.example.com": STRICT}, ("example.com",), [dkim("b.example.com")], "fail",
    ),
    "above a psd=n": (
        {"a.example.com": "v=DMARC1; p=reject; psd=n"}, ("example.com",), [dkim("b.example.com")],
        "fail",
    ),
    "of an identifier's walk": (
        {"example.com": REJECT, "a.example.com": REJECT}, ("b.example.com",),
        [dkim("b.example.com")], "temperror",
    ),
    "of an identifier's walk beside a pass": (
        {"example.com": REJECT, "a.example.com": REJECT}, ("b.example.com",),
        [dkim("b.example.com"), dkim("example.com")], "pass",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("records", "names", "identifiers", "result"), FAILURES.values(), ids=FAILURES
)
def test_failures(
    records: dict[str, str], names: tuple[str, ...], identifiers: list[Identifier], result: str
) -> None:
    verdict = solve(evaluate("a.example.com", identifiers), failing(records, *names))
    assert verdict.result == result
    if result == "temperror":
        assert verdict.problem == "timeout"
        assert verdict.disposition == "none"


@pytest.mark.parametrize(
    ("record", "identifiers", "expected"),
    [
        ("v=DMARC1; p=none; np=reject", [], ("temperror", "reject")),
        ("v=DMARC1; p=none; sp=quarantine; np=none", [], ("temperror", "quarantine")),
        ("v=DMARC1; p=reject; np=reject; t=y", [], ("temperror", "quarantine")),
        ("v=DMARC1; p=none; np=reject", [dkim("example.com")], ("pass", "none")),
        ("v=DMARC1; p=nothing; np=nothing", [], ("temperror", "none")),
    ],
)
def test_a_failure_of_the_question_whether_the_author_exists(
    record: str, identifiers: list[Identifier], expected: tuple[str, str]
) -> None:
    answers = Zone({"_dmarc.example.com": {"TXT": record}, "a.example.com": TIMEOUT})
    verdict = solve(evaluate("a.example.com", identifiers), answers)
    assert (verdict.result, verdict.at_stake) == expected
    assert verdict.problem == ("timeout" if expected[0] == "temperror" else "")


@pytest.mark.parametrize("records", [(REJECT.encode(),), (b"other",)])
def test_of_an_incomplete_answer_nothing_is_used(records: tuple[bytes, ...]) -> None:
    zone = records_at({"example.com": NONE})

    def answer(question: Question) -> Outcome[Any]:
        if question == ("_dmarc.a.example.com", "TXT"):
            return Found(records, 60, "too large")
        return zone(question)

    policy = solve(discover("a.example.com"), answer)
    assert (policy.source, policy.failure) == ("example.com", "too large")
    verdict = solve(align(policy, [spf("example.net")]), answer)
    assert (verdict.result, verdict.problem) == ("temperror", "too large")


#: Records, names whose look-ups fail, identifiers; the result, and the policy at stake.
AT_STAKE: dict[
    str, tuple[dict[str, str], tuple[str, ...], list[Identifier], tuple[str, str]]
] = {
    "of the parent": ({"example.com": REJECT}, ("a.example.com",), [], ("temperror", "reject")),
    "of the parent for those below": (
        {"example.com": "v=DMARC1; p=reject; sp=quarantine"}, ("a.example.com",), [],
        ("temperror", "quarantine"),
    ),
    "of the parent, none": ({"example.com": NONE}, ("a.example.com",), [], ("temperror", "none")),
    "of the parent, and others": (
        {"example.com": REJECT}, ("a.example.com",), [dkim("evil.test"), spf("com")],
        ("temperror", "reject"),
    ),
    "nothing is known": ({}, ("a.example.com", "example.com"), [], ("temperror", "none")),
    # Any record would align the author's own domain, and there is one.
    "the author's own domain passed": (
        {"example.com": REJECT}, ("a.example.com",), [dkim("a.example.com")], ("pass", "none"),
    ),
    # An unknown record of the author may be strict.
    "the parent passed": (
        {"example.com": REJECT}, ("a.example.com",), [dkim("example.com")], ("temperror", "none"),
    ),
    "a sibling passed, as the parent permits": (
        {"example.com": REJECT}, ("a.example.com",), [spf("b.example.com")],
        ("temperror", "none"),
    ),
    "a sibling passed, but the parent is strict": (
        {"example.com": STRICT}, ("a.example.com",), [spf("b.example.com")],
        ("temperror", "reject"),
    ),
    "an identifier failed": (
        {"a.example.com": REJECT}, (), [dkim("lame.a.example.com", "temperror")],
        ("temperror", "reject"),
    ),
    "an identifier failed, beside one that may be aligned": (
        {"example.com": REJECT}, ("a.example.com",),
        [dkim("a.example.com", "temperror"), dkim("b.example.com")], ("temperror", "none"),
    ),
    "a walk failed": (
        {"a.example.com": REJECT}, ("example.com",), [dkim("b.example.com")],
        ("temperror", "reject"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("records", "names", "identifiers", "expected"), AT_STAKE.values(), ids=AT_STAKE
)
def test_the_policy_at_stake(
    records: dict[str, str],
    names: tuple[str, ...],
    identifiers: list[Identifier],
    expected: tuple[str, str],
) -> None:
    verdict = solve(evaluate("a.example.com", identifiers), failing(records, *names))
    assert (verdict.result, verdict.at_stake) == expected
    assert verdict.disposition == "none"


_LABEL = st.sampled_from(["a", "b", "com"])
_DOMAIN = st.lists(_LABEL, min_size=1, max_size=10).map(".".join)
_RECORD = st.sampled_from([NONE, REJECT, STRICT, "v=DMARC1; p=reject; psd=y", "v=DMARC1; psd=n",
                           "v=DMARC1; p=none; np=reject", "v=spf1 -all"])  # fmt: skip


@given(
    _DOMAIN,
    st.dictionaries(_DOMAIN, _RECORD, max_size=6),
    st.lists(st.builds(Identifier, st.sampled_from(["spf", "dkim"]), _DOMAIN,
                       st.sampled_from(["pass", "fail"])), max_size=4),
)  # fmt: skip
def test_a_pass_needs_an_identifier_of_the_same_organization(
    author: str, records: dict[str, str], identifiers: list[Identifier]
) -> None:
    answers = records_at(records)
    steps = Steps(answers)
    verdict: Verdict = steps.solve(evaluate(author, identifiers))
    assert len(steps.steps) <= 3
    organization = solve(discover(author), answers).organization
    aligned: Iterable[Identifier] = verdict.aligned
    for each in aligned:
        assert each.result == "pass"
        assert each.domain == author or (
            solve(discover(each.domain), answers).organization == organization
        )
    assert verdict.result in {"pass", "fail", "none"}
    assert (verdict.result == "none") is (verdict.policy.record is None)

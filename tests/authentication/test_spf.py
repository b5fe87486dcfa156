"""SPF: the bounds around pyspf, and what it gets wrong."""

from __future__ import annotations

import tracemalloc
from copy import deepcopy
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import pytest
import spf as pyspf
from hypothesis import example, given
from hypothesis import strategies as st

from smtpd_filters.authentication import spf
from smtpd_filters.authentication.spf import Verdict, macros
from smtpd_filters.authentication.spf.needed import needed
from smtpd_filters.authentication.spf.query import (
    MAX_PARSED,
    MAX_RECORD,
    MAX_TERM,
    MAX_TERMS,
    STEP,
    Work,
)
from smtpd_filters.lookups.outcome import MX, Found, NotFound
from tests.authentication.zones import TIMEOUT, Steps, Zone, solve
from tests.loading import loaded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from smtpd_filters.authentication.inquiry import Engine, Question
    from smtpd_filters.lookups.outcome import Outcome

#: Bytes of an evaluation that waits for an answer.
MAX_WAITING = 128 << 10
V4, V6 = "192.0.2.1", "2001:db8::1"
SENDER = "user@example.com"
PTR = "1.2.0.192.in-addr.arpa"


def check(
    record: Any,
    zone: Mapping[str, Any] | None = None,
    client: str = V4,
    sender: str = SENDER,
    **options: Any,
) -> Verdict:
    return steps_of(record, zone, client, sender, **options)[1]


def steps_of(
    record: Any,
    zone: Mapping[str, Any] | None = None,
    client: str = V4,
    sender: str = SENDER,
    **options: Any,
) -> tuple[list[list[tuple[str, str]]], Verdict]:
    """Return the questions of each step, and the verdict."""
    helo = options.pop("helo", "mail.example.com")
    steps = Steps(Zone({"example.com": {"TXT": record}, **(zone or {})}))
    verdict = steps.solve(spf.check(client, helo, sender, now=0, **options))
    return [[(name, str(rdtype)) for name, rdtype in step] for step in steps.steps], verdict


# -- the result ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "client", "broad"),
    [
        ("ip4:192.0.0.0/8 +all", V4, False),
        ("ip4:192.0.0.0/7 -all", V4, True),
        ("ip6:2000::/12 -all", V6, False),
        ("ip6:2000::/11 -all", V6, True),
        ("ip4:192.0.2.0/24 a:all.test//0 -all", V6, True),
        ("mx:all.test//0 -all", V6, True),
        ("ptr +all", V4, True),
        ("exists:%{p}.test +all", V4, True),
        ("exists:all.test -all", V4, True),
        ("exists:%{Ir}.all.test -all", V4, False),
        ("include:all.test -all", V4, True),
        ("include:some.test +all", V4, False),
        ("redirect=all.test", V4, True),
        ("~all", V4, False),
    ],
)
def test_a_pass_by_a_term_that_most_clients_match_is_broad(
    terms: str,
    client: str,
    broad: bool,  # noqa: FBT001  # a column
) -> None:
    zone = {
        "all.test": {"TXT": "v=spf1 +all", "A": V4, "AAAA": V6, "MX": [(1, "all.test")]},
        "some.test": {"TXT": "v=spf1 include:none.test ip4:192.0.2.0/24 +all"},
        "none.test": {"TXT": "v=spf1 -all"},
        "1.2.0.192.all.test": {"A": V4},
    }
    for explain in (False, True):
        verdict = check(f"v=spf1 {terms}", zone, client, explain=explain)
        assert verdict.result == ("softfail" if terms == "~all" else "pass")
        assert verdict.broad is broad


# -- what is asked, and when -----------------------------------------------------------------


def test_the_terms_of_a_record_are_asked_for_side_by_side() -> None:
    record = (
        "v=spf1 a:a.example.com mx include:b.example.com exists:%{i}.c.example.com ptr "
        "redirect=d.example.com exp=e.example.com"
    )
    steps, verdict = steps_of(record)
    assert steps[1] == [
        ("a.example.com", "A"),
        ("example.com", "MX"),
        ("b.example.com", "TXT"),
        ("192.0.2.1.c.example.com", "A"),
        (PTR, "PTR"),
        ("d.example.com", "TXT"),
    ]
    assert len(steps) == 2
    assert verdict.result == "permerror"  # three void look-ups


def test_exchangers_and_names_of_the_client_are_looked_up_side_by_side() -> None:
    zone = {
        "example.com": {
            "TXT": "v=spf1 mx ptr -all",
            "MX": [(n, f"m{n}.example.com") for n in "123"],
        },
        PTR: {"PTR": ["p1.example.com", "p2.example.com"]},
        "p2.example.com": {"A": V4},
        "m1.example.com": {"A": "192.0.2.9"},
    }
    steps, verdict = steps_of("", zone)
    assert [len(step) for step in steps] == [1, 2, 5]
    assert (verdict.result, verdict.mechanism) == ("pass", "ptr")


def test_the_steps_are_those_of_the_longest_chain() -> None:
    """Each include leads to further look-ups, and so does an exchanger before them."""
    record = "v=spf1 mx include:one.example include:two.example redirect=three.example"
    zone: dict[str, Any] = {"example.com": {"TXT": record, "MX": [(1, "one.mx"), (2, "two.mx")]}}
    for name in ("one", "two"):
        zone[f"{name}.example"] = {"TXT": f"v=spf1 a:h.{name}.example include:%{{d}}.test ?all"}
        zone[f"{name}.example.test"] = {"TXT": f"v=spf1 exists:{name}.test ?all"}
        zone[f"h.{name}.example"] = zone[f"{name}.mx"] = {"A": "192.0.2.9"}
    zone["three.example"] = {"TXT": "v=spf1 ip4:192.0.2.9 -all"}
    steps, verdict = steps_of("", zone)
    assert verdict.result == "fail"
    assert [sorted(step) for step in steps] == [
        [("example.com", "TXT")],
        [
            ("example.com", "MX"), ("one.example", "TXT"), ("three.example", "TXT"),
            ("two.example", "TXT"),
        ],
        [
            ("h.one.example", "A"), ("h.two.example", "A"), ("one.example.test", "TXT"),
            ("one.mx", "A"), ("two.example.test", "TXT"), ("two.mx", "A"),
        ],
        [("one.test", "A"), ("two.test", "A")],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["a", "exists", "include"])
def test_no_more_is_asked_ahead_than_terms_may_look_up(kind: str) -> None:
    """Ten terms that look up: those of included records count, in the order of the evaluation."""
    zone = {
        f"{name}.example": {
            "TXT": "v=spf1 " + " ".join(f"{kind}:{number}.{name}.test" for number in range(20))
        }
        for name in range(12)
    }
    record = "v=spf1 " + " ".join(f"include:{name}.example" for name in range(12)) + " -all"
    steps, verdict = steps_of(record, zone)
    assert verdict.result == "permerror"
    # The record, ten that it includes, and what the first of these names.
    assert [len(step) for step in steps] == [1, 10, 9]


def test_nothing_is_asked_ahead_of_a_term_that_matches_by_itself() -> None:
    steps, verdict = steps_of(f"v=spf1 ip4:{V4} include:a.example.com mx -all")
    assert len(steps) == 1
    assert (verdict.result, verdict.mechanism) == ("pass", f"ip4:{V4}")


def test_an_explanation_is_looked_up_only_for_a_fail_and_on_request() -> None:
    zone = {"e.example.com": {"TXT": "%{i} is not %{d}\u0085"}}
    for record, explain, asked, text in (
        ("v=spf1 -all exp=e.example.com", True, 2, ""),
        ("v=spf1 -all exp=e.example.com", False, 1, ""),
        ("v=spf1 ?all exp=e.example.com", True, 1, ""),
    ):
        steps, verdict = steps_of(record, zone, explain=explain)
        assert len(steps) == asked
        assert verdict.explanation == text
    zone = {"e.example.com": {"TXT": "%{i} is\r\n250 not\x07 %{d}"}}
    verdict = check("v=spf1 -all exp=e.example.com", zone, explain=True)
    assert verdict.explanation == "192.0.2.1 is??250 not? example.com"
    for broken in (TIMEOUT, "x" * (MAX_TERM + 1), "%{x}", ""):
        verdict = check(
            "v=spf1 -all exp=e.example.com", {"e.example.com": {"TXT": broken}}, explain=True
        )
        assert (verdict.result, verdict.explanation) == ("fail", "")


def test_the_number_of_steps_is_bounded() -> None:
    steps = Steps(lambda _: None)  # type: ignore[arg-type, return-value]  # no answer ever arrives
    assert steps.solve(spf.check(V4, "h.example", SENDER, now=0)).result == "permerror"
    assert len(steps.steps) == spf.MAX_RUNS


# -- identities ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sender", "helo", "result", "domain"),
    [
        ('"a@b"@example.com', "h.example", "fail", "example.com"),
        ("a@b@example.com", "h.example", "fail", "example.com"),
        ("user@EXAMPLE.com.", "h.example", "fail", "example.com"),
        ("user@b\u00fccher.example", "h.example", "fail", "xn--bcher-kva.example"),
        ("", "example.com", "fail", "example.com"),
        ("@example.com", "h.example", "fail", "example.com"),
        ("user", "h.example", "none", "user"),
        ("user@", "h.example", "none", ""),
        ("", "localhost", "none", "localhost"),
        ("", "[192.0.2.1]", "none", "[192.0.2.1]"),
        ("", "", "none", ""),
        ("user@[192.0.2.1]", "h.example", "none", "[192.0.2.1]"),
        ("user@" + "a" * 64 + ".example", "h.example", "none", "a" * 64 + ".example"),
        ("user@\udcff.example", "h.example", "none", "\udcff.example"),
    ],
)
def test_identities(sender: str, helo: str, result: str, domain: str) -> None:
    zone = {"xn--bcher-kva.example": {"TXT": "v=spf1 -all"}}
    verdict = check("v=spf1 -all", zone, sender=sender, helo=helo)
    assert (verdict.result, verdict.domain) == (result, domain)


def test_the_helo_identity() -> None:
    zone = Zone({"example.com": {"TXT": "v=spf1 exists:%{l}.%{d} -all"},
                 "postmaster.example.com": {"A": V4}})  # fmt: skip
    assert solve(spf.check(V4, "example.com", "", now=0), zone).result == "pass"


@pytest.mark.parametrize("client", ["", "local", "/var/run/smtpd.sock", "192.0.2.256"])
def test_a_client_without_an_address(client: str) -> None:
    with pytest.raises(ValueError, match="address"):
        check("v=spf1 -all", client=client)


@pytest.mark.parametrize(
    ("client", "record"),
    [("::ffff:192.0.2.1", f"v=spf1 ip4:{V4} -all"), ("fe80::1%eth0", "v=spf1 ip6:fe80::1 -all")],
)
def test_forms_of_an_address(client: str, record: str) -> None:
    assert check(record, client=client).result == "pass"


def test_a_local_part_beyond_ascii_matches_no_term_that_has_it() -> None:
    zone = {"\u00fc.example.com": {"A": V4}, "x.example.com": {"A": V4}}
    for term in ("exists:%{l}.example.com", "a:%{s}.example.com", "include:%{l}.example.com"):
        record = f"v=spf1 {term} exists:x.example.com -all"
        verdict = check(record, zone, sender="\u00fc@example.com")
        assert verdict == Verdict("pass", "example.com", "exists:x.example.com", broad=True)
        assert check(f"v=spf1 {term} -all", zone, sender="\udcff@example.com").result == "fail"


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=spf1 x=%{l} -all", "fail"),
        ("v=spf1 x=%{z} -all", "permerror"),
        ("v=spf1 -all exp=%{s}.%{d}", "fail"),
        (f"v=spf1 ip4:{V4} redirect=%{{l}}.example.com", "pass"),
        ("v=spf1 redirect=%{l}.example.com", "permerror"),
    ],
)
def test_a_modifier_with_a_local_part_beyond_ascii_leads_nowhere(record: str, result: str) -> None:
    verdict = check(record, sender="\u00fc@example.com", explain=True)
    assert verdict.result == result
    assert not verdict.problem.startswith("pyspf")
    assert verdict.explanation == ""


# -- what pyspf gets wrong -------------------------------------------------------------------


def test_void_look_ups_are_counted_per_term() -> None:
    hosts = [(n, f"m{n}.example.com") for n in range(10)]
    zone = {name: {"A": V4} for _, name in hosts}
    record = {"TXT": "v=spf1 mx a:b.example.com -all", "MX": hosts}
    verdict = check("", {"example.com": record, **zone}, client=V6)
    assert verdict.result == "fail"
    verdict = check("v=spf1 a:a.test a:b.test -all")
    assert verdict.result == "fail"
    verdict = check("v=spf1 a:a.test a:b.test a:c.test -all")
    assert (verdict.result, verdict.problem) == ("permerror", "more than 2 void look-ups")


def test_a_failed_look_up_of_the_clients_name_is_no_match() -> None:
    assert check("v=spf1 ptr -all", {PTR: TIMEOUT}).result == "fail"
    assert check("v=spf1 exists:%{p}.example.com -all", {PTR: TIMEOUT}).result == "fail"
    zone = {PTR: {"PTR": ["a.example.com", "b.example.com"]}, "a.example.com": TIMEOUT}
    assert check("v=spf1 ptr -all", zone).result == "fail"
    assert check("v=spf1 ptr -all", {**zone, "b.example.com": {"A": V4}}).result == "pass"


def test_a_failed_look_up_is_a_temperror() -> None:
    for record, zone in (
        (TIMEOUT, {}),
        ("v=spf1 a:a.example.com -all", {"a.example.com": TIMEOUT}),
        ("v=spf1 include:a.example.com -all", {"a.example.com": TIMEOUT}),
    ):
        verdict = check(record, zone)
        assert (verdict.result, verdict.problem) == ("temperror", "DNS: timeout")


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 ip4:192.0.2.0/" + "9" * 4301 + " -all",
        "v=spf1 ip4:192.0.2.0/" + "9" * 400 + " -all",
        "v=spf1 exists:%{d" + "9" * 4301 + "} -all",
        "v=spf1 exists:%{d0}.example.com -all",
        "v=spf1 exists:%{d00}.example.com -all",
        "v=spf1 exists:%{x}.example.com -all",
        "v=spf1 exists:%{a}.example.com -all",
        "v=spf1 exists:%{r}.example.com -all",
        "v=spf1 exists:%{d.example.com -all",
        "v=spf1 exists:%d.example.com -all",
        "v=spf1 exists:100% -all",
        "v=spf1 a:" + "a" * MAX_TERM + " -all",
        "v=spf1 " + "a" * 20_000 + " -all",
        "v=spf1 a:x." + "a" * 20_000 + "! -all",
        "v=spf1 exists:%{d}" + "." * 20_000 + " -all",
        "v=spf1" + " ?all" * MAX_TERMS,
        "v=spf1 " + " " * MAX_RECORD + "-all",
        "v=spf1 ip4:1.2.3.4\x00 -all",
        "v=spf1 \u00fc -all",
    ],
    ids=range(19),
)
def test_a_broken_or_hostile_record_is_a_permerror(
    record: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert check(record).result == "permerror"
    assert capfd.readouterr() == ("", "")


def test_many_digits_of_a_macro() -> None:
    zone = {"example.com.a.test": {"A": V4}}
    for digits in ("2", "02", "00002", "9" * 300):
        assert check(f"v=spf1 exists:%{{d{digits}}}.a.test -all", zone).result == "pass"


def test_unknown_modifiers_may_be_repeated() -> None:
    assert check("v=spf1 x=a X=b y=%{d} y=c -all").result == "fail"
    assert check("v=spf1 x=a x=%{z} -all").result == "permerror"
    assert check("v=spf1 exp=a.test exp=b.test -all").result == "permerror"
    assert check("v=spf1 redirect=a.test redirect=b.test").result == "permerror"
    assert check("v=spf1 Redirect=a.test", {"a.test": {"TXT": "v=spf1 -all"}}).result == "fail"


def test_records_without_text() -> None:
    assert check(["", "v=spf1 -all"]).result == "fail"
    assert check([""]).result == "none"


def test_a_foreign_exception_is_a_permerror(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(pyspf, "to_ascii", broken)
    verdict = check("v=spf1 -all")
    assert verdict.result == "permerror"
    assert verdict.problem == "pyspf: IndexError: list index out of range"

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pyspf, "to_ascii", exhausted)
    with pytest.raises(MemoryError):
        check("v=spf1 -all")


def test_an_unused_redirect_counts_as_a_look_up() -> None:
    """A difference to RFC 7208 that pyspf has: docs/decisions/spf.md."""
    terms = " ".join(f"a:a{n}.example.com" for n in range(8))
    zone = {f"a{n}.example.com": {"A": "203.0.113.1"} for n in range(8)}
    zone["last.example.com"] = {"A": V4}
    for more, result in (("", "pass"), ("a:a0.example.com", "pass")):
        record = f"v=spf1 {terms} {more} a:last.example.com redirect=x.example.com"
        expected = "permerror" if more else result
        assert check(record, zone).result == expected
        assert check(record.replace("redirect", "other"), zone).result == result


def test_an_include_in_a_circle() -> None:
    verdict = check("v=spf1 include:a.example.com -all",
                    {"a.example.com": {"TXT": "v=spf1 include:example.com -all"}})  # fmt: skip
    assert (verdict.result, verdict.problem) == ("permerror", "Too many DNS lookups")


def chain(terms: str, depth: int) -> dict[str, Any]:
    return {
        f"n{number}.example.com": {"TXT": f"v=spf1 {terms} include:n{number + 1}.example.com ?all"}
        for number in range(depth)
    }


@pytest.mark.parametrize(
    "terms",
    [
        " ".join(f"ip4:10.{n}.2.0/24" for n in range(250)),
        " ".join(f"ip6:2001:db8:{n:x}::/48" for n in range(250)),
        " ".join(f"-ip4:10.0.{n}.3/32" for n in range(250)),
        " ".join(f"a{n}=%{{d2}}%{{h}}%{{p}}" for n in range(250)),
        " ".join(["a=%{d2}%{h}%{i}%{p}"] * 250),
        " ".join(f"a{n}=" + "%{D}" * 120 for n in range(15)),
        " ".join(f"a{n}=" + "%{P}" * 120 for n in range(15)),
        " ".join(["exists:" + "%{l1r-+}" * 60 + ".example.com"] * 8),
        " ".join(["a:" + "a." * 250 + "com"] * 8),
    ],
    ids=[
        "ip4",
        "ip6",
        "minus",
        "macros",
        "repeated",
        "long",
        "long by look-up",
        "transformers",
        "dots",
    ],
)
def test_the_costliest_chain_is_bounded(terms: str) -> None:
    """As many records as may be read, each full: some 50 ms, in ten steps."""
    zone = Zone({"example.com": {"TXT": "v=spf1 include:n0.example.com -all"}, **chain(terms, 12)})
    verdict = solve(spf.check(V4, "h." + "a." * 100 + "example", SENDER, now=0), zone)
    assert verdict.result == "permerror"
    assert verdict.problem in {
        f"more than {MAX_PARSED} terms", "Too many DNS lookups", "more than 2 void look-ups",
    }  # fmt: skip


def _counting(engine: Engine[Verdict], parsed: list[int]) -> Engine[Verdict]:
    """Run an engine, with a number for each step."""
    sent: Any = None
    try:
        while True:
            sent = yield engine.send(sent)
            parsed.append(0)
    except StopIteration as end:
        verdict: Verdict = end.value
        return verdict


def test_a_costly_chain_comes_in_steps_even_if_all_answers_are_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step costs some 5 ms: it parses one record beyond its limit."""
    terms = " ".join(f"ip4:10.{n}.2.0/24" for n in range(250))
    zone = Zone({"example.com": {"TXT": "v=spf1 include:n0.example.com -all"}, **chain(terms, 12)})
    parsed = [0]
    charge = Work.charge

    def counted(work: Work, units: int) -> None:
        parsed[-1] += units
        charge(work, units)

    monkeypatch.setattr(Work, "charge", counted)
    engine = spf.check(
        V4, "h.example", SENDER, now=0, cached=lambda name, rdtype: zone((name, rdtype))
    )
    steps = Steps(zone)
    assert steps.solve(_counting(engine, parsed)).problem == f"more than {MAX_PARSED} terms"
    assert steps.questions == []
    assert sum(parsed) == MAX_PARSED + 1
    assert max(parsed) <= STEP + MAX_TERMS
    assert len(parsed) >= 8


@pytest.mark.parametrize(
    "terms",
    [
        " ".join(f"ip4:10.{n}.2.0/24" for n in range(240)),
        " ".join(f"ip6:2001:db8:{n:x}::/48" for n in range(240)),
        " ".join(f"a:{n}.example.org" for n in range(240)),
        " ".join(f"exists:%{{l}}.{n}.example.org" for n in range(110)),
        " ".join(f"a{n}=%{{d}}" for n in range(240)),
    ],
    ids=["ip4", "ip6", "names", "macros", "modifiers"],
)
def test_an_evaluation_that_waits_takes_little_memory(terms: str) -> None:
    # All sessions of a server may wait at once: a megabyte for each was too much.
    names = chain("", 6)
    for name, entry in names.items():
        number = int(name[1])
        include = f"include:n{number + 1}.example.com"
        order = f"{include} {terms}"
        if terms.startswith("ip"):
            # Networks, of each record others, are compared before the include is read.
            own = terms.replace("ip4:10.", f"ip4:1{number}.").replace("2001:db8", f"{number}:db8")
            order = f"{own} {include}"
        entry["TXT"] = [f"v=spf1 {order} ?all"]
    last = {"n6.example.com": {"TXT": "v=spf1 a:slow.example.com ?all"}}
    zone = Zone({"example.com": {"TXT": "v=spf1 include:n0.example.com -all"}, **names, **last})
    assert memory_of_waiting(zone) < MAX_WAITING


def test_an_evaluation_that_waits_keeps_little_of_the_answers() -> None:
    zone: dict[str, Any] = {}
    for term in range(5):
        hosts = [(n, f"h{n}.m{term}.example.org") for n in range(10)]
        zone[f"m{term}.example.org"] = {"MX": hosts}
        for n, name in hosts:
            zone[name] = {"A": [f"203.0.{n}.{number}" for number in range(128)]}
    terms = " ".join(f"mx:m{n}.example.org" for n in range(5))
    others = [f"{n}" + "x" * 250 for n in range(100)]
    zone["example.com"] = {"TXT": [f"v=spf1 {terms} include:n0.example.org -all", *others]}
    for number in range(3):
        record = f"v=spf1 include:n{number + 1}.example.org ?all"
        zone[f"n{number}.example.org"] = {"TXT": [record, *others]}
    zone["n3.example.org"] = {"TXT": "v=spf1 a:slow.example.com ?all"}
    answers = Zone(zone)
    # As those that are in no cache: each has its own.
    assert memory_of_waiting(lambda question: deepcopy(answers(question))) < MAX_WAITING


def memory_of_waiting(answer: Callable[[Question], Outcome[Any]]) -> float:
    """Return the bytes of an evaluation that waits for the address of slow.example.com."""

    def waiting() -> Engine[Verdict]:
        engine = spf.check(V4, "h.example", SENDER, now=0)
        questions = next(engine)
        while ("slow.example.com", "A") not in questions:
            questions = engine.send([answer(each) for each in questions])
        return engine

    waiting().close()  # loads modules, and what they cache
    tracemalloc.start()
    engines = [waiting() for _ in range(4)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / len(engines)


ADDRESSES = {
    V4: st.integers(0, 255).map("192.0.2.{}".format) | st.ip_addresses(v=4).map(str),
    V6: st.integers(0, 9999).map("2001:db8::{}".format) | st.ip_addresses(v=6).map(str),
}


@given(st.data(), st.sampled_from([V4, V6]))
def test_the_address_that_is_kept_is_in_a_network_if_any_is(
    data: st.DataObject, client: str
) -> None:
    size = ip_address(client).max_prefixlen
    addresses = data.draw(st.lists(ADDRESSES[client], min_size=20, max_size=30))
    length = data.draw(st.integers(0, size))
    kept = needed("A", Found(tuple(addresses), 60), int(ip_address(client)))
    assert isinstance(kept, Found)
    assert len(kept.records) == 1

    def matches(each: str) -> bool:
        return ip_address(client) in ip_network(f"{each}/{length}", strict=False)

    assert any(map(matches, addresses)) == matches(kept.records[0])


def test_what_is_kept_of_other_outcomes() -> None:
    texts = (b"x" * 2000, b"V=SPF1 -all", b"v=spf1", b"v=spf10")
    exchangers = tuple(MX(n, f"{n}.example.org" + "x" * 90) for n in range(20))
    for rdtype, records, kept in (
        ("TXT", texts, texts[1:3]),
        ("TXT", texts[:1], (b"",)),
        ("TXT", texts[1:], texts[1:]),
        ("MX", exchangers, exchangers[:11]),
    ):
        assert needed(rdtype, Found(records, 60, "gap"), 0) == Found(kept, 60, "gap")
    assert needed("A", NotFound("nodata", 60), 0) == NotFound("nodata", 60)


def test_an_ordinary_record_is_evaluated_at_once() -> None:
    terms = " ".join(f"ip4:10.{n}.0.0/16" for n in range(20))
    names = {f"n{n}.example.com": {"TXT": f"v=spf1 {terms} ?all"} for n in range(5)}
    record = "v=spf1 " + " ".join(f"include:{name}" for name in names) + " -all"
    zone = Zone({"example.com": {"TXT": record}, **names})
    engine = spf.check(
        V4, "h.example", SENDER, now=0, cached=lambda name, rdtype: zone((name, rdtype))
    )
    with pytest.raises(StopIteration) as end:
        next(engine)
    assert end.value.value.result == "fail"


_TERM = st.one_of(
    st.sampled_from(["a", "mx", "ptr", "-all", "all", "include:a.example.com", "exists:%{i}.x.test",
                     "redirect=b.example.com", "exp=c.example.com", "ip4:192.0.2.0/24", "a//64",
                     "ip6:2001:db8::/32", "%{p}", "a:%{p}.x.test", "unknown", "x=%{d}"]),
    st.text(st.sampled_from("amxptrincludeso:=/%{}0123456789.-~?+ "), max_size=40),
    st.text(max_size=20),
)  # fmt: skip
_RECORD = st.lists(_TERM, max_size=8).map(lambda terms: " ".join(["v=spf1", *terms]))


@given(_RECORD, _RECORD, _RECORD, st.sampled_from([V4, V6]))
@example("v=spf1 a:%{p}.x.test ip4:192.0.2.9 ip4:1.2.3.4.5", "v=spf1", "v=spf1", V4)
@example("v=spf1 include:a.example.com ip4:1.2.3.4\n -all", "v=spf1 ?all", "v=spf1", V4)
@example("v=spf1 include:a.example.com ip6:: ip4:1.2.3.4", "v=spf1 a:b.test ?all", "v=spf1", V6)
@example("v=spf1 include:a.example.com" + " a" * 12 + " x:", "v=spf1 mx", "v=spf1", V4)
@example("v=spf1" + " a:x.test" * 12, "v=spf1", "v=spf1", V4)
def test_terms_that_are_left_out_change_nothing(
    record: str, other: str, third: str, client: str
) -> None:
    def text(each: str) -> list[str]:
        return [each.encode("utf-8", "replace").decode()]

    zone: dict[str, Any] = {
        "a.example.com": {"TXT": text(other), "A": "192.0.2.7", "AAAA": "2001:db8::7"},
        "b.example.com": {"TXT": text(third), "A": "192.0.2.1"},
    }
    # With its trace an evaluation needs all terms.
    traced = check(text(record), zone, client, explain=True)
    verdict = check(text(record), zone, client)
    assert (verdict.result, verdict.mechanism) == (traced.result, traced.mechanism)
    assert verdict.problem == traced.problem


@given(
    _RECORD,
    _RECORD,
    st.sampled_from([V4, V6]),
    st.one_of(st.just(SENDER), st.text(max_size=20).map("{}@example.com".format), st.text()),
    st.one_of(st.just("mail.example.com"), st.text(max_size=20)),
)
@example("v=spf1 exists:%{l}.x.test -all", "v=spf1", V4, "\udc80@example.com", "\udc80.test")
def test_any_record_has_a_result(
    record: str, other: str, client: str, sender: str, helo: str
) -> None:
    def text(each: str) -> list[str]:
        return [each.encode("utf-8", "replace").decode()]

    zone = {name: {"TXT": text(other)} for name in ("a.example.com", "b.example.com")}
    steps, verdict = steps_of(
        text(record), zone, client=client, sender=sender, helo=helo, explain=True
    )
    assert verdict.result in {"none", "neutral", "pass", "fail", "softfail", "permerror"}
    assert len(steps) <= spf.MAX_RUNS
    questions = [question for step in steps for question in step]
    assert len(questions) == len(set(questions))
    assert not verdict.problem.startswith("pyspf")
    assert verdict.explanation.isprintable()


# -- macros ----------------------------------------------------------------------------------

VALUES = {"s": "strong-bad@email.example.com", "l": "strong-bad", "o": "email.example.com",
          "d": "email.example.com", "i": "192.0.2.3", "v": "in-addr", "h": "mx.example.org",
          "p": "mx.example.org"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # RFC 7208 section 7.4
        ("%{s}", "strong-bad@email.example.com"),
        ("%{o}", "email.example.com"),
        ("%{d}", "email.example.com"),
        ("%{d4}", "email.example.com"),
        ("%{d3}", "email.example.com"),
        ("%{d2}", "example.com"),
        ("%{d1}", "com"),
        ("%{dr}", "com.example.email"),
        ("%{d2r}", "example.email"),
        ("%{l}", "strong-bad"),
        ("%{l-}", "strong.bad"),
        ("%{lr}", "strong-bad"),
        ("%{lr-}", "bad.strong"),
        ("%{l1r-}", "strong"),
        ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
        ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
        ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}",
         "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
        ("%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}",
         "3.2.0.192.in-addr.strong.lp._spf.example.com"),
        ("%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"),
        # and section 7.1
        ("%%%_%-", "% %20"),
        ("%{S}", "strong-bad%40email.example.com"),
        ("%{DR}", "com.example.email"),
    ],
)  # fmt: skip
def test_macros(text: str, value: str) -> None:
    assert macros.expand(text, VALUES.__getitem__) == value


@pytest.mark.parametrize(("spec", "valid"), [
    ("example.com", True), ("example.com.", True), ("com", False), ("example.c0m", True),
    ("example.123", False), ("example.1-2", True), ("example.-a", False), ("example.a-", False),
    ("example.com..", False), (".com", True), ("", False), ("a.%{d}", True), ("%{d}", True),
    ("%{d}x", False), ("%{d}.com", True), ("%{d", False), ("a.b_c", False), ("%%", True),
])  # fmt: skip
def test_domain_specs(spec: str, *, valid: bool) -> None:
    assert macros.is_domain_spec(spec) is valid


@given(st.text(st.sampled_from("ab1-._%{}d"), min_size=1, max_size=12))
def test_domain_specs_are_those_of_pyspf(spec: str) -> None:
    """pyspf takes a "%" that begins no macro for a part of the name."""
    broken = "%" in macros._MACRO.sub(lambda each: "%" if each[0] == "%" else "", spec)
    accepted = not pyspf.RE_TOPLAB.split(spec)[-1]
    assert macros.is_domain_spec(spec) is (accepted and not broken)


def test_a_long_name_loses_its_first_labels() -> None:
    assert macros.truncated("a." * 126 + "b") == "a." * 126 + "b"
    assert macros.truncated("c." + "a." * 126 + "b") == "a." * 126 + "b"
    assert macros.truncated("c." * 500 + "a." * 126 + "b.") == "a." * 126 + "b"
    assert len(macros.truncated("c" * 200 + "." + "a." * 60 + "b")) == 121
    assert macros.truncated("a" * 300) == "a" * 300  # not a name: never looked up


LOAD = "from smtpd_filters.authentication import spf\nspf.load()\n"


def test_the_resolver_of_dnspython_is_not_loaded() -> None:
    modules = loaded(LOAD, packages=True)
    assert "spf" in modules
    assert modules.isdisjoint({"dns.resolver", "dns.query", "dns.message"})


@pytest.mark.parametrize("code", ["import dns.resolver\n" + LOAD, LOAD + "import dns.resolver\n"])
def test_others_can_import_the_resolver_of_dnspython(code: str) -> None:
    modules = loaded(f"{code}assert dns.resolver.Resolver", packages=True)
    assert {"spf", "dns.resolver", "dns.query"} <= modules

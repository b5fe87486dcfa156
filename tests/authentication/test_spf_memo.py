"""The verdicts of SPF that are kept: equal to those of an evaluation, as long as the DNS is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.authentication import spf
from smtpd_filters.authentication.spf import query
from smtpd_filters.authentication.spf.memo import Memo
from tests.authentication.zones import TIMEOUT, Steps, Zone
from tests.effort import part

if TYPE_CHECKING:
    from smtpd_filters.authentication.inquiry import Question
    from smtpd_filters.lookups.outcome import Outcome

V4, SENDER = "192.0.2.1", "user@example.com"


class Cache:
    """The outcomes of a zone, each the same object until `forget`."""

    def __init__(self, zone: dict[str, Any], memo: Memo | None = None) -> None:
        self._zone = Zone(zone)
        self.memo = Memo() if memo is None else memo
        self._outcomes: dict[Question, Outcome[Any]] = {}

    def __call__(self, name: str, rdtype: Any) -> Outcome[Any]:
        question = name, rdtype
        return self._outcomes.setdefault(question, self._zone(question))

    def change(self, zone: dict[str, Any]) -> None:
        self._zone = Zone(zone)
        self._outcomes.clear()

    def check(self, sender: str = SENDER, helo: str = "h.example", client: str = V4) -> spf.Verdict:
        engine = spf.check(client, helo, sender, now=0, cached=self, memo=self.memo)
        return Steps(lambda question: self(*question)).solve(engine)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The domains of the evaluations that were run."""
    found: list[str] = []
    verdict = query.Evaluation.verdict

    def noted(self: query.Evaluation) -> spf.Verdict:
        found.append(self.o)
        return verdict(self)

    monkeypatch.setattr(query.Evaluation, "verdict", noted)
    return found


def test_a_verdict_holds_as_long_as_the_answers_do(runs: list[str]) -> None:
    zone = {"example.com": {"TXT": "v=spf1 mx -all", "MX": [(1, "m.example.com")]},
            "m.example.com": {"A": V4}}  # fmt: skip
    cache = Cache(zone)
    for sender in (SENDER, "other@example.com", "x@EXAMPLE.com"):
        assert cache.check(sender).result == "pass"
    assert runs == ["example.com"]
    assert cache.check(client="192.0.2.2").result == "fail"
    assert cache.check().result == "pass"
    assert len(runs) == 2
    cache.change({**zone, "m.example.com": {"A": "192.0.2.2"}})
    assert [cache.check().result, cache.check(client="192.0.2.2").result] == ["fail", "pass"]
    assert len(runs) == 4


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        ("v=spf1 exists:%{i}.%{d}.a.test include:%{o}.a.test -all", True),
        ("v=spf1 exists:%{l}.a.test -all", False),
        ("v=spf1 exists:%{S}.a.test -all", False),
        ("v=spf1 exists:%{h}.a.test -all", False),
        ("v=spf1 x=%{l} -all", False),
        ("v=spf1 a:fails.test -all", False),
        ("v=spf1 " + " ".join(f"ip4:10.{n}.0.0/16" for n in range(250)) + " -all", True),
        ("v=spf1 mx -all", True),
        ("v=spf1 mx " + " ".join(f"exists:{n}.a.test" for n in range(2)) + " -all", False),
        ("v=spf1 -all x=" + "y" * 500, True),
        (["v=spf1 -all", *("z" * 3000 for _ in range(3))], False),
    ],
)
def test_what_is_kept(record: Any, kept: bool) -> None:  # noqa: FBT001  # a column
    hosts = [(n, f"m{n}.test") for n in range(10)]
    zone = {
        "example.com": {"TXT": record, "MX": hosts},
        "example.com.a.test": {"TXT": "v=spf1 ?all"},
        "fails.test": TIMEOUT,
        **{name: {"A": "192.0.2.9", "AAAA": []} for _, name in hosts},
    }
    cache = Cache(zone)
    cache.check()
    assert len(cache.memo) == kept


def test_the_number_of_verdicts_is_bounded() -> None:
    own = Memo(max_entries=2)
    cache = Cache({f"n{n}.test": {"TXT": "v=spf1 -all"} for n in range(4)}, own)
    for number in (0, 1, 0, 2):
        cache.check(f"a@n{number}.test")
    assert len(own) == 2
    # The one that was used least recently is gone.
    assert own.get((V4, "n1.test", "unknown"), cache) is None
    assert own.get((V4, "n0.test", "unknown"), cache) is not None


_TERM = st.sampled_from(
    ["a", "mx", "ptr", "exists:%{l}.x.test", "exists:%{h}.x.test", "exists:%{s}", "a:%{p}.x.test",
     "include:%{d}.x.test", "include:%{l}.x.test", "redirect=%{h}", "?a:%{i}.x.test", "x=%{l}",
     "ip4:192.0.2.0/24", "-all"]
)  # fmt: skip


@settings(max_examples=part(150))
@given(st.lists(_TERM, max_size=5).map(lambda terms: " ".join(["v=spf1", *terms])))
def test_kept_verdicts_are_those_of_an_evaluation(record: str) -> None:
    names = ("a.x.test", "example.com.x.test", "h.test", "h.test.x.test", V4 + ".x.test")
    zone = {name: {"TXT": "v=spf1 +all", "A": "192.0.2.77"} for name in names}
    zone["example.com"] = {"TXT": record, "A": "203.0.113.5"}
    cache = Cache(zone)
    for client in (V4, "203.0.113.5"):
        for sender in ("a@example.com", "b@example.com", ""):
            for helo in ("h.test", "g.test", "example.com"):
                plain = spf.check(client, helo, sender, now=0, explain=True)
                expected = Steps(Zone(zone)).solve(plain)
                for _ in range(2):
                    found = cache.check(sender, helo, client)
                    assert found == type(found)(
                        expected.result,
                        expected.domain,
                        expected.mechanism,
                        expected.problem,
                        broad=expected.broad,
                    )

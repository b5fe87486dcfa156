from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

import pytest

from smtpd_filters.checks.dns_lookups import make_resolver, settle
from smtpd_filters.errors import ConfigError, UnavailableError
from smtpd_filters.lookups.outcome import Found, NotFound, Unavailable

if TYPE_CHECKING:
    from smtpd_filters.checks.dns_lookups import Policy
    from smtpd_filters.lookups.dns import Resolver
    from smtpd_filters.lookups.outcome import Outcome

HERE = Found(("192.0.2.1",), 60)


class Names:
    """What a resolver knows at once, and what it has to ask for."""

    def __init__(
        self, known: dict[str, Outcome[Any]], asked: dict[str, Outcome[Any]] | None = None
    ) -> None:
        self._known = known
        self._asked = asked or {}
        self.waited: list[str] = []

    def known(self, name: str, _rdtype: str) -> Outcome[Any] | None:
        return self._known.get(name)

    async def query(self, name: str, rdtype: str) -> Outcome[Any]:
        if (known := self.known(name, rdtype)) is not None:
            return known
        self.waited.append(name)
        await asyncio.sleep(0)
        return self._asked[name]

    async def query_all(self, questions: list[tuple[str, str]]) -> list[Outcome[Any]]:
        return [await self.query(*each) for each in questions]

    @property
    def resolver(self) -> Resolver:
        return cast("Resolver", self)


def steps(*rounds: list[str]) -> Policy[list[Outcome[Any]]]:
    """Ask in rounds, and come to all that was said."""
    said: list[Outcome[Any]] = []
    for names in rounds:
        said += yield [(name, "A") for name in names]
    return said


def test_a_policy_without_questions_comes_to_its_decision() -> None:
    assert settle(Names({}).resolver, steps()) == []


def test_what_is_known_is_settled_at_once() -> None:
    names = Names({"a": HERE, "b": NotFound("nxdomain"), "c": Unavailable("timeout")})
    said = settle(names.resolver, steps(["a", "b"], ["c"]))
    assert said == [HERE, NotFound("nxdomain"), Unavailable("timeout")]


@pytest.mark.parametrize("missing", ["a", "b", "c", "abc"])
def test_what_is_not_known_is_waited_for_and_nothing_else(missing: str) -> None:
    every: dict[str, Outcome[Any]] = {name: Found((name,), 60) for name in "abc"}
    known = {name: each for name, each in every.items() if name not in missing}
    names = Names(known, every)
    waiting = settle(names.resolver, steps(["a", "b"], ["c"]))
    assert isinstance(waiting, Coroutine)
    assert asyncio.run(waiting) == list(every.values())
    assert names.waited == list(missing)


def failing(after: int) -> Policy[None]:
    for _ in range(after):
        yield [("a", "A")]
    raise UnavailableError("no use", "4.4.3")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_a_policy_raises_is_raised(after: int) -> None:
    with pytest.raises(UnavailableError, match="no use"):
        settle(Names({"a": HERE}).resolver, failing(after))


def test_what_a_policy_raises_later_is_raised_where_it_is_waited_for() -> None:
    waiting = settle(Names({}, {"a": HERE}).resolver, failing(2))
    assert isinstance(waiting, Coroutine)
    with pytest.raises(UnavailableError, match="no use"):
        asyncio.run(waiting)


def test_who_waits_can_be_given_up() -> None:
    ended: list[str] = []

    def policy() -> Policy[None]:
        try:
            yield [("a", "A")]
        finally:
            ended.append("policy")

    class Never(Names):
        async def query(self, name: str, rdtype: str) -> Outcome[Any]:
            del name, rdtype
            await asyncio.Event().wait()
            raise AssertionError

    async def give_up() -> None:
        waiting = settle(Never({}).resolver, policy())
        assert isinstance(waiting, Coroutine)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 0.01)

    asyncio.run(give_up())
    assert ended == ["policy"]


def test_a_name_server_is_an_address() -> None:
    with pytest.raises(ConfigError, match=r"--nameserver: name server: 'ns\.example'"):
        make_resolver((("ns.example", 53),), 2.0)


def test_without_the_package_that_asks_the_reason_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What has been imported before this test is an attribute of its package too.
    monkeypatch.delattr("smtpd_filters.lookups.dns.transport", raising=False)
    monkeypatch.setitem(sys.modules, "smtpd_filters.lookups.dns.transport", None)
    with pytest.raises(ConfigError, match=r"^dnspython is needed to look names up: "):
        make_resolver((("127.0.0.1", 53),), 1.0)

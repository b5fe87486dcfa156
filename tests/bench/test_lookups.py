from __future__ import annotations

import itertools

import pytest

from smtpd_filters.lookups.dns.response import MAX_RECORDS
from smtpd_filters.testing.server import Lab, LabError
from tests.bench import lookups
from tests.bench.lookups import (
    BLOCKING,
    LOST,
    PHASES,
    SESSIONS,
    Case,
    Place,
    faulty,
    mixed,
    warm,
)
from tests.bench.player import MisbehaviourError, Player
from tests.bench.workloads import message
from tests.effort import part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def test_one_client_in_ten_is_looked_up_in_vain() -> None:
    rounds = [mixed(2_000, number) for number in range(16)]
    for clients in rounds:
        assert sum(client.startswith("10.1.") for client in clients) == 2_000 / LOST
        assert sum(client.startswith("10.0.") for client in clients) == 2_000 - 2_000 / LOST
    # No client is known from an earlier round.
    assert len({client for clients in rounds for client in clients}) == 16 * 2_000


CASES = [*SESSIONS.items(), *PHASES.items()]
#: Sessions of a run.
MANY = part(100)


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Place(None) as there:
        yield there


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_what_is_known_is_not_looked_up_again(place: Place, case: Case) -> None:
    found = warm(place, MANY, case, message(12))
    assert [run.sessions for run in found.values()] == [MANY, MANY]
    assert found.keys() == {"warm cache", "look-ups off"}


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_all_is_looked_up_once(place: Place, case: Case) -> None:
    place.dns.queries.clear()
    with Player(place.command(case.filter, *case.on, *place.asking)) as player:
        clients = list(itertools.islice(lookups.addresses("10.2.0.0"), 8))
        lookups.play(player, clients * 2, message(12))
        names = [name for name, _ in place.dns.queries]
        for client in clients:
            named, reverse = client.replace(".", "-"), ".".join(client.split(".")[::-1])
            assert any(reverse in name or named in name for name in names)
        assert len(place.dns.queries) == len(set(place.dns.queries))


def test_sessions_are_looked_up(place: Place) -> None:
    place.dns.queries.clear()
    with Player(place.ours(*BLOCKING)) as player:
        lookups.play(player, mixed(9, 0)[1:], [])
        assert len(place.dns.queries) == 8


def test_a_surplus_look_up_is_noticed() -> None:
    """The figures of a cache that keeps nothing must not pass for those of one that works."""
    with Place(None) as place:
        # They take more memory than a cached answer may.
        many = [f"127.0.4.{last}" for last in range(MAX_RECORDS)]
        place.dns.zone["*.score.senderscore.com"] = {"A": many}
        with pytest.raises(MisbehaviourError, match="look-ups of what was known"):
            warm(place, MANY, PHASES["senderscore"], [])


def test_where_there_can_be_no_network_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Lab) -> Lab:
        raise LabError("not permitted")

    monkeypatch.setattr(Lab, "__enter__", fail)
    monkeypatch.setattr(lookups, "ZONE", {"*.score.senderscore.com": {"A": "127.0.4.97"}})
    with Place(["filter-senderscore"]) as place:
        assert place.alone == "needs a network of its own: not permitted"
        assert list(faulty(place, 20, 20, 0, message(12))) == ["ours"]

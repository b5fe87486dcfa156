"""Lists that are tested: alive, dead, listing everybody, refusing, silent, and back again."""

from __future__ import annotations

import asyncio

import pytest

from smtpd_filters.checks.zone_names import NAME, V4, V6
from smtpd_filters.filters.dnsbl.lists import FRESH, PAUSE, RECHECK, SILENCES, List
from smtpd_filters.filters.dnsbl.lists import Watch as _Watch
from smtpd_filters.filters.dnsbl.sites import parse
from smtpd_filters.lookups.cache import Lifetimes
from smtpd_filters.lookups.dns import Resolver
from smtpd_filters.lookups.outcome import INVALID, NXDOMAIN, Found, NotFound, Unavailable
from smtpd_filters.runtime.log import FilterLog, Log
from smtpd_filters.testing import DNSServer
from tests.effort import brief
from tests.filters.dnsbl.zones import (
    LISTED,
    LISTED6,
    UNLISTED,
    UNLISTED6,
    addresses,
    domains,
    under,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

ZONE = "bl.example"
KEYED = "k3ykk7zqabcdefghij.zen.dq.spamhaus.net"


class Captured(Log):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def made(*entries: str) -> List:
    sites = [parse(entry) for entry in entries]
    return List(sites[0].zone, sites)


def found(*addresses: str) -> Found[str]:
    return Found(addresses, 60)


# -- what an answer adds -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "answers", "points", "counting"),
    [
        ([ZONE], ["127.0.0.2"], 1, ["127.0.0.2"]),
        ([f"{ZONE}*3"], ["127.0.0.2", "127.0.0.3"], 3, ["127.0.0.2", "127.0.0.3"]),
        ([f"{ZONE}=127.0.0.2*3"], ["127.0.0.3"], 0, []),
        ([f"{ZONE}=127.0.0.2*3"], ["127.0.0.3", "127.0.0.2"], 3, ["127.0.0.2"]),
        # Several entries of one zone count each, each once.
        (
            [f"{ZONE}=127.0.0.[2;3]*3", f"{ZONE}=127.0.0.4*5"],
            ["127.0.0.2", "127.0.0.3", "127.0.0.4"],
            8,
            ["127.0.0.2", "127.0.0.3", "127.0.0.4"],
        ),
        ([f"{ZONE}*3", f"{ZONE}=127.0.0.9*-1"], ["127.0.0.9"], 2, ["127.0.0.9"]),
        ([f"{ZONE}*0"], ["127.0.0.2"], 0, ["127.0.0.2"]),
        # What is outside doesn't count beside what isn't.
        ([ZONE], ["203.0.113.66", "127.0.0.2"], 1, ["127.0.0.2"]),
        ([f"{ZONE}=127.0.0.1*2"], ["127.0.0.1"], 2, ["127.0.0.1"]),
    ],
)
def test_the_points_of_an_answer(
    entries: list[str], answers: list[str], points: int, counting: list[str]
) -> None:
    reading = made(*entries).read(found(*answers))
    assert (reading.points, list(reading.answers), reading.trouble) == (points, counting, "")


def test_a_name_that_may_be_forged_speaks_for_nobody() -> None:
    each = made(f"{ZONE}=127.0.0.2*3", f"{ZONE}=127.0.0.3*-5")
    assert each.read(found("127.0.0.3"), trusted=False).points == 0
    assert each.read(found("127.0.0.2", "127.0.0.3"), trusted=False).points == 3
    assert each.read(found("127.0.0.2", "127.0.0.3")).points == -2


@pytest.mark.parametrize(
    "answers",
    [
        ["127.255.255.254"],
        ["127.0.0.2", "127.255.255.255"],
        ["203.0.113.66"],
        ["127.0.0.1"],
    ],
)
def test_what_is_no_answer_gives_no_points_and_raises_doubts(answers: list[str]) -> None:
    reading = made(f"{ZONE}*3").read(found(*answers))
    assert reading.trouble.startswith(f"answers {answers[-1]}: ") or "outside" in reading.trouble
    assert (reading.points, reading.answers, reading.odd) == (0, (), True)


def test_a_part_of_an_answer_is_none() -> None:
    reading = made(ZONE).read(Found(("127.0.0.2",), 60, "too large"))
    assert (reading.points, reading.answers) == (0, ())
    assert (reading.trouble, reading.odd) == ("too large", True)


def test_a_question_that_a_list_does_not_take_is_nothing() -> None:
    reading = made("dbl.spamhaus.org").read(found("127.0.1.255"))
    assert (reading.points, reading.answers, reading.trouble) == (0, (), "")


def test_not_listed() -> None:
    reading = made(ZONE).read(NotFound(NXDOMAIN, 60))
    assert (reading.points, reading.answers, reading.trouble, reading.odd) == (0, (), "", False)


def test_what_could_not_be_asked_is_not_read_as_not_listed() -> None:
    each = made(ZONE)
    each.silences = 3
    reading = each.read(NotFound(INVALID))
    assert (reading.points, reading.answers, reading.odd) == (0, (), False)
    assert reading.trouble == "not queried: the name is not valid in the DNS"
    assert each.silences == 3


def test_silence_is_odd_when_it_lasts() -> None:
    each = made(ZONE)
    doubts = [each.read(Unavailable("timeout")).odd for _ in range(SILENCES)]
    assert doubts == [False] * (SILENCES - 1) + [True]
    each.read(NotFound(NXDOMAIN, 60))
    assert not each.read(Unavailable("timeout")).odd


# -- tests of a list -----------------------------------------------------------------------


def with_resolver(
    zone: Mapping[str, Mapping[str, Any]],
    work: Callable[[Resolver, DNSServer], Coroutine[Any, Any, None]],
) -> None:
    async def run(server: DNSServer) -> None:
        # Nothing is kept, so that what changes is seen at once.
        lifetimes = Lifetimes(floor=0, ceiling=0, negative_ceiling=0, backoff=0)
        nameserver = (server.address, server.port)
        timeout = brief(0.7)
        async with Resolver(
            [nameserver], timeout=timeout, deadline=3 * timeout, lifetimes=lifetimes
        ) as resolver:
            await work(resolver, server)

    with DNSServer(zone) as server:
        asyncio.run(run(server))


TEXT = {"TXT": "listed for tests"}
REBINDING = (
    "doesn't list {}, which has a text (TXT): the name server removes answers in 127.0.0.0/8 "
    "(rebinding protection); exempt the list there"
)
WORLD = "lists 127.0.0.1, which must not be listed: it lists everything"
STATES: list[tuple[str, dict[str, Any], str, tuple[str, bool]]] = [
    (V4, {LISTED: "127.0.0.2"}, ZONE, ("", False)),
    (V4, {LISTED: "127.0.0.10"}, ZONE, ("", False)),
    (V4, {LISTED: "127.0.0.2", UNLISTED: "127.0.0.2"}, ZONE, (WORLD, False)),
    (V4, {UNLISTED: "127.0.0.2"}, ZONE, (WORLD, False)),
    (V4, {}, ZONE, ("doesn't list 127.0.0.2, its test entry", False)),
    (V4, {LISTED: "203.0.113.66", UNLISTED: "203.0.113.66"}, ZONE, ("answers 203.0.113.66", False)),
    (V4, {LISTED: "127.255.255.254"}, KEYED, ("answers 127.255.255.254: it refuses pub", False)),
    (V4, {LISTED: "127.255.255.254", UNLISTED: "127.255.255.254"}, ZONE, ("answers 127.", False)),
    (V4, {LISTED: TEXT}, ZONE, (REBINDING.format("127.0.0.2"), False)),
    (V6, {LISTED6: TEXT}, ZONE, (REBINDING.format("::FFFF:7F00:2"), False)),
    (NAME, {"dbltest.com": TEXT}, "dbl.spamhaus.org", (REBINDING.format("TEST"), False)),
    # A zone with one text for everything is no list.
    (V4, {LISTED: TEXT, UNLISTED: TEXT}, ZONE, ("doesn't list 127.0.0.2, its test entry", False)),
    (V4, {LISTED: {"servfail": ["TXT"]}}, ZONE, ("doesn't list 127.0.0.2, its test entry", False)),
    (V4, {LISTED: {"drop": True}}, ZONE, ("127.0.0.1:", True)),
    (V4, {LISTED: "127.0.0.2", UNLISTED: {"servfail": True}}, ZONE, ("127.0.0.1:", True)),
    (V6, {LISTED6: "127.0.0.2"}, ZONE, ("", False)),
    (V6, {LISTED: "127.0.0.2"}, ZONE, ("doesn't list ::FFFF:7F00:2", False)),
    (V6, {LISTED6: "127.0.0.2", UNLISTED6: "127.0.0.2"}, ZONE, (WORLD, False)),
    (NAME, {"test": "127.0.0.2"}, ZONE, ("", False)),
    (NAME, {"dbltest.com": "127.0.1.2"}, "dbl.spamhaus.org", ("", False)),
    (NAME, {"dbltest.com": "127.0.1.2", "test": {"drop": True}}, "dbl.spamhaus.org", ("", False)),
    (NAME, {}, ZONE, ("doesn't list TEST, its test entry", False)),
    (NAME, {"test": "127.0.0.2", "invalid": "127.0.0.2"}, ZONE, ("lists INVALID, which", False)),
    (NAME, {"test": "127.0.0.1"}, "multi.surbl.org", ("answers 127.0.0.1: it refuses", False)),
]


@pytest.mark.parametrize(("about", "listed", "zone", "expected"), STATES)
def test_whether_a_list_is_fit_to_be_asked(
    about: str, listed: dict[str, Any], zone: str, expected: tuple[str, bool]
) -> None:
    entries = {
        under(zone, subject): entry if isinstance(entry, dict) else {"A": entry}
        for subject, entry in listed.items()
    }

    async def work(resolver: Resolver, server: DNSServer) -> None:
        cause, silent = await made(zone).test(about, resolver)
        if expected[1]:
            assert cause.startswith(f"{server.address}:{server.port} ")
        elif expected[0]:
            assert cause.startswith(expected[0])
        else:
            assert cause == ""
        assert silent is expected[1]

    with_resolver(entries, work)


# -- watching several ----------------------------------------------------------------------


class Watch(_Watch):
    """With what it does in the background in sight."""

    def __init__(self, asked: list[tuple[List, str]], resolver: Resolver, log: Captured) -> None:
        super().__init__(asked, resolver, FilterLog(log, "dnsbl"))
        self.log = log

    @property
    def state(self) -> tuple[bool, bool]:
        return self.done, self.fresh

    @property
    def busy(self) -> bool:
        return self._running is not None and not self._running.done()

    def age(self, seconds: float) -> None:
        """Let time pass."""
        self._tried -= seconds
        self._last -= seconds

    @property
    def recheck(self) -> float | None:
        """In how many seconds it tests again by itself."""
        if self._again is None or self._again.cancelled():
            return None
        return self._again.when() - asyncio.get_running_loop().time()


OTHER = "other.example"


def test_a_list_is_switched_off_and_on_again() -> None:
    async def work(resolver: Resolver, server: DNSServer) -> None:
        each, other = made(ZONE), made(OTHER)
        watch = Watch([(each, V4), (other, V4)], resolver, Captured())
        assert watch.state == (False, False)
        await watch.test()
        assert watch.state == (True, True)
        assert V4 not in each.off
        assert watch.log.lines == []
        assert watch.recheck is None
        # From now on it lists everybody.
        server.zone[under(ZONE, UNLISTED)] = {"A": "127.0.0.2"}
        await watch.test()
        assert V4 in each.off
        assert V4 not in other.off
        line = f'dnsbl list zone={ZONE} about=IPv4 switched=off cause="{WORLD}"'
        assert watch.log.lines == [line]
        assert watch.recheck == pytest.approx(RECHECK, abs=5)
        # Only who is to be reminded is.
        await watch.test()
        assert watch.log.lines == [line]
        await watch.test(remind=True)
        assert watch.log.lines == [line, line]
        del server.zone[under(ZONE, UNLISTED)]
        await watch.test()
        assert V4 not in each.off
        assert watch.log.lines[2:] == [f"dnsbl list zone={ZONE} about=IPv4 switched=on"]
        assert watch.recheck is None
        watch.close()

    with_resolver({**addresses(ZONE), **addresses(OTHER)}, work)


def test_what_is_asked_in_several_ways_is_logged_once() -> None:
    async def work(resolver: Resolver, _: DNSServer) -> None:
        several = [made(ZONE), made(ZONE)]
        watch = Watch([(each, NAME) for each in several], resolver, Captured())
        await watch.test()
        assert all(NAME in each.off for each in several)
        assert len(watch.log.lines) == 1
        watch.close()

    with_resolver({}, work)


def test_ipv4_and_ipv6_are_switched_by_themselves() -> None:
    async def work(resolver: Resolver, _: DNSServer) -> None:
        each = made(ZONE)
        watch = Watch([(each, V4), (each, V6)], resolver, Captured())
        await watch.test()
        assert (V4 in each.off, V6 in each.off) == (False, True)
        # Most lists have no entry for IPv6, which does not deserve a line every hour.
        assert len(watch.log.lines) == 1
        await watch.test(remind=True)
        assert len(watch.log.lines) == 1
        watch.close()

    with_resolver({under(ZONE, LISTED): {"A": "127.0.0.2"}}, work)


def test_a_silent_list_is_switched_off_beside_one_that_answers() -> None:
    async def work(resolver: Resolver, server: DNSServer) -> None:
        each, other = made(ZONE), made(OTHER)
        watch = Watch([(each, V4), (other, V4)], resolver, Captured())
        await watch.test()
        assert (V4 in each.off, V4 in other.off) == (True, False)
        server.zone = {**addresses(ZONE), **addresses(OTHER)}
        await watch.test()
        assert V4 not in each.off
        watch.close()

    silent = {"*.bl.example": {"drop": True}}
    with_resolver({**addresses(OTHER), **silent}, work)


def test_if_all_are_silent_none_is_switched_off() -> None:
    async def work(resolver: Resolver, server: DNSServer) -> None:
        each, other = made(ZONE), made(OTHER)
        watch = Watch([(each, V4), (other, V4)], resolver, Captured())
        await watch.test()
        assert (V4 in each.off, V4 in other.off) == (False, False)
        [line] = watch.log.lines
        assert line.startswith("dnsbl no list answers cause=")
        assert line.endswith('result="not switched off"')
        # They have been tested, but not so that somebody could be refused on their word.
        assert watch.state == (True, False)
        assert watch.recheck == pytest.approx(RECHECK, abs=5)
        server.zone = {**addresses(ZONE), **addresses(OTHER)}
        await watch.test()
        assert watch.state == (True, True)
        # The end of the trouble is logged, once.
        await watch.test()
        assert watch.log.lines[1:] == ["dnsbl lists answer again"]
        watch.close()

    with_resolver({"*.example": {"servfail": True}}, work)


def test_a_key_is_not_logged() -> None:
    async def work(resolver: Resolver, _: DNSServer) -> None:
        watch = Watch([(made(KEYED), V4)], resolver, Captured())
        await watch.test()
        [line] = watch.log.lines
        assert "zone=zen.dq.spamhaus.net " in line
        assert "Data Query Service" in line
        assert KEYED.partition(".")[0] not in line
        watch.close()

    with_resolver(addresses(KEYED, {LISTED: "127.255.255.254"}), work)


def test_a_test_is_made_once_for_all_who_wait() -> None:
    async def work(resolver: Resolver, server: DNSServer) -> None:
        watch = Watch([(made(ZONE), V4)], resolver, Captured())
        await asyncio.gather(*(watch.test() for _ in range(5)))
        assert server.asked(under(ZONE, LISTED), "A") == 1
        watch.close()

    with_resolver(addresses(ZONE), work)


def test_doubts_are_looked_into_but_not_all_the_time() -> None:
    async def work(resolver: Resolver, server: DNSServer) -> None:
        watch = Watch([(made(ZONE), V4)], resolver, Captured())
        await watch.test()
        watch.suspect()
        assert watch.busy is False
        watch.age(PAUSE)
        watch.suspect()
        watch.suspect()
        assert (watch.busy, watch.done) == (True, True)
        await watch.test()
        assert server.asked(under(ZONE, LISTED), "A") == 2
        assert watch.state == (True, True)
        watch.age(FRESH)
        assert watch.state == (True, False)
        watch.close()

    with_resolver(addresses(ZONE), work)


def test_it_can_be_closed_while_it_tests() -> None:
    async def work(resolver: Resolver, _: DNSServer) -> None:
        watch = Watch([(made(ZONE), V4)], resolver, Captured())
        waiting = asyncio.ensure_future(watch.test())
        await asyncio.sleep(0)
        watch.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with_resolver({"*.bl.example": {"drop": True}}, work)


def test_lists_without_entries_for_testing_are_left_alone() -> None:
    async def work(resolver: Resolver, server: DNSServer) -> None:
        each = made(ZONE)
        each.tested = False
        watch = Watch([(each, NAME)], resolver, Captured())
        assert watch.state == (True, True)
        await watch.test()
        assert server.queries == []
        assert NAME not in each.off
        watch.suspect()
        await watch.test()
        watch.close()

    with_resolver(domains(OTHER), work)

"""The states of processes: how they are sent, summed, written and read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.journal.process_state import INTERVAL, ProcessState
from smtpd_filters.journal.reception import InvalidError, decode
from smtpd_filters.journal.states import (
    FILE,
    GONE,
    MAX_EVENTS,
    MAX_NAMES,
    MAX_PROCESSES,
    MAX_SHOWN,
    MAX_TIME,
    STEP,
    STEPS,
    Collected,
    read,
    remove,
)
from smtpd_filters.journal.wire import LIMIT
from smtpd_filters.runtime.counters import (
    BUCKETS,
    FAILURES,
    KINDS,
    MAX_SERVERS,
    TIMEOUT,
    UNREACHABLE,
    Counters,
)
from tests.effort import part

from .deciding import Sent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Servers:
    """Servers with circuits."""

    def __init__(self, *labels: str, is_open: bool = False) -> None:
        self.labels, self.is_open = labels, is_open

    def circuits(self) -> Iterator[tuple[str, bool]]:
        for label in self.labels:
            yield label, self.is_open


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Process:
    """A process whose state a journal collects."""

    def __init__(self, collected: Collected, name: str = "filter-test") -> None:
        self.collected = collected
        self.counters = Counters()
        self.sent = Sent()
        self.state = ProcessState(self.sent, name, self.counters)  # type: ignore[arg-type]

    def send(self, sessions: int = 0, ends: int = 0, **changed: Any) -> None:
        self.state.send(sessions, ends)
        for data in self.sent.datagrams:
            [found] = decode(data)
            self.collected.add({**found, **changed})
        self.sent.datagrams.clear()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collected(clock: Clock) -> Collected:
    return Collected(clock)


def valid(**changed: Any) -> dict[str, Any]:
    """Return a datagram's object."""
    return {
        "v": 1, "k": "state", "p": "filter-x", "n": "0123456789abcdef", "a": 0, "o": 2, "r": 3,
        "x": 4, "q": {"dns": [1500, [1] + [0] * len(BUCKETS), {TIMEOUT: 1}]},
        "b": [["dns", "192.0.2.1:53", 1]], **changed,
    }  # fmt: skip


def test_what_a_process_counts_arrives(collected: Collected, clock: Clock) -> None:
    process = Process(collected)
    process.counters.of("dns").ended(0.004)
    process.counters.of("dns").ended(31.0, TIMEOUT)
    servers = Servers("[192.0.2.1]:53")
    process.counters.watch("dns", servers)
    process.send(3)
    clock.now += INTERVAL
    process.counters.of("dns").ended(0.0001)
    process.counters.of("redis").ended(0.2, UNREACHABLE)
    servers.is_open = True
    process.send(5, 1)
    found = collected.states({"lost": 0})
    assert found.sessions == {"filter-test": 5}
    assert found.ends == {"filter-test": 1}
    assert found.circuits == {("dns", "[192.0.2.1]:53"): True}
    dns = found.lookups["dns"]
    assert (dns.count, dns.failed, dns.failures[TIMEOUT]) == (3, 1, 1)
    assert dns.seconds == pytest.approx(31.0041)
    assert (dns.buckets[0], dns.buckets[2], dns.buckets[-1]) == (1, 1, 1)
    assert dns.quantile(0.3) == BUCKETS[0]
    assert dns.quantile(0.95) is None
    assert found.lookups["redis"].failures[UNREACHABLE] == 1


def test_processes_are_summed(collected: Collected) -> None:
    for name in ("filter-a", "filter-b", "filter-b"):
        process = Process(collected, name)
        process.counters.of("rspamd").ended(0.1)
        process.send(2)
    found = collected.states({})
    assert found.sessions == {"filter-a": 2, "filter-b": 4}
    assert found.lookups["rspamd"].count == 3


def test_a_lost_datagram_costs_nothing(collected: Collected) -> None:
    process = Process(collected)
    process.send()
    for _ in range(3):
        process.counters.of("dns").ended(0.1)
        process.sent.full = True
        process.send()
    process.sent.full = False
    process.send()
    assert collected.states({}).lookups["dns"].count == 3
    assert collected.states({}).dropped == {"filter-test": 0}


def test_what_was_counted_before_the_journal_ran_is_not_new(clock: Clock) -> None:
    process = Process(Collected(clock))
    process.counters.of("dns").ended(0.1)
    process.send(ends=7, a=500)
    clock.now += 1000
    process.collected = Collected(clock)
    process.send(ends=7, a=1500)
    assert process.collected.states({}).lookups["dns"].count == 0
    clock.now += INTERVAL
    process.counters.of("dns").ended(0.1)
    process.counters.of("redis").ended(0.1)
    process.send(ends=8, a=1510)
    found = process.collected.states({})
    assert (found.lookups["dns"].count, found.lookups["redis"].count) == (1, 1)
    assert found.ends == {"filter-test": 1}


def test_no_process_is_counted_twice(collected: Collected, clock: Clock) -> None:
    """More processes than are remembered take turns, all of them young."""
    lookups = {"dns": [1000, [1] + [0] * len(BUCKETS), {}]}
    processes = MAX_PROCESSES + 10
    for age in range(0, 60, 10):
        for number in range(processes):
            state = {"n": f"{number:x}", "a": age, "q": lookups, "r": 1, "x": 1}
            collected.add(valid(**state))
            clock.now += 10 / processes
    found = collected.states({})
    assert 0 < found.lookups["dns"].count <= processes
    assert 0 < found.ends["filter-x"] <= processes
    assert 0 < found.dropped["filter-x"] <= processes
    assert sum(found.sessions.values()) == 2 * MAX_PROCESSES


def test_the_largest_numbers_can_be_shown(collected: Collected, tmp_path: Path) -> None:
    """Sums are larger than what a process may send."""
    full = {"dns": [MAX_TIME, [MAX_EVENTS] * (len(BUCKETS) + 1), {TIMEOUT: MAX_EVENTS}]}
    for number in range(5):
        largest = {"o": MAX_EVENTS, "r": MAX_EVENTS, "x": MAX_EVENTS}
        collected.add(valid(n=f"{number:x}", a=0, q=full, **largest))
    collected.write(str(tmp_path), {"received": 1 << 60}, 0.0)
    found = read(str(tmp_path))
    assert found is not None
    assert found.lookups["dns"].failures[TIMEOUT] == 5 * MAX_EVENTS
    assert found.lookups["dns"].seconds == pytest.approx(5 * MAX_TIME / 1e6)
    assert found.sessions == {"filter-x": 5 * MAX_EVENTS}


def test_a_process_that_is_silent_has_ended(collected: Collected, clock: Clock) -> None:
    process = Process(collected)
    servers = Servers("x")
    process.counters.watch("dns", servers)
    process.counters.of("dns").ended(0.1)
    process.send(3)
    clock.now += GONE + 1
    found = collected.states({})
    assert found.sessions == {}
    assert found.circuits == {}
    assert found.lookups["dns"].count == 1


def test_the_last_minutes(collected: Collected, clock: Clock) -> None:
    process = Process(collected)
    collected.states({})
    for _ in range(STEPS + 5):
        process.counters.of("dns").ended(0.1)
        clock.now += STEP
        process.send()
        found = collected.states({})
    assert found.lookups["dns"].count == STEPS + 5
    assert found.recent["dns"].count == STEPS - 1
    assert found.span == (STEPS - 1) * STEP


def test_a_long_state_is_sent_in_parts(collected: Collected) -> None:
    process = Process(collected)
    servers = Servers(*(f"é{number}" * 30 for number in range(100)))
    process.counters.watch("policy", servers)
    for kind in KINDS:
        for seconds in (*BUCKETS, 100.0):
            process.counters.of(kind).ended(seconds, TIMEOUT)
            process.counters.of(kind).buckets[0] += 10**12
    process.state.send(1)
    assert len(process.sent.datagrams) > 1
    assert all(len(data) <= LIMIT for data in process.sent.datagrams)
    process.send(1)
    found = collected.states({})
    assert set(found.lookups) == set(KINDS)
    assert len(found.circuits) == MAX_SERVERS
    assert {each.count for each in found.lookups.values()} == {10**12 * 15 + 15}


def test_parts_of_an_old_process_are_not_new(clock: Clock) -> None:
    process = Process(Collected(clock))
    for kind in KINDS:
        process.counters.of(kind).ended(0.1)
        process.counters.of(kind).buckets = [10**12] * (len(BUCKETS) + 1)
    process.send(a=1000)
    assert {each.count for each in process.collected.states({}).lookups.values()} == {0}


def test_a_client_that_is_gone_is_not_shown() -> None:
    counters = Counters()
    servers = Servers("x")
    counters.watch("dns", servers)
    assert counters.circuits() == [("dns", "x", False)]
    del servers
    assert counters.circuits() == []


def test_a_server_of_several_clients_is_shown_once() -> None:
    counters = Counters()
    both = Servers("x"), Servers("x", is_open=True)
    for each in both:
        counters.watch("dns", each)
    assert counters.circuits() == [("dns", "x", True)]


@pytest.mark.parametrize(
    "changed",
    [
        {"n": ""}, {"n": "x" * 17}, {"n": 3}, {"a": -1}, {"o": "1"}, {"o": 1.5}, {"x": 1 << 60},
        {"q": []}, {"q": {"dns": 1}}, {"q": {"dns": [1, [0] * 3, {}]}},
        {"q": {"dns": [1, [-1] * (len(BUCKETS) + 1), {}]}},
        {"q": {"dns": [1, [0] * (len(BUCKETS) + 1), {"odd": 1}]}},
        {"q": {"dns": [1, [0] * (len(BUCKETS) + 1), []]}},
        {"q": {f"k{number}": [] for number in range(100)}},
        {"b": {}}, {"b": [["dns", "x"]]}, {"b": [["odd", "x", 1]]}, {"b": [["dns", 1, 1]]},
        {"b": [[["dns"], "x", 1]]}, {"b": [["dns", "x", 1]] * (MAX_SERVERS + 1)},
    ],
)  # fmt: skip
def test_what_is_invalid_is_refused_as_a_whole(collected: Collected, changed: Any) -> None:
    before = collected.states({})
    with pytest.raises(InvalidError):
        collected.add(valid(**changed))
    after = collected.states({})
    assert (before.lookups, before.sessions) == (after.lookups, after.sessions) == ({}, {})


@settings(max_examples=part(300))
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from("pnaorxqb"),
)
def test_anything_is_added_or_refused(value: Any, key: str) -> None:
    collected = Collected()
    try:
        collected.add(valid(**{key: value}))
    except InvalidError:
        return
    json.dumps(collected.states({}).sessions)


def test_everything_is_bounded(collected: Collected, clock: Clock) -> None:
    for number in range(2 * MAX_PROCESSES):
        servers = [["dns", f"{number}-{each}", 1] for each in range(MAX_SERVERS)]
        collected.add(valid(p=f"filter-{number}", n=f"{number:x}", b=servers))
    for number in range(100):  # all parts of one state
        collected.add(valid(b=[["dns", f"more-{number}", 1]]))
    found = collected.states({})
    assert len(found.ends) == MAX_NAMES + 1
    assert set(found.sessions) <= set(found.ends)
    assert len(found.circuits) <= MAX_SHOWN
    assert len(collected._processes) == MAX_PROCESSES
    for process in collected._processes.values():
        assert len(process.circuits) <= 2 * MAX_SERVERS
    assert clock.now == 1000


def test_the_file(collected: Collected, clock: Clock, tmp_path: Path) -> None:
    assert read(str(tmp_path)) is None
    collected.add(valid())
    collected.write(str(tmp_path), {"stories": 7}, 5.0)
    found = read(str(tmp_path))
    assert found is not None
    assert found.sessions == {"filter-x": 2}
    assert found.journal == {"stories": 7}
    assert found.circuits == {("dns", "192.0.2.1:53"): True}
    assert found.lookups["dns"].seconds == 0.0015
    assert found.is_current(found.at + 10)
    assert not found.is_current(found.at + 100)
    # A clock that was far ahead doesn't keep a stopped journal alive.
    assert not found.is_current(found.at - 100)
    collected.add(valid(o=9))
    collected.write(str(tmp_path), {}, 5.0)
    assert read(str(tmp_path)) == found  # too early
    clock.now += 6
    collected.write(str(tmp_path), {}, 5.0)
    newer = read(str(tmp_path))
    assert newer is not None
    assert newer.sessions == {"filter-x": 9}
    remove(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    remove(str(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "{}", '{"version": 2}', '{"version": 1, "at": "x"}',
        '{"version": 1, "at": 1, "lookups": 3}', "[" * 100_000, "\udcff",
        '{"version": 1, "at": 1' + 400 * "0" + "}",
        '{"version": 1, "at": 1, "lookups": {}, "recent": {}, "span": 1e999, "sessions": 1}',
        json.dumps(
            {
                "version": 1, "at": 1, "lookups": {}, "recent": {}, "span": 1, "circuits": [],
                "sessions": {"x": float("inf")}, "ends": {}, "dropped": {}, "journal": {},
            }
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_not_one(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read(str(tmp_path)) is None


def test_a_fifo_is_not_waited_for(collected: Collected, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    assert read(str(tmp_path)) is None
    os.mkfifo(tmp_path / f"{FILE}.new")
    collected.write(str(tmp_path), {}, 0.0)
    assert read(str(tmp_path)) is not None


def test_a_link_beside_the_file_is_not_followed(collected: Collected, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("of somebody else")
    (tmp_path / f"{FILE}.new").symlink_to(other)
    collected.write(str(tmp_path), {}, 0.0)
    assert read(str(tmp_path)) is not None
    assert other.read_text() == "of somebody else"


def test_all_causes_are_there_from_the_start(collected: Collected) -> None:
    """Rates of counters that appear only with their first failure miss it."""
    collected.add(valid())
    assert collected.states({}).lookups["dns"].failures.keys() == set(FAILURES)

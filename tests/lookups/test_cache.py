from __future__ import annotations

import sys
from typing import Any

import pytest

from smtpd_filters.lookups.cache import MAX_ENTRY, Cache, Lifetimes, size_of
from smtpd_filters.lookups.outcome import MX, NODATA, Found, NotFound, Outcome, Unavailable


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [
        (Found(("a",), 60), 60),
        (Found(("a",), 0), 5),
        (Found(("a",), 10**9), 100),
        (Found((b"x" * MAX_ENTRY,), 60), 0),
        (Found(("a",) * 50, 60), 60),
        (Found(("a",) * 200, 60), 0),
        (Found((MX(10, "a"),) * 60, 60), 0),
        (NotFound(NODATA, 20), 20),
        (NotFound(NODATA, 1), 5),
        (NotFound(NODATA, 90), 50),
        (NotFound(NODATA, 0), 5),
        (Unavailable("timeout"), 1),
    ],
)
def test_lifetimes(outcome: Outcome[Any], seconds: float) -> None:
    assert Lifetimes(floor=5, ceiling=100, negative_ceiling=50, backoff=1).of(outcome) == seconds


def test_negative_ceiling_below_the_floor() -> None:
    assert Lifetimes(floor=5, negative_ceiling=2).of(NotFound(NODATA, 60)) == 2


def test_cache_until() -> None:
    cache = Cache[str](2)
    cache.put("a", "A", 10)
    assert cache.get("a", 9.9) == "A"
    assert cache.get("b", 0) is None
    assert cache.get("a", 10) is None
    assert len(cache) == 0


def test_the_least_recently_used_goes() -> None:
    cache = Cache[str](2)
    cache.put("a", "A", 10)
    cache.put("b", "B", 10)
    assert cache.get("a", 0) == "A"
    cache.put("c", "C", 10)
    assert [cache.get(key, 0) for key in "abc"] == ["A", None, "C"]
    cache.put("a", "A2", 10)
    cache.put("d", "D", 10)
    assert [cache.get(key, 0) for key in "acd"] == ["A2", None, "D"]
    cache.clear()
    assert len(cache) == 0


def test_what_it_holds() -> None:
    cache = Cache[str | int](2)
    cache.put("a", "A", 10)
    cache.put("b", 1, 20)
    assert cache.holds("a", str, 9.9)
    assert not cache.holds("a", str, 10)
    assert cache.holds("", str, 0)
    assert not cache.holds("ab", str, 0)
    assert not cache.holds("bc", int, 0)
    cache.put("c", 2, 20)
    # It was looked at last.
    assert cache.holds("b", int, 0)
    cache.put("d", 3, 20)
    assert cache.holds("bd", int, 0)


def test_memory_is_bounded() -> None:
    cache = Cache[str](100, memory=10)
    for key in "abc":
        cache.put(key, key, 10, 3)
    assert [cache.get(key, 0) for key in "abc"] == ["a", "b", "c"]
    cache.put("b", "B", 10, 4)
    assert len(cache) == 3
    cache.put("d", "d", 10, 2)
    assert [cache.get(key, 0) for key in "abcd"] == [None, "B", "c", "d"]
    # What has expired, or was too large, takes nothing.
    assert cache.get("c", 10) is None
    cache.put("e", "e", 20, 4)
    assert len(cache) == 3
    cache.put("f", "f", 20, 11)
    assert len(cache) == 0
    for key in "abc":
        cache.put(key, key, 20, 3)
    cache.clear()
    cache.put("g", "g", 20, 10)
    assert cache.get("g", 0) == "g"


def test_sizes_are_about_what_python_takes() -> None:
    assert size_of(NotFound(NODATA, 1)) == size_of(Unavailable("x"))
    addresses = tuple(f"10.0.0.{n}" for n in range(100, 200))
    taken = sum(map(sys.getsizeof, addresses)) + sys.getsizeof(addresses)
    assert taken * 0.8 < size_of(Found(addresses, 1)) - size_of(NotFound(NODATA)) < taken * 1.2


def test_size_zero_keeps_nothing() -> None:
    cache = Cache[str](0)
    cache.put("a", "A", 10)
    assert cache.get("a", 0) is None

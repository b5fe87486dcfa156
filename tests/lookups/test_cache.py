from __future__ import annotations

from typing import Any

import pytest

from smtpd_filters.lookups.cache import MAX_ENTRY, Cache, Lifetimes
from smtpd_filters.lookups.outcome import NODATA, Found, NotFound, Outcome, Unavailable


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [
        (Found(("a",), 60), 60),
        (Found(("a",), 0), 5),
        (Found(("a",), 10**9), 100),
        (Found((b"x" * MAX_ENTRY,), 60), 0),
        (Found(("a",) * 125, 60), 0),
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


def test_size_zero_keeps_nothing() -> None:
    cache = Cache[str](0)
    cache.put("a", "A", 10)
    assert cache.get("a", 0) is None

from __future__ import annotations

import pytest

from smtpd_filters.lookups.outcome import MX, NODATA, Found, NotFound, Unavailable


def test_values_are_equal_by_what_they_hold() -> None:
    assert Found(("a",), 5) == Found(("a",), 5)
    assert Found(("a",), 5) != Found(("a",), 5, "gap")
    assert NotFound(NODATA) != Unavailable(NODATA)
    assert Unavailable("x") != "x"
    assert len({MX(10, "a"), MX(10, "a"), MX(20, "a")}) == 2
    assert repr(MX(10, "a.example")) == "MX(preference=10, exchange='a.example')"


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [(Found((1,), 2), "1 2"), (NotFound(NODATA, 3), "nodata 3"), (Unavailable("why"), "why")],
)
def test_they_match(outcome: Found[int] | NotFound | Unavailable, expected: str) -> None:
    found = "no match"
    match outcome:
        case Found((one,), ttl):
            found = f"{one} {ttl}"
        case NotFound(reason, ttl):
            found = f"{reason} {ttl}"
        case Unavailable(cause):
            found = cause
    assert found == expected

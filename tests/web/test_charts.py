from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpd_filters.web.charts import Series, Stack, number, sparkline
from tests.effort import part

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.lists(st.floats(0, 1e12), min_size=3, max_size=3)


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '))  # noqa: S314  # our own


def drawn(*values: list[float]) -> ET.Element:
    series = [Series(f"s{at}", f"k{at}", each) for at, each in enumerate(values)]
    return parsed(Stack("c", "Messages", "by hour", ["1", "2", "3"], series).svg())


def bars(root: ET.Element) -> list[tuple[str, float, float]]:
    """The class, the top and the height of each bar."""
    return [
        (str(each.get("class")), float(str(each.get("y"))), float(str(each.get("height"))))
        for each in root.iter(f"{SVG}rect")
    ]


def test_heights_are_in_proportion() -> None:
    found = bars(drawn([10, 20, 0], [10, 0, 0]))
    assert [kind for kind, _, _ in found] == ["bar k0", "bar k1", "bar k0"]
    (_, top0, high0), (_, top1, high1), (_, top2, high2) = found
    assert high0 == high1 == pytest.approx(high2 / 2, abs=0.2)
    assert top1 == top2
    assert top0 == pytest.approx(top1 + high1, abs=0.2)


def test_what_a_screen_reader_is_told() -> None:
    root = drawn([1, 2, 3])
    assert root.get("role") == "img"
    names = {each.get("id"): each.text for each in root if each.get("id")}
    assert [names[each] for each in str(root.get("aria-labelledby")).split()] == [
        "Messages",
        "by hour",
    ]
    assert all(each.get("aria-hidden") == "true" for each in root.iter(f"{SVG}text"))


@settings(max_examples=part(100), deadline=None)
@given(st.text(), VALUES)
def test_any_text_is_escaped(text: str, values: list[float]) -> None:
    clean = "".join(c for c in text if c.isprintable() or c in "<>&\"'")
    chart = Stack("c", clean, clean, [clean] * 3, [Series(clean, "k", values)])
    root = parsed(chart.svg())
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= {
        "svg", "title", "desc", "line", "text", "rect",
    }  # fmt: skip
    parsed(sparkline(values, clean))


@settings(max_examples=part(200), deadline=None)
@given(VALUES, VALUES)
def test_bars_are_within_the_chart(one: list[float], two: list[float]) -> None:
    found = bars(drawn(one, two))
    assert all(top >= 9.9 and top + height <= 196.1 for _, top, height in found)


def test_a_strict_policy_blocks_nothing() -> None:
    svg = Stack("c", "t", "d", ["1"], [Series("s", "k", [1])]).svg() + sparkline([1, 2], "t")
    assert not re.search(r"style|script|href|url\(|on\w+=", svg)


def test_nothing_to_draw() -> None:
    assert bars(parsed(Stack("c", "t", "d", [], []).svg())) == []
    assert bars(drawn([0, 0, 0])) == []
    parsed(sparkline([], "t"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5, "5"), (0.25, "0.25"), (1234, "1234"), (1500, "1.5k"), (12345, "12.3k"),
     (2_000_000, "2M"), (999, "999")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text

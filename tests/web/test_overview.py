from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from smtpd_filters.journal.records import Overview, Passing
from smtpd_filters.web import page
from smtpd_filters.web.overview import DECIDED, STACKED, decisions, filters, messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from smtpd_filters.web.charts import Stack

CSS = (page.HERE / "static" / "page.css").read_text()
#: WCAG 2.1, 1.4.11: graphics beside what is next to them.
CONTRAST = 3.0


def found(*steps: dict[str, int], passed: int = 0) -> Overview:
    """Sums of so many hours, with these verdicts, and of some that let mail pass."""
    verdicts = [Passing("x", "connect", verb, n) for step in steps for verb, n in step.items()]
    verdicts.append(Passing("x", "connect", "proceed", passed))
    times = [3600.0 * at for at in range(len(steps))]
    return Overview(
        0.0,
        3600.0 * len(steps),
        3600,
        tuple((at, {}) for at in times),
        dict.fromkeys(STACKED, 0),
        tuple(zip(times, steps, strict=True)),
        tuple(verdicts),
        (),
    )


@pytest.mark.parametrize(
    ("verb", "outcome"),
    [
        ("reject", "refused"),
        ("disconnect", "refused"),
        ("junk", "junk"),
        ("rewrite", "changed"),
        ("edit", "changed"),
        ("points", "points"),
        ("proceed/failed", "failed"),
        ("reject/failed", "failed"),
        ("junk/failed/dry", "failed"),
        ("reject/dry", "dry"),
        ("points/dry", "dry"),
        ("bypass", None),
        # Of a newer release, perhaps.
        ("<script>", None),
        ("proceed/dry", None),
    ],
)
def test_each_verb_is_drawn_as_its_outcome(verb: str, outcome: str | None) -> None:
    chart = decisions(found({verb: 3}, {}, {verb: 1}))
    drawn = {each.kind: each.values for each in chart.series if any(each.values)}
    assert drawn == ({outcome: [3, 0, 1]} if outcome else {})
    assert "<script>" not in chart.svg()


def test_a_bypass_is_no_action() -> None:
    [sums] = filters(found({"bypass": 3, "reject": 1}, {}))
    assert (sums.decisions, sums.acted) == (4, 1)


def test_verbs_of_one_outcome_are_added() -> None:
    chart = decisions(found({"reject": 2, "disconnect": 3, "junk": 1}, passed=94))
    assert (
        chart.description
        == "94 of 100 decisions let mail pass as it was; 1 marked as junk, 5 refused"
    )
    assert "5 refused</title>" in chart.svg()


def test_nothing_but_mail_that_passes() -> None:
    assert decisions(found({}, passed=7)).description == "7 of 7 decisions let mail pass as it was."
    assert decisions(found({})).description == "No decisions."


@pytest.mark.parametrize(
    ("hours", "unit", "label"),
    [
        (1, "hour", r"[A-Z]\w\w \d\d:\d\d"),
        (23, "23 hours", r"[A-Z]\w\w \d\d:\d\d"),
        (24, "24 hours", r"\d\d [A-Z]\w\w"),
    ],
)
@pytest.mark.parametrize("chart", [messages, decisions])
def test_what_a_bar_stands_for(
    chart: Callable[[Overview], Stack], hours: int, unit: str, label: str
) -> None:
    drawn = chart(replace(found({"junk": 1}, {}), step=3600 * hours))
    assert drawn.title.endswith(f" by {unit}")
    assert len(drawn.labels) == 2
    assert all(re.fullmatch(label, each) for each in drawn.labels)


@pytest.mark.parametrize(
    ("days", "hours", "label"),
    [
        (7, 4, r"[A-Z]\w\w \d\d:\d\d"),
        (30, 15, r"\d\d [A-Z]\w\w \d\d:\d\d"),
        (300, 150, r"\d\d [A-Z]\w\w"),
        (1000, 500, r"\d\d [A-Z]\w\w \d{4}"),
    ],
)
def test_bars_of_several_weeks_and_years_are_told_apart(days: int, hours: int, label: str) -> None:
    [drawn] = messages(replace(found({}), until=86400.0 * days, step=3600 * hours)).labels
    assert re.fullmatch(label, drawn)


@pytest.mark.parametrize("kind", [*STACKED, *DECIDED])
def test_bars_stand_out_in_both_colour_schemes(kind: str) -> None:
    for selector, name in ((".bar", "fill"), (".key", "background")):
        assert f"{selector}.{kind} {{ {name}: var(--{kind}); }}" in CSS
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    for scheme in (light, dark):
        colours = dict(re.findall(r"--(\w+): #(\w+);", scheme))
        one, two = sorted((luminance(colours[kind]), luminance(colours["back"])))
        assert (two + 0.05) / (one + 0.05) >= CONTRAST


def luminance(colour: str) -> float:
    """The relative luminance of a colour, as WCAG 2.1 defines it."""
    digits = colour if len(colour) == 6 else "".join(2 * each for each in colour)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

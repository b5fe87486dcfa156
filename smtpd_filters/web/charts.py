"""Charts as SVG, drawn by the server: they need no JavaScript, and their numbers are in a table.

Colours are classes of the style sheet, since a strict Content-Security-Policy blocks
`style` attributes. A chart has a title and a description for screen readers; its text is hidden
from them, as the table beside it has the numbers.

Invariants
----------
*Escaped*: text in a chart is a part of `Markup`, which escapes it.
*Never colour alone*: each series has its place in the stack, and each bar a title with its name.
"""

from __future__ import annotations

from math import ceil, floor, log10
from typing import NamedTuple

from markupsafe import Markup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Size of a chart, of its margins, and of a sparkline, in units of the SVG.
WIDTH, HEIGHT = 720, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 24, 10, 24
SPARK_WIDTH, SPARK_HEIGHT = 120, 24
#: Labels on the axis of time, at most.
LABELS = 8


class Series(NamedTuple):
    """A series of a chart: its name, its class in the style sheet, and a number for each label."""

    name: str
    kind: str
    values: Sequence[float]


class Stack(NamedTuple):
    """A chart of stacked bars: one bar for each label, with a part for each series."""

    identity: str  # a name for the elements of the page
    title: str
    description: str
    labels: Sequence[str]
    series: Sequence[Series]

    def svg(self) -> Markup:
        """Return the chart as an SVG element."""
        totals = [sum(each.values[at] for each in self.series) for at in range(len(self.labels))]
        step = _step(max(totals, default=0.0))
        top = step * max(1, ceil(max(totals, default=0.0) / step))
        parts = [*self._grid(step, top), *self._bars(top), *self._times()]
        return Markup(
            '<svg class="chart" role="img" viewBox="0 0 {w} {h}" aria-labelledby="{i}-t {i}-d">'
            '<title id="{i}-t">{title}</title><desc id="{i}-d">{text}</desc>{parts}</svg>'
        ).format(
            w=WIDTH,
            h=HEIGHT,
            i=self.identity,
            title=self.title,
            text=self.description,
            parts=Markup("").join(parts),
        )

    def _grid(self, step: float, top: float) -> list[Markup]:
        lines = []
        for at in range(round(top / step) + 1):
            y = _y(at * step, top)
            lines.append(
                Markup(
                    '<line class="grid" x1="{x}" x2="{w}" y1="{y}" y2="{y}"/>'
                    '<text class="tick" aria-hidden="true" x="{t}" y="{y}" dy="4">{n}</text>'
                ).format(x=LEFT, w=WIDTH - RIGHT, y=y, t=LEFT - 6, n=number(at * step))
            )
        return lines

    def _bars(self, top: float) -> list[Markup]:
        if not self.labels:
            return []
        space = (WIDTH - LEFT - RIGHT) / len(self.labels)
        wide = max(space * 0.8, 0.5)
        bars = []
        for at, label in enumerate(self.labels):
            x = LEFT + at * space + (space - wide) / 2
            below = 0.0
            for each in self.series:
                value = each.values[at]
                if value <= 0:
                    continue
                high, low = _y(below + value, top), _y(below, top)
                below += value
                bars.append(
                    Markup(
                        '<rect class="bar {kind}" x="{x}" y="{y}" width="{w}" height="{h}">'
                        "<title>{label}: {value} {name}</title></rect>"
                    ).format(
                        kind=each.kind,
                        x=f"{x:.1f}",
                        y=high,
                        w=f"{wide:.1f}",
                        h=f"{float(low) - float(high):.1f}",
                        label=label,
                        value=number(value),
                        name=each.name,
                    )
                )
        return bars

    def _times(self) -> list[Markup]:
        count = len(self.labels)
        every = max(1, ceil(count / LABELS))
        space = (WIDTH - LEFT - RIGHT) / max(count, 1)
        return [
            Markup('<text class="time" aria-hidden="true" x="{x}" y="{y}">{label}</text>').format(
                x=f"{LEFT + (at + 0.5) * space:.1f}", y=HEIGHT - 6, label=self.labels[at]
            )
            for at in range(0, count, every)
        ]


def sparkline(values: Sequence[float], title: str) -> Markup:
    """Return a small line of values as an SVG element; `title` says in words what it shows."""
    top = max(values, default=0.0) or 1.0
    space = SPARK_WIDTH / max(len(values) - 1, 1)
    points = " ".join(
        f"{at * space:.1f},{(SPARK_HEIGHT - 1) - (SPARK_HEIGHT - 2) * max(value, 0) / top:.1f}"
        for at, value in enumerate(values)
    )
    return Markup(
        '<svg class="spark" role="img" viewBox="0 0 {w} {h}" aria-label="{title}">'
        '<polyline points="{points}"/></svg>'
    ).format(w=SPARK_WIDTH, h=SPARK_HEIGHT, title=title, points=points)


def number(value: float) -> str:
    """Return a number as people write it: whole without a point, thousands with k or M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:.1f}".removesuffix(".0") + unit
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _step(most: float) -> float:
    """Return the distance of the lines behind a chart: 1, 2 or 5 times a power of ten, whole."""
    if most <= 4:
        return 1.0
    rough = most / 4
    power = 10.0 ** floor(log10(rough))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= rough)


def _y(value: float, top: float) -> str:
    height = HEIGHT - TOP - BOTTOM
    return f"{TOP + height * (1 - value / top):.1f}"

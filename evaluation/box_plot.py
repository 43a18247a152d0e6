"""Box plots as SVG text: one metric of one class, a box for each model, a point for each case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle

import numpy as np

from .axes import COLOURS, INK, Axes, nothing, ticks
from .records import CaseScores

_ROW, _BOX = 46, 14  # heights: of a model's row, its name above its box, and of the box
_SPREAD = (0, -4, 4, -2, 2)  # how far points are moved off the middle, one after the other, so that ties are seen


@dataclass(frozen=True)
class CaseValue:
    """A metric in one case; `missed` where the truth has the class and the prediction nothing of it."""

    case: str
    value: float
    missed: bool = False


def case_values(scores: CaseScores, class_name: str) -> list[CaseValue]:
    """The Dice of a class in every case that it was scored in."""
    rows = [(case, row) for case, rows in scores.cases.items() for row in rows if row.name == class_name]
    ruled = ((case, row.under(scores.rules)) for case, row in rows)
    return [CaseValue(case, row.dice, row.missed) for case, row in ruled if row.dice is not None]


@dataclass(frozen=True)
class BoxStatistics:
    """The quartiles (linear between the values), and the outermost values within 1.5 times their distance of them."""

    low: float
    first: float
    median: float
    third: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "BoxStatistics":
        first, median, third = map(float, np.percentile(values, (25, 50, 75)))
        reach = 1.5 * (third - first)
        inside = [value for value in values if first - reach <= value <= third + reach]
        return cls(min(inside), first, median, third, max(inside))


def box_plot(title: str, models: Mapping[str, Sequence[CaseValue]], *, x_label: str) -> str:
    """An <svg> with a row for each model that was scored: median, cases, box, whiskers, and every case as a point.

    A case in which the class was missed is a cross. A point's tooltip names its case.
    """
    models = {name: values for name, values in models.items() if values}
    if not models:
        return nothing(title)
    everything = [each.value for values in models.values() for each in values]
    axes = Axes(title, x_label, ticks(everything), height=_ROW * len(models))
    parts, words = [], []
    for row, ((name, values), colour) in enumerate(zip(models.items(), cycle(COLOURS), strict=False)):
        box = BoxStatistics.of([each.value for each in values])
        missed = sum(each.missed for each in values)
        counts = f"{len(values)} case{'s' * (len(values) != 1)}{f', {missed} missed' if missed else ''}"
        text = f"{name}: median {box.median:.3f}, {counts}"
        top = axes.top + row * _ROW
        parts.append(f'<text x="{axes.left}" y="{top + 14:g}">{escape(text)}</text>')
        parts += _box(axes, box, middle=top + 30, colour=colour)
        parts += [
            _point(axes.x(each.value), top + 30 + _SPREAD[number % len(_SPREAD)], each)
            for number, each in enumerate(values)
        ]
        words.append(f"{text}, middle half {box.first:.3f} to {box.third:.3f}")
    return axes.svg(parts, alternative=f"Box plot, {x_label} of {title}. {'; '.join(words)}")


def _box(axes: Axes, box: BoxStatistics, *, middle: float, colour: str) -> list[str]:
    low, first, median, third, high = map(axes.x, (box.low, box.first, box.median, box.third, box.high))
    top, bottom = middle - _BOX / 2, middle + _BOX / 2
    width = max(third - first, 1)
    return [
        f'<path stroke="{colour}" stroke-width="2" d="M{low} {middle:g}H{first}M{third} {middle:g}H{high}'
        f'M{low} {middle - 4:g}v8M{high} {middle - 4:g}v8"/>',
        f'<rect x="{first}" y="{top:g}" width="{width:g}" height="{_BOX}" fill="{colour}" fill-opacity="0.3" '
        f'stroke="{colour}" stroke-width="1.5"/>',
        f'<path stroke="{colour}" stroke-width="3" d="M{median} {top:g}V{bottom:g}"/>',
    ]


def _point(x: float, y: float, each: CaseValue) -> str:
    note = f"<title>{escape(each.case)}: {each.value:.3f}{', missed' if each.missed else ''}</title>"
    if each.missed:
        return f'<path stroke="{INK}" stroke-width="2" d="M{x - 4:g} {y - 4:g}l8 8m0 -8l-8 8">{note}</path>'
    return f'<circle cx="{x}" cy="{y:g}" r="2.5" fill="#fff" stroke="{INK}">{note}</circle>'

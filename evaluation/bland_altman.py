"""How far measured volumes lie from true ones: the limits of agreement, and their plot (Bland & Altman 1986)."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

import numpy as np

from .axes import COLOURS, GREY, Axes, nothing, ticks
from .records import CaseScores
from .text_table import TextTable

_LIMITS = 1.96  # standard deviations: 95 % of normally distributed differences

VolumePairs = Mapping[str, tuple[float, float]]  # measured and true volume by case name


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The mean of measured minus true over so many cases, its standard deviation, and the limits of agreement.

    The limits are the mean -+ 1.96 deviations (n - 1 in the denominator); they need two cases.
    """

    cases: int
    difference: float | None = None
    deviation: float | None = None
    low: float | None = None
    high: float | None = None


def volume_pairs(scores: CaseScores, voxel_ml: Mapping[str, float]) -> dict[str, VolumePairs]:
    """By class name the volumes of prediction and truth in ml in the cases where either holds the class.

    `voxel_ml` is the volume of a voxel by case name; cases without one, such as pictures, are left out.
    """
    pairs: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in scores.summary.per_class}
    for case, rows in scores.cases.items():
        for row in rows if case in voxel_ml else ():
            if row.predicted_voxels or row.truth_voxels:
                measured, true = (count * voxel_ml[case] for count in (row.predicted_voxels, row.truth_voxels))
                pairs[row.name][case] = (measured, true)
    return {name: each for name, each in pairs.items() if each}


def agreement(pairs: VolumePairs) -> Agreement:
    """The agreement of measured with true volumes."""
    differences = np.array([measured - true for measured, true in pairs.values()])
    if not len(differences):
        return Agreement(cases=0)
    mean = float(differences.mean())
    if len(differences) == 1:
        return Agreement(cases=1, difference=mean)
    deviation = float(differences.std(ddof=1))
    low, high = mean - _LIMITS * deviation, mean + _LIMITS * deviation
    return Agreement(cases=len(differences), difference=mean, deviation=deviation, low=low, high=high)


def agreement_table(classes: Mapping[str, VolumePairs], *, title: str) -> TextTable:
    """A row per class: mean true volume, mean difference, deviation and limits of agreement in ml, and the cases."""
    rows = []
    for name, pairs in classes.items():
        result = agreement(pairs)
        true = float(np.mean([volume for _, volume in pairs.values()])) if pairs else None
        limits = "-" if result.low is None else f"{_millilitres(result.low)} to {_millilitres(result.high)}"
        volume = "-" if true is None else f"{true:.1f}"
        numbers = (volume, _millilitres(result.difference), _plain(result.deviation), limits)
        rows.append((name, *numbers, str(result.cases)))
    columns = ("class", "true volume, ml", "mean difference, ml", "SD, ml", "limits of agreement, ml", "cases")
    return TextTable(title, columns, tuple(rows))


def _millilitres(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def bland_altman_plot(title: str, pairs: VolumePairs) -> str:
    """An <svg>: over the mean of both volumes in ml their difference, for each case, and the limits of agreement."""
    if not pairs:
        return nothing(title)
    result = agreement(pairs)
    points = {case: ((measured + true) / 2, measured - true) for case, (measured, true) in pairs.items()}
    lines = {"mean": result.difference, "-1.96 SD": result.low, "+1.96 SD": result.high}
    levels = {name: value for name, value in lines.items() if value is not None}
    heights = [0.0, *levels.values(), *(y for _, y in points.values())]
    room = 0.1 * (max(heights) - min(heights))  # for the texts above and below the outer lines
    axes = Axes(
        title,
        "mean of prediction and truth, ml",
        ticks([x for x, _ in points.values()]),
        ticks([*heights, max(heights) + room, min(heights) - room]),
        y_label="prediction - truth, ml",
    )
    parts = [f'<path stroke="{GREY}" d="M{axes.left} {axes.y(0)}H{axes.right}"/>']
    for name, value in levels.items():
        y, dashes = axes.y(value), "" if name == "mean" else ' stroke-dasharray="6 4"'
        parts.append(f'<path stroke="{COLOURS[1]}" stroke-width="2"{dashes} d="M{axes.left} {y}H{axes.right}"/>')
        # Where the lines are close together their texts are not: the mean's is on the left, the lower one's below.
        place = f'x="{axes.left + 4}"' if name == "mean" else f'x="{axes.right}" text-anchor="end"'
        text_y = y + 14 if name.startswith("-") else y - 4
        parts.append(f'<text class="halo" {place} y="{text_y:g}">{name} {value:+.1f}</text>')
    for case, (x, y) in points.items():
        note = f"<title>{escape(case)}: {y:+.2f} ml</title>"
        parts.append(f'<circle cx="{axes.x(x)}" cy="{axes.y(y)}" r="4" fill="{COLOURS[0]}">{note}</circle>')
    words = ", ".join(f"{name} {value:+.1f} ml" for name, value in levels.items())
    return axes.svg(parts, alternative=f"Bland-Altman plot of the volume of {title}, {result.cases} cases: {words}")

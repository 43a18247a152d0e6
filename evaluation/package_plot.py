"""Packages in one picture: how long a scan takes, how good the masks are, and how large the package is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle

from .axes import COLOURS, INK, Axes, nothing, ticks
from .text_table import TextTable

_LEAST_RANGE = 0.05  # of Dice on the axis: a thousandth between two packages shall not look like a gulf
_AREA = 900  # square user units of the largest package's disc


@dataclass(frozen=True, kw_only=True)
class MeasuredPackage:
    """What one package did on the test scans: median seconds per scan, mean Dice, megabytes on disk."""

    name: str
    seconds: float
    dice: float
    megabytes: float


def package_table(packages: Sequence[MeasuredPackage], *, title: str) -> TextTable:
    """A row per package with the number of its disc in package_plot."""
    rows = tuple(
        (str(number), each.name, f"{each.seconds:.2f}", f"{each.dice:.3f}", f"{each.megabytes:.1f}")
        for number, each in enumerate(packages, start=1)
    )
    return TextTable(title, ("", "package", "seconds per scan", "mean Dice", "MB"), rows)


def package_plot(title: str, packages: Sequence[MeasuredPackage]) -> str:
    """An <svg> of Dice over seconds per scan: numbered discs whose area is proportional to the package's megabytes."""
    if not packages:
        return nothing(title)
    x_ticks = ticks([0.0, *(each.seconds for each in packages)])
    dice = [each.dice for each in packages]
    room = max(0.0, _LEAST_RANGE - (max(dice) - min(dice))) / 2
    axes = Axes(title, "seconds per scan", x_ticks, ticks([min(dice) - room, max(dice) + room]), "mean Dice")
    largest, parts, words = max(each.megabytes for each in packages), [], []
    for number, (each, colour) in enumerate(zip(packages, cycle(COLOURS), strict=False), start=1):
        x, y = axes.x(each.seconds), axes.y(each.dice)
        radius = math.sqrt(_AREA * each.megabytes / largest / math.pi)
        text = f"{each.name}: {each.seconds:.2f} s, Dice {each.dice:.3f}, {each.megabytes:.1f} MB"
        disc = f'r="{radius:.1f}" fill="{colour}" fill-opacity="0.55" stroke="{INK}"'
        parts.append(f'<circle cx="{x}" cy="{y}" {disc}><title>{escape(text)}</title></circle>')
        parts.append(f'<text class="halo" x="{x}" y="{y + 4:g}" text-anchor="middle">{number}</text>')
        words.append(text)
    return axes.svg(parts, alternative=f"{title}: {'; '.join(words)}")

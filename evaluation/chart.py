"""Line charts as SVG text: no script, no file beside the page."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from .axes import COLOURS, Axes, nothing, ticks

_STYLE = (
    "<style>svg{background:#fff;font:12px sans-serif}.title{font-weight:bold}.grid{stroke:#ddd}"
    ".axis{stroke:#333;fill:none}polyline{fill:none;stroke-width:2}</style>"
)

Points = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Points], *, x_label: str) -> str:
    """An <svg> of named lines with axes, ticks and a legend; points that are not finite are left out."""
    lines = {name: [(x, y) for x, y in points if math.isfinite(x + y)] for name, points in series.items()}
    lines = {name: line for name, line in lines.items() if line}
    points = [point for line in lines.values() for point in line]
    if not points:
        return nothing(title)
    colours = dict(zip(lines, cycle(COLOURS), strict=False))
    axes = Axes(title, x_label, ticks([x for x, _ in points]), ticks([y for _, y in points]), legend=colours)
    parts = []
    for name, line in lines.items():
        places = [(axes.x(x), axes.y(y)) for x, y in line]
        corners = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{corners}" stroke="{colours[name]}"/>')
        x, y = places[-1]
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colours[name]}"/>')
    ends = "; ".join(f"{name} ends at {line[-1][1]:.3g}" for name, line in lines.items())
    return axes.svg(parts, alternative=f"{title} over {x_label}: {ends}")


def svg_file(chart: str) -> str:
    """The content of an SVG file of its own from an <svg> of line_chart, which in a page has the page's style."""
    return chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{_STYLE}", 1) + "\n"

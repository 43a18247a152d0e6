"""Line charts as SVG text: no script, no file beside the page."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe & Ito 2008
_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 70  # margins around the plot

_STYLE = (
    "<style>svg{background:#fff;font:12px sans-serif}.title{font-weight:bold}.grid{stroke:#ddd}"
    ".axis{stroke:#333;fill:none}polyline{fill:none;stroke-width:2}</style>"
)

Points = Sequence[tuple[float, float]]


def line_chart(title: str, series: Mapping[str, Points], *, x_label: str) -> str:
    """An <svg> of named lines with axes, ticks and a legend; points that are not finite are left out."""
    lines = {name: [(x, y) for x, y in points if math.isfinite(x + y)] for name, points in series.items()}
    points = [point for line in lines.values() for point in line]
    if not points:
        return f'<p class="note">{escape(title)}: nothing was recorded.</p>'
    x_ticks, y_ticks = _ticks([x for x, _ in points]), _ticks([y for _, y in points])
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(_LEFT + across * (right - _LEFT), 1), round(bottom - up * (bottom - _TOP), 1)

    parts = [f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>']
    for tick in y_ticks:
        _, y = at(x_ticks[0], tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = at(tick, y_ticks[0])
        parts.append(f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{bottom + 34}" text-anchor="middle">{escape(x_label)}</text>')

    legend = _LEFT
    for (name, line), colour in zip(lines.items(), cycle(_COLOURS), strict=False):
        if not line:
            continue
        corners = " ".join(f"{x},{y}" for x, y in (at(*point) for point in line))
        parts.append(f'<polyline points="{corners}" stroke="{colour}"/>')
        x, y = at(*line[-1])
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        parts.append(f'<rect x="{legend}" y="{_HEIGHT - 22}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{legend + 19}" y="{_HEIGHT - 16}">{escape(name)}</text>')
        legend += 34 + 7 * len(name)
    content = "\n".join(parts)
    return f'<svg viewBox="0 0 {max(_WIDTH, legend)} {_HEIGHT}" role="img" aria-label="{escape(title)}">{content}</svg>'


def _ticks(values: Sequence[float]) -> list[float]:
    """Four to eight round numbers that enclose the values, at steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        low, high = min(low, 0.0), max(high, 0.0)  # of a single value the axis shows how far from zero it is
        high += float(low == high)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def svg_file(chart: str) -> str:
    """The content of an SVG file of its own from an <svg> of line_chart, which in a page has the page's style."""
    return chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{_STYLE}", 1) + "\n"

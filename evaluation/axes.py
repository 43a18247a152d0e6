"""The frame of a chart as SVG text: axes with round ticks, a title and a legend; no script, no file beside the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe & Ito 2008
INK, GREY = "#1a1a1a", "#767676"
WIDTH = 400  # user units; a phone shows them at about one pixel each
_LEFT, _RIGHT, _TOP, _BELOW = 58, 22, 34, 46  # margins; below the plot are the ticks and their label
_EDGE = 14  # left of what has no vertical axis
_LINE = 18  # height of a line of the legend
_CHARACTER = 6.4  # mean width at 12 pixels


@dataclass(frozen=True)
class Axes:
    """A plot whose ticks enclose its data, `height` high, with a `legend` of names and colours in lines below.

    Without `y_ticks` it has no vertical axis, and y counts user units from its top.
    """

    title: str
    x_label: str
    x_ticks: Sequence[float]
    y_ticks: Sequence[float] = ()
    y_label: str = ""
    height: float = 196
    legend: Mapping[str, str] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return _LEFT if self.y_ticks else _EDGE

    @property
    def right(self) -> float:
        return WIDTH - _RIGHT

    @property
    def top(self) -> float:
        return _TOP

    @property
    def bottom(self) -> float:
        return _TOP + self.height

    def x(self, value: float) -> float:
        """Where a value of the horizontal axis lies, in user units."""
        return round(self.left + _share(value, self.x_ticks) * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        """Where a value of the vertical axis lies, in user units."""
        return round(self.bottom - _share(value, self.y_ticks) * self.height, 1)

    def svg(self, parts: Sequence[str], *, alternative: str) -> str:
        """The <svg> of the frame with `parts` in it; `alternative` says in words what it shows."""
        lines = _wrapped(self.legend)
        height = self.bottom + _BELOW + _LINE * len(lines)
        content = "\n".join([*self._frame(), *parts, *_legend(lines, self.legend, y=self.bottom + _BELOW)])
        return (
            f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(alternative)}">\n{content}\n</svg>'
        )

    def _frame(self) -> list[str]:
        parts = [f'<text class="title" x="{self.left}" y="18">{escape(self.title)}</text>']
        for tick in self.y_ticks:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left}" y1="{y}" x2="{self.right}" y2="{y}"/>')
            parts.append(f'<text x="{self.left - 8}" y="{y + 4:g}" text-anchor="end">{tick:g}</text>')
        for tick in self.x_ticks:
            x = self.x(tick)
            if not self.y_ticks:
                parts.append(f'<line class="grid" x1="{x}" y1="{self.top}" x2="{x}" y2="{self.bottom}"/>')
            parts.append(f'<line class="axis" x1="{x}" y1="{self.bottom}" x2="{x}" y2="{self.bottom + 4}"/>')
            parts.append(f'<text x="{x}" y="{self.bottom + 18}" text-anchor="middle">{tick:g}</text>')
        down = f"M{self.left} {self.top}V{self.bottom}" if self.y_ticks else f"M{self.left} {self.bottom}"
        parts.append(f'<path class="axis" d="{down}H{self.right}"/>')
        middle = (self.left + self.right) / 2
        parts.append(f'<text x="{middle}" y="{self.bottom + 34}" text-anchor="middle">{escape(self.x_label)}</text>')
        if self.y_label:
            x, y = 14, (self.top + self.bottom) / 2
            turned = f'x="{x}" y="{y}" transform="rotate(-90 {x} {y})" text-anchor="middle"'
            parts.append(f"<text {turned}>{escape(self.y_label)}</text>")
        return parts


def _share(value: float, ticks: Sequence[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _wrapped(names: Mapping[str, str]) -> list[list[str]]:
    """The names in lines that are no wider than the chart."""
    lines: list[list[str]] = []
    room = 0.0
    for name in names:
        width = 30 + _CHARACTER * len(name)
        if not lines or room < width:
            lines.append([])
            room = WIDTH - _EDGE
        lines[-1].append(name)
        room -= width
    return lines


def _legend(lines: Sequence[Sequence[str]], colours: Mapping[str, str], *, y: float) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        x, middle = float(_EDGE), y + number * _LINE + _LINE / 2
        for name in line:
            parts.append(f'<rect x="{x:g}" y="{middle - 2:g}" width="14" height="4" fill="{colours[name]}"/>')
            parts.append(f'<text x="{x + 19:g}" y="{middle + 4:g}">{escape(name)}</text>')
            x += 30 + _CHARACTER * len(name)
    return parts


def ticks(values: Sequence[float]) -> list[float]:
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


def nothing(title: str) -> str:
    """What stands in the place of a chart without data."""
    return f'<p class="note">{escape(title)}: nothing was recorded.</p>'

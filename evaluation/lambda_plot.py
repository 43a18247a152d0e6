"""The sweep of lambda as a chart: mean Dice of every student with its interval, and the control as a line."""

from collections.abc import Mapping

from .axes import COLOURS, Axes, nothing, ticks
from .statistics import MetricStatistics

_STUDENTS, _CONTROL = "student with its teachers, 95 % interval", "control: the same student without"


def lambda_plot(title: str, students: Mapping[float, MetricStatistics], control: MetricStatistics | None) -> str:
    """An <svg> of the mean over the classes by lambda; bars and band are 95 % intervals, where there are any."""
    students = {value: each for value, each in sorted(students.items()) if each.mean is not None}
    if not students:
        return nothing(title)
    shown = [*students.values(), *([control] if control and control.mean is not None else [])]
    values = [value for each in shown for value in (each.mean, each.low, each.high) if value is not None]
    legend = {_STUDENTS: COLOURS[0], **({_CONTROL: COLOURS[1]} if len(shown) > len(students) else {})}
    axes = Axes(title, "lambda, the labels' part of the loss", ticks([0, 1]), ticks(values), "mean Dice", legend=legend)
    parts, words = [], []
    if control and control.mean is not None:
        parts += _band(axes, control)
        words.append(f"control {_in_words(control)}")
    means = [(axes.x(value), axes.y(each.mean)) for value, each in students.items() if each.mean is not None]
    corners = " ".join(f"{x},{y}" for x, y in means)
    parts.append(f'<polyline points="{corners}" stroke="{COLOURS[0]}"/>')
    for value, each in students.items():
        parts += _bar(axes, value, each)
        words.append(f"lambda {value:g}: {_in_words(each)}")
    return axes.svg(parts, alternative=f"{title}. {'; '.join(words)}")


def _band(axes: Axes, control: MetricStatistics) -> list[str]:
    assert control.mean is not None
    y, parts = axes.y(control.mean), []
    if control.low is not None and control.high is not None:
        top, bottom = axes.y(control.high), axes.y(control.low)
        size = f'width="{axes.right - axes.left}" height="{bottom - top:.1f}"'
        parts.append(f'<rect x="{axes.left}" y="{top}" {size} fill="{COLOURS[1]}" fill-opacity="0.15"/>')
    line = f'stroke="{COLOURS[1]}" stroke-width="2" stroke-dasharray="6 4"'
    return [*parts, f'<path {line} d="M{axes.left} {y}H{axes.right}"/>']


def _bar(axes: Axes, value: float, each: MetricStatistics) -> list[str]:
    assert each.mean is not None
    x, y, parts = axes.x(value), axes.y(each.mean), []
    if each.low is not None and each.high is not None:
        low, high = axes.y(each.low), axes.y(each.high)
        bar = f"M{x} {low}V{high}M{x - 4:g} {low}h8M{x - 4:g} {high}h8"
        parts.append(f'<path stroke="{COLOURS[0]}" stroke-width="1.5" d="{bar}"/>')
    note = f"<title>lambda {value:g}: {_in_words(each)}</title>"
    return [*parts, f'<circle cx="{x}" cy="{y}" r="4" fill="{COLOURS[0]}">{note}</circle>']


def _in_words(each: MetricStatistics) -> str:
    interval = "" if each.low is None else f" ({each.low:.3f} to {each.high:.3f})"
    return f"{each.mean:.3f}{interval}"

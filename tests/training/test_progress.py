"""What a training shows: a bar with figures on a terminal, a line now and then in a log."""

import io
import math

import pytest
import torch
from rich.console import Console

from samkd.training import live_figures, progress
from samkd.training.live_figures import LiveFigures, LossHistory, curve
from samkd.training.progress import Bar


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""

    class Clock:
        now = 100.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    monkeypatch.setattr(live_figures.time, "perf_counter", clock)
    return clock


def shown_on(monkeypatch, *, terminal: bool) -> io.StringIO:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, legacy_windows=False)
    monkeypatch.setattr(progress, "console", console)
    return stream


def test_a_log_gets_a_line_every_half_minute_and_no_bar(monkeypatch, clock):
    stream = shown_on(monkeypatch, terminal=False)
    with Bar("student", 10, done=2) as bar:
        for number in range(8):
            clock.now += 10
            bar.advance(f"loss {number}", below=lambda: "1.2 GB")
    assert stream.getvalue().splitlines() == [
        "student 5/10  loss 2  1.2 GB  1 min left",  # 10 s a step, 5 to go
        "student 8/10  loss 5  1.2 GB  0 min left",
    ]


def test_a_quick_bar_leaves_a_log_alone_and_so_does_every_process_but_the_first(monkeypatch, clock):
    stream = shown_on(monkeypatch, terminal=False)
    with Bar("cases", 3) as bar:
        for _ in range(3):
            bar.advance("case")
    monkeypatch.setattr(progress, "is_main", lambda: False)
    with Bar("student", 3) as bar:
        for _ in range(3):
            clock.now += 60
            bar.advance()
    assert stream.getvalue() == ""


def test_a_terminal_has_the_figures_below_the_bar(monkeypatch):
    stream = shown_on(monkeypatch, terminal=True)
    with Bar("student", 2) as bar:
        bar.advance("loss 0.5", below=lambda: "liver 0.81")
    text = stream.getvalue()
    assert "student" in text and "loss 0.5" in text and "liver 0.81" in text


def test_figures_of_the_last_steps(clock, monkeypatch):
    monkeypatch.setattr(live_figures, "peak_bytes", lambda: 1.25e9)
    figures = LiveFigures(torch.device("cpu"), devices=2)
    assert figures.text() == "  1.2 GB"

    def batches():
        for _ in range(6):
            clock.now += 1.0  # for the data
            yield {"image": torch.zeros(3, 1)}

    stream = batches()
    for number in range(3):
        figures.start_step()
        for _ in range(2):
            figures.awaited(stream)
            clock.now += 1.0  # for the network
        figures.end_step(3.0 - number)
        clock.now += 100.0  # a validation is no part of a step
    figures.validated({"mean": 0.6, "liver": 0.8, "spleen": 0.4, "automatic": 0.1, "prompted": 0.9})
    assert figures.text() == "█▅▁  liver 0.80, spleen 0.40  3 patches/s, 50% waiting for data  1.2 GB"


def test_the_curve_shows_means_of_equal_parts_and_leaves_out_what_is_not_finite():
    assert curve([]) == "" and curve([2.0]) == "▁" and curve([2.0, 2.0]) == "▁▁"
    assert curve([8.0, 6.0, math.nan, 4.0, math.inf, 1.0], width=2) == "█▁"
    assert len(curve([float(number) for number in range(1000)])) == live_figures.WIDTH


def test_a_long_run_keeps_few_losses_and_their_mean():
    history = LossHistory()
    for number in range(10 * history.MOST):
        history.add(float(number))
    assert history.MOST / 2 <= len(history.values) < history.MOST
    assert history.values[0] < 16 and history.values == sorted(history.values)
    assert sum(history.values) / len(history.values) == pytest.approx(5 * history.MOST, rel=0.05)

"""What somebody who watches a training wants to know of it: how the loss falls, how fast it goes, what holds it up."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch

from ..volumes.memory import peak_bytes

LEVELS = "▁▂▃▄▅▆▇█"
WIDTH = 24  # characters of the curve
RECENT = 20  # steps that the speed is the mean over


class LiveFigures:
    """The figures of a run, on one of ``devices``, since it was started or continued."""

    def __init__(self, device: torch.device, *, devices: int = 1) -> None:
        self.device, self.devices = device, devices
        self.losses = LossHistory()
        self.dice: dict[str, float] = {}
        self._steps: deque[tuple[float, float, int]] = deque(maxlen=RECENT)  # seconds, seconds waiting, patches
        self._started = time.perf_counter()
        self._waited, self._patches = 0.0, 0

    def awaited(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """The next batch; the time that it takes to come is time spent waiting for data."""
        started = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - started
        self._patches += len(batch["image"])
        return batch

    def start_step(self) -> None:
        """A step begins: what lies between two steps, such as a validation, is none of their time."""
        self._started, self._waited, self._patches = time.perf_counter(), 0.0, 0

    def end_step(self, loss: float) -> None:
        self.losses.add(loss)
        self._steps.append((time.perf_counter() - self._started, self._waited, self._patches))

    def validated(self, scores: Mapping[str, float]) -> None:
        """Dice by class name, and ``mean``."""
        self.dice = {name: score for name, score in scores.items() if name not in ("mean", "automatic", "prompted")}

    def text(self) -> str:
        """One line: the curve of the loss, Dice per class, speed, time waiting for data, peak memory."""
        parts = [curve(self.losses.values)]
        if self.dice:
            parts.append(", ".join(f"{name} {score:.2f}" for name, score in self.dice.items()))
        scalars = self.scalars()
        if self._steps:
            speed, waiting = scalars["patches_per_second"], scalars["waiting"]
            parts.append(f"{speed:.3g} patches/s, {waiting:.0%} waiting for data")
        if memory := scalars.get("memory_bytes"):
            parts.append(f"{memory / 1e9:.1f} GB")
        return "  ".join(parts)

    def scalars(self) -> dict[str, float]:
        """Patches a second on all devices, the share of the time spent waiting for data, the peak memory in bytes."""
        values = {}
        if self._steps:
            seconds, waiting, patches = (sum(values) for values in zip(*self._steps, strict=True))
            values = {"patches_per_second": self.devices * patches / seconds, "waiting": waiting / seconds}
        memory = self._memory()
        return values | ({"memory_bytes": memory} if memory else {})

    def _memory(self) -> float | None:
        """The most bytes that were in use on the device so far."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return peak_bytes()


class LossHistory:
    """The loss of all steps in at most MOST values, each the mean over as many steps as every other."""

    MOST = 2048

    def __init__(self) -> None:
        self.values: list[float] = []
        self._stride = 1  # steps in a value
        self._open: list[float] = []  # of the next value

    def add(self, loss: float) -> None:
        self._open.append(loss)
        if len(self._open) < self._stride:
            return
        self.values.append(sum(self._open) / self._stride)
        self._open.clear()
        if len(self.values) == self.MOST:
            self.values = [(a + b) / 2 for a, b in zip(self.values[::2], self.values[1::2], strict=True)]
            self._stride *= 2


def curve(values: list[float], width: int = WIDTH) -> str:
    """A line of blocks, each the mean of an equal part of the finite values, between their lowest and highest mean."""
    finite = [value for value in values if abs(value) < float("inf")]  # not NaN either
    count = min(width, len(finite))
    bounds = [round(len(finite) * index / count) for index in range(count + 1)] if count else []
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(bounds)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    return "".join(LEVELS[round((len(LEVELS) - 1) * (mean - low) / span) if span else 0] for mean in means)

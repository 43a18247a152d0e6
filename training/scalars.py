"""The figures of a run, step by step, for TensorBoard and MLflow. What both show is made from the run's log.jsonl."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from .run import Run

_SPEED = ("patches_per_second", "waiting", "memory_bytes")
_NAMES = {"step", "seconds", "dice", "dice_per_class", "learning_rate", *_SPEED}  # the others are terms of the loss


class ScalarWriter(Protocol):
    """Where scalars go."""

    def write(self, step: int, scalars: Mapping[str, float], *, moment: float) -> None:
        """What a step came to; ``moment`` is when, in seconds of the epoch, without the time between restarts."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Destinations:
    """TensorBoard's event files in the run folder, the MLflow server or folder of a URI; neither by default."""

    tensorboard: bool = False
    mlflow: str | None = None


_destinations = Destinations()


@contextmanager
def shown_in(destinations: Destinations) -> Iterator[None]:
    """Runs that are trained inside the block write their scalars there.

    Raises MissingExtraError when a library for it is not installed.
    """
    global _destinations
    if destinations.tensorboard:
        from .tensorboard import check_installed

        check_installed()
    if destinations.mlflow is not None:
        from .mlflow_run import check_installed

        check_installed()
    before, _destinations = _destinations, destinations
    try:
        yield
    finally:
        _destinations = before


class Scalars:
    """Every entry of a run's log, once: those that lie there already first, where a destination lacks them."""

    def __init__(self, run: Run) -> None:
        self._writers: list[ScalarWriter] = []
        if _destinations.tensorboard:
            from .tensorboard import EventFile

            self._writers.append(EventFile(run))
        if _destinations.mlflow is not None:
            from .mlflow_run import MLflowRun

            self._writers.append(MLflowRun(run, _destinations.mlflow))
        history = list(run.history()) if self._writers else []
        self._began = time.time() - max((entry.get("seconds", 0.0) for entry in history), default=0.0)
        for entry in history:
            self.write(entry)

    def write(self, entry: Mapping[str, Any]) -> None:
        """An entry of log.jsonl."""
        for writer in self._writers:
            writer.write(entry["step"], scalars_of(entry), moment=self._began + entry.get("seconds", 0.0))

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def scalars_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """An entry of log.jsonl as numbers by name: ``train/loss``, ``validation/liver``, ``speed/waiting``.

    Of a class's name both keep letters, digits and ``_-./``; everything else becomes ``_``.
    """
    values = {f"train/{name}": value for name, value in entry.items() if name not in _NAMES}
    values |= {"train/learning_rate": entry["learning_rate"]} if "learning_rate" in entry else {}
    values |= {f"validation/{name}": value for name, value in entry.get("dice_per_class", {}).items()}
    values |= {f"speed/{name}": entry[name] for name in _SPEED if name in entry}
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    return {re.sub(r"[^\w\-./]", "_", name): value for name, value in numbers.items()}

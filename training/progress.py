"""The one place that draws: progress bars on standard error, silent when it is no terminal and at a quiet call."""

import os
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


class Bar(AbstractContextManager):
    """A titled bar over a known number of steps with a free text behind it (epoch, loss, Dice)."""

    def __init__(self, title: str, total: int, *, done: int = 0, enabled: bool = True) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and os.environ.get("LOCAL_RANK", "0") == "0"),
        )
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, note: str = "") -> None:
        self._progress.update(self._task, advance=1, note=note)

"""The one place that draws: progress on standard error, bars on a terminal and plain lines in a log."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from .ranks import is_main

console = Console(stderr=True)

LINE_EVERY = 30.0  # seconds from one line in a log to the next


class Bar(AbstractContextManager):
    """A titled bar over a known number of steps, with a free text behind it (epoch, loss, Dice) and one below it.

    Without a terminal it is a line every LINE_EVERY seconds, so that a log shows that the work goes on, and how fast.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, enabled: bool = True) -> None:
        self._shown = enabled and is_main()
        self._lines = None if console.is_terminal else _Lines(title, total, done=done)
        self._progress = _Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._shown or self._lines is not None,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, note: str = "", *, below: Callable[[], str] = str) -> None:
        """One step is done. The text ``below`` is asked for whenever something is drawn."""
        if self._lines is None:
            self._progress.below = below
            self._progress.update(self._task, advance=1, note=note)
        elif self._shown:
            self._lines.advance(note, below)


class _Progress(Progress):
    """Rich's bar with a text below it."""

    below: Callable[[], str] = staticmethod(str)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if below := self.below():
            yield Text(below)


class _Lines:
    """The steps of a bar as lines of a log."""

    def __init__(self, title: str, total: int, *, done: int) -> None:
        self.title, self.total, self.done = title, total, done
        self._first, self._started = done, time.monotonic()
        self._last = self._started

    def advance(self, note: str, below: Callable[[], str]) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self._last < LINE_EVERY:
            return
        self._last = now
        left = (now - self._started) / (self.done - self._first) * (self.total - self.done)
        parts = [f"{self.title} {self.done}/{self.total}", note, below(), f"{left / 60:.0f} min left"]
        line = "  ".join(part for part in parts if part)
        console.print(line, markup=False, highlight=False, soft_wrap=True)

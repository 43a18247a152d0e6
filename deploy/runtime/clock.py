"""Seconds by stage of what is done with a scan."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """`seconds` by the name of a stage; a stage that comes several times is added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time that the block takes."""
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started

    def waiting(self, name: str, infer: Callable[..., Any]) -> Callable[..., Any]:
        """`infer` with the time that is spent in it; where it returns a function that waits for its answer, also that
        spent in this function, but not the time in between.
        """

        def timed(*inputs: Any) -> Any:
            with self.stage(name):
                answer = infer(*inputs)
            return self.waiting(name, answer) if callable(answer) else answer

        return timed

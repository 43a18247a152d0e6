"""Work on many scans at once. numpy and the decompressors let other threads run, so threads are enough."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST = 8  # scans in memory at a time


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """function(item) for every item, in the items' order, a thread per core; the first error ends the rest.

    No more items than threads are in work, or done and not yet taken.
    """
    at_once = min(cores(), _MOST)
    with ThreadPoolExecutor(at_once) as pool:
        begun = deque()
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) == at_once:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

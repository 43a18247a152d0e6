"""How much memory a piece of training takes at most, and whether an error says that there was too little."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..volumes.memory import available_memory, process_status

_MMAP_THRESHOLD = -3  # of mallopt
_OWN_BLOCK = 1 << 18  # bytes; larger blocks go back to the system when they are freed
_OUT_OF_MEMORY = ("not enough memory", "out of memory", "can't allocate memory", "alloc_failed")


def memory_in_use(device: torch.device) -> float:
    """Bytes in use: on a GPU what PyTorch has allocated there, on a CPU all that the process holds."""
    if device.type == "cuda":
        return float(torch.cuda.memory_allocated(device))
    gc.collect()
    return process_status("VmRSS") or 0.0


def device_memory(device: torch.device, *, processes: int) -> float:
    """Bytes that this process may use in all; one of so many ``processes`` that share a machine's memory on a CPU."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device))
    return memory_in_use(device) + available_memory() / processes


def additional_peak(work: Callable[[], object], device: torch.device) -> float:
    """The most bytes that PyTorch's allocator holds at once while ``work`` runs, besides those that it held before.

    On a CPU every allocation and release is counted as the profiler reports it, temporary ones inside of an operation
    included. The resident memory of the process would be no measure of a step: it holds what was mapped or freed
    earlier, and differs from one time to the next, while the count is the same every time.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with _silent():
        profiler.start()
    try:
        work()
    finally:
        with _silent():
            profiler.stop()
    results: Any = profiler.profiler and profiler.profiler.kineto_results
    changes: list[tuple[int, int]] = []
    events: list[Any] = list(results.experimental_event_tree())
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.name == "[memory]":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = peak = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        peak = max(peak, held)
    return float(peak)


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler's library writes of its start and its end to standard error, past Python; not inside this block."""
    sys.stderr.flush()
    own, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)
        os.close(nowhere)


def return_freed_memory() -> None:
    """From now on a large block that is freed goes back to the system at once, so that a budget of RAM can be kept.

    Without it glibc keeps freed blocks of up to 32 MB, and a process holds a third more than it uses. Where there is
    no glibc, nothing happens.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _OWN_BLOCK)
        library.malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch or Python means that memory was too small."""
    words = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(
            part in words for part in ("not enough memory", "out of memory", "can't allocate memory", "alloc_failed")
        )
    )

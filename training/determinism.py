"""The same gradients every time, however many threads compute them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

_memory: Any = torch.utils.deterministic  # its one setting is not in its type


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, sums come in the same order as long as the block runs, so that a resumed run ends with the same bits.

    Without it the threads of a busy machine add the gradients of an indexed table (the position biases of Swin, SAM
    and TinyViT) in any order. One thread computes what it always did. A network with an operation that has no such
    order trains, and PyTorch warns of it. On a GPU nothing changes: there equal bits are not promised.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = _memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    _memory.fill_uninitialized_memory = False  # we read no memory that was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        _memory.fill_uninitialized_memory = filled

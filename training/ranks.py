"""The processes that train together: which one this is, and what they exchange. One process alone exchanges nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


_apart = False  # inside of `alone`


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process exchanges nothing, as if it trained by itself."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def _together() -> bool:
    return not _apart and distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process among those that train together, from 0."""
    return distributed.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes train together, on all machines; each has one device."""
    return distributed.get_world_size() if _together() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def share_of(items: Sequence[T]) -> Sequence[T]:
    """Every item for one of the processes: this one's, in their order."""
    return items[rank() :: world_size()]


def barrier() -> None:
    """Wait until every process is here."""
    gathered(None)


def gathered(value: T) -> list[T]:
    """The value of every process, in the order of their ranks."""
    if not _together():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def of_main(value: T) -> T:
    """The value of the main process."""
    return gathered(value if is_main() else None)[0]  # type: ignore[return-value]


@contextmanager
def main_first() -> Iterator[None]:
    """The main process does what is inside alone, and writes its files; then the others do it and read them."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes; gradients flow back into each."""
    return _Total.apply(values) if _together() else values  # type: ignore[return-value]


class _Total(torch.autograd.Function):
    """What each process's values add to the sum of a loss over all processes is the sum of the gradients of all."""

    @staticmethod
    def forward(_context: Any, values: torch.Tensor) -> torch.Tensor:
        return _reduced(values)

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _reduced(gradients[0])


def _reduced(values: torch.Tensor) -> torch.Tensor:
    values = values.detach().clone().contiguous()
    distributed.all_reduce(values)
    return values


@torch.no_grad()
def spread_buffers(network: torch.nn.Module) -> None:
    """Give every process the buffers of the main one: the running statistics of batch norms are each one's own."""
    if _together():
        for buffer in network.buffers():
            distributed.broadcast(buffer, src=0)

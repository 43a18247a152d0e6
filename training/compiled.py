"""torch.compile of a network, for its training steps alone: what is saved, validated and exported is the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from .step import TrainingStep

BACKEND = "inductor"
GRAPHS = 64  # of one network: one for each batch size, patch size and setting of checkpointing that a run has


def compiled(network: nn.Module) -> nn.Module:
    """The network with compiled passes; it has the network's own parameters. Nothing is compiled before its first call.

    Shapes are fixed in a graph; each new one is compiled once more.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = GRAPHS
    return torch.compile(network, backend=BACKEND, dynamic=False)  # type: ignore[return-value]


def check_compile(device: torch.device, step: TrainingStep) -> None:
    """Compile a small function and its gradient. Raises UsageError where torch.compile does not work.

    Also for a step that compares embeddings: compiled passes do not call the hooks that record those.
    """
    if step.helper is not None:
        raise UsageError("training.compile: the distance of embeddings needs a network that is not; set it to false")

    def small(values: torch.Tensor) -> torch.Tensor:
        return (values.sin() + 1).sum()

    with compile_faults():
        function: Any = torch.compile(small, backend=BACKEND, dynamic=False)
        function(torch.ones(8, device=device, requires_grad=True)).backward()


@contextmanager
def compile_faults() -> Iterator[None]:
    """What torch.compile raises inside is a UsageError."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        words = (str(cause).strip() or type(cause).__name__).splitlines()[0][:300]
        raise UsageError(
            f"training.compile: torch.compile does not work here ({words}); install what it needs (on a CPU a C++ "
            "compiler such as g++), or set it to false"
        ) from error

"""What training, distillation and prediction ask of a network."""

from collections.abc import Iterator
from typing import Any, Protocol, Self

from torch import Tensor, nn


class Network(Protocol):
    """A torch module for patches: image ``[B, C, *patch]``, and prompts, to logits ``[B, K, *patch]``.

    Background is class 0. ``prompt_kinds`` are those of volumes.prompts.KINDS; it is empty for a network that takes no
    prompts, whose ``prompts`` are then always None. Every network segments without
    prompts, but a published model as it is, which then finds nothing.
    """

    in_channels: int
    num_classes: int
    patch: tuple[int, int, int]

    @property
    def prompt_kinds(self) -> frozenset[str]: ...

    def __call__(self, image: Tensor, prompts: Any = None, /) -> Tensor: ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def eval(self) -> Self: ...

"""The moving average of a network's weights: what is validated and kept when a config sets ``training.ema``."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .checkpoint import trainable_state


class WeightAverage:
    """``average = decay * average + (1 - decay) * weights`` after every step (Tarvainen & Valpola 2017, eq. 2).

    In the first steps the decay is at most ``(1 + step) / (10 + step)``, so that a short run forgets where it began.
    Covers what a run saves: trained parameters and buffers, whole numbers copied.
    """

    def __init__(self, network: torch.nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.values = {name: tensor.detach().clone() for name, tensor in trainable_state(network).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """``step`` counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in trainable_state(self.network).items():
            value = self.values[name].to(tensor.device)
            self.values[name] = value.lerp_(tensor, 1 - decay) if value.is_floating_point() else tensor.clone()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the averaged weights inside the block, and its own again after it."""
        own = {name: tensor.clone() for name, tensor in trainable_state(self.network).items()}
        self._fill(self.values)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: dict[str, torch.Tensor]) -> None:
        for name, tensor in trainable_state(self.network).items():
            tensor.copy_(values[name])

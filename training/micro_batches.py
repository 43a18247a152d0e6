"""A batch through a network in parts, with the gradients that the whole batch has, in the memory of one part."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .step import TrainingStep


class MicroBatches(nn.Module):
    """The network on at most ``size`` samples at a time; None is all of them at once, and then nothing is changed.

    The logits of all parts make one tensor, so that every loss sees the whole batch: a Dice whose sums run over it is
    the same to rounding as without parts. Only the last part keeps its activations; the backward pass runs the
    others through the network again, each with the random numbers of its first time (gradient caching: Gao et al.
    2021). Dropout draws for each part, so that its numbers are not those of the whole batch.
    """

    def __init__(self, network: nn.Module, size: int | None = None) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, image: Tensor, prompts: Any = None) -> Tensor:
        """image [B, C, *patch], and Prompts of as many samples or None -> logits [B, K, *patch]."""
        count = len(image)
        size = min(self.size or count, count)
        parts = []
        for start in range(0, count, size):
            end = min(start + size, count)
            inputs = (image[start:end],) if prompts is None else (image[start:end], prompts.rows(start, end))
            if end < count and torch.is_grad_enabled():
                parts.append(checkpoint(self.network, *inputs, use_reentrant=False))
            else:
                parts.append(self.network(*inputs))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def needs_whole_batch(network: nn.Module, step: TrainingStep) -> str | None:
    """Why a batch cannot go through the network in parts without changing what is learned; None where it can.

    The network is in training mode. Batch norms average over what they get at once, and some steps read more of the
    network's last pass than its logits.
    """
    if any(isinstance(module, _BatchNorm) and module.training for module in network.modules()):
        return "its batch norms average over all samples of a batch"
    if step.helper is not None:
        return "embeddings of the whole batch are compared"
    if getattr(step, "iou_weight", 0.0):
        return "the IoU that it predicts is learned for the whole batch"
    return None


def checkpoint_switches(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every module that can compute its activations again in place of keeping them, and the name of its switch.

    ``checkpointing`` is that of image encoders of SAM's kind, ``use_checkpoint`` that of MONAI's Swin transformer.
    """
    return [
        (module, name)
        for module in network.modules()
        for name in ("checkpointing", "use_checkpoint")
        if isinstance(getattr(module, name, None), bool)
    ]


def switch_checkpointing(network: nn.Module, on: bool) -> None:
    """Let every module that can compute its activations again do so, or none of them."""
    for module, name in checkpoint_switches(network):
        setattr(module, name, on)


@contextmanager
def statistics_restored_on_error(network: nn.Module) -> Iterator[None]:
    """When the block raises, the running statistics of batch norms are what they were before it."""
    buffers = [
        buffer
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.training
        for buffer in module.buffers()
    ]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        raise

"""One training step: from a batch to the loss, in order. The loop knows no more of a network than this."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .losses import iou_loss, segmentation_loss
from .prompt_sampling import PromptSampler


class TrainingStep(Protocol):
    """What a step computes.

    ``helper`` learns along with the network, on one device, and is no part of its weights: None in most steps.
    """

    @property
    def helper(self) -> torch.nn.Module | None: ...

    def __call__(self, model: torch.nn.Module, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """The loss under ``loss`` and every term of it for the log; ``number`` is that of the batch, from 0."""
        ...


@runtime_checkable
class PredictsIoU(Protocol):
    """A network that, if `records_iou`, leaves the IoU [B, K - 1, D] which it predicts for its last pass's masks."""

    records_iou: bool
    predicted_iou: Tensor | None


@dataclass(frozen=True, kw_only=True)
class SupervisedStep:
    """Segmentation loss against the labels, of a network that is shown prompts in some of the steps, or in none.

    With an ``iou_weight`` the IoU that the ``network`` predicts for its masks is learned, too (``predicted_iou``).
    """

    dice_weight: float
    cross_entropy_weight: float
    focal_weight: float = 0.0
    iou_weight: float = 0.0
    network: PredictsIoU | None = None
    prompts: PromptSampler | None = None
    helper: None = None

    def __call__(self, model: torch.nn.Module, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        image, labels = batch["image"], batch["labels"]
        if self.prompts and self.prompts.is_prompted(number):
            logits = model(image, self.prompts.draw(model, image, labels, number, boxes=batch.get("boxes")))
        else:
            logits = model(image)
        loss = segmentation_loss(
            logits,
            labels,
            dice_weight=self.dice_weight,
            cross_entropy_weight=self.cross_entropy_weight,
            focal_weight=self.focal_weight,
        )
        if not self.iou_weight:
            return {"loss": loss}
        assert self.network is not None and self.network.predicted_iou is not None
        term = iou_loss(self.network.predicted_iou, logits, labels)
        return {"loss": loss + self.iou_weight * term, "iou": term.detach()}

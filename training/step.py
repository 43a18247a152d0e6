"""One training step: from a batch to the loss, in order. The loop knows no more of a network than this."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .losses import segmentation_loss
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


@dataclass(frozen=True, kw_only=True)
class SupervisedStep:
    """Segmentation loss against the labels, of a network that is shown prompts in some of the steps, or in none."""

    dice_weight: float
    cross_entropy_weight: float
    prompts: PromptSampler | None = None
    helper: None = None

    def __call__(self, model: torch.nn.Module, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        image, labels = batch["image"], batch["labels"]
        if self.prompts and self.prompts.is_prompted(number):
            logits = model(image, self.prompts.draw(model, image, labels, number))
        else:
            logits = model(image)
        loss = segmentation_loss(
            logits, labels, dice_weight=self.dice_weight, cross_entropy_weight=self.cross_entropy_weight
        )
        return {"loss": loss}

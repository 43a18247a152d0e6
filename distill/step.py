"""What one distillation step computes, from the batch to the loss, in order."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..configs.schema import Training
from ..sam.prompt_tensors import Prompts
from ..training.prompt_sampling import PromptSampler
from .embedding import EmbeddingMatch
from .ensemble import Ensemble
from .losses import Distance, distillation_loss


@dataclass(frozen=True, kw_only=True)
class DistillationStep:
    """``L = lambda * L_seg + (1 - lambda) * (L_KD + embedding_weight * L_embedding)``.

    Soft targets [B, K, *patch] come from ``teachers``, run on the very patches that the student sees and shown the
    student's prompts, or, without, from the batch, which has them from the cache. The labels [N, *patch] are those of
    the first N samples of the batch. The ``helper`` projects embeddings; without, there is no such term. The first
    ``embedding_steps`` batches are learned from by the embeddings alone (MobileSAM's decoupled distillation: Zhang et
    al. 2023), before prompts and masks join.
    """

    lambda_: float
    distance: Distance
    settings: Training
    teachers: Ensemble | None = None
    prompts: PromptSampler | None = None
    helper: EmbeddingMatch | None = None
    embedding_weight: float = 0.0
    embedding_steps: int = 0

    def __call__(self, model: torch.nn.Module, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        image, labels = batch["image"], batch["labels"]
        if self.helper and number < self.embedding_steps:
            distance = self.embedding_weight * self.helper.of_images(image)
            return {"loss": distance, "embedding": distance.detach() / self.embedding_weight}
        prompts = self.draw_prompts(model, batch, number)
        with self.helper.recording() if self.helper else nullcontext() as embeddings:
            logits = model(image) if prompts is None else model(image, prompts)
            soft_targets = self.soft_targets(batch, prompts)
        terms = distillation_loss(
            logits,
            labels,
            soft_targets,
            lambda_=self.lambda_,
            distance=self.distance,
            dice_weight=self.settings.dice_weight,
            cross_entropy_weight=self.settings.cross_entropy_weight,
            focal_weight=self.settings.focal_weight,
        )
        if self.helper is None or embeddings is None:
            return terms
        embedding_distance = self.helper(embeddings)
        loss = terms["loss"] + (1 - self.lambda_) * self.embedding_weight * embedding_distance
        return {**terms, "loss": loss, "embedding": embedding_distance.detach()}

    def draw_prompts(self, model: torch.nn.Module, batch: dict[str, Tensor], number: int) -> Prompts | None:
        """Prompts from the labels; for samples without any, from what the teachers make of them."""
        if self.prompts is None or not self.prompts.is_prompted(number):
            return None
        image, labels = batch["image"], batch["labels"]
        if len(labels) < len(image):
            soft_targets = self.soft_targets(batch, None)
            assert soft_targets is not None
            labels = torch.cat([labels, soft_targets[len(labels) :].argmax(1).to(labels)])
        return self.prompts.draw(model, image, labels, number, boxes=batch.get("boxes"))

    def soft_targets(self, batch: dict[str, Tensor], prompts: Prompts | None) -> Tensor | None:
        """The teachers' probabilities [B, K, *patch]: computed, or the batch's; None in a step without teachers."""
        if self.teachers is None:
            return batch.get("soft_targets")
        return self.teachers.on_patches(batch["image"], prompts)

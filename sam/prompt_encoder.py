"""SAM's prompt encoder at our sizes, and the prompt encoder that belongs to any image encoder."""

from __future__ import annotations

import torch
from segment_anything.modeling import prompt_encoder as published
from torch import Tensor

from .base import INVALID, PromptEncoder
from .efficient_sam import EfficientPromptEncoder
from .presets import EfficientViTSize, EncoderSize


class SAMPromptEncoder(published.PromptEncoder, PromptEncoder):
    """SAM's own; `encoder(None, None, None)` means no prompt."""

    in_place_of_a_box = 1

    def clicks(self, places: Tensor, kinds: Tensor) -> Tensor:
        """[N, T, C]: a kind's embedding and, but for "not a point", the place's."""
        learned = (self.get_parameter(f"point_embeddings.{kind}.weight") for kind in range(4))
        table = torch.cat([self.not_a_point_embed.weight, *learned])
        return table[kinds + 1] + (kinds != INVALID)[..., None] * self._at(places)

    def nowhere(self, places: Tensor) -> Tensor:
        return self._at(places) + self.not_a_point_embed.weight

    def no_clicks(self, *, places: int = 0) -> Tensor:
        """[1, `places`, C]."""
        return self.not_a_point_embed.weight.expand(places, -1)[None]

    def no_mask(self) -> Tensor:
        return self(None, None, None)[1]

    def _at(self, places: Tensor) -> Tensor:
        return self.pe_layer.forward_with_coords(places + 0.5, self.input_image_size)


def build_prompt_encoder(
    size: EncoderSize, *, image_size: tuple[int, int], max_points: int | None = None
) -> PromptEncoder:
    """The prompt encoder that belongs to an image encoder, for images of (H, W) pixels.

    `max_points` takes the place of EfficientSAM's own number; SAM's has no limit.
    """
    height, width = image_size
    grid = (height // size.patch_size, width // size.patch_size)
    if isinstance(size, EfficientViTSize):
        most = max_points or size.max_points
        return EfficientPromptEncoder(size.out_chans, image_size=image_size, grid=grid, max_points=most)
    return SAMPromptEncoder(
        embed_dim=size.out_chans,
        image_embedding_size=grid,
        input_image_size=image_size,
        mask_in_chans=size.decoder.mask_in_chans,
    )

"""MA-SAM's image encoder: SAM's with FacT in every attention and 3-D adapters around it, or without either."""

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor

from ...sam.presets import Backbone
from ...sam.vit import Block, ImageEncoder
from .adapters import Adapter3D, FacT, SharedFactors

Placement = Literal["before", "after", "both", "none"]


class StackBlock(Block):
    """SAM's block with FacT in its attention and a 3-D adapter before the attention, after it, both, or none.

    Without `factors` the attention is SAM's own.
    """

    def __init__(
        self,
        *,
        dim: int,
        factors: SharedFactors | None,
        adapters: Placement,
        adapter_channels: int,
        scale: float,
        dropout: float,
        zero_init: bool,
        **size: Any,
    ) -> None:
        super().__init__(dim=dim, **size)
        self.adapter1, self.adapter2 = (
            Adapter3D(dim, adapter_channels, zero_init=zero_init) if adapters in (place, "both") else None
            for place in ("before", "after")
        )
        if factors is not None:
            self.attn.qkv = FacT(dim, factors, scale=scale, dropout=dropout)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """Tokens [B * depth, h, w, C] -> the same shape."""
        if self.adapter1:
            x = self.adapter1(x, depth)
        x = self.attend(x)
        if self.adapter2:
            x = self.adapter2(x, depth)
        return self.feed(x)


class StackEncoder(ImageEncoder):
    """The encoder of stacks of slices; it also gives the tokens behind the blocks numbered in `kept`, from 1 on."""

    def __init__(self, backbone: Backbone, *, kept: Collection[int] = (), **options: Any) -> None:
        super().__init__(backbone, **options)
        self.kept = kept

    def forward(self, images: Tensor, depth: int) -> Tensor:
        """images [B * depth, 3, H, W] -> [B * depth, out_chans + len(kept) * dim, h, w], the embedding first."""
        embedded = self.patch_embed(images) + self.pos_embed
        wanted = {*self.kept, len(self.blocks)}
        *features, last = (
            tokens.permute(0, 3, 1, 2)
            for number, tokens in enumerate(self.each_block(embedded, depth), start=1)
            if number in wanted
        )
        return torch.cat([self.neck(last), *features], dim=1)

"""Medical SAM Adapter's mask decoder: SAM's or EfficientSAM's, with three adapters in each two-way block."""

from typing import Any

from torch import Tensor, nn

from ...sam.mask_decoder import AnyMaskDecoder, build_mask_decoder
from ...sam.presets import EfficientViTSize, EncoderSize
from .adapters import Bottleneck, Conditioning, PromptAdapter


class AdaptedTwoWayBlock(nn.Module):
    """SAM's two-way block, its parts taken over from `base` under their own names, and three adapters.

    The first (HyP-Adpt) follows the tokens' look at the image, before the residual; the second is parallel to the MLP
    at `scale`; the third follows the image's look at the tokens, after the residual, with a residual of its own.
    What is not one of the first `own` tokens is the prompt.
    """

    self_attn: nn.Module
    cross_attn_token_to_image: nn.Module
    cross_attn_image_to_token: nn.Module
    mlp: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module
    norm4: nn.Module

    def __init__(
        self,
        base: nn.Module,
        *,
        first: bool,
        own: int,
        channels: int,
        rank: int,
        scale: float,
        conditioning: Conditioning,
        hyper_width: int | None,
        zero_init: bool,
    ) -> None:
        super().__init__()
        for name, part in base.named_children():
            self.add_module(name, part)
        self.prompt_adapter = PromptAdapter(
            channels, rank, conditioning=conditioning, hyper_width=hyper_width, zero_init=zero_init
        )
        self.mlp_adapter = Bottleneck(channels, rank, zero_init=zero_init)
        self.image_adapter = Bottleneck(channels, rank, zero_init=zero_init)
        self.first = first
        self.own = own
        self.scale = scale

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """queries [N, T, C], keys [N, h * w, C] and the positions of both -> queries, keys; SAM's signature."""
        if self.first:
            queries = self.self_attn(queries, queries, queries)
        else:
            placed = queries + query_pe
            queries = queries + self.self_attn(placed, placed, queries)
        return self._with_image(self.norm1(queries), keys, query_pe, key_pe)

    def _with_image(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        found = self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys)
        queries = self.norm2(queries + found + self.prompt_adapter(found, query_pe[:, self.own :]))
        queries = self.norm3(queries + self.mlp(queries) + self.scale * self.mlp_adapter(queries))
        keys = keys + self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries)
        return queries, self.norm4(keys + self.image_adapter(keys))


class AdaptedEfficientTwoWayBlock(AdaptedTwoWayBlock):
    """EfficientSAM's: a residual in every self-attention, and positions that stay in the tokens."""

    def forward(self, tokens: Tensor, image: Tensor, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """tokens [N, T, C], image [N, h * w, C] and the positions of both -> tokens, image."""
        if not self.first:
            tokens = tokens + positions[0]
        tokens = self.norm1(tokens + self.self_attn(tokens, tokens, tokens))
        return self._with_image(tokens, image, *positions)


def adapted_decoder(size: EncoderSize, *, masks: int, **adapters: Any) -> AnyMaskDecoder:
    """The decoder that belongs to the image encoder, one token for each of `masks`, at four times the embedding's size.

    `adapters` are rank, scale, conditioning, hyper_width and zero_init of `AdaptedTwoWayBlock`.
    """
    decoder = build_mask_decoder(size, masks=masks, stages=2)
    block = AdaptedEfficientTwoWayBlock if isinstance(size, EfficientViTSize) else AdaptedTwoWayBlock
    decoder.transformer.layers = nn.ModuleList(
        block(base, first=index == 0, own=1 + masks, channels=size.out_chans, **adapters)
        for index, base in enumerate(decoder.transformer.layers)
    )
    return decoder

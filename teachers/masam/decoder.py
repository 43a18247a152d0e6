"""MA-SAM's mask decoders: progressive up-sampling, multi-scale fusion, and SAM's own (Chen et al. 2024, Table 6)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...sam.channel_norm import ChannelNorm
from ...sam.mask_decoder import MaskDecoder
from ...sam.presets import Backbone

Decoding = Literal["progressive", "multi_scale", "sam"]
SAM_STAGES = 2


def full_size_stages(backbone: Backbone) -> int:
    """How many x2 stages lead from tokens to pixels."""
    return backbone.patch_size.bit_length() - 1


class Skip(nn.Module):
    """A skip connection: the encoder's feature is narrowed, resized and joined to the decoder's map by a convolution.

    Declares its parameters as an adapter does: no published file has them.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(nn.Conv2d(dim, width, kernel_size=1), ChannelNorm(width, eps=1e-6))
        self.join = nn.Sequential(
            nn.Conv2d(2 * width, width, kernel_size=3, padding=1), ChannelNorm(width, eps=1e-6), nn.GELU()
        )

    def adapter_parameters(self) -> list[str]:
        return [name for name, _ in self.named_parameters()]

    def forward(self, x: Tensor, feature: Tensor) -> Tensor:
        """x [N, width, H, W], feature [N, dim, h, w] -> [N, width, H, W]."""
        feature = interpolate(self.narrow(feature), x.shape[2:], mode="bilinear", align_corners=False)
        return self.join(torch.cat([x, feature], dim=1))


def fused_blocks(backbone: Backbone) -> tuple[int, ...]:
    """The blocks whose tokens the `FusionDecoder` takes, counted from 1, at equal distances."""
    stages = full_size_stages(backbone)
    return tuple(backbone.depth * number // stages for number in range(1, stages))


class FusionDecoder(MaskDecoder):
    """Progressive up-sampling with skip connections from the image encoder, as in a U-Net.

    Every stage but the last is followed by a `Skip` to the tokens behind one of the encoder's `fused_blocks`: the
    shallower they are, the finer the map that they join. The paper compares this scheme with plain up-sampling, which
    it keeps; the authors' code has only the latter, so that the form of the connections is ours.
    """

    def __init__(self, backbone: Backbone, *, masks: int) -> None:
        stages = full_size_stages(backbone)
        super().__init__(backbone.decoder, channels=backbone.out_chans, masks=masks, stages=stages)
        self.skips = nn.ModuleList(
            Skip(backbone.dim, backbone.out_chans // (4 * 2**stage)) for stage in range(stages - 1)
        )
        self.parts = (backbone.out_chans, *[backbone.dim] * len(self.skips))

    def forward(self, embedding: Tensor, position: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """As SAM's; `embedding` [N, C + dim + ..., h, w] has the features, shallow to deep, behind its own channels."""
        embedding, *features = embedding.split(self.parts, dim=1)
        queries, x = self.attend(embedding, position, sparse, dense)
        for index, skip in enumerate(self.skips):
            x = skip(self.output_upscaling[3 * index : 3 * index + 3](x), features[-1 - index])
        return self.compose(queries, self.output_upscaling[3 * len(self.skips) :](x))


def build_decoder(decoding: Decoding, backbone: Backbone, *, masks: int) -> MaskDecoder:
    """The decoder by name. All but SAM's own end at the size of the image."""
    if decoding == "multi_scale":
        return FusionDecoder(backbone, masks=masks)
    stages = SAM_STAGES if decoding == "sam" else full_size_stages(backbone)
    return MaskDecoder(backbone.decoder, channels=backbone.out_chans, masks=masks, stages=stages)

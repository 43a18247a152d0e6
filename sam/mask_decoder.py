"""SAM's mask decoder with any number of x2 up-sampling stages, and the decoder that belongs to any image encoder."""

from contextlib import nullcontext

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from ..errors import UsageError
from .base import PromptEncoder
from .efficient_sam import EfficientMaskDecoder
from .presets import DecoderSize, EfficientViTSize, EncoderSize


def upscaling(channels: int, stages: int) -> nn.Sequential:
    """x2 transposed convolutions to channels / 4, / 8, / 16 ...; each ends in GELU, all but the last are normalised.

    `stages=2` is SAM's own up-scaling, `stages=4` that of MA-SAM (Chen et al. 2024, section 3.3).
    """
    layers: list[nn.Module] = []
    width = channels
    for stage in range(stages):
        target = channels // (4 * 2**stage)
        layers.append(nn.ConvTranspose2d(width, target, kernel_size=2, stride=2))
        if stage < stages - 1:
            layers.append(LayerNorm2d(target))
        layers.append(nn.GELU())
        width = target
    return nn.Sequential(*layers)


class MaskDecoder(nn.Module):
    """SAM's decoder (Kirillov et al. 2023, appendix A): two-way transformer, up-sampling, one hypernetwork per mask.

    `masks` tokens give `masks` logit maps, all of them returned, at 2**`stages` times the embedding's size.
    State-dict keys are SAM's. UsageError if `channels` cannot be halved that often.
    """

    def __init__(self, size: DecoderSize, *, channels: int, masks: int, stages: int) -> None:
        super().__init__()
        narrow = 2 ** (stages + 1)
        if channels % narrow:
            raise UsageError(f"{channels} embedding channels must be a multiple of {narrow} for {stages} stages")
        self.masks = masks
        self.transformer = TwoWayTransformer(
            depth=size.depth, embedding_dim=channels, num_heads=size.heads, mlp_dim=size.mlp_dim
        )
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(masks, channels)
        self.output_upscaling = upscaling(channels, stages)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, channels // narrow, 3) for _ in range(masks)
        )
        self.iou_prediction_head = MLP(channels, size.iou_hidden, masks, 3)

    def forward(self, embedding: Tensor, position: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """embedding [N, C, h, w], position [1, C, h, w], sparse prompts [P, T, C], dense prompts [P, C, h, w].

        N and P broadcast: one of them is 1, or they are equal. Returns logits [max(N, P), masks, 2**stages * h,
        2**stages * w] and predicted IoU [max(N, P), masks].
        """
        queries, source = self.attend(embedding, position, sparse, dense)
        return self.compose(queries, self.output_upscaling(source))

    def attend(self, embedding: Tensor, position: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: queries [max(N, P), 1 + masks + T, C] and embedding [max(N, P), C, h, w]."""
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        source = embedding + dense
        queries, keys = self.transformer(source, position, tokens)
        return queries, keys.transpose(1, 2).reshape(source.shape)

    def compose(self, queries: Tensor, upscaled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, masks, H, W] of an up-scaled embedding [N, c, H, W], and the predicted IoU [N, masks]."""
        weights = torch.stack(
            [mlp(queries[:, 1 + index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return logits, self.iou_prediction_head(queries[:, 0])


AnyMaskDecoder = MaskDecoder | EfficientMaskDecoder


def build_mask_decoder(size: EncoderSize, *, masks: int, stages: int) -> AnyMaskDecoder:
    """The decoder that belongs to an image encoder: `masks` maps at 2**`stages` times the embedding's size.

    EfficientSAM's stages beyond those it has halve their width each time. UsageError as in MaskDecoder.
    """
    if isinstance(size, EfficientViTSize):
        widths = tuple(size.upscaling[0] >> stage for stage in range(stages))
        return EfficientMaskDecoder(size.decoder, channels=size.out_chans, masks=masks, widths=widths)
    return MaskDecoder(size.decoder, channels=size.out_chans, masks=masks, stages=stages)


def decode(
    mask_decoder: AnyMaskDecoder, prompt_encoder: PromptEncoder, embedding: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Masks for prompts: embedding [N, C, h, w], prompt tokens [N or 1, T, C] -> logits [N, masks, H, W], predicted
    IoU [N, masks]. Both are of one family; positions are computed in float32, as bfloat16 would move the clicks.
    """
    exact = nullcontext() if embedding.is_meta else torch.autocast(embedding.device.type, enabled=False)
    with exact:
        positions = prompt_encoder.get_dense_pe()
    return mask_decoder(embedding, positions, tokens, prompt_encoder.no_mask())

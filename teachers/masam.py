"""MA-SAM (Chen et al. 2024): SAM's encoder with FacT and 3-D adapters, and a decoder that ends at full size."""

from functools import partial
from typing import Any

from torch import Tensor

from ..errors import UsageError
from ..sam.image_encoder import Block, ImageEncoder
from ..sam.mask_decoder import MaskDecoder
from ..sam.presets import Backbone, get_backbone
from ..sam.prompt_encoder import PromptEncoder, build_prompt_encoder
from .adapters import Adapter3D, FacT, SharedFactors
from .teacher import Teacher

# The authors' state-dict keys -> ours, for `sam.checkpoints.canonical_state`.
AUTHORS_KEYS = (
    (r"^(?:image_encoder\.)?FacT([uv])\.", r"factors.\1."),
    (r"^image_encoder\.ImageEncoderViT\.", "image_encoder."),
    (r"\bBlock\.", ""),
    (r"\battn\.Attention\.", "attn."),
    (r"\bqkv\.qkv\.", "qkv."),
    (r"\bqkv\.([qv])_FacTs\.", r"qkv.\1_sigma."),
    (r"\badapter_(?:linear_)?(norm|down|conv|up)_2\.", r"adapter2.\1."),
    (r"\badapter_(?:linear_)?(norm|down|conv|up)\.", r"adapter1.\1."),
)


class AdaptedBlock(Block):
    """SAM's block with FacT in its attention and a 3-D adapter before the attention and before the MLP."""

    def __init__(
        self,
        *,
        dim: int,
        factors: SharedFactors,
        adapter_channels: int,
        scale: float,
        dropout: float,
        zero_init: bool,
        **size: Any,
    ) -> None:
        super().__init__(dim=dim, **size)
        self.adapter1 = Adapter3D(dim, adapter_channels, zero_init=zero_init)
        self.adapter2 = Adapter3D(dim, adapter_channels, zero_init=zero_init)
        self.attn.qkv = FacT(dim, factors, scale=scale, dropout=dropout)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """Tokens [B * depth, h, w, C] -> the same shape."""
        x = self.attend(self.adapter1(x, depth))
        return self.feed(self.adapter2(x, depth))


class MASAM(Teacher):
    """Fully automatic MA-SAM over stacks of neighbouring slices.

    The D slices fold into the batch and meet in the 3-D adapters; every class has a mask token, background first.
    One input channel is repeated to SAM's three. The stack may have any D, its height and width are those of `patch`.
    """

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        factors: SharedFactors,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        in_channels: int,
        patch: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.factors = factors
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.in_channels = in_channels
        self.num_classes = mask_decoder.masks
        self.patch = patch

    def forward(self, image: Tensor, prompts: None = None) -> Tensor:
        """image [B, C, D, H, W] -> logits [B, K, D, H, W]. UsageError for another C, H or W, or for prompts."""
        expected = (self.in_channels, *self.patch[1:])
        if image.ndim != 5 or (image.shape[1], *image.shape[3:]) != expected:
            channels, height, width = expected
            raise UsageError(
                f"MA-SAM got an image of shape {tuple(image.shape)}, expected [B, {channels}, D, {height}, {width}]"
            )
        if prompts is not None:
            raise UsageError("MA-SAM is fully automatic and takes no prompts; leave them out")
        depth = image.shape[2]
        slices = image.transpose(1, 2).flatten(0, 1).expand(-1, 3, -1, -1)
        embedding = self.image_encoder(slices, depth)
        sparse, dense = self.prompt_encoder(None, None, None)
        logits, _ = self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense)
        return logits.unflatten(0, (-1, depth)).transpose(1, 2)


def build_masam(
    *,
    backbone: str | Backbone,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    rank: int = 32,
    scale: float = 1.0,
    adapter_channels: int | None = None,
    zero_init: bool = True,
    dropout: float = 0.1,
    checkpointing: bool = False,
) -> MASAM:
    """MA-SAM for a patch (D, H, W) of 1 or 3 channels and `num_classes` classes, background included.

    `rank`, `scale`, `dropout` are FacT's; `adapter_channels` defaults to the backbone's (384 for SAM's sizes).
    UsageError: other channels, or a height or width that the backbone's token size does not divide.
    """
    if in_channels not in (1, 3):
        raise UsageError(f"MA-SAM takes 1 channel (repeated to three) or 3, not {in_channels}")
    size = get_backbone(backbone)
    factors = SharedFactors(size.dim, rank)
    make_block = partial(
        AdaptedBlock,
        factors=factors,
        adapter_channels=adapter_channels or size.adapter_channels,
        scale=scale,
        dropout=dropout,
        zero_init=zero_init,
    )
    image_size = (patch[1], patch[2])
    return MASAM(
        image_encoder=ImageEncoder(size, image_size=image_size, make_block=make_block, checkpointing=checkpointing),
        factors=factors,
        prompt_encoder=build_prompt_encoder(size, image_size=image_size),
        mask_decoder=MaskDecoder(
            size.decoder,
            channels=size.out_chans,
            masks=num_classes,
            stages=size.patch_size.bit_length() - 1,
        ),
        in_channels=in_channels,
        patch=patch,
    )

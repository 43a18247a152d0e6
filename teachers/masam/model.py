"""MA-SAM (Chen et al. 2024, arXiv 2309.08842): SAM's encoder with FacT and 3-D adapters, decoded to full size."""

from functools import partial
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...errors import UsageError
from ...sam.base import BOTTOM_RIGHT, INVALID, TOP_LEFT, PromptEncoder
from ...sam.channels import to_three
from ...sam.image_shape import require_image
from ...sam.mask_decoder import MaskDecoder, decode
from ...sam.presets import Backbone, get_backbone
from ...sam.prompt_encoder import build_prompt_encoder
from ...sam.prompt_tensors import Prompts
from ..base import TeacherNetwork
from .adapters import SharedFactors
from .decoder import Decoding, build_decoder, fused_blocks
from .encoder import Placement, StackBlock, StackEncoder

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


class MASAM(TeacherNetwork):
    """MA-SAM over stacks of neighbouring slices, or of the frames of a video: automatic, or prompted by boxes.

    The D slices fold into the batch and meet in the 3-D adapters; every class has a mask token, background first.
    One input channel is repeated to SAM's three, other numbers go through a learned 1 x 1 convolution. The stack may
    have any D, its height and width are those of `patch`.

    The paper's network for pancreatic tumours is always prompted: by the tumour's 3-D box, tight or relaxed by 5 %,
    which its code gives to every slice of the stack as SAM's box in the plane. Here one network does both. A class
    with a box is decoded on its own, with SAM's box on the slices that the 3-D box meets and "not a point" on the
    others; over the automatic background its logit stands as high as over its own decoding's, which for a single class
    is the paper's softmax. Classes without a box, and all of them without prompts, are decoded together. Points are
    left out: MA-SAM was not trained with them.
    """

    prompt_kinds = frozenset({"box"})

    def __init__(
        self,
        *,
        image_encoder: StackEncoder,
        factors: SharedFactors | None,
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
        self.to_three = to_three(in_channels)

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Tensor:
        """image [B, C, D, H, W] -> logits [B, K, D, H, W]. UsageError for another C, H or W, or other prompts."""
        require_image(image, network="MA-SAM", channels=self.in_channels, patch=self.patch)
        depth = image.shape[2]
        if prompts is not None:
            prompts.check("MA-SAM", cases=len(image), classes=self.num_classes)
        slices = self.to_three(image.transpose(1, 2).flatten(0, 1)).expand(-1, 3, -1, -1)
        embedding = self.image_encoder(slices, depth)
        nothing, _ = self.prompt_encoder(None, None, None)
        logits = self._decode(embedding, nothing, depth)
        if prompts is None:
            return logits
        rows, classes = (~prompts.boxes.isnan().any(-1)).nonzero(as_tuple=True)
        if not len(rows):
            return logits
        tokens = self._on_slices(prompts.boxes[rows, classes], depth)
        found = self._decode(embedding.unflatten(0, (-1, depth))[rows].flatten(0, 1), tokens, depth)
        own = found[torch.arange(len(rows), device=rows.device), classes + 1] - found[:, 0] + logits[rows, 0]
        return logits.index_put((rows, classes + 1), own)

    def _decode(self, embedding: Tensor, tokens: Tensor, depth: int) -> Tensor:
        """Encoded slices [N * depth, ..., h, w], prompt tokens [N * depth or 1, T, C] -> logits [N, K, depth, H, W]."""
        logits, _ = decode(self.mask_decoder, self.prompt_encoder, embedding, tokens)
        size = (self.patch[1], self.patch[2])
        if logits.shape[2:] != size:
            logits = interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits.unflatten(0, (-1, depth)).transpose(1, 2)

    def _on_slices(self, boxes: Tensor, depth: int) -> Tensor:
        """boxes [N, 6] of (d0, h0, w0, d1, h1, w1) -> the two corners as tokens of every slice, [N * depth, 2, C]."""
        first, last = boxes[:, [0, 3]].round().unbind(1)
        slices = torch.arange(depth, device=boxes.device)
        met = (slices >= first[:, None]) & (slices <= last[:, None])
        kinds = torch.where(met[..., None], torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=boxes.device), INVALID)
        corners = torch.stack([boxes[:, [2, 1]], boxes[:, [5, 4]]], dim=1).repeat_interleave(depth, dim=0)
        with torch.autocast(boxes.device.type, enabled=False):
            return self.prompt_encoder.clicks(corners, kinds.flatten(0, 1))


def build_masam(
    *,
    backbone: str | Backbone,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    rank: int = 32,
    scale: float = 1.0,
    fact: bool = True,
    adapters: Placement = "both",
    adapter_channels: int | None = None,
    zero_init: bool = True,
    dropout: float = 0.1,
    decoder: Decoding = "progressive",
    checkpointing: bool = False,
) -> MASAM:
    """MA-SAM for a patch (D, H, W) of any channels and `num_classes` classes, background included.

    `rank`, `scale`, `dropout` are FacT's, which `fact` switches off. The 3-D `adapters` of a block are before its
    attention, after it, both, or none (Tables 8 and 9); `adapter_channels` defaults to the backbone's (384 for SAM's
    sizes). Without adapters and FacT the image encoder is SAM's. The `decoder` (Table 6) is
    "progressive" (up-sampling to full size), "multi_scale" (the same, with skip connections from the encoder) or "sam"
    (SAM's own, at four times the embedding's size, then resized bilinearly).

    UsageError: other channels or choices, or a height or width that the backbone's token size does not divide.
    """
    if in_channels < 1:
        raise UsageError(f"MA-SAM got in_channels={in_channels}: give 1 or more")
    for option, value, choices in (("adapters", adapters, Placement), ("decoder", decoder, Decoding)):
        if value not in get_args(choices):
            raise UsageError(f"MA-SAM's option {option} is {value!r}: choose one of {', '.join(get_args(choices))}")
    size = get_backbone(backbone)
    factors = SharedFactors(size.dim, rank) if fact else None
    make_block = partial(
        StackBlock,
        factors=factors,
        adapters=adapters,
        adapter_channels=adapter_channels or size.adapter_channels,
        scale=scale,
        dropout=dropout,
        zero_init=zero_init,
    )
    image_size = (patch[1], patch[2])
    return MASAM(
        image_encoder=StackEncoder(
            size,
            kept=fused_blocks(size) if decoder == "multi_scale" else (),
            image_size=image_size,
            make_block=make_block,
            checkpointing=checkpointing,
        ),
        factors=factors,
        prompt_encoder=build_prompt_encoder(size, image_size=image_size),
        mask_decoder=build_decoder(decoder, size, masks=num_classes),
        in_channels=in_channels,
        patch=patch,
    )

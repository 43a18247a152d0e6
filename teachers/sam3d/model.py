"""3DSAM-adapter (Gong et al. 2023, arXiv 2306.13465): SAM's encoder lifted to 3-D, prompted by points or by nothing."""

from typing import Any

import torch
from torch import Tensor

from ...errors import UsageError
from ...sam.presets import Backbone, get_backbone
from ...sam.prompt_tensors import Prompts
from ..volumetric.base import AUTHORS_KEYS as SHARED_KEYS
from ..volumetric.base import Teacher3D
from ..volumetric.decoder import AggregationDecoder
from ..volumetric.encoder import FEATURES, VolumeEncoder
from .prompt_encoder import VisualSampler

# The authors' state-dict keys -> ours, for `sam.checkpoints.canonical_state`.
AUTHORS_KEYS = (*SHARED_KEYS, (r"^prompt_encoder\.transformer\.", "prompt_encoder."))


class SAM3D(Teacher3D):
    """One network for points and for none: each class is decoded from the deepest feature as its points change it.

    The last convolution gives all K classes; a class's logit is its own minus the background's, background is 0. A
    class without a point inside (label 1) is decoded from the unchanged feature, as all are without prompts. Points
    outside and boxes are left out: the paper's prompts do not know them.
    """

    title = "3DSAM-adapter"
    prompt_kinds = frozenset({"point"})

    def __init__(self, *, prompt_encoder: VisualSampler, **shared: Any) -> None:
        super().__init__(**shared)
        self.prompt_encoder = prompt_encoder

    def forward(self, image: Tensor, prompts: Prompts | None = None) -> Tensor:
        """image [B, C, D, H, W] -> logits [B, K, D, H, W], background 0. UsageError for another shape of either."""
        *features, deepest = self.encode(image)
        shallow = self.mask_decoder.shallow(features)
        if prompts is None:
            return self._decode(shallow, deepest, image)
        expected = (len(image), self.num_classes - 1)
        if prompts.points.shape[:2] != expected:
            raise UsageError(
                f"3DSAM-adapter got points of shape {tuple(prompts.points.shape)}, "
                f"expected [{expected[0]}, {expected[1]}, P, 3]: one row per foreground class"
            )
        maps, automatic = [torch.zeros_like(image[:, 0])], None
        for row in range(self.num_classes - 1):
            points, given = prompts.points[:, row], prompts.labels[:, row] == 1
            if given.any():
                prompted = self.prompt_encoder(deepest, points, given, self.patch)
                changed = torch.where(given.any(1)[:, None, None, None, None], prompted, deepest)
                maps.append(self._decode(shallow, changed, image)[:, row + 1])
            else:
                if automatic is None:
                    automatic = self._decode(shallow, deepest, image)
                maps.append(automatic[:, row + 1])
        return torch.stack(maps, dim=1)

    def _decode(self, shallow: Tensor, deepest: Tensor, image: Tensor) -> Tensor:
        logits = self.mask_decoder(shallow, deepest, image)
        return logits - logits[:, :1]


def build_sam3d(
    *,
    backbone: str | Backbone,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    upsample: int | None = None,
    slices: int | None = None,
    cube: int = 8,
    positions: int = 64,
    decoder_channels: int | None = None,
    checkpointing: bool = False,
) -> SAM3D:
    """3DSAM-adapter for a patch (D, H, W) of 1 or 3 channels and `num_classes` classes, background included.

    The patch is up-sampled inside the model, `upsample` times on every axis (default: so that a token is 4 voxels
    wide), and cut into tokens of the backbone's square of pixels and `slices` slices (default: as many as pixels). The
    paper's preset is patch (128, 128, 128): 512^3 after up-sampling, 32^3 tokens of 4^3 voxels. Attention is within
    cubes of `cube`^3 tokens. `positions` is the side of SAM's position tables in tokens, 64 in its published files;
    `decoder_channels` the width of the mask decoder (default: half of the features').

    UsageError: other channels, or a patch that does not divide into tokens.
    """
    if in_channels not in (1, 3):
        raise UsageError(f"3DSAM-adapter takes 1 channel (repeated to three) or 3, not {in_channels}")
    size = get_backbone(backbone)
    return SAM3D(
        image_encoder=VolumeEncoder(
            size,
            patch=patch,
            upsample=upsample,
            slices=slices,
            positions=positions,
            cube=cube,
            checkpointing=checkpointing,
        ),
        prompt_encoder=VisualSampler(size.out_chans, size.decoder),
        mask_decoder=AggregationDecoder(
            channels=size.out_chans,
            width=decoder_channels or size.out_chans // 2,
            heads=FEATURES,
            in_channels=in_channels,
            classes=num_classes,
        ),
        in_channels=in_channels,
        num_classes=num_classes,
        patch=patch,
    )

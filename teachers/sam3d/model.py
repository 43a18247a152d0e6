"""3DSAM-adapter (Gong et al. 2023, arXiv 2306.13465): SAM's encoder lifted to 3-D, prompted by points or by nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UsageError
from ...sam.presets import Backbone, get_backbone
from ...sam.prompt_tensors import Prompts
from ..volumetric.adapters import use_spatial_adapters
from ..volumetric.base import AUTHORS_KEYS as SHARED_KEYS
from ..volumetric.base import Teacher3D
from ..volumetric.decoder import AggregationDecoder
from ..volumetric.encoder import FEATURES, VolumeEncoder
from .prompt_encoder import VisualSampler

# The authors' state-dict keys -> ours, for `sam.checkpoints.canonical_state`.
AUTHORS_KEYS = (*SHARED_KEYS, (r"^prompt_encoder\.transformer\.", "prompt_encoder."))


ADAPTERS = ("paper", "code")


class SAM3D(Teacher3D):
    """One network for points and for none: each class is decoded from the deepest feature as its points change it.

    The last convolution gives all K classes; a class's logit is its own minus the background's, background is 0. A
    class without a point inside (label 1) is decoded from the unchanged feature, as all are without prompts. Points
    outside and boxes are left out: the paper's prompts do not know them.

    `shallow_prompts` are prompt encoders of further features, by their number from 1 on: the points change these too
    (the paper's ablation of deep prompts).
    """

    title = "3DSAM-adapter"
    prompt_kinds = frozenset({"point"})

    trainable = (*Teacher3D.trainable, "shallow_prompts.")

    def __init__(
        self, *, prompt_encoder: VisualSampler, shallow_prompts: dict[int, VisualSampler], **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.prompt_encoder = prompt_encoder
        self.shallow_prompts = nn.ModuleDict({str(level): shallow_prompts[level] for level in sorted(shallow_prompts)})

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
                changed = self._prompted(self.prompt_encoder, deepest, points, given)
                shown = shallow
                if self.shallow_prompts:
                    levels = list(features)
                    for level, encoder in self.shallow_prompts.items():
                        levels[int(level) - 1] = self._prompted(encoder, levels[int(level) - 1], points, given)
                    shown = self.mask_decoder.shallow(levels)
                maps.append(self._decode(shown, changed, image)[:, row + 1])
            else:
                if automatic is None:
                    automatic = self._decode(shallow, deepest, image)
                maps.append(automatic[:, row + 1])
        return torch.stack(maps, dim=1)

    def _prompted(self, encoder: nn.Module, feature: Tensor, points: Tensor, given: Tensor) -> Tensor:
        """The feature as the points change it in the cases that have one, [B, C, h, w, d]."""
        prompted = encoder(feature, points, given, self.patch)
        return torch.where(given.any(1)[:, None, None, None, None], prompted, feature)

    def _decode(self, shallow: Tensor, deepest: Tensor, image: Tensor) -> Tensor:
        logits = self.mask_decoder(shallow, deepest, image)
        return logits - logits[:, :1]


def build_sam3d(
    *,
    backbone: str | Backbone,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    adapter: str = "code",
    prompted_features: Sequence[int] = (FEATURES,),
    upsample: int | None = None,
    slices: int | None = None,
    cube: int = 8,
    positions: int = 64,
    decoder_channels: int | None = None,
    checkpointing: bool = False,
) -> SAM3D:
    """3DSAM-adapter for a patch (D, H, W) of 1 or 3 channels and `num_classes` classes, background included.

    The adapters have the ReLU after the up-projection that the authors' `code` has, or start at zero and have none, as
    the `paper` writes them (`adapter`). The prompt encoder changes the deepest of the four features; others that
    `prompted_features` names, from 1 for the shallowest, get a prompt encoder of their own (the paper's ablation).

    The patch is up-sampled inside the model, `upsample` times on every axis (default: so that a token is 4 voxels
    wide), and cut into tokens of the backbone's square of pixels and `slices` slices (default: as many as pixels). The
    paper's preset is patch (128, 128, 128): 512^3 after up-sampling, 32^3 tokens of 4^3 voxels. Attention is within
    cubes of `cube`^3 tokens. `positions` is the side of SAM's position tables in tokens, 64 in its published files;
    `decoder_channels` the width of the mask decoder (default: half of the features').

    UsageError: other channels or choices, or a patch that does not divide into tokens.
    """
    if in_channels not in (1, 3):
        raise UsageError(f"3DSAM-adapter takes 1 channel (repeated to three) or 3, not {in_channels}")
    if adapter not in ADAPTERS:
        raise UsageError(f"adapter is {adapter!r}: choose one of {', '.join(ADAPTERS)}")
    levels = set(prompted_features)
    if FEATURES not in levels or not levels <= set(range(1, FEATURES + 1)):
        raise UsageError(
            f"prompted_features is {list(prompted_features)}: give {FEATURES}, the deepest, and any of 1 to "
            f"{FEATURES - 1} besides"
        )
    size = get_backbone(backbone)
    image_encoder = VolumeEncoder(
        size,
        patch=patch,
        upsample=upsample,
        slices=slices,
        positions=positions,
        cube=cube,
        checkpointing=checkpointing,
    )
    if adapter == "paper":
        use_spatial_adapters(image_encoder, size.dim)
    return SAM3D(
        image_encoder=image_encoder,
        prompt_encoder=VisualSampler(size.out_chans, size.decoder),
        shallow_prompts={level: VisualSampler(size.out_chans, size.decoder) for level in sorted(levels - {FEATURES})},
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

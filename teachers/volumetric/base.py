"""What the teachers on SAM's encoder lifted to 3-D share: 3DSAM-adapter, and AutoSAM Adapter, which is built on it."""

import re
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ...sam.checkpoints import LoadReport, load_published
from ...sam.image_shape import require_image
from ..base import TeacherNetwork
from ..freezing import adapter_names
from .decoder import AggregationDecoder
from .encoder import FEATURES, VolumeBlock, VolumeEncoder

# The authors' state-dict keys -> ours, for `sam.checkpoints.canonical_state`.
AUTHORS_KEYS = (
    (r"^img_encoder\.", "image_encoder."),
    (r"\bneck_3d\.", "necks."),
    (r"\badapter\.linear1\.", "adapter.down."),
    (r"\badapter\.linear2\.", "adapter.up."),
    *((rf"\bmlahead\.head{index + 2}\.", f"heads.{index}.") for index in range(FEATURES)),
)

# SAM's parts that these models exchange for their own, and what they have besides.
REPLACED = re.compile(r"(prompt_encoder|mask_decoder|image_encoder\.neck)\.")
NEW = re.compile(
    r"prompt_generator\.|shallow_prompts\.|image_encoder\.(slice_embed|depth_embed|necks|blocks\.\d+\.attn\.lr)\b"
)


class Teacher3D(TeacherNetwork):
    """SAM's encoder on whole volumes, and a decoder of its four features; `title` is the model's name in errors."""

    title: ClassVar[str]
    trainable = (
        *TeacherNetwork.trainable,
        "image_encoder.slice_embed.",
        "image_encoder.depth_embed",
        "image_encoder.necks.",
    )

    def __init__(
        self,
        *,
        image_encoder: VolumeEncoder,
        mask_decoder: AggregationDecoder,
        in_channels: int,
        num_classes: int,
        patch: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.mask_decoder = mask_decoder
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.patch = patch

    def encode(self, image: Tensor) -> list[Tensor]:
        """image [B, C, D, H, W] -> the encoder's four features, shallow to deep. UsageError for another shape."""
        require_image(image, network=self.title, channels=self.in_channels, patch=self.patch, any_depth=False)
        return self.image_encoder(image)

    def freeze_to_adapters(self) -> None:
        """Freeze SAM's blocks but their layer norms, and `lr`: what is left is what the authors tune."""
        super().freeze_to_adapters()
        for block in self.image_encoder.blocks:
            assert isinstance(block, VolumeBlock)
            block.norm1.requires_grad_(True)
            block.norm2.requires_grad_(True)

    def load_pretrained(self, path: str | Path) -> LoadReport:
        """Fill SAM's image encoder from a published checkpoint; its neck, prompt encoder and mask decoder are dropped.

        The relative positions along the slices start as the mean of SAM's two. Errors as in
        `sam.checkpoints.load_published`.
        """
        added = adapter_names(self) | {name for name in self.state_dict() if NEW.match(name)}
        report = load_published(self, path, added=added, replaced=REPLACED)
        for index, block in enumerate(self.image_encoder.blocks):
            if f"image_encoder.blocks.{index}.attn.rel_pos_d" in report.added:
                assert isinstance(block, VolumeBlock)
                block.attn.rel_pos_d.data.copy_((block.attn.rel_pos_h + block.attn.rel_pos_w) / 2)
        return report

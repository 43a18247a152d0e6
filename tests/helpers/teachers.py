"""Teachers small enough for a test."""

import re
from typing import Any, Literal, overload

from samkd.teachers import build_teacher
from samkd.teachers.autosam.model import AutoSAM
from samkd.teachers.base import TeacherNetwork
from samkd.teachers.masam.model import MASAM
from samkd.teachers.medsa.model import MedSA
from samkd.teachers.sam3d.model import SAM3D

MEDSA_BACKBONES = ["vit_tiny", "vit_tiny_p8", "efficient_vit_ti", "mobile_vit_t"]

# What 3DSAM-adapter's authors train, by name.
SAM3D_TRAINED = re.compile(
    r"image_encoder\.(slice_embed|depth_embed|necks)\b"
    r"|image_encoder\.blocks\.\d+\.(adapter|norm[12]|attn\.rel_pos_d)\b|prompt_encoder\.|mask_decoder\."
)

SIZES: dict[str, dict[str, Any]] = {
    "masam": {"backbone": "vit_tiny", "num_classes": 4, "patch": (5, 64, 64), "rank": 4},
    "medsa": {"backbone": "vit_tiny", "num_classes": 4, "patch": (3, 64, 64), "rank": 8},
    "autosam": {"backbone": "vit_tiny_p8", "num_classes": 4, "patch": (16, 32, 48), "positions": 8},
    "sam3d": {
        "backbone": "vit_tiny_p8",
        "num_classes": 3,
        "patch": (8, 16, 24),
        "cube": 4,
        "positions": 8,
        "decoder_channels": 8,
    },
}


@overload
def tiny_teacher(name: Literal["masam"], **changes: Any) -> MASAM: ...
@overload
def tiny_teacher(name: Literal["medsa"], **changes: Any) -> MedSA: ...
@overload
def tiny_teacher(name: Literal["autosam"], **changes: Any) -> AutoSAM: ...
@overload
def tiny_teacher(name: Literal["sam3d"], **changes: Any) -> SAM3D: ...
def tiny_teacher(name: str, **changes: Any) -> TeacherNetwork:
    """The teacher `name` in its small size for images of one channel; `changes` replace or add its options."""
    return build_teacher(name, **{"in_channels": 1, **SIZES[name], **changes})

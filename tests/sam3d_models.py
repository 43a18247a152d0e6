"""Small 3DSAM-adapters, points for them, and a file like SAM's that they adapt."""

import re
from pathlib import Path

import torch
from torch import nn

from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import get_backbone
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.prompt_tensors import Prompts
from samkd.sam.vit import ImageEncoder
from samkd.teachers import build_teacher
from samkd.teachers.sam3d.model import SAM3D

# What the authors tune, by name.
TUNED = re.compile(
    r"image_encoder\.(slice_embed|depth_embed|necks)\b"
    r"|image_encoder\.blocks\.\d+\.(adapter|norm[12]|attn\.rel_pos_d)\b|prompt_encoder\.|mask_decoder\."
)


def tiny(**changes) -> SAM3D:
    settings = {
        "backbone": "vit_tiny_p8",
        "in_channels": 1,
        "num_classes": 3,
        "patch": (8, 16, 24),
        "cube": 4,
        "positions": 8,
        "decoder_channels": 8,
    }
    model = build_teacher("sam3d", **(settings | changes))
    assert isinstance(model, SAM3D)
    return model


def prompts(points: list, labels: list) -> Prompts:
    """points [B][K - 1][P] of (d, h, w), labels alike; no boxes."""
    given = torch.tensor(points, dtype=torch.float32)
    return Prompts(given, torch.tensor(labels), torch.full((*given.shape[:2], 6), torch.nan))


def published_sam(path: Path, *, backbone: str = "vit_tiny_p8", side: int = 64) -> Path:
    """A file with the keys and shapes of SAM's at the size of `backbone`."""
    size = get_backbone(backbone)
    sam = nn.ModuleDict(
        {
            "image_encoder": ImageEncoder(size, image_size=(side, side)),
            "prompt_encoder": build_prompt_encoder(size, image_size=(side, side)),
            "mask_decoder": MaskDecoder(size.decoder, channels=size.out_chans, masks=4, stages=2),
        }
    )
    for parameter in sam.parameters():
        nn.init.normal_(parameter)
    torch.save(sam.state_dict(), path)
    return path

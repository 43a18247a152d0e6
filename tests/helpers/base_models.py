"""The SAM that a small teacher adapts, and files like its published ones."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from samkd.sam.build import build_image_encoder
from samkd.sam.mask_decoder import MaskDecoder, build_mask_decoder
from samkd.sam.presets import get_backbone, get_encoder_size
from samkd.sam.prompt_encoder import build_prompt_encoder
from samkd.sam.vit import ImageEncoder
from samkd.teachers.medsa.model import MedSA

from .teachers import tiny_teacher


def base_of(model: MedSA, backbone: str) -> Any:
    """SAM's parts without adapters, with the model's weights."""
    size, image_size = get_encoder_size(backbone), (model.patch[1], model.patch[2])
    base = nn.ModuleDict(
        {
            "image_encoder": build_image_encoder(size, image_size=image_size),
            "prompt_encoder": build_prompt_encoder(size, image_size=image_size),
            "mask_decoder": build_mask_decoder(size, masks=model.num_classes - 1, stages=2),
        }
    )
    state = model.state_dict()
    base.load_state_dict({key: state[key] for key in base.state_dict()})
    return base.eval()


def published(backbone: str, *, image_size=(64, 64), masks: int = 4) -> Any:
    """A file with the keys and shapes of the published ones."""
    return base_of(tiny_teacher("medsa", backbone=backbone, num_classes=masks + 1, patch=(1, *image_size)), backbone)


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

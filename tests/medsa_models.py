"""Small Medical SAM Adapters, prompts for them, and the SAM that each adapts."""

from typing import Any

import torch
from torch import nn

from samkd.sam.build import build_image_encoder
from samkd.sam.efficient_sam import EfficientMaskDecoder
from samkd.sam.mask_decoder import MaskDecoder
from samkd.sam.presets import EfficientViTSize, get_encoder_size
from samkd.sam.prompt_tensors import Prompts
from samkd.sam.slice_prompts import prompt_encoder
from samkd.teachers import build_teacher
from samkd.teachers.medsa.model import MedSA

SMALL = ["vit_tiny", "vit_tiny_p8", "efficient_vit_ti", "mobile_vit_t"]


def tiny(**changes) -> MedSA:
    settings = {"backbone": "vit_tiny", "in_channels": 1, "num_classes": 4, "patch": (3, 64, 64), "rank": 8}
    model = build_teacher("medsa", **(settings | changes))
    assert isinstance(model, MedSA)
    return model


def prompts(*, batch: int = 1, classes: int = 3, points=(), boxes=()) -> Prompts:
    """points: (case, class row, (d, h, w), label), in order; boxes: (case, class row, six numbers)."""
    given = Prompts(
        torch.zeros(batch, classes, 4, 3),
        torch.full((batch, classes, 4), -1),
        torch.full((batch, classes, 6), float("nan")),
    )
    for row, index, place, label in points:
        free = int((given.labels[row, index] >= 0).sum())
        given.points[row, index, free] = torch.tensor(place)
        given.labels[row, index, free] = label
    for row, index, box in boxes:
        given.boxes[row, index] = torch.tensor(box)
    return given


def base_of(model: MedSA, backbone: str) -> Any:
    """SAM's parts without adapters, with the model's weights."""
    size, image_size = get_encoder_size(backbone), (model.patch[1], model.patch[2])
    channels, masks = size.out_chans, model.num_classes - 1
    base = nn.ModuleDict(
        {
            "image_encoder": build_image_encoder(size, image_size=image_size),
            "prompt_encoder": prompt_encoder(size, image_size=image_size),
            "mask_decoder": EfficientMaskDecoder(size.decoder, channels=channels, masks=masks, widths=size.upscaling)
            if isinstance(size, EfficientViTSize)
            else MaskDecoder(size.decoder, channels=channels, masks=masks, stages=2),
        }
    )
    state = model.state_dict()
    base.load_state_dict({key: state[key] for key in base.state_dict()})
    return base.eval()


def published(backbone: str, *, image_size=(64, 64), masks: int = 4) -> Any:
    """A file with the keys and shapes of the published ones."""
    return base_of(tiny(backbone=backbone, num_classes=masks + 1, patch=(1, *image_size)), backbone)

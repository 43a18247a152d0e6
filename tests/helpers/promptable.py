"""An untrained promptable student, small and lively, and its package."""

import numpy as np
import torch
from torch import nn

from samkd.deploy.acceptance.candidates import Prompted, ValidationCase
from samkd.students.small_sam.model import build_small_sam
from samkd.training.predictor import make_predictor
from samkd.volumes import Plan
from samkd.volumes.pipeline import segment
from samkd.volumes.prompts import ClassPrompts, ScanPrompts

from .encoder_sizes import TINY
from .packages import deploy, make_scan

PATCH = (3, 32, 48)
PLAN = Plan(intensity=({"rule": "window", "low": 0, "high": 100},), patch=PATCH, overlap=0.25)
TAKES = ("point", "outside point")
CLICKS = ScanPrompts(
    {1: ClassPrompts(((10.0, 12.0, 5.0, 1), (20.0, 8.0, 9.0, 0))), 2: ClassPrompts(((22, 15, 9, 1),))}, "voxel"
)
BOX = ScanPrompts({2: ClassPrompts(boxes=((8, 8, 4, 20, 20, 12),))}, "voxel")


def lively_student():
    """Untrained, but with logits that are large and depend on the image and on prompts."""
    torch.manual_seed(5)
    network = build_small_sam(TINY, in_channels=1, num_classes=3, patch=PATCH)
    with torch.no_grad():
        nn.init.normal_(network.slice_prompts.codes, std=0.2)
        for name, parameter in network.mask_decoder.named_parameters():
            if "hypernetworks" in name or "mask_tokens" in name:
                parameter *= 3
    return network.eval()


def masks_of(student, prompts=None):
    infer = make_predictor(student)
    return [segment(make_scan(seed), PLAN, infer, num_classes=3, prompts=prompts) for seed in range(3)]


def packed(student, folder, **changes):
    automatic, clicked = masks_of(student), masks_of(student, CLICKS)
    patches = [np.ascontiguousarray(make_scan(seed).array[:, 8:11, :26, :31]) / 100 for seed in range(8)]
    patches = [np.pad(patch, ((0, 0), (0, 0), (0, 6), (0, 17))).astype(np.float32) for patch in patches]
    arguments = {
        "plan": PLAN,
        "calibration": patches,
        "validation": [
            ValidationCase(f"case_{seed}", make_scan(seed), mask, mask) for seed, mask in enumerate(automatic)
        ],
        "prompt_kinds": TAKES,
        "prompted": Prompted("point", [CLICKS] * 3, clicked),
        "max_drop": 0.02,
    }
    return deploy(student, folder, **{**arguments, **changes})

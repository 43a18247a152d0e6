"""Any table at tiny size: the built-in phantom in place of every dataset, small networks, few steps, random weights."""

import math
from pathlib import Path
from typing import Any

import torch
import yaml

from ...configs.schema import Config, StudentConfig, TeacherConfig
from ...sam.mask_decoder import build_mask_decoder
from ...sam.presets import get_backbone
from ...sam.prompt_encoder import build_prompt_encoder
from ...sam.vit import ImageEncoder
from ...volumes.files import atomic_path, make_folder

BACKBONE, STUDENT = "vit_tiny_p8", "swinunetr-tiny"  # in place of every image encoder, and of every student
SIZES = {"training": 6, "test": 2, "seed": 0}
SLICES_STEPS, VOLUMES_STEPS, STUDENT_STEPS = 300, 100, 60  # a step on volumes costs six times one on slices
SIDE = 64  # of a slice, in voxels

_WINDOW = {"rule": "window", "low": -200, "high": 250}  # HU, to [0, 1]
_DATA = {  # there are no sites, modalities or classes of the paper's to choose
    "data": None,
    "phantom": SIZES,
    "split": None,
    "classes": None,
    "modality": None,
    "skip_empty": False,
    "labelled": None,
    "validation": 0,
}
_VOLUMES = {  # plans of the teachers that see volumes
    "autosam": {"orientation": "LPS", "spacing": [6.0, 7.0, 7.0], "patch": [32, 32, 32]},
    "sam3d": {"orientation": "LPS", "spacing": [8.0, 8.0, 8.0], "patch": [48, 40, 24]},
}


def tiny(config: Config) -> list[str]:
    """The overrides that make a config tiny; loss, optimiser, prompts and all other switches stay as they are."""
    groups = {
        **_DATA,
        **_teacher(config.teacher),
        "student.name": STUDENT,
        "student.options": {},
        "student.plan": {"orientation": "LPS", "spacing": [6.0, 7.0, 7.0], "patch": [64, 32, 32], "overlap": 0.0}
        | {"intensity": [_WINDOW]},
        **_training("student", config.student, steps=STUDENT_STEPS, rate=1.2e-2),
    }
    return [f"{key}={_yaml(value)}" for key, value in groups.items()]


def _teacher(teacher: TeacherConfig) -> dict[str, Any]:
    """What makes the teacher tiny: its encoder, its plan, its training, and options that count blocks or tokens."""
    values: dict[str, Any] = {"teacher.backbone": BACKBONE}
    plan: dict[str, Any] = {"orientation": "SPL", "size": [None, SIDE, SIDE]}
    plan["patch"] = [min(teacher.plan.patch[0], 5), SIDE, SIDE]
    plan = (_VOLUMES.get(teacher.name) or plan) | {"overlap": 0.0}
    plan["intensity"] = [_WINDOW] if teacher.name == "published" else [_WINDOW, {"rule": "zscore"}]
    values["teacher.plan"] = plan
    if "upsample" in teacher.options:
        values["teacher.options.upsample"] = None
    if teacher.name == "sam3d":
        values["teacher.options.positions"] = 12
    if layers := teacher.options.get("layers"):
        values["teacher.options.layers"] = _blocks(layers, of=get_backbone(teacher.backbone).depth)
    steps = VOLUMES_STEPS if teacher.name in _VOLUMES else SLICES_STEPS
    return values | _training("teacher", teacher, steps=steps, rate=1e-3)


def _blocks(layers: list[int], *, of: int) -> list[int]:
    """The first and last of the tiny encoder's blocks, in the places of those of an encoder `of` so many."""
    depth = get_backbone(BACKBONE).depth
    return [(layers[0] - 1) * depth // of + 1, math.ceil(layers[1] * depth / of)]


def _training(section: str, trained: TeacherConfig | StudentConfig, *, steps: int, rate: float) -> dict[str, Any]:
    steps = min(steps, trained.training.steps or steps)
    values = {"steps": steps, "epochs": 0, "schedule_steps": None, "batch": 1, "accumulate": 1}
    values |= {"learning_rate": rate, "warmup": steps // 10, "validate_every": steps}
    return {f"{section}.training.{key}": value for key, value in values.items()}


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def stand_in_weights(folder: Path) -> Path:
    """A file of SAM's kind for the tiny encoder, with random numbers, written into `folder` on first use."""
    path = make_folder(folder) / f"random-{BACKBONE}.pth"
    if path.exists():
        return path
    size, image_size = get_backbone(BACKBONE), (SIDE, SIDE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = torch.nn.ModuleDict(
            {
                "image_encoder": ImageEncoder(size, image_size=image_size),
                "prompt_encoder": build_prompt_encoder(size, image_size=image_size),
                "mask_decoder": build_mask_decoder(size, masks=4, stages=2),
            }
        )
        for name, value in parts.named_parameters():
            if name.endswith(("pos_embed", "rel_pos_h", "rel_pos_w")):  # zeros, where training has not filled them
                torch.nn.init.normal_(value, std=0.02)
    with atomic_path(path) as temporary:
        torch.save(parts.state_dict(), temporary)
    return path

"""Teachers: SAM adapter models. `build_teacher` builds one by name; PyTorch is imported only then."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..sam.presets import EncoderSize
    from .base import Teacher

TEACHERS = ("masam", "medsa", "autosam", "sam3d")
# The patch (D, H, W) that each teacher's paper works on.
PAPER_PATCHES = {
    "masam": (5, 512, 512),
    "medsa": (5, 1024, 1024),
    "autosam": (128, 128, 128),
    "sam3d": (128, 128, 128),
}


def check_teacher(name: str, backbone: str | EncoderSize) -> None:
    """UsageError for an unknown teacher or backbone; cheap, so that a wrong name is told before any work is done."""
    if name not in TEACHERS:
        raise UsageError(f"unknown teacher {name!r}: choose one of {', '.join(TEACHERS)}")
    from ..sam.presets import get_encoder_size

    get_encoder_size(backbone)


def build_teacher(
    name: str,
    *,
    backbone: str | EncoderSize,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    **options: Any,
) -> Teacher:
    """The teacher `name` for patches (D, H, W) of `in_channels` channels and `num_classes` classes with background.

    `options` are those of the teacher's own builder. UsageError for an unknown name, backbone or option.
    """
    check_teacher(name, backbone)
    build = getattr(importlib.import_module(f".{name}.model", __package__), f"build_{name}")
    fixed = {"backbone": backbone, "in_channels": in_channels, "num_classes": num_classes, "patch": patch}
    known = [option for option in inspect.signature(build).parameters if option not in fixed]
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(f"teacher {name!r} has no option {', '.join(unknown)}: choose among {', '.join(known)}")
    return build(**fixed, **options)

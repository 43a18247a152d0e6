"""Teachers: SAM adapter models. `build_teacher` builds one by name; PyTorch is imported only then."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from ..sam.presets import Backbone
    from .teacher import Teacher

TEACHERS = ("masam",)


def build_teacher(
    name: str,
    *,
    backbone: str | Backbone,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    **options: Any,
) -> Teacher:
    """The teacher `name` for patches (D, H, W) of `in_channels` channels and `num_classes` classes with background.

    `options` are those of the teacher's own builder. UsageError for an unknown name, backbone or option.
    """
    if name not in TEACHERS:
        raise UsageError(f"unknown teacher {name!r}: choose one of {', '.join(TEACHERS)}")
    build = getattr(importlib.import_module(f".{name}", __package__), f"build_{name}")
    fixed = {"backbone": backbone, "in_channels": in_channels, "num_classes": num_classes, "patch": patch}
    known = [option for option in inspect.signature(build).parameters if option not in fixed]
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(f"teacher {name!r} has no option {', '.join(unknown)}: choose among {', '.join(known)}")
    return build(**fixed, **options)

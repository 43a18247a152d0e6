"""Teachers: SAM adapter models. `build_teacher` builds one by name; PyTorch is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..training.registry import build_registered, check_registered

if TYPE_CHECKING:
    from ..sam.presets import EncoderSize
    from ..training.run_config import NetworkSpec
    from .base import TeacherNetwork

PUBLISHED = "published"  # the one that is not trained, and finds nothing without prompts

# Name -> module and builder. A new teacher is a folder, a line here, and the patch (D, H, W) that its paper works on.
TEACHERS = {
    "masam": "masam.model:build_masam",
    "medsa": "medsa.model:build_medsa",
    "autosam": "autosam.model:build_autosam",
    "sam3d": "sam3d.model:build_sam3d",
    PUBLISHED: "published.model:build_published",
}
PAPER_PATCHES = {
    "masam": (5, 512, 512),
    "medsa": (5, 1024, 1024),
    "autosam": (128, 128, 128),
    "sam3d": (128, 128, 128),
    PUBLISHED: (1, 1024, 1024),
}


def check_teacher(name: str, backbone: str | EncoderSize) -> None:
    """UsageError for an unknown teacher or backbone; cheap, so that a wrong name is told before any work is done."""
    check_registered(TEACHERS, name, kind="teacher")
    from ..sam.presets import get_encoder_size

    get_encoder_size(backbone)


def build_teacher(
    name: str,
    *,
    backbone: str | EncoderSize,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    tune: str = "adapters",
    **options: Any,
) -> TeacherNetwork:
    """The teacher `name` for patches (D, H, W) of `in_channels` channels and `num_classes` classes with background.

    `options` are those of the teacher's own builder. Every teacher has the option `tune`: what learns when it starts
    from a published file, "adapters", "decoder" or "all". UsageError for an unknown name, backbone or option.
    """
    check_teacher(name, backbone)
    from .base import check_tune

    choice = check_tune(name, tune)
    network: TeacherNetwork = build_registered(
        TEACHERS,
        name,
        kind="teacher",
        package=__package__ or "",
        options=options,
        backbone=backbone,
        in_channels=in_channels,
        num_classes=num_classes,
        patch=patch,
    )
    network.tune = choice
    return network


def teacher_from_spec(spec: NetworkSpec) -> TeacherNetwork:
    """The teacher of a run's record, with random weights; UsageError as in build_teacher."""
    assert spec.backbone is not None
    return build_teacher(
        spec.name,
        backbone=spec.backbone,
        in_channels=spec.in_channels,
        num_classes=spec.num_classes,
        patch=spec.patch,
        **spec.options,
    )

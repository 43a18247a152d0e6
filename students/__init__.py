"""Students: small networks for the device. `build_student` builds one by name; PyTorch is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from .swinunetr import SwinUNETR

STUDENTS = ("swinunetr-tiny", "swinunetr-small")


def build_student(name: str, *, in_channels: int, num_classes: int, patch: tuple[int, int, int]) -> SwinUNETR:
    """The student `name` for patches (D, H, W) of `in_channels` channels and `num_classes` classes with background.

    UsageError for an unknown name or a patch that does not fit the network.
    """
    if name not in STUDENTS:
        raise UsageError(f"unknown student {name!r}: choose one of {', '.join(STUDENTS)}")
    from .swinunetr import FEATURE_SIZES, SwinUNETR

    return SwinUNETR(in_channels=in_channels, num_classes=num_classes, patch=patch, feature_size=FEATURE_SIZES[name])

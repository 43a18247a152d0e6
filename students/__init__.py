"""Students: small networks for the device. `build_student` builds one by name; PyTorch is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..training.registry import build_registered

if TYPE_CHECKING:
    from ..training.run_config import NetworkSpec
    from .mednext.model import MedNeXt
    from .prompted_sam.model import PromptedStudent
    from .segresnet.model import SegResNet
    from .small_sam.model import SmallSAM
    from .swinunetr.model import SwinUNETR

    Student = SwinUNETR | SegResNet | MedNeXt | SmallSAM | PromptedStudent

# Name -> module and builder. A new student is a folder and a line here.
STUDENTS = {
    "swinunetr-tiny": "swinunetr.model:build_tiny",
    "swinunetr-small": "swinunetr.model:build_small",
    "swinunetr-base": "swinunetr.model:build_base",
    "segresnet": "segresnet.model:SegResNet",
    "mednext-tiny": "mednext.model:MedNeXt",
    "mobilesam": "small_sam.model:build_mobilesam",
    "litemedsam": "small_sam.model:build_litemedsam",
    "efficientsam-ti": "small_sam.model:build_efficientsam_ti",
    "efficientsam-s": "small_sam.model:build_efficientsam_s",
    "prompted-mobilesam": "prompted_sam.model:build_prompted_mobilesam",
    "prompted-efficientsam-ti": "prompted_sam.model:build_prompted_efficientsam_ti",
}
# Those that find nothing without prompts.
PROMPTED = tuple(name for name, place in STUDENTS.items() if place.startswith("prompted_sam."))


def build_student(
    name: str, *, in_channels: int, num_classes: int, patch: tuple[int, int, int], **options: Any
) -> Student:
    """The student `name` for patches (D, H, W) of `in_channels` channels and `num_classes` classes with background.

    Those of SAM's kind have one of `options`: `slices`, "channels" (default) or "depth", see `SmallSAM`.
    UsageError for an unknown name or option, or a patch that does not fit the network.
    """
    return build_registered(
        STUDENTS,
        name,
        kind="student",
        package=__package__ or "",
        options=options,
        in_channels=in_channels,
        num_classes=num_classes,
        patch=patch,
    )


def student_from_spec(spec: NetworkSpec) -> Student:
    """The student of a run's record, with random weights; UsageError as in build_student."""
    return build_student(
        spec.name, in_channels=spec.in_channels, num_classes=spec.num_classes, patch=spec.patch, **spec.options
    )

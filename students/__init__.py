"""Students: small networks for the device. `build_student` builds one by name; PyTorch is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from .segresnet.model import SegResNet
    from .small_sam.model import SmallSAM
    from .swinunetr.model import SwinUNETR

STUDENTS = ("swinunetr-tiny", "swinunetr-small", "segresnet", "mobilesam", "efficientsam-ti", "efficientsam-s")


def build_student(
    name: str, *, in_channels: int, num_classes: int, patch: tuple[int, int, int], **options: Any
) -> SwinUNETR | SegResNet | SmallSAM:
    """The student `name` for patches (D, H, W) of `in_channels` channels and `num_classes` classes with background.

    MobileSAM's and EfficientSAM's have one of `options`: `slices`, "channels" (default) or "depth", see `SmallSAM`.
    UsageError for an unknown name or option, or a patch that does not fit the network.
    """
    if name not in STUDENTS:
        raise UsageError(f"unknown student {name!r}: choose one of {', '.join(STUDENTS)}")
    known = {"slices"} if "sam" in name else set()
    if unknown := sorted(set(options) - known):
        raise UsageError(f"student {name!r} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    shape: Any = {"in_channels": in_channels, "num_classes": num_classes, "patch": patch}
    if name == "segresnet":
        from .segresnet.model import SegResNet

        return SegResNet(**shape)
    if name.startswith("swinunetr"):
        from .swinunetr.model import FEATURE_SIZES, SwinUNETR

        return SwinUNETR(**shape, feature_size=FEATURE_SIZES[name])
    from .small_sam.model import ENCODERS, build_small_sam

    return build_small_sam(ENCODERS[name], **shape, **options)

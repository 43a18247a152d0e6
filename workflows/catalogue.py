"""What there is to choose from, and how large it is; teachers are counted on the meta device, without their weights."""

from collections.abc import Iterator
from typing import Any

import torch

from ..errors import UsageError
from ..sam.presets import ENCODERS
from ..students import STUDENTS, build_student
from ..students.small_sam.model import STUDENT_ENCODERS
from ..teachers import TEACHERS, build_teacher

# The patch (D, H, W) each paper works on; 13 classes are the 12 organs of BTCV and the background.
PAPER_PATCH = {"masam": (5, 512, 512), "medsa": (5, 1024, 1024), "autosam": (128, 128, 128), "sam3d": (128, 128, 128)}
VOLUME_PATCH, SLICES_PATCH = (96, 96, 96), (3, 1024, 1024)  # a student's, and those of SAM's kind


def networks(*, classes: int) -> Iterator[dict[str, Any]]:
    """A row per network: kind, name, backbone, patch, parameters in all, and those trained on frozen SAM weights."""
    for name in TEACHERS:
        for backbone in ENCODERS:
            try:
                with torch.device("meta"):
                    network = build_teacher(
                        name, backbone=backbone, in_channels=1, num_classes=classes, patch=PAPER_PATCH[name]
                    )
            except UsageError:  # this teacher does not adapt that backbone
                continue
            network.freeze_base()
            yield _row(network, kind="teacher", name=name, backbone=backbone)
    for name in STUDENTS:
        backbone = STUDENT_ENCODERS.get(name, "")
        patch = SLICES_PATCH if backbone else VOLUME_PATCH
        network = build_student(name, in_channels=1, num_classes=classes, patch=patch)
        yield _row(network, kind="student", name=name, backbone=backbone)


def _row(network: Any, **names: str) -> dict[str, Any]:
    return names | {
        "patch": list(network.patch),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tuned": sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
    }

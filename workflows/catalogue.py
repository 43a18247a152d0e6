"""What there is to choose from, and how large it is; teachers are counted on the meta device, without their weights."""

from collections.abc import Iterator
from typing import Any

import torch

from ..errors import UsageError
from ..sam.presets import ENCODERS
from ..students import STUDENTS, build_student
from ..students.prompted_sam.model import PROMPTED_ENCODERS
from ..students.small_sam.model import STUDENT_ENCODERS
from ..teachers import PAPER_PATCHES, TEACHERS, build_teacher

# Patches (D, H, W) of the students: of those that see a volume at once, and of those that see slices as SAM does.
VOLUME_PATCH, SLICES_PATCH = (96, 96, 96), (3, 1024, 1024)


def networks(*, classes: int) -> Iterator[dict[str, Any]]:
    """A row per network: kind, name, backbone, patch, parameters in all, and those trained on frozen SAM weights."""
    for name in TEACHERS:
        for backbone in ENCODERS:
            try:
                with torch.device("meta"):
                    network = build_teacher(
                        name, backbone=backbone, in_channels=1, num_classes=classes, patch=PAPER_PATCHES[name]
                    )
            except UsageError:  # this teacher does not adapt that backbone
                continue
            network.freeze_pretrained()
            yield _row(network, kind="teacher", name=name, backbone=backbone)
    for name in STUDENTS:
        backbone = (STUDENT_ENCODERS | PROMPTED_ENCODERS).get(name, "")
        patch = SLICES_PATCH if backbone else VOLUME_PATCH
        network = build_student(name, in_channels=1, num_classes=classes, patch=patch)
        yield _row(network, kind="student", name=name, backbone=backbone)


def _row(network: Any, **names: str) -> dict[str, Any]:
    return names | {
        "patch": list(network.patch),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "tuned": sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad),
    }

"""SAM, MedSAM, MobileSAM, LiteMedSAM or EfficientSAM as published, and the small students of one, as a teacher."""

from pathlib import Path

from ...sam.checkpoints import NOTHING, LoadReport, load_published
from ...sam.presets import EncoderSize
from ...sam.prompted_sam import Convention, PromptedSAM, prompted_parts
from ..base import TeacherNetwork


class PublishedSAM(PromptedSAM, TeacherNetwork):
    """The model as it is: nothing of it is trained."""

    trainable = ()

    def load_pretrained(self, path: str | Path) -> LoadReport:
        """Fill all of the model from its published file; errors as in `sam.checkpoints.load_published`."""
        return load_published(self, path, replaced=NOTHING)


def build_published(
    *,
    backbone: str | EncoderSize,
    in_channels: int,
    num_classes: int,
    patch: tuple[int, int, int],
    convention: Convention | None = None,
) -> PublishedSAM:
    """The published model around an image encoder (its name or sizes), for a patch (D, H, W).

    `convention` and the errors are those of sam.prompted_sam.prompted_parts.
    """
    parts = prompted_parts(
        backbone, in_channels=in_channels, num_classes=num_classes, patch=patch, convention=convention
    )
    return PublishedSAM(**parts)

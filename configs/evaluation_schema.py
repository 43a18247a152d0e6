"""What a config may say of scores: which are printed, and by which rules masks are scored."""

from typing import Annotated, Literal

from pydantic import Field

from .plan_schema import Strict

Metric = Literal["dice", "iou", "hd95_mm", "hd95_voxels", "asd_mm", "nsd"]


class Evaluation(Strict):
    """Which scores the verbs print, and by which rules masks are scored."""

    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("dice",)
    """The scores that are printed; `hd95_voxels` is computed only where it stands here, the others always."""
    tolerance_mm: Annotated[float, Field(gt=0)] = 1.0
    """How far apart in mm two surfaces count as one in the NSD."""
    class_tolerances_mm: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """The tolerance of single classes by name, in place of `tolerance_mm`."""
    surface: Literal["voxels", "subvoxel"] = "voxels"
    """The outermost voxels of a mask, each as much as any other, or the surface between voxels, weighed by its area."""
    hd95: Literal["larger", "pooled"] = "larger"
    """The larger of the two directed 95th percentiles, or the 95th percentile of both directions together."""
    both_absent: Literal["skip", "perfect"] = "skip"
    """A class that neither truth nor prediction holds is left out in that case, or counts as a perfect score."""
    average: Literal["classes", "cases"] = "classes"
    """The mean over the classes of their means over cases, or over the cases of their means over classes."""
    unit: Literal["scan", "frame"] = "scan"
    """What a case is: a whole scan (all frames of a video together), or each frame of a video by itself."""

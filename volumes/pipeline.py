"""From a scan to its mask: the one pipeline of training, evaluation and the device."""

from collections.abc import Callable

import numpy as np

from .geometry import Volume
from .plan import Plan, prepare, restore
from .prompts import ScanPrompts
from .tiles import stitched


def segment(
    volume: Volume,
    plan: Plan,
    infer: Callable[..., np.ndarray],
    *,
    classes: int,
    batch: int = 1,
    prompts: ScanPrompts | None = None,
) -> np.ndarray:
    """Labels [D, H, W] (uint8; uint16 above 256 classes) on the scan's own grid.

    `infer` turns patches [N, C, *plan.patch] into class PROBABILITIES [N, classes, *plan.patch]; with `prompts` it is
    called as infer(patches, what of the prompts lies in them). Raises BadInputError for a scan that the plan's
    intensity rules cannot scale and for a prompt outside the scan.
    """
    prepared = prepare(volume, plan)
    placed = prompts and prompts.onto(prepared.geometry, scan=volume.geometry, classes=classes)
    probabilities = stitched(
        prepared.array, plan.patch, plan.overlap, infer, classes=classes, batch=batch, prompts=placed
    )
    return restore(probabilities, prepared.geometry, volume.geometry)

"""From a scan to its mask: the one pipeline of training, evaluation and the device."""

from collections.abc import Callable

import numpy as np

from .geometry import Volume
from .plan import Plan, prepare, restore
from .tiles import stitched


def segment(
    volume: Volume,
    plan: Plan,
    infer: Callable[[np.ndarray], np.ndarray],
    *,
    classes: int,
    batch: int = 1,
) -> np.ndarray:
    """Labels [D, H, W] (uint8; uint16 above 256 classes) on the scan's own grid.

    `infer` turns patches [N, C, *plan.patch] into class PROBABILITIES [N, classes, *plan.patch].
    Raises BadInputError for a scan that the plan's intensity rules cannot scale.
    """
    prepared = prepare(volume, plan)
    probabilities = stitched(prepared.array, plan.patch, plan.overlap, infer, classes=classes, batch=batch)
    return restore(probabilities, prepared.geometry, volume.geometry)

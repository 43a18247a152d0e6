"""From a scan to its mask: the one pipeline of training, evaluation and the device."""

from collections.abc import Callable

import numpy as np

from .geometry import Geometry, Volume
from .plan import Plan, prepare, restore_slabs
from .prompts import ScanPrompts
from .sliding_window import stitched_slabs


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
    return segment_prepared(prepared, volume.geometry, plan, infer, classes=classes, batch=batch, prompts=prompts)


def segment_prepared(
    prepared: Volume,
    source: Geometry,
    plan: Plan,
    infer: Callable[..., np.ndarray | Callable[[], np.ndarray]],
    *,
    classes: int,
    batch: int = 1,
    at_once: int = 1,
    prompts: ScanPrompts | None = None,
) -> np.ndarray:
    """segment for a scan that plan.prepare prepared; `source` is the grid it came from, and the labels' grid.

    Each row of the labels is written as soon as the last patch that touches it is inferred: of the probabilities no
    more than one patch's thickness is ever held. An `infer` that works in the background (tiles.stitched_slabs) infers
    up to `at_once` patches while earlier ones are stitched and resampled; the labels are the same.
    """
    placed = prompts and prompts.onto(prepared.geometry, scan=source, classes=classes)
    parts = stitched_slabs(
        prepared.array,
        plan.patch,
        plan.overlap,
        infer,
        classes=classes,
        batch=batch,
        at_once=at_once,
        prompts=placed,
    )
    return restore_slabs(parts, prepared.geometry, source, classes=classes)

"""Two grids that hold the same voxels in another order, as a tool that reorders axes on saving leaves them."""

import numpy as np

from .geometry import Geometry, reorient


def onto(array: np.ndarray, own: Geometry, other: Geometry) -> np.ndarray | None:
    """`array` [..., D, H, W] on the grid `own` with its voxels in the order of `other`; None unless they lie in the
    same places, to within a tenth of the shortest voxel edge.
    """
    tolerance = min(other.spacing) / 10
    if own.same_grid(other, tolerance_mm=tolerance):
        return array
    if not _parallel(own, other):
        return None
    turned = own.aligned(other)
    if not turned.same_grid(other, tolerance_mm=tolerance):
        return None
    return np.ascontiguousarray(reorient(array, own, turned))


def _parallel(one: Geometry, other: Geometry) -> bool:
    directions = [geometry.affine[:3, :3] / np.array(geometry.spacing) for geometry in (one, other)]
    return bool(np.abs(directions[0].T @ directions[1]).max(axis=0).min() > 0.999)

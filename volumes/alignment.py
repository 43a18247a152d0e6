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


def why_not_resampled(own: Geometry, scan: Geometry) -> str | None:
    """Why values on the grid `own` cannot be brought onto that of a scan, as words after a path; None where they can.

    Its axes must run along those of the scan, to a tenth of a voxel over the whole scan, and it must cover the scan to
    within one voxel of the coarser of the two.
    """
    if not _parallel(own, scan):
        return f"its axes ({own.axis_codes}) are turned against those of the scan"
    turned = own.aligned(scan)
    step = np.linalg.inv(turned.affine) @ scan.affine
    scale, sides = np.diag(step)[:3], np.array(scan.shape)
    if (np.abs(step[:3, :3] - np.diag(scale)) @ sides).max() >= 0.1:
        return f"its axes ({own.axis_codes}) are turned against those of the scan"
    first, last = step[:3, 3] - scale / 2, step[:3, 3] + scale * (sides - 0.5)  # the scan's edges, in its voxels
    missing = np.maximum(-0.5 - first, last - (np.array(turned.shape) - 0.5)) * np.array(turned.spacing)
    if (missing > np.maximum(turned.spacing, scan.spacing) + 1e-3).any():
        return f"it leaves up to {missing.max():.3g} mm of the scan uncovered"
    return None


def _parallel(one: Geometry, other: Geometry) -> bool:
    directions = [geometry.affine[:3, :3] / np.array(geometry.spacing) for geometry in (one, other)]
    return bool(np.abs(directions[0].T @ directions[1]).max(axis=0).min() > 0.999)

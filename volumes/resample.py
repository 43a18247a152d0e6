"""Resampling between two grids that share their axis directions: linear or nearest, one axis at a time."""

from collections.abc import Iterator

import numpy as np

from .geometry import Geometry

_SLAB_VOXELS = 1 << 20  # a few MB: small against the scan, and it stays in the cache


def resample(array: np.ndarray, source: Geometry, target: Geometry, *, order: int) -> np.ndarray:
    """`array` [..., D, H, W] on `source`, sampled at the voxel centres of `target`; positions beyond the edge take
    the edge's value. Order 1 is linear and gives float32, order 0 is nearest and keeps the dtype.
    """
    assert array.shape[-3:] == source.shape, (array.shape, source.shape)
    positions = sample_positions(source, target)
    result = np.empty(array.shape[:-3] + target.shape, np.float32 if order == 1 else array.dtype)
    planes = result.reshape(-1, *target.shape)
    for plane, values in zip(planes, array.reshape(-1, *source.shape), strict=True):
        for rows in slabs(target.shape):
            plane[rows] = interpolate(values, positions, rows, order=order)
    return result


def sample_positions(source: Geometry, target: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per axis, where the voxel centres of `target` lie in voxels of `source`, clamped to the grid."""
    step = np.linalg.inv(source.affine) @ target.affine
    slack = np.abs(step[:3, :3] - np.diag(np.diag(step)[:3])) @ np.array(target.shape)
    assert slack.max() < 0.1 and np.diag(step).min() > 0, "the two grids do not share their axis directions"
    # Rounded, so that a position meant to fall on a voxel, or half-way between two, does so exactly.
    d, h, w = (
        np.clip(np.round(step[a, a] * np.arange(target.shape[a]) + step[a, 3], 6), 0, source.shape[a] - 1)
        for a in range(3)
    )
    return d, h, w


def slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    """Slices of d that cut a grid of `shape` into slabs of about a million voxels."""
    thickness = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        yield slice(start, min(start + thickness, shape[0]))


def interpolate(
    values: np.ndarray, positions: tuple[np.ndarray, np.ndarray, np.ndarray], rows: slice, *, order: int
) -> np.ndarray:
    """`values` [D, H, W] on the slab `rows` (of d) of the grid spanned by three ascending position arrays, in voxels.

    An axis whose positions are its own voxels is only sliced, so the result may be a view.
    """
    assert order in (0, 1), order
    # Axes that shrink come first, axes that grow last: every pass then works on as few voxels as possible.
    axes = sorted(range(3), key=lambda a: positions[a].size / values.shape[a])
    wanted = (positions[0][rows], positions[1], positions[2])
    if order == 0:
        wanted = tuple(np.floor(p + 0.5) for p in wanted)
    first = tuple(int(p[0]) for p in wanted)
    values = values[tuple(slice(a, int(np.ceil(p[-1])) + 1) for a, p in zip(first, wanted, strict=True))]
    if order == 1:
        values = values.astype(np.float32, copy=False)
    for axis in axes:
        values = _along(values, wanted[axis] - first[axis], axis)
    return values


def _along(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    low = positions.astype(np.intp)
    if np.array_equal(positions, np.arange(values.shape[axis])):
        return values
    result = np.take(values, low, axis=axis, mode="clip")
    if np.array_equal(positions, low):
        return result
    # `low + 1` beyond the last voxel is clipped onto it, where the fraction is 0.
    step = np.take(values, low + 1, axis=axis, mode="clip")
    fraction = (positions - low).astype(np.float32)
    step -= result
    step *= fraction.reshape([-1 if a == axis else 1 for a in range(3)])
    result += step
    return result

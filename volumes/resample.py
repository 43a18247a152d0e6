"""Resampling between two grids that share their axis directions: linear or nearest, one axis at a time."""

from collections.abc import Iterator, Sequence

import numpy as np

from .geometry import Geometry

Triple = tuple[int, int, int]
Positions = tuple[np.ndarray, np.ndarray, np.ndarray]
_SLAB_VOXELS = 1 << 20  # a few MB: small against the scan, and it stays in the cache


def resample(array: np.ndarray, source: Geometry, target: Geometry, *, order: int) -> np.ndarray:
    """`array` [..., D, H, W] on `source`, sampled at the voxel centres of `target`; positions beyond the edge take
    the edge's value. Order 1 is linear and gives float32, order 0 is nearest and keeps the dtype.
    """
    assert array.shape[-3:] == source.shape, (array.shape, source.shape)
    positions, axes = sample_positions(source, target), passes(source.shape, target.shape)
    result = np.empty(array.shape[:-3] + target.shape, np.float32 if order == 1 else array.dtype)
    planes = result.reshape(-1, *target.shape)
    for plane, values in zip(planes, array.reshape(-1, *source.shape), strict=True):
        for rows in slabs(target.shape, source.shape):
            plane[rows] = interpolate(values, (positions[0][rows], *positions[1:]), order=order, axes=axes)
    return result


def sample_positions(source: Geometry, target: Geometry) -> Positions:
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


def passes(source: Triple, target: Triple) -> tuple[int, ...]:
    """The order of the axes for interpolate: those that shrink come first, those that grow last, so that every pass
    works on as few voxels as possible.
    """
    return tuple(sorted(range(3), key=lambda axis: target[axis] / source[axis]))


def slabs(target: Triple, source: Triple, *, start: int = 0, stop: int | None = None) -> Iterator[slice]:
    """Slices of d, from `start` to `stop`, that cut a grid of shape `target` into slabs of about a million voxels,
    there and on the grid `source` they are sampled from.
    """
    stop = target[0] if stop is None else stop
    plane = max(target[1] * target[2], source[0] * source[1] * source[2] // target[0], 1)
    thickness = max(1, _SLAB_VOXELS // plane)
    for first in range(start, stop, thickness):
        yield slice(first, min(first + thickness, stop))


def interpolate(values: np.ndarray, positions: Positions, *, order: int, axes: Sequence[int]) -> np.ndarray:
    """`values` [D, H, W] at the grid spanned by three ascending position arrays, in voxels, one axis of `axes` after
    the other. A voxel's value does not depend on which others are asked for.

    An axis whose positions are its own voxels is only sliced, so the result may be a view.
    """
    assert order in (0, 1), order
    if order == 0:
        d, h, w = (np.floor(p + 0.5) for p in positions)
        positions = d, h, w
    first = tuple(int(p[0]) for p in positions)
    values = values[tuple(slice(a, int(np.ceil(p[-1])) + 1) for a, p in zip(first, positions, strict=True))]
    if order == 1:
        values = values.astype(np.float32, copy=False)
    for axis in axes:
        values = _along(values, positions[axis] - first[axis], axis)
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

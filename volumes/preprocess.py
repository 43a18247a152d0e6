"""Preprocessing and its way back: from a scan to a network's input, and from its probabilities to the scan's labels."""

from collections.abc import Iterable

import numpy as np

from .geometry import Geometry, Volume, reorient
from .intensity import apply_intensity
from .memory import refuse_larger_than_memory
from .plan import Plan, grid
from .resample import Positions, interpolate, passes, resample, sample_positions, slabs


def preprocess(volume: Volume, plan: Plan) -> Volume:
    """The network's input: intensity rules, linear resampling, axis order; float32 [C, D, H, W].

    Raises BadInputError for intensities that cannot be scaled, and for a grid that does not fit into the memory there
    is.
    """
    target = grid(plan, volume.geometry)
    refuse_larger_than_memory(target, volume.geometry, channels=len(volume.array))
    stored = target.aligned(volume.geometry)  # sampled as the scan lies in memory, which is several times as fast
    values = resample(apply_intensity(volume.array, plan.intensity), volume.geometry, stored, order=1)
    return Volume(np.ascontiguousarray(reorient(values, stored, target)), target)


def preprocess_labels(labels: np.ndarray, geometry: Geometry, plan: Plan) -> np.ndarray:
    """Labels [D, H, W] of a scan on the grid the network sees, by nearest neighbour; the dtype is kept."""
    oriented = geometry.oriented(plan.orientation)
    return resample(reorient(labels, geometry, oriented), oriented, grid(plan, geometry), order=0)


def restore(probabilities: np.ndarray, grid: Geometry, source: Geometry) -> np.ndarray:
    """restore_slabs for class probabilities [K, D, H, W] of the whole of `grid`."""
    assert probabilities.shape[1:] == grid.shape, (probabilities.shape, grid.shape)
    return restore_slabs([(0, probabilities)], grid, source, num_classes=len(probabilities))


def restore_slabs(
    parts: Iterable[tuple[int, np.ndarray]], grid: Geometry, source: Geometry, *, num_classes: int
) -> np.ndarray:
    """Labels [D, H, W] on the scan's own grid `source` from class probabilities on `grid`, which arrive in parts.

    A part is (first row of d, [K, rows, H, W]) and begins with the last row of the one before, as
    volumes.sliding_window gives them; how they are cut does not change a single label. Each class is resampled linearly
    and the largest wins, the lowest class in a tie; uint8, or uint16 for more than 256 classes. Works in slabs with a
    running maximum: it holds the labels and no second full-size volume.
    """
    labels = np.zeros(source.shape, np.uint8 if num_classes <= 256 else np.uint16)
    target = source.aligned(grid)
    turned = reorient(labels, source, target)
    d, h, w = sample_positions(grid, target)
    axes = passes(grid.shape, target.shape)
    done = 0
    for first, probabilities in parts:
        last = first + probabilities.shape[1] - 1
        complete = int(np.searchsorted(d, last, side="right"))
        for rows in slabs(target.shape, grid.shape, start=done, stop=complete):
            low, high = int(d[rows.start]) - first, int(np.ceil(d[rows.stop - 1])) + 1 - first
            _largest(probabilities[:, low:high], (d[rows] - first - low, h, w), axes, out=turned[rows])
        done = complete
    assert done == target.shape[0], f"the parts end before row {grid.shape[0]} of the grid"
    return labels


def _largest(probabilities: np.ndarray, positions: Positions, axes: tuple[int, ...], *, out: np.ndarray) -> None:
    # The largest class is never below the mean of all: where a class is below it all around, it cannot win.
    least = float(probabilities.sum(axis=0, dtype=np.float32).min()) / len(probabilities)
    least -= 1e-5 * abs(least)  # rounding
    best = np.array(interpolate(probabilities[0], positions, order=1, axes=axes))
    for label, values in enumerate(probabilities[1:], start=1):
        box = _around(values >= least, positions)
        if box is None:
            continue
        d, h, w = (p[part] for p, part in zip(positions, box, strict=True))
        candidate = interpolate(values, (d, h, w), order=1, axes=axes)
        np.copyto(out[box], label, where=candidate > best[box])
        np.maximum(best[box], candidate, out=best[box])


def _around(mask: np.ndarray, positions: Positions) -> tuple[slice, ...] | None:
    """The box of positions that take anything from the voxels in `mask` [D, H, W]; None when there is none."""
    flat = np.asarray(mask.any(axis=0))
    box = []
    for used, p in zip((mask.any(axis=(1, 2)), flat.any(axis=-1), flat.any(axis=0)), positions, strict=True):
        (indices,) = np.nonzero(used)
        if indices.size == 0:
            return None
        first, stop = np.searchsorted(p, (indices[0] - 1, indices[-1] + 1))
        if first == stop:
            return None
        box.append(slice(int(first), int(stop)))
    return tuple(box)

"""Preprocessing and its way back: from a scan to a network's input, and from its probabilities to the scan's labels."""

from collections.abc import Iterable

import numpy as np

from .geometry import Geometry, Volume, reorient
from .intensity import apply_intensity
from .memory import refuse_larger_than_memory
from .plan import Plan, grid
from .region import Box, embedded, framed, is_whole
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
    parts: Iterable[tuple[int, np.ndarray]],
    grid: Geometry,
    source: Geometry,
    *,
    num_classes: int,
    box: Box | None = None,
) -> np.ndarray:
    """Labels [D, H, W] on the scan's own grid `source` from class probabilities on `grid`, which arrive in parts.

    A part is (first row of d, [K, rows, H, W]) and begins with the last row of the one before, as
    volumes.sliding_window gives them; how they are cut does not change a single label. Each class is resampled linearly
    and the largest wins, the lowest class in a tie; uint8, or uint16 for more than 256 classes. Works in slabs with a
    running maximum: it holds the labels and no second full-size volume. With a `box` of the grid the parts are those of
    the box; all around it is background.
    """
    labels = np.zeros(source.shape, label_dtype(num_classes))
    target = source.aligned(grid)
    turned = reorient(labels, source, target)
    positions, shape = sample_positions(grid, target), grid.shape
    axes = passes(grid.shape, target.shape)
    if box is not None and not is_whole(box, shape):
        outer, inner = framed(box, shape)
        inside = [
            slice(*np.searchsorted(p, (part.start, part.stop - 1 + 1e-9)))
            for p, part in zip(positions, outer, strict=True)
        ]
        turned = turned[inside[0], inside[1], inside[2]]
        d, h, w = (p[rows] - part.start for p, rows, part in zip(positions, inside, outer, strict=True))
        positions, shape = (d, h, w), tuple(part.stop - part.start for part in outer)
        parts = embedded(parts, inner, shape, num_classes=num_classes)
    _fill(turned, parts, positions, axes, shape=shape)
    return labels


def label_dtype(num_classes: int) -> type[np.unsignedinteger]:
    """The numpy type of a mask: uint8, or uint16 for more than 256 classes."""
    return np.uint8 if num_classes <= 256 else np.uint16


def _fill(
    turned: np.ndarray,
    parts: Iterable[tuple[int, np.ndarray]],
    positions: Positions,
    axes: tuple[int, ...],
    *,
    shape: tuple[int, ...],
) -> None:
    """Write the labels `turned` [D, H, W] at `positions` on a grid of `shape`, whose probabilities come in parts."""
    d, h, w = positions
    size = turned.shape
    done = 0
    for first, probabilities in parts:
        last = first + probabilities.shape[1] - 1
        complete = int(np.searchsorted(d, last, side="right"))
        for rows in slabs((size[0], size[1], size[2]), (shape[0], shape[1], shape[2]), start=done, stop=complete):
            low, high = int(d[rows.start]) - first, int(np.ceil(d[rows.stop - 1])) + 1 - first
            _largest(probabilities[:, low:high], (d[rows] - first - low, h, w), axes, out=turned[rows])
        done = complete
    assert done == size[0], f"the parts end before row {shape[0]} of the grid"


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

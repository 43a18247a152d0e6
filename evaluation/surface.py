"""Surfaces of two masks and the distances between them: on the voxels, or between them with an area for each piece."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


@dataclass(frozen=True)
class SurfaceDistances:
    """From each surface element of the prediction to the truth's surface, and back.

    The `weights` of elements are their areas in mm2 (lengths in mm in 2-D), or None where every element is a voxel.
    """

    to_true: np.ndarray
    to_predicted: np.ndarray
    weights: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def together(cls, parts: Sequence["SurfaceDistances"]) -> "SurfaceDistances":
        """The elements of several images, such as the frames of a video, as those of one."""
        weights = None
        if parts[0].weights is not None:
            predicted, true = zip(*(part.weights for part in parts if part.weights), strict=True)
            weights = (np.concatenate(predicted), np.concatenate(true))
        return cls(
            np.concatenate([part.to_true for part in parts]),
            np.concatenate([part.to_predicted for part in parts]),
            weights,
        )

    def percentile(self, percent: float, *, pooled: bool = False) -> float:
        """The larger of the two directed percentiles, or that of both directions `pooled`."""
        pairs = [(self.to_true, self._weights[0]), (self.to_predicted, self._weights[1])]
        if pooled:
            weights = None if self.weights is None else np.concatenate(self.weights)
            pairs = [(np.concatenate([self.to_true, self.to_predicted]), weights)]
        return max(_percentile(distances, weights, percent) for distances, weights in pairs)

    def mean(self) -> float:
        """The mean distance over the elements of both surfaces."""
        distances = np.concatenate([self.to_true, self.to_predicted])
        return float(np.average(distances, weights=None if self.weights is None else np.concatenate(self.weights)))

    def share_within(self, tolerance: float) -> float:
        """The share of both surfaces that lies within `tolerance` of the other."""
        near = np.concatenate([self.to_true, self.to_predicted]) <= tolerance
        if self.weights is None:
            return float(near.mean())
        weights = np.concatenate(self.weights)
        return float(weights[near].sum() / weights.sum())

    @property
    def _weights(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        return self.weights or (None, None)


def surface_distances(
    predicted: np.ndarray, true: np.ndarray, spacing: Sequence[float], *, worst: float, subvoxel: bool = False
) -> SurfaceDistances:
    """Distances between the surfaces of two masks of 1 to 3 axes, in the unit of `spacing`.

    A surface is what one erosion with the face neighbours takes away, voxels; beyond the image is background. With
    `subvoxel` its elements are the corners where voxels of the mask and of the background meet (Nikolov et al. 2018).
    Distances are `worst` where the other mask is empty.
    """
    predicted, true = _cropped(predicted, true)
    if subvoxel:
        (ours, our_areas), (theirs, their_areas) = (_corners(mask, tuple(spacing)) for mask in (predicted, true))
        weights = (our_areas, their_areas)
    else:
        ours, theirs = (mask & np.logical_not(binary_erosion(mask)) for mask in (predicted, true))
        weights = None
    if not (ours.any() and theirs.any()):
        there, back = np.full(np.count_nonzero(ours), worst), np.full(np.count_nonzero(theirs), worst)
    else:
        there = np.asarray(distance_transform_edt(~theirs, sampling=spacing))[ours]
        back = np.asarray(distance_transform_edt(~ours, sampling=spacing))[theirs]
    return SurfaceDistances(there, back, weights)


def _cropped(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks, cut to their common bounding box with a margin of one empty voxel."""
    either = one | other
    spans = []
    for axis in range(either.ndim):
        filled = np.flatnonzero(either.any(axis=tuple(other for other in range(either.ndim) if other != axis)))
        spans.append(slice(filled[0], filled[-1] + 1) if filled.size else slice(0, 0))
    box = tuple(spans)
    return np.pad(one[box], 1), np.pad(other[box], 1)


def _corners(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which corners between the voxels of a padded mask lie on its surface, and the area of each that does."""
    areas, bits = _area_table(spacing)
    codes = np.zeros(tuple(side - 1 for side in mask.shape), np.uint8)
    for corner in np.ndindex(bits.shape):
        part = mask[tuple(slice(start, start + side) for start, side in zip(corner, codes.shape, strict=True))]
        codes += part * bits[corner]
    on_surface = (codes != 0) & (codes != len(areas) - 1)
    return on_surface, areas[codes[on_surface]]


@lru_cache(maxsize=32)
def _area_table(spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Area by the pattern of the 2, 4 or 8 voxels around a corner, and the bit of each voxel in that pattern."""
    if len(spacing) == 1:
        return np.array([0.0, 1.0, 1.0, 0.0]), np.array([2, 1], np.uint8)
    from monai.metrics.utils import get_code_to_measure_table  # brings PyTorch, which voxel surfaces do without

    areas, kernel = get_code_to_measure_table(spacing)
    return areas.numpy().astype(float), kernel.numpy()[0, 0].astype(np.uint8)


def _percentile(distances: np.ndarray, weights: np.ndarray | None, percent: float) -> float:
    """The percentile of distances; of weighted ones the first at which that share of the weight is reached."""
    if weights is None:
        return float(np.percentile(distances, percent))
    order = np.argsort(distances)
    reached = np.cumsum(weights[order]) / weights.sum()
    index = np.searchsorted(reached, percent / 100)
    return float(distances[order][min(index, len(order) - 1)])

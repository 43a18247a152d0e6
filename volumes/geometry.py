"""Where the voxels of a scan lie in the patient.

Axis convention of the whole project: every array in memory is [..., D, H, W], and `Geometry.affine` maps a voxel
index (d, h, w, 1) to millimetres in the RAS+ patient frame (x to the right, y to the front, z to the head).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

_CODES = (("L", "R"), ("P", "A"), ("I", "S"))  # per world axis: name of the negative and the positive direction


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a scan: affine float64 [4, 4] from (d, h, w, 1) to RAS+ mm, and its shape (D, H, W).

    `frames` says that D counts the frames of a video, so that a spacing along d means nothing.
    """

    affine: np.ndarray
    shape: tuple[int, int, int]
    frames: bool = False

    def __post_init__(self):
        affine = np.array(self.affine, dtype=np.float64)
        affine.flags.writeable = False
        shape = tuple(int(n) for n in self.shape)
        assert affine.shape == (4, 4) and len(shape) == 3 and min(shape) >= 1, (affine.shape, shape)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxels along d, h, w."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def axis_codes(self) -> str:
        """The patient direction nearest to that in which d, h and w increase, e.g. "SPL"."""
        cosines = self.affine[:3, :3] / np.array(self.spacing)
        # Rounded, so that a scan tilted by exactly 45 degrees gets the same codes on every machine.
        world = max(permutations(range(3)), key=lambda p: round(sum(abs(cosines[p[a], a]) for a in range(3)), 6))
        return "".join(_CODES[world[a]][int(cosines[world[a], a] > 0)] for a in range(3))

    def oriented(self, codes: str) -> Geometry:
        """The same voxels with the axes permuted and flipped so that d, h, w increase towards `codes`."""
        own = self.axis_codes
        order, flips = [], []
        for code in codes:
            pair = next(pair for pair in _CODES if code in pair)
            order.append(next(axis for axis in range(3) if own[axis] in pair))
            flips.append(own[order[-1]] != code)
        assert sorted(order) == [0, 1, 2], codes
        return self._rearranged(tuple(order), tuple(flips))

    def aligned(self, other: Geometry) -> Geometry:
        """The same voxels with the axes permuted and flipped to run parallel to those of `other`."""
        order, flips = _rearrangement(self, other)
        return self._rearranged(order, flips)

    def resized(self, shape: tuple[int, int, int]) -> Geometry:
        """The same axes and the same physical extent, edge to edge, divided into `shape` voxels."""
        scale = np.array(self.shape) / np.array(shape)
        step = np.eye(4)
        step[:3, :3] = np.diag(scale)
        step[:3, 3] = (scale - 1) / 2
        return Geometry(self.affine @ step, shape, self.frames)

    def corners(self) -> np.ndarray:
        """Centres of the eight corner voxels in mm, [8, 3]."""
        indices = np.array(list(product(*((0, n - 1) for n in self.shape))), dtype=np.float64)
        return indices @ self.affine[:3, :3].T + self.affine[:3, 3]

    def same_grid(self, other: Geometry, *, tolerance_mm: float = 1e-2) -> bool:
        """Whether both have one shape and every corner voxel lies within `tolerance_mm` of its counterpart."""
        if self.shape != other.shape:
            return False
        distances = np.linalg.norm(self.corners() - other.corners(), axis=1)
        return bool(distances.max() <= tolerance_mm)

    def _rearranged(self, order: tuple[int, ...], flips: tuple[bool, ...]) -> Geometry:
        step = np.zeros((4, 4))
        step[3, 3] = 1
        for axis, (origin, flip) in enumerate(zip(order, flips, strict=True)):
            step[origin, axis] = -1 if flip else 1
            step[origin, 3] = self.shape[origin] - 1 if flip else 0
        d, h, w = (self.shape[origin] for origin in order)
        return Geometry(self.affine @ step, (d, h, w), self.frames and order[0] == 0)


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: array [C, D, H, W] and where it lies."""

    array: np.ndarray
    geometry: Geometry

    def __post_init__(self):
        assert self.array.ndim == 4 and self.array.shape[1:] == self.geometry.shape, (
            f"array {self.array.shape} on a grid of {self.geometry.shape}"
        )


def reorient(array: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """View of `array` [..., D, H, W] on `source` with the axis order of `target`; exact, undone by swapping the two.

    `target` holds the same voxels as `source` in another axis order (Geometry.oriented or Geometry.aligned).
    """
    assert array.shape[-3:] == source.shape, (array.shape, source.shape)
    order, flips = _rearrangement(source, target)
    assert tuple(source.shape[a] for a in order) == target.shape, (source.shape, target.shape)
    leading = array.ndim - 3
    moved = np.transpose(array, (*range(leading), *(leading + a for a in order)))
    return moved[(..., *(slice(None, None, -1 if flip else 1) for flip in flips))]


def _rearrangement(source: Geometry, target: Geometry) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    # From the directions themselves, not from the axis codes, so that an oblique scan is never ambiguous here.
    a = source.affine[:3, :3] / np.array(source.spacing)
    b = target.affine[:3, :3] / np.array(target.spacing)
    cosines = a.T @ b
    order = tuple(int(i) for i in np.abs(cosines).argmax(axis=0))
    nearest = np.array([cosines[i, axis] for axis, i in enumerate(order)])
    assert sorted(order) == [0, 1, 2] and np.abs(nearest).min() > 0.999, "the two grids are not parallel"
    return order, tuple(bool(c < 0) for c in nearest)


def image_axes(shape: Sequence[int], *, frames: bool) -> list[int]:
    """The axes along which voxels of a grid [D, H, W] have neighbours: no axis of length 1, and none across frames."""
    return [axis for axis in range(int(frames), 3) if shape[axis] > 1] or [2]

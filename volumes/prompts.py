"""Prompts as data: what a user points at in a scan, and where that lies on a plan's grid and in its patches.

volumes.prompt_parsing reads them from the command line and from files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal

import numpy as np

from ..errors import BadInputError, UsageError
from .geometry import Geometry

Space = Literal["mm", "voxel"]
KINDS = frozenset({"point", "outside point", "box"})  # what a network may take; the second has label 0
_SLACK = 1e-3  # voxels: a point on the very face of the scan lies in it


def require_prompt_kinds(model: object, *, prompt_kinds: frozenset[str], kinds: frozenset[str] = frozenset()) -> None:
    """UsageError for a model that takes no prompts, and for prompts of kinds (of KINDS) that it would ignore."""
    if not prompt_kinds:
        raise UsageError(
            f"{model}: this network takes no prompts; leave them out, or use a teacher that does, or a student "
            "that was trained with `student.prompts`"
        )
    if unused := kinds - prompt_kinds:
        raise UsageError(
            f"{model}: this network takes no prompt of the kind {', '.join(sorted(unused))}; it takes "
            f"{', '.join(sorted(prompt_kinds))}"
        )


@dataclass(frozen=True)
class ClassPrompts:
    """Points (x, y, z, label) and boxes (x0, y0, z0, x1, y1, z1) of one class, no two boxes on the same slice."""

    points: tuple[tuple[float, ...], ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class ScanPrompts:
    """Prompts of one scan by class value (1..K-1), all in one space: millimetres (x, y, z) of the RAS+ patient frame,
    or voxels (i, j, k) of the NIfTI file, the centre of the first at 0. A box in millimetres ends at its faces, a box
    in voxels holds both of its end voxels.
    """

    classes: Mapping[int, ClassPrompts]
    space: Space = "mm"

    @property
    def kinds(self) -> frozenset[str]:
        """Those of KINDS that are among these prompts."""
        kinds = {"box" for prompts in self.classes.values() if prompts.boxes}
        labels = {point[3] for prompts in self.classes.values() for point in prompts.points}
        return frozenset(kinds | {"point" if label else "outside point" for label in labels})

    def onto(self, grid: Geometry, *, scan: Geometry, classes: int) -> GridPrompts:
        """The prompts in voxels (d, h, w) of `grid`, which covers the extent of `scan`; `classes` is K.

        A box that reaches out of the scan is cut at its faces; one oblique to the scan becomes the box around it.
        Raises BadInputError for a point or a box outside the scan, and for two boxes of a class that share a slice (d)
        of the grid.
        """
        count = max([1, *(len(prompts.points) for prompts in self.classes.values())])
        points, labels = np.zeros((classes - 1, count, 3)), np.full((classes - 1, count), -1)
        boxes = np.full((classes - 1, max([1, *(len(prompts.boxes) for prompts in self.classes.values())]), 6), np.nan)
        step = np.linalg.inv(grid.affine) @ scan.affine
        for value, prompts in self.classes.items():
            for index, (x, y, z, label) in enumerate(prompts.points):
                place = self._in_scan((x, y, z), scan)
                self._check("point", (x, y, z), place, place, scan)
                ceiling = np.array(grid.shape) - 0.5 - _SLACK
                points[value - 1, index] = np.clip(_apply(step, place), -0.5, ceiling)
                labels[value - 1, index] = int(label)
            faces = [_bounds(step, *self._faces(box, scan)) for box in prompts.boxes]
            _refuse_shared_slices(value, faces)
            for index, (low, high) in enumerate(faces):
                # From the faces to the centres of the end voxels; a box thinner than a voxel is its middle.
                thin = high - low < 1
                boxes[value - 1, index, :3] = np.where(thin, (low + high) / 2, low + 0.5)
                boxes[value - 1, index, 3:] = np.where(thin, (low + high) / 2, high - 0.5)
        return GridPrompts(points, labels, boxes)

    def _in_scan(self, place: Sequence[float], scan: Geometry) -> np.ndarray:
        """A place of this space in voxels (d, h, w) of the scan."""
        if self.space == "voxel":
            return np.array(place[::-1], dtype=np.float64)
        return _apply(np.linalg.inv(scan.affine), np.array(place))

    def _faces(self, box: Sequence[float], scan: Geometry) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest face of a box, in voxels of the scan and within it."""
        if self.space == "voxel":
            low, high = self._in_scan(box[:3], scan) - 0.5, self._in_scan(box[3:], scan) + 0.5
        else:
            low, high = _bounds(np.linalg.inv(scan.affine), np.array(box[:3]), np.array(box[3:]))
        self._check("box", box, low, high, scan)
        return np.clip(low, -0.5, np.array(scan.shape) - 0.5), np.clip(high, -0.5, np.array(scan.shape) - 0.5)

    def _check(self, kind: str, numbers: Sequence[float], low: np.ndarray, high: np.ndarray, scan: Geometry) -> None:
        faces = np.array(scan.shape) - 0.5
        slack = _SLACK if kind == "point" else -_SLACK  # a box must share more than a face with the scan
        if np.all(high >= -0.5 - slack) and np.all(low <= faces + slack):
            return
        first, last = np.full(3, -0.5), faces
        if self.space == "mm":
            first, last = _bounds(scan.affine, first, last)
        else:
            first, last = (first + 0.5)[::-1], (last - 0.5)[::-1]
        axes = "xyz" if self.space == "mm" else "ijk"
        extent = ", ".join(f"{axis} {a:g} to {b:g}" for axis, a, b in zip(axes, first, last, strict=True))
        shown = ",".join(f"{number:g}" for number in numbers)
        raise BadInputError(
            f"{kind} {shown} lies outside the scan, which has ({self.space}) {extent}; "
            f"give RAS+ millimetres, or (i, j, k) of the file with the space 'voxel'."
        )


@dataclass(frozen=True, eq=False)
class GridPrompts:
    """Prompts in voxels (d, h, w) of a grid, row k - 1 for class k: points [K - 1, P, 3], labels [K - 1, P] (1, 0 or,
    for no point, -1) and boxes [K - 1, M, 6] (d0, h0, w0, d1, h1, w1; NaN for none), both end voxels included.
    """

    points: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray

    def within(self, starts: np.ndarray, patch: Sequence[int]) -> PatchPrompts:
        """What of the prompts lies in the patches that begin at the grid's voxels `starts` [N, 3].

        Points elsewhere are left out, boxes are cut at the patch. Several boxes of a class in one patch, on different
        slices of it, become the box around them, and stay as they are in `slice_boxes`.
        """
        offset, size = np.asarray(starts, np.float64)[:, None, None], np.array(patch)
        local = self.points - offset
        inside = np.all((local >= -0.5) & (local < size - 0.5), axis=-1)
        low, high = self.boxes[..., :3] - offset, self.boxes[..., 3:] - offset
        met = np.all((low < size - 0.5) & (high >= -0.5), axis=-1, keepdims=True)  # [N, K - 1, M, 1]
        around = np.where(met, low, np.inf).min(axis=2), np.where(met, high, -np.inf).max(axis=2)
        several = self.boxes.shape[1] > 1
        return PatchPrompts(
            np.where(inside[..., None], local, 0).astype(np.float32),
            np.where(inside, self.labels, -1),
            _cut(*around, met.any(axis=2), size),
            _cut(low, high, met, size) if several else None,
        )


@dataclass(frozen=True, eq=False)
class PatchPrompts:
    """Prompts of N patches in the layout that networks take (sam.prompt_tensors.Prompts), as arrays: points float32
    [N, K - 1, P, 3], labels [N, K - 1, P], boxes float32 [N, K - 1, 6], all in voxels (d, h, w) of the patch.

    Where a class has boxes of its own on several slices, `slice_boxes` [N, K - 1, M, 6] are these (NaN for none), for a
    network that keeps slices apart, and `boxes` those around them; else it is None.
    """

    points: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    slice_boxes: np.ndarray | None = None

    @property
    def empty(self) -> bool:
        return bool((self.labels < 0).all() and np.isnan(self.boxes).all())


def _cut(low: np.ndarray, high: np.ndarray, met: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Boxes float32 [..., 6] from their first and last voxels, cut at the patch; NaN for those not `met` [..., 1]."""
    cut = np.concatenate([np.clip(low, 0, size - 1), np.clip(high, 0, size - 1)], axis=-1)
    return np.where(met, cut, np.nan).astype(np.float32)


def _refuse_shared_slices(value: int, faces: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """BadInputError for two boxes, by their lowest and highest faces (d, h, w), that have a slice in common."""
    along = sorted((float(low[0]), float(high[0])) for low, high in faces)
    for (_, before), (after, _) in pairwise(along):
        if after < before - _SLACK:
            raise BadInputError(
                f"class {value} has two boxes on one slice ({after:g} to {before:g} of the network's slices); give one "
                "box a slice: several boxes of a class are for several slices"
            )


def _apply(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`points` [..., 3] through an affine [4, 4], rounded so that a voxel's centre lands exactly on it."""
    return np.round(points @ affine[:3, :3].T + affine[:3, 3], 9)


def _bounds(affine: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest axis-parallel box around the image of a box."""
    corners = _apply(affine, np.array(list(product(*zip(low, high, strict=True)))))
    return corners.min(axis=0), corners.max(axis=0)

"""A plan: how a raw scan becomes a network's input, and how the network's answer comes back. It is data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ..errors import BadInputError
from .geometry import Geometry, Volume, reorient
from .intensity import apply_intensity
from .memory import refuse_larger_than_memory
from .resample import Positions, interpolate, passes, resample, sample_positions, slabs


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Orientation, grid, intensity and tiling of a network's input. Raises BadInputError for impossible values."""

    orientation: str = "SPL"  # the patient direction in which d, h, w increase
    spacing: tuple[float | None, float | None, float | None] | None = None  # mm; None keeps the scan's own
    size: tuple[int | None, int | None, int | None] | None = None  # voxels; wins over spacing
    long_side: int | None = None  # voxels along the longer of h and w, the pixels square; wins over both
    intensity: tuple[Mapping[str, Any], ...]  # rules of volumes.intensity, applied in this order
    patch: tuple[int, int, int]  # voxels
    overlap: float = 0.5  # of neighbouring patches, as a fraction of the patch

    def __post_init__(self):
        # Numbers get one type each, so that equal plans have equal digests wherever they were written.
        values: dict[str, Any] = {
            "spacing": self.spacing and tuple(None if s is None else float(s) for s in self.spacing),
            "size": self.size and tuple(None if n is None else int(n) for n in self.size),
            "intensity": tuple({key: _number(v) for key, v in rule.items()} for rule in self.intensity),
            "patch": tuple(int(n) for n in self.patch),
            "overlap": float(self.overlap),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        pairs = ("LR", "PA", "IS")
        if len(self.orientation) != 3 or any(sum(c in p for c in self.orientation) != 1 for p in pairs):
            raise BadInputError(f"plan: orientation {self.orientation!r}; expected one letter each of L/R, P/A, I/S.")
        for name in ("spacing", "size", "patch"):
            triple = getattr(self, name)
            if triple is not None and (len(triple) != 3 or any(n is not None and not n > 0 for n in triple)):
                raise BadInputError(f"plan: {name} {triple}; expected three positive numbers (d, h, w).")
        if self.long_side is not None and not self.long_side > 0:
            raise BadInputError(f"plan: long_side {self.long_side}; expected a positive number of voxels.")
        if not 0 <= self.overlap < 1:
            raise BadInputError(f"plan: overlap {self.overlap}; expected a fraction in [0, 1).")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; Plan.from_dict reads them back. Without `long_side`, which older packages do not know,
        where there is none."""
        values = json.loads(json.dumps(asdict(self)))
        return {key: value for key, value in values.items() if key != "long_side" or value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Raises BadInputError for missing and unknown keys and for values of the wrong kind."""
        known = {field.name for field in fields(cls)}
        wrong = sorted(set(values) - known) + sorted({"intensity", "patch"} - set(values))
        if wrong:
            raise BadInputError(f"plan: unknown or missing {wrong}; the keys are {sorted(known)}.")
        try:
            return cls(**values)
        except BadInputError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise BadInputError(f"plan: a value is of the wrong kind ({error}) in {dict(values)}.") from error

    def digest(self) -> str:
        """sha256, in hex, of the plan as canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def grid(plan: Plan, source: Geometry) -> Geometry:
    """The grid a network sees of a scan on `source`: the same physical extent in the plan's axes and voxels.

    The number of voxels is whole, so the spacing meets the plan's to within half a voxel over the whole extent.
    """
    oriented = source.oriented(plan.orientation)
    shape = list(oriented.shape)
    for axis in range(3):
        size = plan.size[axis] if plan.size else None
        spacing = plan.spacing[axis] if plan.spacing else None
        if size is not None:
            shape[axis] = size
        elif spacing is not None:
            extent = oriented.shape[axis] * oriented.spacing[axis]
            shape[axis] = max(1, math.floor(round(extent / spacing, 6) + 0.5))
    if plan.long_side is not None:
        extents = [oriented.shape[axis] * oriented.spacing[axis] for axis in (1, 2)]
        shape[1:] = [max(1, round(plan.long_side * extent / max(extents))) for extent in extents]
    d, h, w = shape
    return oriented.resized((d, h, w))


def prepare(volume: Volume, plan: Plan) -> Volume:
    """The network's input: intensity rules, linear resampling, axis order; float32 [C, D, H, W].

    Raises BadInputError as volumes.intensity does, and for a grid that does not fit into the memory there is.
    """
    target = grid(plan, volume.geometry)
    refuse_larger_than_memory(target, volume.geometry, channels=len(volume.array))
    stored = target.aligned(volume.geometry)  # sampled as the scan lies in memory, which is several times as fast
    values = resample(apply_intensity(volume.array, plan.intensity), volume.geometry, stored, order=1)
    return Volume(np.ascontiguousarray(reorient(values, stored, target)), target)


def prepare_labels(labels: np.ndarray, geometry: Geometry, plan: Plan) -> np.ndarray:
    """Labels [D, H, W] of a scan on the grid the network sees, by nearest neighbour; the dtype is kept."""
    oriented = geometry.oriented(plan.orientation)
    return resample(reorient(labels, geometry, oriented), oriented, grid(plan, geometry), order=0)


def restore(probabilities: np.ndarray, grid: Geometry, source: Geometry) -> np.ndarray:
    """restore_slabs for class probabilities [K, D, H, W] of the whole of `grid`."""
    assert probabilities.shape[1:] == grid.shape, (probabilities.shape, grid.shape)
    return restore_slabs([(0, probabilities)], grid, source, classes=len(probabilities))


def restore_slabs(
    parts: Iterable[tuple[int, np.ndarray]], grid: Geometry, source: Geometry, *, classes: int
) -> np.ndarray:
    """Labels [D, H, W] on the scan's own grid `source` from class probabilities on `grid`, which arrive in parts.

    A part is (first row of d, [K, rows, H, W]) and begins with the last row of the one before, as
    tiles.stitched_slabs gives them; how they are cut does not change a single label. Each class is resampled linearly
    and the largest wins, the lowest class in a tie; uint8, or uint16 for more than 256 classes. Works in slabs with a
    running maximum: it holds the labels and no second full-size volume.
    """
    labels = np.zeros(source.shape, np.uint8 if classes <= 256 else np.uint16)
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
        found = interpolate(values, (d, h, w), order=1, axes=axes)
        np.copyto(out[box], label, where=found > best[box])
        np.maximum(best[box], found, out=best[box])


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


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

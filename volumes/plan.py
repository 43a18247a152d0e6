"""A plan: how a raw scan becomes a network's input, as data, and the grid that the network sees.

volumes.preprocess carries it out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import BadInputError
from .geometry import Geometry

BLENDINGS = ("gaussian", "plain")  # plain: every patch's answer weighs the same
CROPS = ("none", "content")  # content: what lies outside the box of all that is not air is background
# Keys that came after the first packages, with their defaults.
_LATER = {"long_side": None, "blending": "gaussian", "crop": "none"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Orientation, grid, intensity and tiling of a network's input. Raises BadInputError for impossible values."""

    orientation: str = "SPL"  # the patient direction in which d, h, w increase
    spacing: tuple[float | None, float | None, float | None] | None = None  # mm; None keeps the scan's own
    size: tuple[int | None, int | None, int | None] | None = None  # voxels; wins over spacing
    long_side: int | None = None  # voxels along the longer of h and w, the pixels square; wins over both
    intensity: tuple[Mapping[str, Any], ...]  # rules of volumes.intensity, applied in this order
    patch: tuple[int, int, int]  # voxels
    overlap: float = 0.5  # of neighbouring patches: a fraction of the patch, or from 2 on whole voxels
    blending: str = "gaussian"  # of overlapping patches' answers, one of BLENDINGS
    crop: str = "none"  # which part of a scan the network sees, one of CROPS

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
        if not (0 <= self.overlap < 1 or (self.overlap >= 2 and self.overlap == int(self.overlap))):
            raise BadInputError(f"plan: overlap {self.overlap}; expected a fraction in [0, 1), or whole voxels from 2.")
        for name, known in (("blending", BLENDINGS), ("crop", CROPS)):
            if getattr(self, name) not in known:
                raise BadInputError(f"plan: {name} {getattr(self, name)!r}; expected one of {', '.join(known)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; Plan.from_dict reads them back. Keys that older packages do not know are left out where
        they hold their default."""
        values = json.loads(json.dumps(asdict(self)))
        return {key: value for key, value in values.items() if key not in _LATER or value != _LATER[key]}

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


def slice_axis(plan: Plan, source: Geometry) -> int:
    """The axis of an array [D, H, W] on `source` that runs across the slices of the network: 0, 1 or 2."""
    across = next(pair for pair in ("LR", "PA", "IS") if plan.orientation[0] in pair)
    return next(axis for axis, code in enumerate(source.axis_codes) if code in across)


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

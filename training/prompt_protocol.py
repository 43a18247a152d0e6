"""Prompts of a simulated user for scores that name them: where he points, how many times, and how wrong he may be."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from ..configs.schema import PromptTraining
from ..errors import UsageError
from ..volumes.geometry import Geometry, image_axes
from ..volumes.plan import Plan, slice_axis
from ..volumes.prompts import ClassPrompts, ScanPrompts
from .prompt_sampling import tight_box

HEADS = {"point": ("point", False), "points": ("point", False), "box": ("box", False), "boxes": ("box", True)}
PLACES = {"margin": (0.0, 1 / 3), "near": (1 / 3, 2 / 3), "centre": (2 / 3, 1.0)}  # depth as a share of the largest
_BOX_KEYS, _POINT_KEYS = ("iou", "relax", "jitter"), ("count", "place", "wrong", "grid")


@dataclass(frozen=True, kw_only=True)
class PromptProtocol:
    """What a user who knows the truth shows of every class, drawn from `seed`, the case's name and the class.

    - `kind`: "point" or "box"; `slices`: one prompt for the "scan", or for "each" slice that holds the class.
    - points: `count` of them, all said to lie inside. The first is the "deepest" voxel and the others anywhere inside,
      or all lie at the `place` "random", "centre", "near" or "margin" (the inner, middle and outer third by depth).
      Of them the last `wrong` ones lie outside, in the class's box widened by half. A `grid` of N x N points on every
      slice stands for SAM's "everything": the class is shown by the deepest of the grid's points that lie in it, and
      not at all where none does.
    - boxes: the tight one, moved so that its overlap with the tight one is `iou`; sides longer by the fraction `relax`;
      every edge moved by up to `jitter` voxels. Cut at the scan.
    - `keep`: what is farther than so many mm from every point of its class becomes background; "box": what lies
      outside its boxes.
    """

    kind: str
    slices: str = "scan"
    count: int = 1
    place: str = "deepest"
    wrong: int = 0
    grid: int = 0
    iou: float = 1.0
    relax: float = 0.0
    jitter: int = 0
    keep: float | str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UsageError for values that make no sense, or that belong to the other kind."""
        places = ("deepest", "random", *PLACES)
        sound = {
            "kind": self.kind in ("point", "box"),
            "slices": self.slices in ("scan", "each"),
            "count": self.count >= 1,
            "place": self.place in places,
            "wrong": 0 <= self.wrong <= self.count,
            "grid": self.grid >= 0,
            "iou": 0 < self.iou <= 1,
            "relax": self.relax >= 0,
            "jitter": self.jitter >= 0,
            "keep": self.keep is None or self.keep == "box" or (not isinstance(self.keep, str) and self.keep > 0),
        }
        if wrong := [name for name, fine in sound.items() if not fine]:
            raise UsageError(f"prompts from the truth: {wrong[0]}={getattr(self, wrong[0])!r} makes no sense")
        defaults = {each.name: each.default for each in fields(self)}
        foreign = _POINT_KEYS if self.kind == "box" else _BOX_KEYS
        if other := [name for name in foreign if getattr(self, name) != defaults[name]]:
            raise UsageError(f"prompts from the truth: {other[0]} does not belong to a {self.kind}")
        if self.keep is not None and (self.keep == "box") != (self.kind == "box"):
            raise UsageError("prompts from the truth: keep=box belongs to boxes, keep=MM to points")

    def repeated(self, number: int) -> "PromptProtocol":
        """The protocol of the repetition `number`, from 0: the same with another seed."""
        return replace(self, seed=self.seed + number)

    def of_scan(
        self, truth: np.ndarray, *, name: str, labels: Iterable[int], grid: Geometry, plan: Plan
    ) -> ScanPrompts:
        """The prompts of the case `name` for its mask on `grid`; the slices are those that the `plan` looks at."""
        return self.prompts(
            truth, name=name, labels=labels, spacing=grid.spacing, axis=slice_axis(plan, grid), frames=grid.frames
        )

    def prompts(
        self,
        truth: np.ndarray,
        *,
        name: str,
        labels: Iterable[int],
        spacing: tuple[float, float, float],
        axis: int = 0,
        frames: bool = False,
    ) -> ScanPrompts:
        """The prompts of the case `name` for its mask [D, H, W], of which `axis` counts the slices.

        With `frames` D counts the frames of a video, and depth is measured in each by itself.
        """
        classes = {}
        for value in labels:
            inside = truth == value
            if value and inside.any():
                rng = np.random.default_rng((self.seed, zlib.crc32(name.encode()), value))
                prompts = self._of_class(inside, spacing, axis, rng, frames=frames)
                if prompts.points or prompts.boxes:
                    classes[value] = prompts
        return ScanPrompts(classes, "voxel")

    def _of_class(
        self,
        inside: np.ndarray,
        spacing: tuple[float, float, float],
        axis: int,
        rng: np.random.Generator,
        *,
        frames: bool,
    ) -> ClassPrompts:
        """The prompts of one class, whose mask is not empty."""
        starts, parts = [0], [inside]
        if self.slices == "each" or self.grid:
            starts = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))).tolist()
            parts = [inside.take([start], axis=axis) for start in starts]
        points, boxes = [], []
        for start, part in zip(starts, parts, strict=True):
            offset = np.zeros(3)
            offset[axis] = start
            if self.kind == "box":
                low, high = self._box(part, rng)
                boxes.append((*(low + offset)[::-1].tolist(), *(high + offset)[::-1].tolist()))
            else:
                depth = _depth(part, spacing, frames=frames)
                points += [(*(place + offset)[::-1].tolist(), 1) for place in self._points(part, depth, axis, rng)]
        return ClassPrompts(points=tuple(points), boxes=tuple(boxes))

    def _points(self, inside: np.ndarray, depth: np.ndarray, axis: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The points (d, h, w) in a mask, whose voxels lie so deep."""
        if self.grid:
            return _grid_point(depth, self.grid, axis)
        right = self.count - self.wrong
        points = _in_zone(depth, self.place, right, rng)
        return points + (_outside(inside, self.wrong, rng) if self.wrong else [])

    def _box(self, inside: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """First and last voxel (d, h, w) of the box, as fractions of voxels where it was moved."""
        low, high = (corner.astype(float) for corner in tight_box(inside))
        free = np.array(inside.shape) > 1
        sides = high - low + 1
        if self.iou < 1:
            shared = 2 * self.iou / (1 + self.iou)  # of either of two equal boxes with that IoU
            parts = np.zeros(3)
            parts[free] = rng.dirichlet(np.ones(free.sum()))
            shift = (1 - shared**parts) * sides * rng.choice((-1, 1), 3)
            low, high = low + shift, high + shift
        low, high = low - free * sides * self.relax / 2, high + free * sides * self.relax / 2
        if self.jitter:
            low = low + free * rng.integers(-self.jitter, self.jitter + 1, 3)
            high = high + free * rng.integers(-self.jitter, self.jitter + 1, 3)
        last = np.array(inside.shape) - 1
        low, high = np.minimum(low, high), np.maximum(low, high)
        return np.clip(low, 0, last), np.clip(high, 0, last)


def parse_protocol(text: str) -> PromptProtocol:
    """A protocol as the command line writes it: a kind, then key=value pairs, separated by commas.

    The kind is "point", "points:3", "box" (one for the scan), "boxes" (one for each slice) or "everything:16". So
    "points:3,place=margin,wrong=1,slices=each,seed=7" is one, and "boxes,iou=0.75,keep=box". Raises UsageError.
    """
    head, *pairs = text.split(",")
    kind, _, number = head.partition(":")
    values: dict[str, Any] = {}
    if kind == "everything":
        values = {"kind": "point", "slices": "each", "grid": _number("everything", number or "16", int)}
    elif kind in HEADS:
        values = {"kind": HEADS[kind][0], "slices": "each" if HEADS[kind][1] else "scan"}
        if number:
            values["count"] = _number(kind, number, int)
    else:
        raise UsageError(
            f"--prompt-from-truth {text!r}: choose point, points:N, box, boxes or everything:N, then key=value pairs"
        )
    types = {"count": int, "wrong": int, "jitter": int, "seed": int, "iou": float, "relax": float}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key in types and equals:
            values[key] = _number(key, value, types[key])
        elif key in ("place", "slices") and equals:
            values[key] = value
        elif key == "keep" and equals:
            values[key] = value if value == "box" else _number(key, value, float)
        else:
            raise UsageError(
                f"--prompt-from-truth {text!r}: {pair!r} is none of count, place, wrong, slices, iou, relax, jitter, "
                "keep and seed with a value, such as wrong=1"
            )
    return PromptProtocol(**values)


def protocol_of_training(settings: PromptTraining) -> str | None:
    """The spelling of what a network is shown that was trained with prompts in every step; None for any other.

    Without prompts such a network knows nothing, so that its scores are those of a user who knows.
    """
    if settings.kind == "none" or settings.share < 1:
        return None
    if settings.drawn == "box":
        return "boxes" if settings.per_slice else "box"
    return "point,slices=each" if settings.per_slice else "point"


def keep_prompted(
    labels: np.ndarray, prompts: ScanPrompts, keep: float | str, *, spacing: tuple[float, ...]
) -> np.ndarray:
    """The labels [D, H, W] without what lies outside its class's boxes ("box"), or farther than `keep` mm from all of
    its points. The prompts are in voxels; a class without a prompt is kept out altogether.
    """
    kept = labels.copy()
    for value in np.unique(labels[labels > 0]).tolist():
        near = np.zeros(labels.shape, bool)
        shown = prompts.classes.get(value, ClassPrompts())
        for box in shown.boxes:
            low, high = np.floor(box[:3])[::-1].astype(int), np.ceil(box[3:])[::-1].astype(int)
            near[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))] = True
        if shown.points and not isinstance(keep, str):
            clicks = np.ones(labels.shape, bool)
            for x, y, z, _ in shown.points:
                clicks[round(z), round(y), round(x)] = False
            near |= np.asarray(distance_transform_edt(clicks, sampling=spacing)) <= keep
        kept[(labels == value) & ~near] = 0
    return kept


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"--prompt-from-truth: {name} is {text!r}; expected a number such as 1") from None


def _depth(inside: np.ndarray, spacing: tuple[float, float, float], *, frames: bool = False) -> np.ndarray:
    """How deep in mm each voxel lies under the surface, 0 outside; none along axes without neighbours."""
    axes = image_axes(inside.shape, frames=frames)
    margins = [(int(axis in axes),) * 2 for axis in range(3)]
    padded = np.pad(inside, margins)
    images = padded[:, None] if frames else padded[None]
    depth = np.concatenate([np.asarray(distance_transform_edt(one, sampling=spacing)) for one in images])
    return depth[tuple(slice(before, depth.shape[axis] - before) for axis, (before, _) in enumerate(margins))]


def _in_zone(depth: np.ndarray, place: str, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`count` voxels (d, h, w) of a place, twice the same only where it has too few."""
    if count == 0:
        return []
    share = depth / depth.max()
    if place in PLACES:
        low, high = PLACES[place]
        zone = (share > low) & (share <= high)
        if not zone.any():  # a thin organ: what comes nearest
            gap = np.where(depth > 0, np.abs(share - (low + high) / 2), np.inf)
            zone = gap == gap.min()
        return _drawn(zone, count, rng)
    first = [np.array(np.unravel_index(depth.argmax(), depth.shape))] if place == "deepest" else []
    return first + _drawn(depth > 0, count - len(first), rng)


def _drawn(zone: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    voxels = np.argwhere(zone)
    return list(voxels[rng.choice(len(voxels), count, replace=len(voxels) < count)]) if count else []


def _outside(inside: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """`count` voxels outside a mask, in its box widened by half its sides; anywhere outside where that has none."""
    low, high = tight_box(inside)
    margin = np.maximum(1, (high - low + 1) // 2)
    box = tuple(slice(max(0, a - m), b + m + 1) for a, b, m in zip(low, high, margin, strict=True))
    zone = np.zeros_like(inside)
    zone[box] = ~inside[box]
    if not zone.any():
        zone = ~inside
    return _drawn(zone, count, rng) if zone.any() else []


def _grid_point(depth: np.ndarray, count: int, axis: int) -> list[np.ndarray]:
    """The deepest of the points of a count x count grid on a slice that lie in the mask; none where none does."""
    places = [
        np.zeros(1, int) if number == axis else ((np.arange(count) + 0.5) * side / count).astype(int)
        for number, side in enumerate(depth.shape)
    ]
    at_points = depth[np.ix_(*places)]
    if not at_points.any():
        return []
    best = np.unravel_index(at_points.argmax(), at_points.shape)
    return [np.array([place[index] for place, index in zip(places, best, strict=True)])]

"""Prompts drawn from labels: for training, and for scores that say so. Prediction has only the user's own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from ..configs.schema import PromptTraining
from ..errors import UsageError
from ..sam.prompt_tensors import Prompts
from ..volumes.geometry import Geometry, image_axes
from ..volumes.prompts import ClassPrompts, GridPrompts, PatchPrompts, ScanPrompts
from .network import Network
from .prompts_per_slice import (
    moved_edges,
    slice_boxes_as_points,
    slice_points,
    slice_prompts_of_a_user,
    with_slice_clicks,
)
from .ranks import rank

# What a network was shown in training by its config's prompts.kind, in the words of volumes.prompts.KINDS.
_SHOWN = {
    "point": {"point"},
    "points": {"point", "outside point"},
    "box": {"box"},
    "mixed": {"point", "outside point", "box"},
}
_STREAM = 0x70726F6D70747321  # keeps these random numbers apart from those of the patches


def kinds_in_training(prompts: Mapping[str, Any] | None) -> frozenset[str]:
    """The kinds of prompts (of volumes.prompts.KINDS) that a network was shown in training, and has learned to use.

    `prompts` is the config section of that name as a run's objective keeps it, None without prompts.
    """
    if not prompts:
        return frozenset()
    shown = _SHOWN.get(prompts.get("kind", ""), set())
    return frozenset(shown - {"outside point"} if prompts.get("positive") else shown)


@dataclass(frozen=True, kw_only=True)
class PromptSampler:
    """Prompts for a promptable network: drawn from a batch's labels in training, "as a user" gives them in validation.

    ``num_classes`` counts the background. All choices depend on (``seed``, number of the batch, rank) alone; what kind
    of prompts and how many, on the first two.
    """

    settings: PromptTraining
    num_classes: int
    seed: int
    single_slices: bool = False  # patches are slices, whose box the network takes as one

    @classmethod
    def of(cls, settings: PromptTraining, network: Network, *, name: str, seed: int) -> "PromptSampler | None":
        """None for settings without prompts. UsageError for a network, called ``name``, that takes no such prompts."""
        if settings.kind == "none":
            return None
        if not settings.kinds <= network.prompt_kinds:
            raise UsageError(f"{name!r} takes no prompts of kind {settings.kind!r}; set its prompts.kind to none")
        corners, single_slices = getattr(network, "prompts_per_slice", False), network.patch[0] == 1
        if settings.per_slice and not (corners or single_slices):
            raise UsageError(
                f"{name!r} takes no prompts of single slices; set its prompts.per_slice to false, or choose medsa with "
                "its option slice_prompts: own, or patches of one slice"
            )
        single_slices = single_slices and not corners
        return cls(settings=settings, num_classes=network.num_classes, seed=seed, single_slices=single_slices)

    def is_prompted(self, number: int) -> bool:
        """Whether the batch of this number is shown with prompts."""
        return self._random(number)[1]

    def draw(
        self,
        model: torch.nn.Module,
        image: torch.Tensor,
        labels: torch.Tensor,
        number: int,
        *,
        boxes: torch.Tensor | None = None,
    ) -> Prompts:
        """Prompts for a batch: image [B, C, D, H, W], labels [B, D, H, W] that they are drawn from.

        ``boxes`` [N, K - 1, 6] are those of the whole cases of the first N samples, in voxels of their patches.
        Of the 1 to ``count`` "points", the first few are drawn from the labels; each of the others is a click in what
        the ``model`` still gets wrong after those before (Kirillov et al. 2023, appendix A; Sofiiuk et al. 2022). These
        passes are not learned from; every device makes the same number of them.
        """
        settings, (rng, _) = self.settings, self._random(number)
        truth = labels.cpu().numpy()
        if settings.kind == "box" or (settings.kind == "mixed" and rng.random() < 0.5):
            carried = None if boxes is None else boxes.cpu().numpy()
            return Prompts.of(self._draw_boxes(self._places(rng, number), truth, carried), image.device)
        total = int(rng.integers(1, settings.count + 1))
        clicks = 0 if settings.positive else int(rng.integers(total))
        rng = self._places(rng, number)
        draw_points, add_click = point_prompts, with_click
        if settings.per_slice and not self.single_slices:
            draw_points, add_click = slice_points, with_slice_clicks
        prompts = draw_points(rng, truth, classes=self.num_classes, count=total - clicks, positive=settings.positive)
        for _ in range(clicks):
            with torch.no_grad():
                prediction = model(image, Prompts.of(prompts, image.device)).argmax(1)
            prompts = add_click(rng, prompts, truth, prediction.cpu().numpy())
        return Prompts.of(prompts, image.device)

    def _draw_boxes(self, rng: np.random.Generator, truth: np.ndarray, carried: np.ndarray | None) -> PatchPrompts:
        settings = self.settings
        sizes = {"overlap": settings.overlap, "relax": settings.relax, "jitter": settings.jitter}
        if settings.per_slice and not self.single_slices:
            return slice_boxes_as_points(rng, truth, classes=self.num_classes, **sizes)
        return box_prompts(rng, truth, classes=self.num_classes, carried=carried, **sizes)

    def _random(self, number: int) -> tuple[np.random.Generator, bool]:
        """The random numbers of a batch, and what the first of them says: whether it is prompted."""
        rng = np.random.default_rng((self.seed, number, _STREAM))
        return rng, rng.random() < self.settings.share

    def _places(self, rng: np.random.Generator, number: int) -> np.random.Generator:
        """Where the prompts of a batch lie: every device but the first has random numbers of its own for that."""
        return np.random.default_rng((self.seed, number, _STREAM, rank())) if rank() else rng

    def as_a_user(self, truth: np.ndarray, spacing: tuple[float, float, float]) -> GridPrompts:
        """One prompt for every class of the labels [D, H, W], a grid of its own: see prompts_from_truth.

        With ``per_slice`` one for every slice that holds the class.
        """
        if self.settings.per_slice:
            return slice_prompts_of_a_user(self.settings.drawn, truth, classes=self.num_classes)
        grid = Geometry(np.eye(4), truth.shape)
        prompts = prompts_from_truth(self.settings.drawn, truth, labels=range(self.num_classes), spacing=spacing)
        return prompts.onto(grid, scan=grid, classes=self.num_classes)


def point_prompts(
    rng: np.random.Generator, truth: np.ndarray, *, classes: int, count: int, positive: bool = False
) -> PatchPrompts:
    """``count`` random voxels per class of labels [N, D, H, W]: the first inside, each other inside or outside.

    With ``positive`` all are inside.
    A class that a patch does not hold gets no point there.
    """
    points, labels = _no_points(truth, classes, count)
    for row, value, inside in _each_class(truth, classes):
        if inside.any():
            for index in range(count):
                label = index == 0 or positive or inside.all() or rng.random() < 0.5
                points[row, value - 1, index] = _voxel(rng, inside if label else ~inside)
                labels[row, value - 1, index] = label
    return PatchPrompts(points, labels, np.full((*labels.shape[:2], 6), np.nan, np.float32))


def with_click(
    rng: np.random.Generator, prompts: PatchPrompts, truth: np.ndarray, prediction: np.ndarray
) -> PatchPrompts:
    """One more point per class: a random voxel of those that the ``prediction`` [N, D, H, W] gets wrong for it.

    Its label is the truth there; a class without an error gets no point. Also of a class that the patch does not hold.
    """
    classes = prompts.labels.shape[1] + 1
    points, labels = _no_points(truth, classes, 1)
    for row, value, inside in _each_class(truth, classes):
        wrong = inside != (prediction[row] == value)
        if wrong.any():
            voxel = _voxel(rng, wrong)
            points[row, value - 1, 0] = voxel
            labels[row, value - 1, 0] = inside[voxel]
    return PatchPrompts(
        np.concatenate([prompts.points, points], axis=2),
        np.concatenate([prompts.labels, labels], axis=2),
        prompts.boxes,
    )


def box_prompts(
    rng: np.random.Generator,
    truth: np.ndarray,
    *,
    classes: int,
    overlap: float = 1.0,
    relax: float = 0.0,
    jitter: int = 0,
    carried: np.ndarray | None = None,
) -> PatchPrompts:
    """A box per class of labels [N, D, H, W]; a class that a patch does not hold gets none there.

    The tight box with sides longer by ``relax`` about its centre, or, for an ``overlap`` below 1, moved so that it
    covers just that share of the tight box (the boxes of Wu et al. 2023, Medical SAM Adapter: 0.5 and 0.75). Then every
    edge moves by a whole number of voxels, at most ``jitter`` in either direction. Cut at the patch. The boxes
    ``carried`` [M, K - 1, 6] take the place of the tight ones of the first M patches: those of whole cases, NaN for a
    class that a case does not hold; one that does not meet the patch is left out.
    """
    points, labels = _no_points(truth, classes, 1)
    boxes = np.full((len(truth), classes - 1, 6), np.nan, np.float32)
    last = np.array(truth.shape[1:]) - 1
    for row, value, inside in _each_class(truth, classes):
        ends = _ends(inside, None if carried is None or row >= len(carried) else carried[row, value - 1])
        if ends is not None:
            low, high = ends
            sides = high - low + 1
            # 1 - shift per axis multiplies to the overlap; how the axes share it is drawn.
            shift = (1 - overlap ** rng.dirichlet(np.ones(3))) * sides * rng.choice((-1, 1), 3)
            margin = sides * relax / 2
            low, high = moved_edges(rng, low - margin + shift, high + margin + shift, jitter)
            if carried is None or ((low < last + 0.5).all() and (high >= -0.5).all()):
                boxes[row, value - 1, :3] = np.clip(low, 0, last)
                boxes[row, value - 1, 3:] = np.clip(high, 0, last)
    return PatchPrompts(points, labels, boxes)


def _ends(inside: np.ndarray, carried: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """First and last voxel (d, h, w) of a class's box: of its mask in the patch, or of the box carried with it."""
    if carried is None:
        return tight_box(inside) if inside.any() else None
    return None if np.isnan(carried).any() else (carried[:3].astype(np.float64), carried[3:].astype(np.float64))


def prompts_from_truth(
    kind: str,
    truth: np.ndarray,
    *,
    labels: Iterable[int],
    spacing: tuple[float, float, float],
    axis: int = 0,
    frames: bool = False,
) -> ScanPrompts:
    """What a user who knew the mask [D, H, W] would give: for every class in it its deepest voxel ("point"), its tight
    box ("box"), or the tight box of every slice along `axis` that holds it ("boxes"). In a picture, a single slice, or
    with `frames` in each of a video's, depth is measured in its plane. For scores that name it; never for prediction.
    """
    assert kind in ("point", "box", "boxes"), kind
    axes = image_axes(truth.shape, frames=frames)
    margins = [(int(number in axes),) * 2 for number in range(3)]
    classes = {}
    for value in labels:
        inside = truth == value
        if value and inside.any():
            low, high = tight_box(inside)
            if kind == "box":
                classes[value] = ClassPrompts(boxes=(_corners(low, high),))
                continue
            if kind == "boxes":
                classes[value] = ClassPrompts(boxes=slice_boxes(inside, axis=axis))
                continue
            part = np.pad(inside[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))], margins)
            images = part[:, None] if frames else part[None]
            depth = np.concatenate([np.asarray(distance_transform_edt(one, sampling=spacing)) for one in images])
            d, h, w = np.array(np.unravel_index(depth.argmax(), depth.shape)) - np.array(margins)[:, 0] + low
            classes[value] = ClassPrompts(points=((float(w), float(h), float(d), 1),))
    return ScanPrompts(classes, "voxel")


def jittered_boxes(rng: np.random.Generator, boxes: np.ndarray, pixels: int, *, axis: int = 0) -> np.ndarray:
    """Boxes [N, 6] (x0, y0, z0, x1, y1, z1, in voxels) with every edge moved by a whole number of pixels, at most
    `pixels` in either direction; never inverted. The first and last slice along `axis` (of d, h, w) stay.
    """
    shift = rng.integers(-pixels, pixels + 1, boxes.shape)
    shift[:, [2 - axis, 5 - axis]] = 0
    moved = boxes + shift
    low, high = np.minimum(moved[:, :3], moved[:, 3:]), np.maximum(moved[:, :3], moved[:, 3:])
    return np.concatenate([low, high], axis=1)


def tight_box(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel (d, h, w) of a mask that is not empty."""
    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([span[0] for span in spans]), np.array([span[-1] for span in spans])


def slice_boxes(inside: np.ndarray, *, axis: int = 0) -> tuple[tuple[float, ...], ...]:
    """The tight box (x0, y0, z0, x1, y1, z1), in voxels, of every slice along `axis` of a mask [D, H, W] that holds
    something.
    """
    boxes = []
    for index in np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))).tolist():
        low, high = tight_box(inside.take([index], axis=axis))
        low[axis] = high[axis] = index
        boxes.append(_corners(low, high))
    return tuple(boxes)


def _corners(low: np.ndarray, high: np.ndarray) -> tuple[float, ...]:
    """First and last voxel (d, h, w) as x0, y0, z0, x1, y1, z1."""
    return (*low[::-1].tolist(), *high[::-1].tolist())


def _no_points(truth: np.ndarray, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(truth), classes - 1, count)
    return np.zeros((*shape, 3), np.float32), np.full(shape, -1)


def _each_class(truth: np.ndarray, classes: int):
    """(row of the batch, class value, mask of it) for every foreground class."""
    for row, labels in enumerate(truth):
        for value in range(1, classes):
            yield row, value, labels == value


def _voxel(rng: np.random.Generator, mask: np.ndarray) -> tuple[int, int, int]:
    voxels = np.flatnonzero(mask)
    d, h, w = np.unravel_index(voxels[rng.integers(len(voxels))], mask.shape)
    return int(d), int(h), int(w)

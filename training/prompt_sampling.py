"""Prompts drawn from labels: for training, and for scores that say so. Prediction has only the user's own."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from ..configs.schema import PromptTraining
from ..errors import UsageError
from ..volumes.geometry import Geometry
from ..volumes.prompts import ClassPrompts, GridPrompts, PatchPrompts, ScanPrompts
from .predictor import ToNetwork

_STREAM = 0x70726F6D70747321  # keeps these random numbers apart from those of the patches


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """What a promptable network is shown: by ``call`` in training, by ``as_a_user`` in validation.

    ``to_network`` makes arrays what the network takes; ``truth_of`` gives a batch's labels [B, D, H, W] to draw from.
    """

    settings: PromptTraining
    classes: int
    seed: int
    to_network: ToNetwork
    truth_of: Callable[[dict[str, torch.Tensor]], torch.Tensor] = itemgetter("labels")

    @classmethod
    def of(cls, settings: PromptTraining, network: Any, *, name: str, **rest: Any) -> "Prompting | None":
        """None for a recipe without prompts. UsageError for a network, called `name`, that takes none of their kind."""
        if settings.kind == "none":
            return None
        if not getattr(network, "promptable", False) or settings.drawn in getattr(network, "unused_prompts", ()):
            raise UsageError(f"{name!r} takes no prompts of kind {settings.kind!r}; set its prompts.kind to none")
        return cls(settings=settings, to_network=network.prompts_of, **rest)

    def call(self, model: torch.nn.Module, batch: dict[str, torch.Tensor], number: int) -> torch.Tensor:
        """How the loop calls the network: without prompts, or with prompts drawn from the batch's labels.

        All choices depend on (seed, number of the batch) alone, and every device makes the same number of passes. Of
        the 1 to ``count`` "points", the first few are drawn from the labels; each of the others is a click in what the
        network still gets wrong after those before (Kirillov et al. 2023, appendix A; Sofiiuk et al. 2022). Only the
        last pass is learned from. What the network was shown is left in the batch as ``prompts``.
        """
        settings, rng = self.settings, np.random.default_rng((self.seed, number, _STREAM))
        image = batch["image"]
        if rng.random() >= settings.share:
            return model(image)
        truth = self.truth_of(batch).cpu().numpy()
        clicks = 0
        if settings.kind == "box":
            prompts = box_prompts(rng, truth, classes=self.classes, overlap=settings.overlap, relax=settings.relax)
        else:
            total = int(rng.integers(1, settings.count + 1))
            clicks = int(rng.integers(total))
            prompts = point_prompts(rng, truth, classes=self.classes, count=total - clicks)
        for _ in range(clicks):
            with torch.no_grad():
                found = model(image, self.to_network(prompts, image.device)).argmax(1)
            prompts = with_click(rng, prompts, truth, found.cpu().numpy())
        shown: Any = self.to_network(prompts, image.device)
        batch["prompts"] = shown
        return model(image, shown)

    def as_a_user(self, truth: np.ndarray, spacing: tuple[float, float, float]) -> GridPrompts:
        """One prompt for every class of the labels [D, H, W], a grid of its own: see prompts_from_truth."""
        grid = Geometry(np.eye(4), truth.shape)
        shown = prompts_from_truth(self.settings.drawn, truth, labels=range(self.classes), spacing=spacing)
        return shown.onto(grid, scan=grid, classes=self.classes)


def point_prompts(rng: np.random.Generator, truth: np.ndarray, *, classes: int, count: int) -> PatchPrompts:
    """``count`` random voxels per class of labels [N, D, H, W]: the first inside, each other inside or outside.

    A class that a patch does not hold gets no point there.
    """
    points, labels = _no_points(truth, classes, count)
    for row, value, inside in _each_class(truth, classes):
        if inside.any():
            for index in range(count):
                label = index == 0 or inside.all() or rng.random() < 0.5
                points[row, value - 1, index] = _voxel(rng, inside if label else ~inside)
                labels[row, value - 1, index] = label
    return PatchPrompts(points, labels, np.full((*labels.shape[:2], 6), np.nan, np.float32))


def with_click(rng: np.random.Generator, prompts: PatchPrompts, truth: np.ndarray, found: np.ndarray) -> PatchPrompts:
    """One more point per class: a random voxel of those that the labels ``found`` [N, D, H, W] get wrong for it.

    Its label is the truth there; a class without an error gets no point. Also of a class that the patch does not hold.
    """
    classes = prompts.labels.shape[1] + 1
    points, labels = _no_points(truth, classes, 1)
    for row, value, inside in _each_class(truth, classes):
        wrong = inside != (found[row] == value)
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
    rng: np.random.Generator, truth: np.ndarray, *, classes: int, overlap: float = 1.0, relax: float = 0.0
) -> PatchPrompts:
    """A box per class of labels [N, D, H, W]; a class that a patch does not hold gets none there.

    The tight box with sides longer by ``relax`` about its centre, or, for an ``overlap`` below 1, moved so that it
    covers just that share of the tight box (the boxes of Wu et al. 2023, Medical SAM Adapter: 0.5 and 0.75). Cut at
    the patch.
    """
    points, labels = _no_points(truth, classes, 1)
    boxes = np.full((len(truth), classes - 1, 6), np.nan, np.float32)
    last = np.array(truth.shape[1:]) - 1
    for row, value, inside in _each_class(truth, classes):
        if inside.any():
            low, high = tight_box(inside)
            sides = high - low + 1
            # 1 - shift per axis multiplies to the overlap; how the axes share it is drawn.
            shift = (1 - overlap ** rng.dirichlet(np.ones(3))) * sides * rng.choice((-1, 1), 3)
            margin = sides * relax / 2
            boxes[row, value - 1, :3] = np.clip(low - margin + shift, 0, last)
            boxes[row, value - 1, 3:] = np.clip(high + margin + shift, 0, last)
    return PatchPrompts(points, labels, boxes)


def prompts_from_truth(
    kind: str, truth: np.ndarray, *, labels: Iterable[int], spacing: tuple[float, float, float]
) -> ScanPrompts:
    """What a user who knew the mask [D, H, W] would give: for every class in it its deepest voxel ("point") or its
    tight box ("box"). For scores that name it; never for prediction.
    """
    assert kind in ("point", "box"), kind
    found = {}
    for value in labels:
        inside = truth == value
        if value and inside.any():
            low, high = tight_box(inside)
            if kind == "box":
                found[value] = ClassPrompts(box=(*low[::-1].tolist(), *high[::-1].tolist()))
                continue
            part = np.pad(inside[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))], 1)
            depth = np.asarray(distance_transform_edt(part, sampling=spacing))
            d, h, w = np.array(np.unravel_index(depth.argmax(), depth.shape)) - 1 + low
            found[value] = ClassPrompts(points=((float(w), float(h), float(d), 1),))
    return ScanPrompts(found, "voxel")


def tight_box(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel (d, h, w) of a mask that is not empty."""
    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([span[0] for span in spans]), np.array([span[-1] for span in spans])


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

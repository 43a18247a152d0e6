"""Prompts for every slice that holds a class, as Medical SAM Adapter is trained with (Wu et al. 2025, section 3.5).

A slice's box is two points, its first and its last corner, with the labels 2 and 3 that SAM gives them.
"""

import numpy as np
from scipy.ndimage import distance_transform_edt

from ..sam.base import BOTTOM_RIGHT, TOP_LEFT
from ..volumes.prompts import GridPrompts, PatchPrompts


def slice_points(
    rng: np.random.Generator, truth: np.ndarray, *, classes: int, count: int, positive: bool
) -> PatchPrompts:
    """``count`` random voxels per class and slice of labels [N, D, H, W]: the first inside, each other inside or
    outside, or inside with ``positive``. A slice that does not hold the class gets none.
    """
    points, labels = _nothing(truth, classes, count)
    for row, value, depth, inside in _each_slice(truth, classes):
        for index in range(count):
            label = index == 0 or positive or inside.all() or rng.random() < 0.5
            at = depth * count + index
            points[row, value - 1, at] = (depth, *_pixel(rng, inside if label else ~inside))
            labels[row, value - 1, at] = label
    return _prompts(points, labels)


def with_slice_clicks(
    rng: np.random.Generator, prompts: PatchPrompts, truth: np.ndarray, prediction: np.ndarray
) -> PatchPrompts:
    """One more point per class and slice that holds it, where the ``prediction`` [N, D, H, W] is wrong for it."""
    classes = prompts.labels.shape[1] + 1
    points, labels = _nothing(truth, classes, 1)
    for row, value, depth, inside in _each_slice(truth, classes):
        wrong = inside != (prediction[row, depth] == value)
        if wrong.any():
            h, w = _pixel(rng, wrong)
            points[row, value - 1, depth] = (depth, h, w)
            labels[row, value - 1, depth] = inside[h, w]
    return _prompts(np.concatenate([prompts.points, points], axis=2), np.concatenate([prompts.labels, labels], axis=2))


def slice_boxes_as_points(
    rng: np.random.Generator, truth: np.ndarray, *, classes: int, overlap: float, relax: float, jitter: int = 0
) -> PatchPrompts:
    """A box per class and slice of labels [N, D, H, W], cut at the patch.

    It is the tight one in the plane, longer by ``relax``, or moved so that it covers just the ``overlap`` of it; then
    every edge moves by up to ``jitter`` pixels.
    """
    points, labels = _nothing(truth, classes, 2)
    last = np.array(truth.shape[2:]) - 1
    for row, value, depth, inside in _each_slice(truth, classes):
        low, high = _corners(inside)
        sides = high - low + 1
        shift = (1 - overlap ** rng.dirichlet(np.ones(2))) * sides * rng.choice((-1, 1), 2)
        margin = sides * relax / 2
        low, high = moved_edges(rng, low - margin + shift, high + margin + shift, jitter)
        points[row, value - 1, 2 * depth] = (depth, *np.clip(low, 0, last))
        points[row, value - 1, 2 * depth + 1] = (depth, *np.clip(high, 0, last))
        labels[row, value - 1, 2 * depth : 2 * depth + 2] = (TOP_LEFT, BOTTOM_RIGHT)
    return _prompts(points, labels)


def slice_prompts_of_a_user(kind: str, truth: np.ndarray, *, classes: int) -> GridPrompts:
    """What a user who knew the mask [D, H, W] would give on every slice: its deepest pixel, or its tight box."""
    points, labels = _nothing(truth[None], classes, 1)
    boxes = np.full((classes - 1, len(truth), 6), np.nan)
    for _, value, depth, inside in _each_slice(truth[None], classes):
        if kind == "box":
            low, high = _corners(inside)
            boxes[value - 1, depth] = (depth, *low, depth, *high)
        else:
            deep = np.asarray(distance_transform_edt(np.pad(inside, 1)))[1:-1, 1:-1]
            points[0, value - 1, depth] = (depth, *np.unravel_index(deep.argmax(), deep.shape))
            labels[0, value - 1, depth] = 1
    return GridPrompts(points[0], labels[0], boxes)


def boxes_as_corners(prompts: PatchPrompts, *, depth: int) -> PatchPrompts:
    """The prompts with two points in place of every box on the slices that it meets, in patches of ``depth`` slices.

    Prompts with at most one box per class are returned as they are: a network takes such a box itself.
    """
    if prompts.slice_boxes is None:
        return prompts
    shape = (*prompts.labels.shape[:2], 2 * depth)
    points, labels = np.zeros((*shape, 3), np.float32), np.full(shape, -1)
    for row, value, index in np.argwhere(~np.isnan(prompts.slice_boxes).any(axis=-1)):
        box = prompts.slice_boxes[row, value, index]
        for number in range(round(float(box[0])), round(float(box[3])) + 1):
            points[row, value, 2 * number] = (number, *box[1:3])
            points[row, value, 2 * number + 1] = (number, *box[4:])
            labels[row, value, 2 * number : 2 * number + 2] = (TOP_LEFT, BOTTOM_RIGHT)
    return PatchPrompts(
        np.concatenate([prompts.points, points], axis=2),
        np.concatenate([prompts.labels, labels], axis=2),
        np.full_like(prompts.boxes, np.nan),
    )


def moved_edges(
    rng: np.random.Generator, low: np.ndarray, high: np.ndarray, jitter: int
) -> tuple[np.ndarray, np.ndarray]:
    """First and last corner of a box with every edge moved by up to `jitter` voxels; never inverted. Without a jitter
    nothing is drawn.
    """
    if not jitter:
        return low, high
    low, high = (ends + rng.integers(-jitter, jitter + 1, len(low)) for ends in (low, high))
    return np.minimum(low, high), np.maximum(low, high)


def _nothing(truth: np.ndarray, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (len(truth), classes - 1, truth.shape[1] * count)
    return np.zeros((*shape, 3), np.float32), np.full(shape, -1)


def _prompts(points: np.ndarray, labels: np.ndarray) -> PatchPrompts:
    return PatchPrompts(points, labels, np.full((*labels.shape[:2], 6), np.nan, np.float32))


def _each_slice(truth: np.ndarray, classes: int):
    """(row of the batch, class value, slice, mask of it) for every slice that holds a foreground class."""
    for row, labels in enumerate(truth):
        for value in range(1, classes):
            for depth, inside in enumerate(labels == value):
                if inside.any():
                    yield row, value, depth, inside


def _corners(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last pixel (h, w) of a mask that is not empty."""
    pixels = np.argwhere(inside)
    return pixels.min(0), pixels.max(0)


def _pixel(rng: np.random.Generator, mask: np.ndarray) -> tuple[int, int]:
    pixels = np.flatnonzero(mask)
    h, w = np.unravel_index(pixels[rng.integers(len(pixels))], mask.shape)
    return int(h), int(w)

"""The part of a prepared scan where there is anything: outside of it all is background, and no network runs."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Box = tuple[slice, slice, slice]
CONTENT_MARGIN = 8  # voxels: a network that learned the skin learned it with some air


def content_box(array: np.ndarray, *, margin: int = CONTENT_MARGIN) -> Box | None:
    """The box (d, h, w) of a prepared scan [C, D, H, W] outside of which every channel has its lowest value, wider by
    `margin` voxels where the scan goes on; None for a scan of one value throughout.

    Around a body in CT there is air, which a window of the intensities makes one value: nothing is lost there.
    """
    inside = np.zeros(array.shape[1:], bool)
    for channel in array:
        inside |= channel > channel.min()
    return box_around(inside, margin=(margin, margin, margin))


def box_around(mask: np.ndarray, *, margin: Sequence[int]) -> Box | None:
    """The box of what is true in `mask` [D, H, W], wider by `margin` voxels per axis; None when nothing is."""
    flat = np.asarray(mask.any(axis=0))
    box = []
    lines = [np.asarray(line) for line in (mask.any(axis=(1, 2)), flat.any(axis=-1), flat.any(axis=0))]
    for used, wider in zip(lines, margin, strict=True):
        (indices,) = np.nonzero(used)
        if not indices.size:
            return None
        box.append(slice(max(0, int(indices[0]) - wider), min(len(used), int(indices[-1]) + 1 + wider)))
    d, h, w = box
    return d, h, w


def is_whole(box: Box, shape: Sequence[int]) -> bool:
    """Whether a box is all of a grid of `shape`."""
    return all(part.start == 0 and part.stop == size for part, size in zip(box, shape, strict=True))


def framed(box: Box, shape: Sequence[int]) -> tuple[Box, Box]:
    """A box one voxel wider where the grid of `shape` goes on, and where the first lies in it.

    Whoever interpolates across the edge of the first meets background there, and nothing beyond.
    """
    outer = [slice(max(0, part.start - 1), min(size, part.stop + 1)) for part, size in zip(box, shape, strict=True)]
    inner = [slice(part.start - out.start, part.stop - out.start) for part, out in zip(box, outer, strict=True)]
    return (outer[0], outer[1], outer[2]), (inner[0], inner[1], inner[2])


def embedded(
    parts: Iterable[tuple[int, np.ndarray]], box: Box, shape: Sequence[int], *, num_classes: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Class probabilities of a box, in parts as sliding_window.Window.slabs gives them, as parts of a grid of `shape`.

    Around the box the probability of the background, class 0, is 1.
    """
    first, stop = box[0].start, box[0].stop
    before = _background(num_classes, (first, *shape[1:]))
    if first:
        yield 0, before
    last = before[:, -1:]
    for number, (row, part) in enumerate(parts):
        whole = _background(num_classes, (part.shape[1], *shape[1:]))
        whole[(slice(None), slice(None), *box[1:])] = part
        joined = number == 0 and first > 0
        yield (first - 1, np.concatenate([last, whole], axis=1)) if joined else (first + row, whole)
        last = whole[:, -1:]
    if stop < shape[0]:
        after = _background(num_classes, (shape[0] - stop, *shape[1:]))
        yield stop - 1, np.concatenate([last, after], axis=1)


def _background(num_classes: int, shape: Sequence[int]) -> np.ndarray:
    probabilities = np.zeros((num_classes, *shape), np.float32)
    probabilities[0] = 1
    return probabilities

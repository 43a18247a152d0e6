"""Cutting a grid into overlapping patches and stitching the networks' answers: a pair, tested by round trip."""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

from .prompts import GridPrompts

Triple = tuple[int, int, int]


def tile_starts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[Triple]:
    """First voxels (d, h, w) of the patches that cover a grid of `shape`, at least `patch` on each axis.

    Neighbours share at least about `overlap` of a patch; steps are even and the last patch ends with the grid.
    """
    per_axis = []
    for size, width in zip(shape, patch, strict=True):
        assert size >= width, f"a grid of {tuple(shape)} is smaller than the patch {tuple(patch)}: pad it first"
        step = max(1.0, width * (1 - overlap))
        gaps = int(np.ceil(round((size - width) / step, 6)))
        # In whole numbers, rounding half up: no step is then wider than a patch.
        per_axis.append([(2 * i * (size - width) + gaps) // (2 * gaps) for i in range(gaps + 1)] if gaps else [0])
    return [(d, h, w) for d, h, w in product(*per_axis)]


def gaussian_weights(patch: Sequence[int]) -> np.ndarray:
    """Weight of each voxel of a patch, float32 [D, H, W] in (0, 1]: a Gaussian about the centre, sigma = patch / 8.

    As in nnU-Net (Isensee et al. 2021) and MONAI. The smallest, at a corner, is above exp(-24) = 4e-11.
    """
    d, h, w = (_profile(width) for width in patch)
    return d[:, None, None] * h[None, :, None] * w[None, None, :]


def pad_to_patch(array: np.ndarray, patch: Sequence[int]) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """`array` [..., D, H, W] centred in a grid of at least `patch`, filled up with the array's minimum.

    Also gives the slices of d, h, w that cut the original out again; nothing is copied when nothing is padded.
    """
    shape = array.shape[-3:]
    missing = [max(0, width - size) for size, width in zip(shape, patch, strict=True)]
    d, h, w = (slice(m // 2, m // 2 + size) for m, size in zip(missing, shape, strict=True))
    if any(missing):
        widths = [(0, 0)] * (array.ndim - 3) + [(m // 2, m - m // 2) for m in missing]
        array = np.pad(array, widths, constant_values=array.min())
    return array, (d, h, w)


def stitched(
    array: np.ndarray,
    patch: Triple,
    overlap: float,
    infer: Callable[..., np.ndarray],
    *,
    classes: int,
    batch: int = 1,
    prompts: GridPrompts | None = None,
) -> np.ndarray:
    """Class probabilities float32 [K, D, H, W] of a prepared scan [C, D, H, W], K = `classes`.

    `infer` turns up to `batch` patches [N, C, *patch] into PROBABILITIES [N, K, *patch]; overlapping answers are
    averaged with Gaussian weights. Holds one K x grid array and a few patches. With `prompts` on the scan's grid it is
    called as infer(patches, PatchPrompts), without as infer(patches).
    """
    padded, crop = pad_to_patch(array, patch)
    margin = np.array([side.start for side in crop])
    shape = padded.shape[-3:]
    starts = tile_starts(shape, patch, overlap)
    weights = gaussian_weights(patch)
    total = np.zeros((classes, *shape), np.float32)
    for first in range(0, len(starts), batch):
        boxes = [
            tuple(slice(s, s + width) for s, width in zip(start, patch, strict=True))
            for start in starts[first : first + batch]
        ]
        patches = np.stack([padded[(slice(None), *box)] for box in boxes])
        if prompts is None:
            answers = infer(patches)
        else:
            answers = infer(patches, prompts.within(np.array(starts[first : first + batch]) - margin, patch))
        assert answers.shape == (len(boxes), classes, *patch), (answers.shape, (len(boxes), classes, *patch))
        for box, answer in zip(boxes, answers, strict=True):
            total[(slice(None), *box)] += answer * weights
    # The weights and the starts are both products over the axes, and so is the sum of weights: no second grid.
    for axis, (size, width) in enumerate(zip(shape, patch, strict=True)):
        summed = np.zeros(size, np.float32)
        for start in sorted({s[axis] for s in starts}):
            summed[start : start + width] += _profile(width)
        total /= summed.reshape([-1 if a == axis else 1 for a in range(3)])
    return total[(slice(None), *crop)]


def _profile(width: int) -> np.ndarray:
    offset = (np.arange(width) - (width - 1) / 2) / (width / 8)
    values = np.exp(-0.5 * offset**2)
    return (values / values.max()).astype(np.float32)

"""Sliding-window inference: overlapping patches of a grid, and the average of a network's answers for them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import prod

import numpy as np

from .prompts import GridPrompts, PatchPrompts

Triple = tuple[int, int, int]


def tile_starts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[Triple]:
    """First voxels (d, h, w) of the patches that cover a grid of `shape`, at least `patch` on each axis.

    Neighbours share at least about `overlap` of a patch, or so many voxels where it is 2 or more; steps are even and
    the last patch ends with the grid.
    """
    per_axis = []
    for size, width in zip(shape, patch, strict=True):
        assert size >= width, f"a grid of {tuple(shape)} is smaller than the patch {tuple(patch)}: pad it first"
        step = tile_step(width, overlap)
        gaps = int(np.ceil(round((size - width) / step, 6)))
        # In whole numbers, rounding half up: no step is then wider than a patch.
        per_axis.append([(2 * i * (size - width) + gaps) // (2 * gaps) for i in range(gaps + 1)] if gaps else [0])
    return [(d, h, w) for d, h, w in product(*per_axis)]


def tile_step(width: int, overlap: float) -> float:
    """The widest step from one patch of `width` voxels to the next: at least 1, and where `overlap` is a number of
    voxels at least half a patch."""
    return max(1.0, width * (1 - overlap)) if overlap < 1 else max(1.0, width - overlap, width / 2)


def patch_count(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """How many patches a Window has for a grid of `shape`, which is padded where it is smaller than the patch."""
    padded = [max(size, width) for size, width in zip(shape, patch, strict=True)]
    return len(tile_starts(padded, patch, overlap))


def computed_voxels(shape: Sequence[int], patch: Sequence[int], overlap: float) -> int:
    """How many voxels a network computes for a grid of `shape`."""
    return patch_count(shape, patch, overlap) * prod(patch)


def gaussian_weights(patch: Sequence[int]) -> np.ndarray:
    """Weight of each voxel of a patch, float32 [D, H, W] in (0, 1]: a Gaussian about the centre, sigma = patch / 8.

    As in nnU-Net (Isensee et al. 2021) and MONAI. The smallest, at a corner, is above exp(-24) = 4e-11.
    """
    return _weights(patch, _profile)


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


def sliding_window(
    array: np.ndarray,
    patch: Triple,
    overlap: float,
    infer: Callable[..., np.ndarray],
    *,
    num_classes: int,
    batch: int = 1,
    prompts: GridPrompts | None = None,
) -> np.ndarray:
    """Class probabilities float32 [K, D, H, W] of a preprocessed scan [C, D, H, W], K = `num_classes`.

    `infer` and `prompts` are those of Window.infer, whose answers are averaged by Window.slabs.
    """
    window = Window(array, patch, overlap)
    probabilities = np.empty((num_classes, *array.shape[-3:]), np.float32)
    answers = window.infer(infer, batch=batch, prompts=prompts)
    for first, slab in window.slabs(answers, num_classes=num_classes):
        probabilities[:, first : first + slab.shape[1]] = slab
    return probabilities


class Window:
    """The overlapping patches that cover a preprocessed scan [C, D, H, W], and the average of the answers for them.

    Patches are numbered from 0 in the order of tile_starts: d changes slowest, w fastest.
    """

    def __init__(self, array: np.ndarray, patch: Triple, overlap: float, blending: str = "gaussian"):
        self._patch, self._profile = patch, _PROFILES[blending]
        self._padded, self._crop = pad_to_patch(array, patch)
        self._starts = tile_starts(self._padded.shape[-3:], patch, overlap)
        self._margin = np.array([side.start for side in self._crop])

    def __len__(self) -> int:
        return len(self._starts)

    def patches(self, numbers: Sequence[int]) -> np.ndarray:
        """Patches [N, C, *patch] of the scan."""
        boxes = (_box(self._starts[number], self._patch) for number in numbers)
        return np.stack([self._padded[(slice(None), *box)] for box in boxes])

    def prompts_in(self, numbers: Sequence[int], prompts: GridPrompts) -> PatchPrompts:
        """What lies in these N patches of prompts on the scan's grid."""
        return prompts.within(np.array([self._starts[number] for number in numbers]) - self._margin, self._patch)

    def infer(
        self,
        infer: Callable[..., np.ndarray | Callable[[], np.ndarray]],
        *,
        batch: int = 1,
        at_once: int = 1,
        prompts: GridPrompts | None = None,
    ) -> Iterator[np.ndarray]:
        """The network's answer [K, *patch] for each patch, in order.

        `infer` turns up to `batch` patches [N, C, *patch] into class probabilities [N, K, *patch]. With `prompts` on
        the scan's grid it is called as infer(patches, PatchPrompts), without them as infer(patches). An `infer` that
        works in the background returns a function that waits for the probabilities; it is then called up to `at_once`
        times before the first answer is waited for.
        """

        def begun(numbers: Sequence[int]) -> np.ndarray | Callable[[], np.ndarray]:
            patches = self.patches(numbers)
            return infer(patches) if prompts is None else infer(patches, self.prompts_in(numbers, prompts))

        numbers = range(len(self))
        groups = (numbers[first : first + batch] for first in range(0, len(self), batch))
        return (answer for group in _answers(map(begun, groups), at_once=at_once) for answer in group)

    def slabs(self, answers: Iterable[np.ndarray], *, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
        """The answers [K, *patch] for all patches, in order, averaged with the weights of the blending: K =
        `num_classes`.

        Yields (first row of d, float32 [K, rows, H, W]), slab by slab along d as they become complete. A slab begins
        with the last row of the one before, so that whoever resamples can interpolate across, and is valid until the
        next one is taken. One patch's thickness of the grid is held.
        """
        padded, crop, starts, patch = self._padded, self._crop, self._starts, self._patch
        weights = _weights(patch, self._profile)
        # Row 0 is the last one of the slab before; row 1 is the grid's row `bottom`.
        window, bottom = np.zeros((num_classes, patch[0] + 1, *padded.shape[-2:]), np.float32), 0
        summed = [
            _summed(padded.shape[1 + axis], {s[axis] for s in starts}, self._profile(patch[axis])) for axis in range(3)
        ]
        after = [d for d, _, _ in starts[1:]] + [padded.shape[-3]]
        for (d, h, w), answer, following in zip(starts, answers, after, strict=True):
            assert answer.shape == (num_classes, *patch), (answer.shape, (num_classes, *patch))
            window[(slice(None), *_box((1, h, w), patch))] += answer * weights
            if following == d:
                continue
            complete = following - bottom
            # The weights and the starts are both products over the axes, and so is the sum of weights: no second grid.
            rows = window[:, 1 : 1 + complete]
            rows /= summed[0][bottom:following, None, None]
            rows /= summed[1][:, None]
            rows /= summed[2]
            first, stop = max(bottom - 1, crop[0].start), min(following, crop[0].stop)
            yield first - crop[0].start, window[:, 1 + first - bottom : 1 + stop - bottom, crop[1], crop[2]]
            for plane in window:  # one class at a time: numpy moves overlapping memory by way of a copy
                plane[:-complete] = plane[complete:]
            window[:, -complete:] = 0
            bottom = following


def _answers(begun: Iterable[np.ndarray | Callable[[], np.ndarray]], *, at_once: int) -> Iterator[np.ndarray]:
    """The answers in order, `at_once` of them begun before the first is waited for."""
    waiting = deque()
    for each in begun:
        waiting.append(each)
        if len(waiting) == at_once:
            yield _answer(waiting.popleft())
    while waiting:
        yield _answer(waiting.popleft())


def _answer(answer: np.ndarray | Callable[[], np.ndarray]) -> np.ndarray:
    return answer() if callable(answer) else answer


def _box(start: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(s, s + width) for s, width in zip(start, patch, strict=True))


def _weights(patch: Sequence[int], profile: Callable[[int], np.ndarray]) -> np.ndarray:
    d, h, w = (profile(width) for width in patch)
    return d[:, None, None] * h[None, :, None] * w[None, None, :]


def _summed(size: int, starts: set[int], profile: np.ndarray) -> np.ndarray:
    """The weights along one axis, added up over the patches that begin at `starts`."""
    total = np.zeros(size, np.float32)
    for start in sorted(starts):
        total[start : start + len(profile)] += profile
    return total


def _profile(width: int) -> np.ndarray:
    offset = (np.arange(width) - (width - 1) / 2) / (width / 8)
    values = np.exp(-0.5 * offset**2)
    return (values / values.max()).astype(np.float32)


def _even(width: int) -> np.ndarray:
    return np.ones(width, np.float32)


_PROFILES = {"gaussian": _profile, "plain": _even}

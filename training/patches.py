"""Training patches: step number in, batch out. The batch depends on (seed, step, rank) alone, so a resumed run
continues exactly and the control run sees the very patches of the distilled one."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ..configs.schema import Augmentation
from ..errors import UsageError
from .augment import random_affine, random_intensity, random_shift, reach, warp
from .case_boxes import CaseBoxes
from .prepared import PreparedCase, Targets

Triple = tuple[int, int, int]


class PatchBatches(Dataset):
    """``self[step]`` is ``{"image": [B, C, *patch], "labels": [B, *patch], "soft_targets": [B, K, *patch]}``.

    Soft targets are there when cached. With ``boxed_classes`` K above 0 each labelled sample has ``"boxes"``
    [K - 1, 6], the tight boxes of its whole case's classes in voxels (d, h, w) of the patch, uncut, NaN for an absent
    class.

    With ``masks`` above 1 a patch comes with as many masks of its scan, where several cases share it, one sample each:
    up to ``batch * masks`` in all (SAM, too, learns several masks of an image at once: Kirillov et al. 2023, appendix
    A). With ``unlabelled`` cases as many patches of theirs follow those of ``cases``, drawn apart from them: image and
    soft targets then hold more samples than the labels, which describe the first.

    Several devices share one batch of as many times ``batch`` patches, the one that a single device with that batch
    would draw: each cuts those of its ``rank``.

    With other ``patches`` each step takes one of these sizes or ``patch``, drawn apart from everything else.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        *,
        patch: tuple[int, int, int],
        batch: int,
        steps: int,
        foreground: float,
        augmentation: Augmentation,
        seed: int,
        masks: int = 1,
        rank: int = 0,
        unlabelled: Sequence[PreparedCase] = (),
        boxed_classes: int = 0,
        patches: Sequence[Triple] = (),
    ) -> None:
        self.cases, self.patch, self.batch, self.steps = list(cases), patch, batch, steps
        self.unlabelled = list(unlabelled)
        self.foreground, self.augmentation = foreground, augmentation
        self.seed, self.rank, self.masks = seed, rank, masks
        self.sizes = [patch, *patches]
        self.boxes = CaseBoxes(boxed_classes) if boxed_classes else None
        self.scans: dict[str, list[PreparedCase]] = defaultdict(list)
        for case in cases:
            if case.scan:
                self.scans[case.scan].append(case)
        if masks > 1 and max(map(len, self.scans.values()), default=0) < 2:
            raise UsageError(
                f"training.masks is {masks}, but no scan has two masks, each a training case with a copy of the scan; "
                "set it to 1"
            )

    @classmethod
    def plain(
        cls, cases: Sequence[PreparedCase], *, patch: tuple[int, int, int], count: int, seed: int
    ) -> list[np.ndarray]:
        """``count`` unchanged patches ``[C, *patch]``, half of them around labelled voxels: calibration data."""
        batches = cls(cases, patch=patch, batch=1, steps=count, foreground=0.5, augmentation=Augmentation(), seed=seed)
        return [batches[step]["image"][0].numpy() for step in range(count)]

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        patch = self._size(step)
        samples = self._samples(np.random.default_rng((self.seed, step, 0)), self.cases, self.masks, patch)
        if self.unlabelled:
            apart = np.random.default_rng((self.seed, step, 0, 1))
            samples += self._samples(apart, self.unlabelled, 1, patch)
        return {key: torch.stack([sample[key] for sample in samples if key in sample]) for key in samples[0]}

    def number_of_largest(self) -> int:
        """The number of a batch of the largest patch, among the first hundred."""
        return max(range(min(self.steps, 100)), key=lambda number: np.prod(self._size(number)))

    def _size(self, step: int) -> Triple:
        """The patch of a step: the same for every sample and every device, so that batches can be stacked."""
        if len(self.sizes) == 1:
            return self.patch
        return self.sizes[int(np.random.default_rng((self.seed, step, 0, 2)).integers(len(self.sizes)))]

    def _samples(
        self, rng: np.random.Generator, cases: Sequence[PreparedCase], masks: int, patch: Triple
    ) -> list[dict[str, torch.Tensor]]:
        """The patches of this rank: those of the ranks before it are drawn as well, but not cut."""
        drawn = [self._draw(rng, cases, masks, patch) for _ in range((self.rank + 1) * self.batch)]
        return [sample for draw in drawn[-self.batch :] for sample in self._cut(draw, patch)]

    def _draw(self, rng: np.random.Generator, cases: Sequence[PreparedCase], masks: int, patch: Triple) -> "_Draw":
        """A case drawn from `cases`, and all that is random about a patch of it."""
        case = cases[int(rng.integers(len(cases)))]
        start = self._centre(rng, case, patch) + random_shift(rng, self.augmentation, patch)
        affine = random_affine(rng, self.augmentation, case.spacing)
        intensity = random_intensity(rng, self.augmentation, (len(case.image), *patch))
        return _Draw((case, *self._others(rng, case, masks - 1)), start, affine, intensity)

    def _cut(self, draw: "_Draw", patch: Triple) -> list[dict[str, torch.Tensor]]:
        """The patch: a sample for the mask of the case drawn, and for others of the same scan."""
        case, affine = draw.cases[0], draw.affine
        size = patch if affine is None else reach(affine, patch)
        start = draw.start - (np.asarray(size) - np.asarray(patch)) // 2

        def cut(array: Targets, fill: float | np.ndarray, mode: str) -> torch.Tensor:
            block = torch.from_numpy(_block(array, start, size, fill))
            return block if affine is None else warp(block, affine, patch, mode=mode)

        image = draw.intensity(cut(case.image, case.floor, "bilinear"))
        samples = []
        for one in draw.cases:
            sample = {"image": image}
            if one.labels is not None:
                sample["labels"] = cut(one.labels[None], 0, "nearest")[0].to(torch.int16)
                if self.boxes is not None:
                    sample["boxes"] = torch.from_numpy(self.boxes.in_patch(one, draw.start, affine, patch))
            if one.soft_targets is not None:
                background = np.zeros((one.soft_targets.shape[0], 1, 1, 1), np.float32)
                background[0] = 255  # around the scan
                probabilities = cut(one.soft_targets, background, "bilinear")
                sample["soft_targets"] = probabilities / probabilities.sum(0)
            samples.append(sample)
        return samples

    def _others(self, rng: np.random.Generator, case: PreparedCase, count: int) -> list[PreparedCase]:
        if not count:
            return []
        others = [other for other in self.scans[case.scan] if other is not case]
        return [others[index] for index in rng.permutation(len(others))[:count]]

    def _centre(self, rng: np.random.Generator, case: PreparedCase, size: Triple) -> np.ndarray:
        """First voxel of the patch: around a labelled voxel or anywhere, inside the scan where the scan is larger."""
        shape, patch = np.asarray(case.shape), np.asarray(size)
        room = shape - patch
        if case.class_locations and rng.random() < self.foreground:
            voxels = case.class_locations[rng.choice(list(case.class_locations))]
            start = voxels[rng.integers(len(voxels))] - patch // 2
        else:
            start = rng.integers(0, np.maximum(room, 0) + 1)
        return np.where(room > 0, start.clip(0, np.maximum(room, 0)), -(-room // 2))


@dataclass(frozen=True)
class _Draw:
    """A patch before it is cut: the case, and others of its scan; its first voxel before it is turned; its changes."""

    cases: tuple[PreparedCase, ...]
    start: np.ndarray
    affine: np.ndarray | None
    intensity: Callable[[torch.Tensor], torch.Tensor]


def _block(array: Targets, start: np.ndarray, size: tuple[int, int, int], fill: float | np.ndarray) -> np.ndarray:
    """``array[:, start : start + size]`` as float32, with ``fill`` (per channel) where the block leaves the array."""
    low = np.maximum(start, 0)
    inside = array[(slice(None), *(slice(a, max(b, a)) for a, b in zip(low, start + np.asarray(size), strict=True)))]
    block = np.empty((array.shape[0], *size), np.float32)
    if inside.shape != block.shape:
        block[:] = fill
    to = (slice(a, a + n) for a, n in zip(low - start, inside.shape[1:], strict=True))
    block[(slice(None), *to)] = inside
    return block

"""Training patches: step number in, batch out. The batch depends on (seed, step, rank) alone, so a resumed run
continues exactly and the control run sees the very patches of the distilled one."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ..config import Augmentation
from .augment import random_affine, random_intensity, random_shift, reach, warp
from .cases import PreparedCase, Targets


class PatchBatches(Dataset):
    """``self[step]`` is ``{"image": [B, C, *patch], "labels": [B, *patch], "teacher": [B, K, *patch] (if cached)}``.

    With ``unlabelled`` cases as many patches of theirs follow those of ``cases``, drawn apart from them: image and
    teacher then hold 2 B samples, of which the labels describe the first B.
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
        rank: int = 0,
        unlabelled: Sequence[PreparedCase] = (),
    ) -> None:
        self.cases, self.patch, self.batch, self.steps = list(cases), patch, batch, steps
        self.unlabelled = list(unlabelled)
        self.foreground, self.augmentation = foreground, augmentation
        self.seed, self.rank = seed, rank

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
        rng = np.random.default_rng((self.seed, step, self.rank))
        samples = [self._sample(rng, self.cases) for _ in range(self.batch)]
        if self.unlabelled:
            apart = np.random.default_rng((self.seed, step, self.rank, 1))
            samples += [self._sample(apart, self.unlabelled) for _ in range(self.batch)]
        return {key: torch.stack([sample[key] for sample in samples if key in sample]) for key in samples[0]}

    def _sample(self, rng: np.random.Generator, cases: Sequence[PreparedCase]) -> dict[str, torch.Tensor]:
        case = cases[int(rng.integers(len(cases)))]
        centre = self._centre(rng, case) + random_shift(rng, self.augmentation, self.patch)
        affine = random_affine(rng, self.augmentation, case.spacing)
        size = self.patch if affine is None else reach(affine, self.patch)
        start = centre - (np.asarray(size) - np.asarray(self.patch)) // 2

        def cut(array: Targets, fill: float | np.ndarray, mode: str) -> torch.Tensor:
            block = torch.from_numpy(_block(array, start, size, fill))
            return block if affine is None else warp(block, affine, self.patch, mode=mode)

        image = cut(case.image, case.floor, "bilinear")
        sample = {"image": random_intensity(rng, self.augmentation, image)}
        if case.labels is not None:
            sample["labels"] = cut(case.labels[None], 0, "nearest")[0].to(torch.int16)
        if case.teacher is not None:
            background = np.zeros((case.teacher.shape[0], 1, 1, 1), np.float32)
            background[0] = 255  # around the scan
            probabilities = cut(case.teacher, background, "bilinear")
            sample["teacher"] = probabilities / probabilities.sum(0)
        return sample

    def _centre(self, rng: np.random.Generator, case: PreparedCase) -> np.ndarray:
        """First voxel of the patch: around a labelled voxel or anywhere, inside the scan where the scan is larger."""
        shape, patch = np.asarray(case.shape), np.asarray(self.patch)
        room = shape - patch
        if case.anchors and rng.random() < self.foreground:
            voxels = case.anchors[rng.choice(list(case.anchors))]
            start = voxels[rng.integers(len(voxels))] - patch // 2
        else:
            start = rng.integers(0, np.maximum(room, 0) + 1)
        return np.where(room > 0, start.clip(0, np.maximum(room, 0)), -(-room // 2))


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

"""Training patches: step number in, batch out. The batch depends on (seed, step, rank) alone, so a resumed run
continues exactly and the control run sees the very patches of the distilled one."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ..config import Augmentation
from .augment import random_affine, random_intensity, reach, warp
from .cases import PreparedCase


class PatchBatches(Dataset):
    """``self[step]`` is ``{"image": [B, C, *patch], "labels": [B, *patch], "teacher": [B, K, *patch] (if cached)}``."""

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
    ) -> None:
        self.cases, self.patch, self.batch, self.steps = list(cases), patch, batch, steps
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
        samples = [self._sample(rng) for _ in range(self.batch)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        case = self.cases[rng.integers(len(self.cases))]
        centre = self._centre(rng, case)
        affine = random_affine(rng, self.augmentation, case.spacing)
        size = self.patch if affine is None else reach(affine, self.patch)
        start = centre - (np.asarray(size) - np.asarray(self.patch)) // 2

        def cut(array: np.ndarray, fill: float, mode: str) -> torch.Tensor:
            block = torch.from_numpy(_block(array, start, size, fill))
            return block if affine is None else warp(block, affine, self.patch, mode=mode)

        image = cut(case.image, case.floor, "bilinear")
        sample = {
            "image": random_intensity(rng, self.augmentation, image),
            "labels": cut(case.labels[None], 0, "nearest")[0].to(torch.int16),
        }
        if case.teacher is not None:
            probabilities = cut(case.teacher, 0, "bilinear")
            probabilities[0] = (255 - probabilities[1:].sum(0)).clamp(min=0)  # around the scan: background
            sample["teacher"] = probabilities / 255
        return sample

    def _centre(self, rng: np.random.Generator, case: PreparedCase) -> np.ndarray:
        """First voxel of the patch: around a labelled voxel or anywhere, inside the scan where the scan is larger."""
        shape, patch = np.asarray(case.labels.shape), np.asarray(self.patch)
        room = shape - patch
        if case.anchors and rng.random() < self.foreground:
            voxels = case.anchors[rng.choice(list(case.anchors))]
            start = voxels[rng.integers(len(voxels))] - patch // 2
        else:
            start = rng.integers(0, np.maximum(room, 0) + 1)
        return np.where(room > 0, start.clip(0, np.maximum(room, 0)), -(-room // 2))


def _block(array: np.ndarray, start: np.ndarray, size: tuple[int, int, int], fill: float) -> np.ndarray:
    """``array[:, start : start + size]`` as float32, with ``fill`` where the block leaves the array."""
    stop = start + np.asarray(size)
    inside = tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(start, stop, strict=True))
    block = array[(slice(None), *inside)].astype(np.float32)
    before = np.maximum(-start, 0)
    after = np.asarray(size) - before - block.shape[1:]
    if before.any() or after.any():
        block = np.pad(block, [(0, 0), *zip(before, after, strict=True)], constant_values=fill)
    return block

"""Prompts: what a user points at, in the frame of the patch that the network sees."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError
from ..volumes.prompts import PatchPrompts


class Prompts:
    """Points and boxes per foreground class; row k - 1 belongs to class k.

    `points` [B, K - 1, P, 3] are voxel coordinates (d, h, w) of the patch, the centre of the first voxel at 0;
    `labels` [B, K - 1, P] say 1 (inside), 0 (outside), -1 (no point), or 2 and 3 for the first and the last corner of a
    box on one slice, which networks with `prompts_per_slice` take. `boxes` [B, K - 1, 6] are
    (d0, h0, w0, d1, h1, w1), both ends included; NaN where a class has none.
    """

    # No dataclass: in mixed precision Lightning would look into one and round coordinates to bfloat16.
    def __init__(self, points: Tensor, labels: Tensor, boxes: Tensor) -> None:
        self.points, self.labels, self.boxes = points, labels, boxes

    @classmethod
    def of(cls, prompts: PatchPrompts, device: torch.device) -> Prompts:
        """The arrays of volumes.prompts as tensors on the network's device."""
        points, labels, boxes = (
            torch.from_numpy(array).to(device) for array in (prompts.points, prompts.labels, prompts.boxes)
        )
        return cls(points, labels, boxes)

    def rows(self, start: int, end: int) -> Prompts:
        """Those of the samples from ``start`` to before ``end``."""
        return Prompts(self.points[start:end], self.labels[start:end], self.boxes[start:end])

    def check(self, network: str, *, cases: int, classes: int) -> None:
        """UsageError unless these are prompts for so many cases, and for all of `classes` but the background."""
        shape, expected = tuple(self.labels.shape[:2]), (cases, classes - 1)
        if shape != expected or tuple(self.boxes.shape[:2]) != expected:
            raise UsageError(
                f"{network} got prompts for {shape} cases and classes, expected {expected}: "
                "one row per case of the batch, one per foreground class"
            )

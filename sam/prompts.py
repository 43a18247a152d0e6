"""Prompts: what a user points at, in the frame of the patch that the network sees."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Points and boxes per foreground class; row k - 1 belongs to class k.

    `points` [B, K - 1, P, 3] are voxel coordinates (d, h, w) of the patch, the centre of the first voxel at 0;
    `labels` [B, K - 1, P] say 1 (inside), 0 (outside) or -1 (no point). `boxes` [B, K - 1, 6] are
    (d0, h0, w0, d1, h1, w1), both ends included; NaN where a class has none.
    """

    points: Tensor
    labels: Tensor
    boxes: Tensor

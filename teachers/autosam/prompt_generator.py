"""The Auto Prompt Generator of AutoSAM Adapter: a 3-D U-Net on a feature of the image encoder."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..volumetric.decoder import convolved

STAGES = 4
WIDTHS = (1, 2, 4, 8, 10)  # channels of the U-Net's levels, times `width`

Size = tuple[int, int, int]


class PromptGenerator(nn.Module):
    """Learned prompts in place of a user's: a feature [B, C, h, w, d] -> the same shape (Li et al. 2023).

    Max-pooling by `pools` on the way down, trilinear up-sampling on the way up, skips in between; instance norms.
    """

    def __init__(self, channels: int, *, width: int, pools: Sequence[Size]) -> None:
        super().__init__()
        assert len(pools) == STAGES
        widths = [width * factor for factor in WIDTHS]
        self.stem = nn.Sequential(
            nn.Conv3d(channels, width, kernel_size=3, padding=1, bias=False), *convolved(width, width)
        )
        self.down = nn.ModuleList(
            nn.Sequential(nn.MaxPool3d(pool), *convolved(above, below), *convolved(below, below))
            for pool, (above, below) in zip(pools, pairwise(widths), strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(*convolved(above + below, above), *convolved(above, above))
            for above, below in reversed([*pairwise(widths)])
        )
        self.out = nn.Conv3d(width, channels, kernel_size=1)

    def forward(self, feature: Tensor) -> Tensor:
        levels = [self.stem(feature)]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        x = levels.pop()
        for stage, skip in zip(self.up, reversed(levels), strict=True):
            x = interpolate(x, skip.shape[2:], mode="trilinear", align_corners=True)
            x = stage(torch.cat([skip, x], dim=1))
        return self.out(x)


def poolings(grid: Size) -> list[Size]:
    """Each stage halves the axes that keep two tokens or more by it: an instance norm needs more than one voxel.

    Four times 2 x 2 x 2 on the paper's grid of 32 x 32 x 32 tokens.
    """
    pools = []
    for _ in range(STAGES):
        h, w, d = (2 if side >= 4 else 1 for side in grid)
        pools.append((h, w, d))
        grid = (grid[0] // h, grid[1] // w, grid[2] // d)
    return pools

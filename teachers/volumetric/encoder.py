"""The image encoder of 3DSAM-adapter (Gong et al. 2023) and AutoSAM Adapter: SAM's ViT on a volume, with adapters.

Axes of tokens and features are (h, w, d), slices last, as in the authors' code.
"""

from itertools import cycle
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ...errors import UsageError
from ...sam.channel_norm import ChannelNorm
from ...sam.presets import Backbone
from ...sam.vit import Block, ImageEncoder
from .attention import CubeAttention, from_cubes, shift_mask, shift_regions, to_cubes

FEATURES = 4  # the encoder gives as many, at equal distances, the last from the last block


class DepthwiseAdapter(nn.Module):
    """x + ReLU(W_up ReLU(Conv3D_3x3x3(ReLU(W_down x)))), depthwise convolution, C / 2 channels inside.

    The last ReLU is the authors' code's. It makes a start at zero impossible: its gradient there is zero for good.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, dim // 2)
        self.conv = nn.Conv3d(dim // 2, dim // 2, kernel_size=3, padding=1, groups=dim // 2)
        self.up = nn.Linear(dim // 2, dim)

    def adapter_parameters(self) -> list[str]:
        return [name for name, _ in self.named_parameters()]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, h, w, d, C] -> the same shape."""
        y = self.down(x).relu().movedim(-1, 1)
        y = self.conv(y).relu().movedim(1, -1)
        return x + self.up(y).relu()


class VolumeBlock(Block):
    """SAM's block on cubes of `cube`^3 tokens, shifted by half a cube or not, behind an adapter.

    `window` and `grid` are those of SAM's block: they say how many rows the tables of relative positions have.
    """

    def __init__(
        self, *, dim: int, heads: int, window: int, grid: tuple[int, int], cube: int, shifted: bool, **size: Any
    ) -> None:
        super().__init__(dim=dim, heads=heads, window=window, grid=grid, **size)
        self.adapter = DepthwiseAdapter(dim)
        self.attn = CubeAttention(dim, heads, reach=window or grid[0])
        self.cube = cube
        self.shift = cube // 2 if shifted else 0

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention half, residual included: [B, h, w, d, C] -> the same shape."""
        y, axes, grid = self.norm1(x), (1, 2, 3), (x.shape[1], x.shape[2], x.shape[3])
        if self.shift:
            y = y.roll((-self.shift,) * 3, axes)
        y = from_cubes(self.attn(to_cubes(y, self.cube), mask if self.shift else None), grid)
        return x + (y.roll((self.shift,) * 3, axes) if self.shift else y)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Tokens [B, h, w, d, C] -> the same shape; `mask` is for the shifted attention."""
        return self.feed(self.attend(self.adapter(x), mask))


def build_neck(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(width, channels, kernel_size=1, bias=False),
        ChannelNorm(channels, eps=1e-6),
        nn.Conv3d(channels, channels, kernel_size=3, padding=1, bias=False),
        ChannelNorm(channels, eps=1e-6),
    )


class VolumeEncoder(ImageEncoder):
    """Volumes [B, C, D, H, W] of size `patch` -> four features [B, out_chans, h, w, d]; C is 1 (repeated) or 3.

    The volume is up-sampled `upsample` times on every axis (default: so that a token is 4 voxels wide); a token is
    then SAM's square of pixels, `slices` slices deep (default: as many as pixels). There are `cells` (h, w, d) of them.
    All blocks attend within cubes of `cube`^3 tokens, the even ones shifted; SAM's global blocks differ only in their
    longer tables. SAM's tables keep the size of its own images, `positions` x `positions` tokens, and are pooled to the
    grid of the volume. State-dict keys are SAM's, with new ones added and its neck replaced by `necks`.

    UsageError for a patch that does not divide into tokens, or is a single one.
    """

    regions: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        patch: tuple[int, int, int],
        upsample: int | None,
        slices: int | None,
        positions: int,
        cube: int,
        checkpointing: bool,
    ) -> None:
        upsample, slices = upsample or max(1, backbone.patch_size // 4), slices or backbone.patch_size
        cells = token_grid(backbone, patch, upsample=upsample, slices=slices)
        shifted = cycle((True, False))
        super().__init__(
            backbone,
            image_size=(positions * backbone.patch_size, positions * backbone.patch_size),
            make_block=lambda **size: VolumeBlock(cube=cube, shifted=next(shifted), **size),
            checkpointing=checkpointing,
        )
        assert backbone.depth % FEATURES == 0, "the features are taken at equal distances"
        dim = backbone.dim
        self.cells = cells
        self.upsample = upsample
        self.slice_embed = nn.Conv3d(dim, dim, kernel_size=(1, 1, slices), stride=(1, 1, slices), groups=dim)
        self.depth_embed = nn.Parameter(torch.ones(1, cells[2], dim))
        del self.neck
        self.necks = nn.ModuleList(build_neck(dim, backbone.out_chans) for _ in range(FEATURES))
        self.register_buffer("regions", shift_regions(cells, cube), persistent=False)

    def embed(self, volume: Tensor) -> Tensor:
        """volume [B, C, D, H, W] -> tokens [B, h, w, d, dim] with their positions.

        Slices are up-sampled after the patch embedding instead of before: both are linear and act on different axes.
        """
        batch, _, depth, height, width = volume.shape
        images = volume.transpose(1, 2).flatten(0, 1)
        images = interpolate(images, (self.upsample * height, self.upsample * width), mode="bilinear")
        tokens = self.patch_embed(images.expand(-1, 3, -1, -1)).unflatten(0, (batch, depth)).permute(0, 4, 2, 3, 1)
        tokens = interpolate(tokens, (*tokens.shape[2:4], self.upsample * depth), mode="trilinear")
        tokens = self.slice_embed(tokens).permute(0, 2, 3, 4, 1)
        positions = adaptive_avg_pool2d(self.pos_embed.permute(0, 3, 1, 2), tokens.shape[1:3]).permute(0, 2, 3, 1)
        return tokens + positions[:, :, :, None] + self.depth_embed[:, None, None]

    def forward(self, volume: Tensor) -> list[Tensor]:
        """volume [B, C, D, H, W] -> the features after each quarter of the blocks, shallow to deep."""
        features = []
        for index, tokens in enumerate(self.each_block(self.embed(volume), shift_mask(self.regions)), start=1):
            if index % (len(self.blocks) // FEATURES) == 0:
                features.append(self.necks[len(features)](tokens.movedim(-1, 1)))
        return features


def token_grid(backbone: Backbone, patch: tuple[int, int, int], *, upsample: int, slices: int) -> tuple[int, int, int]:
    """Tokens (h, w, d) of a patch (D, H, W); UsageError where they do not fit."""
    tokens = (slices, backbone.patch_size, backbone.patch_size)
    voxels = tuple(token // gcd(token, upsample) for token in tokens)
    if any(size < 1 or size % unit for size, unit in zip(patch, voxels, strict=True)) or voxels == patch:
        raise UsageError(
            f"patch {_times(patch)} does not fit backbone {backbone.name}: up-sampled {upsample} times, its depth, "
            f"height and width must be multiples of {', '.join(map(str, voxels))} and hold more than one token of "
            f"{_times(tokens)}; change the patch of the plan, or the teacher's options upsample and slices"
        )
    d, h, w = (upsample * size // token for size, token in zip(patch, tokens, strict=True))
    return h, w, d


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))

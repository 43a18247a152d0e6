"""The mask decoder of 3DSAM-adapter and AutoSAM Adapter: convolutions over features of several depths and the image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate


def convolved(channels: int, width: int) -> list[nn.Module]:
    """Conv3d 3x3x3, instance norm, ReLU."""
    return [
        nn.Conv3d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.InstanceNorm3d(width),
        nn.ReLU(),
    ]


class AggregationDecoder(nn.Module):
    """Multi-layer aggregation (Gong et al. 2023, section 3.4): one head per feature, image at twice the token grid.

    `heads` x2 up-sampled maps of `width` channels each and the image's `in_channels` give `classes` logits. With
    `full_size` they meet at the image's own size instead, which the maps are up-sampled to (Li et al. 2023).
    """

    def __init__(
        self, *, channels: int, width: int, heads: int, in_channels: int, classes: int, full_size: bool = False
    ) -> None:
        super().__init__()
        self.full_size = full_size
        self.heads = nn.ModuleList(
            nn.Sequential(*convolved(channels, width), *convolved(width, width), Doubled()) for _ in range(heads)
        )
        self.cls = nn.Sequential(
            *convolved(heads * width + in_channels, width),
            nn.Conv3d(width, classes, kernel_size=3, padding=1, bias=False),
        )

    def shallow(self, features: Sequence[Tensor]) -> Tensor:
        """The maps of all features but the deepest, which alone depends on the prompt: [B, width * ..., 2h, 2w, 2d]."""
        return torch.cat([head(feature) for head, feature in zip(self.heads, features, strict=False)], dim=1)

    def forward(self, shallow: Tensor, deepest: Tensor, image: Tensor) -> Tensor:
        """`shallow`, the deepest feature [B, C, h, w, d], image [B, in_channels, D, H, W] -> logits [B, K, D, H, W]."""
        image = image.permute(0, 1, 3, 4, 2)
        maps, size = torch.cat([shallow, self.heads[-1](deepest)], dim=1), image.shape[2:]
        if self.full_size:
            maps = interpolate(maps, size, mode="trilinear", align_corners=True)
        small = image if self.full_size else interpolate(image, maps.shape[2:], mode="trilinear")
        logits = self.cls(torch.cat([maps, small], dim=1))
        return interpolate(logits.permute(0, 1, 4, 2, 3), (size[2], *size[:2]), mode="trilinear", align_corners=True)


class Doubled(nn.Module):
    """x2 up-sampling between the centres of the corner voxels."""

    def forward(self, x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)

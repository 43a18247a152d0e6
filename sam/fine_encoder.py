"""A coarse image encoder brought to the fine tokens of LiteMedSAM, so that it can stand before the same decoder."""

from typing import Any

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from .base import Encoder
from .presets import FineSize


class FineEncoder(Encoder):
    """images [N, 3, H, W] -> embedding [N, out_chans, H / 4, W / 4].

    The embedding of the `coarse` encoder, in tokens of 16 x 16 pixels, is interpolated to the fine ones. What is added
    to it starts at zero: the same embedding, up-sampled by learned layers, and what a few convolutions see in the
    pixels themselves, mixed by one block (a depthwise 7 x 7 convolution and an MLP, as in ConvNeXt).
    """

    def __init__(self, size: FineSize, coarse: Encoder) -> None:
        height, width = coarse.image_size
        super().__init__(name=size.name, image_size=(height, width), token=size.patch_size, out_chans=coarse.out_chans)
        self.coarse = coarse
        channels = size.width
        self.up = nn.Sequential(
            nn.ConvTranspose2d(coarse.out_chans, coarse.out_chans, kernel_size=2, stride=2),
            LayerNorm2d(coarse.out_chans),
            nn.GELU(),
            nn.ConvTranspose2d(coarse.out_chans, channels, kernel_size=2, stride=2),
        )
        self.pixels = nn.Sequential(
            nn.Conv2d(3, channels // 4, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels // 2, kernel_size=3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, kernel_size=3, padding=1),
        )
        self.near = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.near_norm = LayerNorm2d(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, kernel_size=1)
        self.narrow = nn.Conv2d(2 * channels, channels, kernel_size=1)
        self.out = nn.Conv2d(channels, coarse.out_chans, kernel_size=1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, images: Tensor, *context: Any) -> Tensor:
        """images [N, 3, H, W] -> embedding [N, out_chans, h, w]; `context` goes to the coarse encoder as it is."""
        coarse = self.coarse(images, *context)
        x = self.up(coarse) + self.pixels(images)
        x = x + self.narrow(gelu(self.widen(self.near_norm(self.near(x)))))
        return interpolate(coarse, scale_factor=4.0, mode="bilinear", align_corners=False) + self.out(x)

    def position_tables(self) -> set[str]:
        return {f"coarse.{name}" for name in self.coarse.position_tables()}

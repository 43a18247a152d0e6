"""What SAM's, MobileSAM's and EfficientSAM's image encoders have in common."""

from typing import ClassVar

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from ..errors import UsageError


class Encoder(nn.Module):
    """images [N, 3, H, W] -> embedding [N, `out_chans`, h, w].

    `image_size` is (H, W) in pixels, `grid` is (h, w) in tokens of `token` x `token` pixels. `name` is the backbone's.
    UsageError for an image size that tokens do not divide.
    """

    unused: ClassVar[tuple[str, ...]] = ()  # the published file's keys, by prefix, that no embedding depends on

    def __init__(self, *, name: str, image_size: tuple[int, int], token: int, out_chans: int) -> None:
        super().__init__()
        if any(pixels < token or pixels % token for pixels in image_size):
            raise UsageError(
                f"image size {image_size[0]}x{image_size[1]} does not fit backbone {name}: "
                f"height and width must be multiples of {token}; change the patch of the plan"
            )
        self.image_size = image_size
        self.grid = (image_size[0] // token, image_size[1] // token)
        self.out_chans = out_chans

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def position_tables(self) -> set[str]:
        """The keys of this encoder whose size follows the image size."""
        return set()


def build_neck(width: int, channels: int) -> nn.Sequential:
    """From the last block's `width` to the embedding's `channels`, the same in all three."""
    return nn.Sequential(
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )

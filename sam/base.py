"""What the image encoders of SAM and its small relatives have in common, and what their prompt encoders have."""

from typing import ClassVar

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from ..errors import UsageError

INVALID, TOP_LEFT, BOTTOM_RIGHT = -1, 2, 3  # kinds of a prompt's points, besides 0 (outside) and 1 (inside)


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


class PromptEncoder(nn.Module):
    """Points, and boxes as two corners, to tokens of a slice: one interface to SAM's encoder and EfficientSAM's.

    A place is (x, y) in pixels, the centre of the first at 0; its kind is 0 (outside), 1 (inside), 2 and 3 (a box's
    corners) or -1 (not a point).
    """

    in_place_of_a_box: ClassVar[int] = 0  # how many "not a point" stand in a prompt without a box
    max_points: int | None = None  # that one prompt holds, a box counting for two; None for any number

    def clicks(self, places: Tensor, kinds: Tensor) -> Tensor:
        """places [N, T, 2], kinds [N, T] -> tokens [N, T or more, C], without a branch on the numbers."""
        raise NotImplementedError

    def nowhere(self, places: Tensor) -> Tensor:
        """The embedding of "not a point", at places [N, T, 2]: [N, T, C]."""
        raise NotImplementedError

    def no_clicks(self, *, places: int = 0) -> Tensor:
        """The tokens of an empty prompt [1, T, C]; `places` is T where the encoder does not fill up by itself."""
        raise NotImplementedError

    def no_mask(self) -> Tensor | None:
        """What the decoder adds to every cell of the embedding [1, C, h, w] where no mask is given, if anything."""
        raise NotImplementedError

    def get_dense_pe(self) -> Tensor:
        """The position of every cell of the embedding: [1, C, h, w]."""
        raise NotImplementedError


def build_neck(width: int, channels: int) -> nn.Sequential:
    """From the last block's `width` to the embedding's `channels`, the same in all three."""
    return nn.Sequential(
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )

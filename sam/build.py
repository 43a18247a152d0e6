"""Any image encoder by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import UsageError
from .base import Encoder
from .efficient_vit import EfficientViT
from .fine_encoder import FineEncoder
from .presets import Backbone, EfficientViTSize, EncoderSize, FineSize, get_encoder_size
from .tiny_vit import TinyViT
from .vit import ImageEncoder


def build_image_encoder(
    backbone: str | EncoderSize,
    *,
    image_size: tuple[int, int],
    make_block: Callable[..., nn.Module] | None = None,
    checkpointing: bool = False,
) -> Encoder:
    """The image encoder of SAM, one of its small relatives or a student of these, for images of (H, W) pixels.

    `make_block` and `checkpointing` are those of the encoder's class. UsageError: an unknown name, an image size that
    does not fit, or checkpointing of a TinyViT.
    """
    size = get_encoder_size(backbone)
    if isinstance(size, FineSize):
        coarse = build_image_encoder(
            size.coarse, image_size=image_size, make_block=make_block, checkpointing=checkpointing
        )
        return FineEncoder(size, coarse)
    options: dict[str, Any] = {} if make_block is None else {"make_block": make_block}
    if isinstance(size, Backbone):
        return ImageEncoder(size, image_size=image_size, checkpointing=checkpointing, **options)
    if isinstance(size, EfficientViTSize):
        return EfficientViT(size, image_size=image_size, checkpointing=checkpointing, **options)
    if checkpointing:
        raise UsageError(
            f"backbone {size.name} has batch norms, whose statistics recomputation would count twice: "
            "turn checkpointing off"
        )
    return TinyViT(size, image_size=image_size, **options)

"""The one check of what a network is given, for teachers and students alike."""

from torch import Tensor

from ..errors import UsageError


def require_image(
    image: Tensor, *, network: str, channels: int, patch: tuple[int, int, int], any_depth: bool = True
) -> None:
    """Raise UsageError, which names the `network`, unless an image is [B, channels, D, H, W] with `patch`'s H and W.

    D may be anything for a network that works slice by slice; without `any_depth` it is the patch's, too.
    """
    depth, height, width = patch
    sizes = (channels, image.shape[2] if any_depth and image.ndim == 5 else depth, height, width)
    if image.ndim != 5 or tuple(image.shape[1:]) != sizes:
        shown = f"[B, {channels}, {'D' if any_depth else depth}, {height}, {width}]"
        raise UsageError(f"{network} got an image of shape {tuple(image.shape)}, expected {shown}")

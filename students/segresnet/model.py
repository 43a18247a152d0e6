"""SegResNet (Myronenko 2018) from MONAI: the convolutional network a user would reach for first."""

from monai.networks.nets.segresnet import SegResNet as Base
from torch import Tensor

from ...errors import UsageError

INIT_FILTERS = 16  # MONAI's BraTS model has as many; 4.7 M parameters
DIVISOR = 8  # three halvings


class SegResNet(Base):
    """MONAI's SegResNet for volumes: state-dict keys and outputs are MONAI's own.

    `patch` is (D, H, W), each a multiple of 8 (UsageError otherwise); `forward` takes every grid of such sizes.
    """

    prompt_kinds: frozenset[str] = frozenset()
    takes_any_patch = True  # the same weights fit patches of every such size
    patch_divisor = DIVISOR

    def __init__(self, *, in_channels: int, num_classes: int, patch: tuple[int, int, int]) -> None:
        if any(size < DIVISOR or size % DIVISOR for size in patch):
            raise UsageError(
                f"SegResNet needs a patch (D, H, W) of multiples of {DIVISOR}, not {tuple(patch)}; "
                "change the patch of the plan"
            )
        super().__init__(spatial_dims=3, init_filters=INIT_FILTERS, in_channels=in_channels, out_channels=num_classes)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.patch = patch

    def forward(self, image: Tensor, prompts: None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """image [B, C, D, H, W] -> logits [B, K, D, H, W]. UsageError when prompts are given."""
        if prompts is not None:
            raise UsageError("SegResNet takes no prompts; leave them out")
        return super().forward(image)

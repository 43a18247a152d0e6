"""SwinUNETR (Hatamizadeh et al. 2022) from MONAI, with our network contract and a faster window attention."""

from monai.networks.nets import swin_unetr as monai
from torch import Tensor

from ...errors import UsageError
from .inference import InferenceSwinUNETR
from .window_attention import FastWindowAttention

TINY, SMALL, BASE = 12, 24, 48  # feature sizes
DIVISOR = 32  # patch embedding and four patch mergings, each halving the grid


class SwinUNETR(monai.SwinUNETR):
    """MONAI's SwinUNETR: state-dict keys and outputs are MONAI's own.

    `patch` is (D, H, W), each a multiple of 32 and one at least 64 (UsageError otherwise);
    `forward` takes every grid of such sizes.
    """

    prompt_kinds: frozenset[str] = frozenset()
    takes_any_patch = True  # the same weights fit patches of every such size
    patch_divisor = DIVISOR

    def __init__(self, *, in_channels: int, num_classes: int, patch: tuple[int, int, int], feature_size: int) -> None:
        if any(size < DIVISOR or size % DIVISOR for size in patch) or max(patch) == DIVISOR:
            raise UsageError(
                f"SwinUNETR needs a patch (D, H, W) of multiples of {DIVISOR}, one of them at least {2 * DIVISOR} "
                f"(instance norm needs two voxels at the lowest level), not {tuple(patch)}; "
                "change the patch of the plan"
            )
        super().__init__(in_channels=in_channels, out_channels=num_classes, feature_size=feature_size)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.patch = patch
        for block in self.modules():
            if isinstance(block, monai.SwinTransformerBlock):
                block.attn = FastWindowAttention(
                    block.dim, num_heads=block.num_heads, window_size=block.window_size, qkv_bias=True
                )

    def forward(self, image: Tensor, prompts: None = None) -> Tensor:
        """image [B, C, D, H, W] -> logits [B, K, D, H, W]. UsageError when prompts are given."""
        if prompts is not None:
            raise UsageError("SwinUNETR takes no prompts; leave them out")
        return super().forward(image)

    def for_inference(self) -> InferenceSwinUNETR:
        """The same function for one image of the size `patch`, rewritten to be fast in an inference engine."""
        return InferenceSwinUNETR(self, patch=self.patch)


def build_tiny(*, in_channels: int, num_classes: int, patch: tuple[int, int, int]) -> SwinUNETR:
    """The smallest that MONAI's SwinUNETR can be: 12 features at the first level. UsageError as in SwinUNETR."""
    return SwinUNETR(in_channels=in_channels, num_classes=num_classes, patch=patch, feature_size=TINY)


def build_small(*, in_channels: int, num_classes: int, patch: tuple[int, int, int]) -> SwinUNETR:
    """Twice as wide as the tiny one: 24 features at the first level. UsageError as in SwinUNETR."""
    return SwinUNETR(in_channels=in_channels, num_classes=num_classes, patch=patch, feature_size=SMALL)


def build_base(*, in_channels: int, num_classes: int, patch: tuple[int, int, int]) -> SwinUNETR:
    """SwinUNETR as published: 48 features at the first level, 62 M parameters. UsageError as in SwinUNETR."""
    return SwinUNETR(in_channels=in_channels, num_classes=num_classes, patch=patch, feature_size=BASE)

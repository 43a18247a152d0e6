"""MedNeXt (Roy et al. 2023) from MONAI for devices: depthwise-separable convolutions, from half the resolution on."""

import torch
from monai.networks.nets.mednext import MedNeXt as Base
from torch import Tensor, nn

from ...errors import UsageError

FILTERS = 32  # as in the published S, one halving later; 1.5 M parameters
EXPANSION = 2
KERNEL = 3
BLOCKS = 2  # at every depth
DEPTHS = 3  # halvings inside MONAI's network
FINE = 8  # channels at full resolution, where most of the time would go
DIVISOR = 2 ** (DEPTHS + 1)


class MedNeXt(nn.Module):
    """MONAI's MedNeXt between a halving and a doubling of the resolution, and a thin layer at the full one.

    Every block of it convolves each channel by itself (3 x 3 x 3), normalises it, and mixes the channels with two
    convolutions of one voxel. `patch` is (D, H, W), each a multiple of 16 and not all 16, of which a norm would
    see one voxel (UsageError otherwise); `forward` takes every grid of such sizes.
    """

    prompt_kinds: frozenset[str] = frozenset()
    takes_any_patch = True  # the same weights fit patches of every such size
    patch_divisor = DIVISOR

    def __init__(self, *, in_channels: int, num_classes: int, patch: tuple[int, int, int]) -> None:
        if any(size < DIVISOR or size % DIVISOR for size in patch) or max(patch) == DIVISOR:
            raise UsageError(
                f"MedNeXt needs a patch (D, H, W) of multiples of {DIVISOR}, one of them larger than that, not "
                f"{tuple(patch)}; change the patch of the plan"
            )
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.patch = patch
        self.stem = nn.Conv3d(in_channels, FILTERS, 2, stride=2)
        self.body = Base(
            spatial_dims=3,
            init_filters=FILTERS,
            in_channels=FILTERS,
            out_channels=FILTERS,
            encoder_expansion_ratio=EXPANSION,
            decoder_expansion_ratio=EXPANSION,
            bottleneck_expansion_ratio=EXPANSION,
            kernel_size=KERNEL,
            use_residual_connection=True,
            blocks_down=[BLOCKS] * DEPTHS,
            blocks_bottleneck=BLOCKS,
            blocks_up=[BLOCKS] * DEPTHS,
        )
        self.up = nn.ConvTranspose3d(FILTERS, FINE, 2, stride=2)
        self.fine = nn.Conv3d(in_channels, FINE, KERNEL, padding=KERNEL // 2)
        self.head = nn.Sequential(
            nn.Conv3d(FINE, FINE, KERNEL, padding=KERNEL // 2),
            nn.InstanceNorm3d(FINE, affine=True),
            nn.LeakyReLU(0.01),
            nn.Conv3d(FINE, num_classes, 1),
        )

    def forward(self, image: Tensor, prompts: None = None) -> Tensor:
        """image [B, C, D, H, W] -> logits [B, K, D, H, W]. UsageError when prompts are given."""
        if prompts is not None:
            raise UsageError("MedNeXt takes no prompts; leave them out")
        features = self.body(self.stem(image))
        assert isinstance(features, torch.Tensor)  # one output: without deep supervision
        return self.head(self.up(features) + self.fine(image))

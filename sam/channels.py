"""Scans of any number of channels for encoders that take pictures of three."""

from collections.abc import Iterable

from torch import nn


class ChannelMix(nn.Conv2d):
    """Slices [N, C, H, W] of other than one or three channels -> SAM's three, each at first their mean."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 3, kernel_size=1)
        nn.init.constant_(self.weight, 1 / channels)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def adapter_parameters(self) -> Iterable[str]:
        return ["weight", "bias"]


def to_three(channels: int) -> nn.Module:
    """What SAM's encoder needs before it: nothing for one channel, which is repeated, or three."""
    return nn.Identity() if channels in (1, 3) else ChannelMix(channels)

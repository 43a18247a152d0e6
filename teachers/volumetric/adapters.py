"""The spatial adapter of 3DSAM-adapter and AutoSAM Adapter as the papers write it."""

from torch import Tensor, nn

from .encoder import DepthwiseAdapter, VolumeEncoder


class SpatialAdapter(DepthwiseAdapter):
    """x + W_up ReLU(Conv3D_3x3x3(W_down x)), depthwise convolution, C / 2 channels inside (Li et al. 2023).

    W_up starts at zero and the adapter is the identity. The authors' code has a ReLU after every layer, the last one
    too, and starts at random: that is `DepthwiseAdapter`, whose parameters have the same names and shapes.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, h, w, d, C] -> the same shape."""
        y = self.conv(self.down(x).movedim(-1, 1)).relu()
        return x + self.up(y.movedim(1, -1))


def use_spatial_adapters(encoder: VolumeEncoder, dim: int) -> None:
    """Exchange the adapters of the authors' code for the paper's, in every block of `dim` channels."""
    for block in encoder.blocks:
        block.adapter = SpatialAdapter(dim)

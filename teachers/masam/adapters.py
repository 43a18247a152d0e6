"""MA-SAM's adapters: FacT in the attention, and convolutions over neighbouring slices around it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class SharedFactors(nn.Module):
    """U [C, r] and V [r, C] of FacT, shared by all blocks and by q and v. V starts at zero: no change at step 0."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.u = nn.Linear(dim, rank, bias=False)
        self.v = nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.v.weight)

    def adapter_parameters(self) -> Iterable[str]:
        return [name for name, _ in self.named_parameters()]


class FacT(nn.Linear):
    """The q, k, v projection of one attention with factor-tuned q and v (FacT-TT: Jie and Deng 2023; MA-SAM, eq. 1).

    q += s * V(Sigma_q(U x)), v likewise with Sigma_v, k unchanged; Sigma is a dense r x r matrix per block and
    per q or v. Dropout acts between Sigma and V while training. `weight` and `bias` are the base projection's.
    """

    def __init__(self, dim: int, factors: SharedFactors, *, scale: float, dropout: float) -> None:
        super().__init__(dim, 3 * dim)
        rank = factors.u.out_features
        self.q_sigma = nn.Linear(rank, rank, bias=False)
        self.v_sigma = nn.Linear(rank, rank, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        self._factors = (factors,)  # in a tuple: its parameters belong to the model, not to every block

    def adapter_parameters(self) -> Iterable[str]:
        return ["q_sigma.weight", "v_sigma.weight"]

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., 3 C], laid out q, k, v."""
        (factors,) = self._factors
        low = factors.u(input)
        q, k, v = super().forward(input).chunk(3, dim=-1)
        q = q + self.scale * factors.v(self.dropout(self.q_sigma(low)))
        v = v + self.scale * factors.v(self.dropout(self.v_sigma(low)))
        return torch.cat([q, k, v], dim=-1)


class Adapter3D(nn.Module):
    """x + W_up GELU(Conv3D_3x1x1(W_down LayerNorm(x))) over D neighbouring slices (MA-SAM, eq. 3).

    The linears have no bias, the convolution mixes all channels along the slices only, zero-padded at both ends.
    With `zero_init` W_up starts at zero and the adapter is the identity; MA-SAM's code draws it at random.
    """

    def __init__(self, dim: int, channels: int, *, zero_init: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.down = nn.Linear(dim, channels, bias=False)
        self.conv = nn.Conv3d(channels, channels, kernel_size=(3, 1, 1), padding=(1, 0, 0))
        self.act = nn.GELU()
        self.up = nn.Linear(channels, dim, bias=False)
        if zero_init:
            nn.init.zeros_(self.up.weight)

    def adapter_parameters(self) -> Iterable[str]:
        return [name for name, _ in self.named_parameters()]

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """x [B * depth, h, w, C], slices innermost in the batch -> the same shape."""
        y = self.down(self.norm(x)).unflatten(0, (-1, depth))
        y = self.act(self.conv(y.permute(0, 4, 1, 2, 3))).permute(0, 2, 3, 4, 1)
        return x + self.up(y.flatten(0, 1))

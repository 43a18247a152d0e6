"""LoRA (Hu et al. 2022) on the queries and values of an attention, as a control for adapters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LoRA(nn.Linear):
    """The q, k, v projection of one attention, laid out q, k, v: q += Up_q(Down_q x), v likewise, k unchanged.

    `weight` and `bias` are the base projection's. The ups start at zero: no change at step 0.
    """

    def __init__(self, dim: int, rank: int, *, zero_init: bool = True) -> None:
        super().__init__(dim, 3 * dim)
        self.q_down, self.v_down = nn.Linear(dim, rank, bias=False), nn.Linear(dim, rank, bias=False)
        self.q_up, self.v_up = nn.Linear(rank, dim, bias=False), nn.Linear(rank, dim, bias=False)
        if zero_init:
            nn.init.zeros_(self.q_up.weight)
            nn.init.zeros_(self.v_up.weight)

    def adapter_parameters(self) -> Iterable[str]:
        return [f"{name}.weight" for name in ("q_down", "q_up", "v_down", "v_up")]

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., 3 C], laid out q, k, v."""
        q, k, v = super().forward(input).chunk(3, dim=-1)
        q = q + self.q_up(self.q_down(input))
        v = v + self.v_up(self.v_down(input))
        return torch.cat([q, k, v], dim=-1)

"""Attention of a volume's tokens within cubes, shifted in every other block (as Swin's), with SAM's relative positions.

Axes are (h, w, d), slices last, as in the authors' code of 3DSAM-adapter: its weights fit without being turned.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot, pad, scaled_dot_product_attention

from ...sam.vit import Attention

APART = -100.0  # added to the logits of pairs that the shift brought together from opposite ends


class CubeAttention(Attention):
    """softmax(scale * q k^T + lr * (rel_h + rel_w + rel_d) + mask) v over the tokens of a cube (Gong et al. 2023).

    The relative terms use the unscaled q; `lr` is learned and starts at 1. As in SAM's attention here they are folded
    into the inner product, so that the fused kernels apply. The tables have 2 * `reach` - 1 rows, whatever the cube:
    they are linearly interpolated to its offsets. State-dict keys are SAM's, with `rel_pos_d` and `lr` added.
    """

    def __init__(self, dim: int, heads: int, *, reach: int) -> None:
        super().__init__(dim, num_heads=heads, use_rel_pos=True, input_size=(reach, reach))
        self.rel_pos_d = nn.Parameter(torch.zeros_like(self.rel_pos_h))
        self.lr = nn.Parameter(torch.ones(()))

    def adapter_parameters(self) -> list[str]:
        return ["rel_pos_d"]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [N, h, w, d, C] -> the same shape. `mask` [M, hwd, hwd] belongs to M cubes each; N is a multiple of M."""
        n, *sides, c = x.shape
        q, k, v = self.qkv(x).reshape(n, -1, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        tables = (self.rel_pos_h, self.rel_pos_w, self.rel_pos_d)
        places = torch.cartesian_prod(*(torch.arange(side, device=x.device) for side in sides))
        terms, ones = [q * self.scale], [k]
        for table, side, place in zip(tables, sides, places.unbind(1), strict=True):
            terms.append(self.lr * torch.einsum("natc,tkc->natk", q, relative(table, side)[place]))
            ones.append(one_hot(place, side).to(k.dtype).expand(n, self.num_heads, -1, -1))
        v = pad(v, (0, sum(sides)))  # the fused CPU kernel wants one width
        if mask is not None:
            mask = mask.to(q.dtype).repeat(n // len(mask), 1, 1)[:, None]
        out = scaled_dot_product_attention(torch.cat(terms, -1), torch.cat(ones, -1), v, attn_mask=mask, scale=1.0)
        return self.proj(out[..., : c // self.num_heads].transpose(1, 2).reshape(x.shape))


def relative(table: Tensor, side: int) -> Tensor:
    """Rows of `table` [L, C] for queries and keys at 0 .. side - 1: [side, side, C]."""
    if len(table) != 2 * side - 1:
        table = interpolate(table.T[None], 2 * side - 1, mode="linear")[0].T
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place + side - 1]


def to_cubes(x: Tensor, side: int) -> Tensor:
    """x [B, h, w, d, C] -> cubes [B * cubes, side, side, side, C]; zeros fill up the far ends."""
    h, w, d = (-size % side for size in x.shape[1:4])
    x = pad(x, (0, 0, 0, d, 0, w, 0, h))
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(0, 3)


def from_cubes(cubes: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Inverse of `to_cubes` for a grid of (h, w, d) tokens."""
    h, w, d = grid
    side = cubes.shape[1]
    counts = [-(-size // side) for size in grid]
    x = cubes.unflatten(0, (-1, *counts)).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, :h, :w, :d]


def shift_regions(grid: tuple[int, int, int], side: int) -> Tensor:
    """The piece of the volume that every token of every cube belongs to after a shift by side // 2: [cubes, side^3].

    Tokens of one cube but different pieces come from opposite ends of the volume.
    """
    h, w, d = (torch.zeros(size, dtype=torch.uint8) for size in grid)
    for pieces in (h, w, d):
        pieces[-side : -(side // 2)] = 1
        pieces[-(side // 2) :] = 2
    regions = 9 * h[:, None, None] + 3 * w[:, None] + d
    return to_cubes(regions[None, ..., None], side).flatten(1)


def shift_mask(regions: Tensor) -> Tensor:
    """What `CubeAttention` adds to its logits, from `shift_regions`: [cubes, side^3, side^3], 0 or APART."""
    return APART * (regions[:, :, None] != regions[:, None]).float()

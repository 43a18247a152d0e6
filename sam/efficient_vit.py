"""EfficientSAM's image encoder: a plain ViT with SAM's neck (Xiong et al. 2024)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from .base import Encoder, build_neck
from .presets import EfficientViTSize

PRETRAINING = 224  # pixels; the position table keeps this image's grid (and a class token) in every file


class PatchEmbed(nn.Module):
    """[N, 3, H, W] -> tokens [N, h, w, C]."""

    def __init__(self, dim: int, *, token: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=token, stride=token)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class Attention(nn.Module):
    """Attention of every token with every other one."""

    def __init__(self, dim: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, h, w, C] -> [N, h, w, C]."""
        n, h, w, c = x.shape
        q, k, v = self.qkv(x).reshape(n, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(n, h, w, c))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class EfficientBlock(nn.Module):
    """A pre-norm transformer block whose two halves can be called apart, so that adapters fit between them."""

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads=heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def look(self, x: Tensor) -> Tensor:
        """What the attention finds, without the residual: [N, h, w, C] -> [N, h, w, C]."""
        return self.attn(self.norm1(x))

    def attend(self, x: Tensor) -> Tensor:
        """The attention half, residual included."""
        return x + self.look(x)

    def feed(self, x: Tensor) -> Tensor:
        """The MLP half, residual included."""
        return x + self.mlp(self.norm2(x))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, h, w, C] -> [N, h, w, C]."""
        return self.feed(self.attend(x))


class EfficientViT(Encoder):
    """EfficientSAM's image encoder; state-dict keys are those of its published files.

    The position table is that of the 224-pixel pretraining at any `image_size`; `forward` resizes it (as published).
    `make_block` builds each block: `EfficientBlock`, or a subclass with adapters that takes the same keywords.
    `checkpointing` recomputes every block in the backward pass, which trades time for memory.
    """

    def __init__(
        self,
        size: EfficientViTSize,
        *,
        image_size: tuple[int, int],
        make_block: Callable[..., EfficientBlock] = EfficientBlock,
        checkpointing: bool = False,
    ) -> None:
        super().__init__(name=size.name, image_size=image_size, token=size.patch_size, out_chans=size.out_chans)
        self.checkpointing = checkpointing
        self.pretrained_grid = (PRETRAINING // size.patch_size, PRETRAINING // size.patch_size)
        self.patch_embed = PatchEmbed(size.dim, token=size.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.pretrained_grid[0] * self.pretrained_grid[1], size.dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            make_block(dim=size.dim, heads=size.heads, mlp_ratio=size.mlp_ratio) for _ in range(size.depth)
        )
        self.neck = build_neck(size.dim, size.out_chans)

    def positions(self) -> Tensor:
        """The table without its class token at this image's grid, bicubic: [1, h, w, C]."""
        table = self.pos_embed[:, 1:].unflatten(1, self.pretrained_grid)
        if self.grid == self.pretrained_grid:
            return table
        channels_first = table.permute(0, 3, 1, 2)
        return interpolate(channels_first, self.grid, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)

    def forward(self, images: Tensor, *context: Any) -> Tensor:
        """images [N, 3, H, W] -> embedding [N, out_chans, h, w]; `context` goes to every block as it is."""
        tokens = self.patch_embed(images) + self.positions()
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, *context, use_reentrant=False)
            else:
                tokens = block(tokens, *context)
        return self.neck(tokens.permute(0, 3, 1, 2))

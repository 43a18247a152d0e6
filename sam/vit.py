"""SAM's ViT image encoder for any width, depth, image size and token size, on `segment_anything`'s modules."""

from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from segment_anything.modeling import image_encoder as published
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from .base import Encoder, build_neck
from .presets import Backbone

encoder_norm = partial(nn.LayerNorm, eps=1e-6)


class Attention(published.Attention):
    """SAM's attention with decomposed relative positions, without a score matrix in memory.

    softmax(scale * q k^T + rel_h + rel_w) v, where rel_h and rel_w use the unscaled q. The two terms are folded into
    the inner product (q gets the h + w terms of its token, k the one-hot row and column of its own), so that
    `scaled_dot_product_attention` needs no mask and its fused kernels apply. State-dict keys are SAM's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [N, h, w, C] -> [N, h, w, C]."""
        n, h, w, c = x.shape
        q, k, v = self.qkv(x).reshape(n, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        grid = q.reshape(n, self.num_heads, h, w, -1)
        rel_h = torch.einsum("nahwc,hkc->nahwk", grid, published.get_rel_pos(h, h, self.rel_pos_h))
        rel_w = torch.einsum("nahwc,wkc->nahwk", grid, published.get_rel_pos(w, w, self.rel_pos_w))
        place = torch.cat([_one_hot(h, x).repeat_interleave(w, 0), _one_hot(w, x).repeat(h, 1)], dim=1)
        q = torch.cat([q * self.scale, rel_h.flatten(2, 3), rel_w.flatten(2, 3)], dim=-1)
        k = torch.cat([k, place.expand(n, self.num_heads, -1, -1)], dim=-1)
        v = pad(v, (0, h + w))  # the fused CPU kernel wants one width
        out = scaled_dot_product_attention(q, k, v, scale=1.0)[..., : c // self.num_heads]
        return self.proj(out.transpose(1, 2).reshape(n, h, w, c))


def _one_hot(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def use_published_attention(model: nn.Module) -> None:
    """Let every attention in `model` compute as SAM's code does: the same numbers, slower; for comparison."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = MethodType(published.Attention.forward, module)


class Block(nn.Module):
    """A pre-norm transformer block whose two halves can be called apart, so that adapters fit between them."""

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float, window: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.norm1 = encoder_norm(dim)
        self.attn = Attention(dim, num_heads=heads, use_rel_pos=True, input_size=(window, window) if window else grid)
        self.norm2 = encoder_norm(dim)
        self.mlp = published.MLPBlock(embedding_dim=dim, mlp_dim=int(dim * mlp_ratio))
        self.window = window

    def look(self, x: Tensor) -> Tensor:
        """What the attention finds, without the residual: [N, h, w, C] -> [N, h, w, C]."""
        y = self.norm1(x)
        if not self.window:
            return self.attn(y)
        windows, padded = published.window_partition(y, self.window)
        h, w = x.shape[1:3]
        return published.window_unpartition(self.attn(windows), self.window, padded, (h, w))

    def attend(self, x: Tensor) -> Tensor:
        """The attention half, residual included."""
        return x + self.look(x)

    def feed(self, x: Tensor) -> Tensor:
        """The MLP half, residual included."""
        return x + self.mlp(self.norm2(x))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, h, w, C] -> [N, h, w, C]."""
        return self.feed(self.attend(x))


class ImageEncoder(Encoder):
    """ViT-Det encoder of SAM (Kirillov et al. 2023). State-dict keys are SAM's.

    `image_size` is (H, W) in pixels, each a multiple of the backbone's `patch_size` (else UsageError).
    `make_block` builds each block: `Block`, or a subclass with adapters that takes the same keywords.
    `checkpointing` recomputes every block in the backward pass, which trades time for memory.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        image_size: tuple[int, int],
        make_block: Callable[..., Block] = Block,
        checkpointing: bool = False,
    ) -> None:
        size = backbone.patch_size
        super().__init__(name=backbone.name, image_size=image_size, token=size, out_chans=backbone.out_chans)
        self.backbone = backbone
        self.checkpointing = checkpointing
        self.patch_embed = published.PatchEmbed((size, size), (size, size), embed_dim=backbone.dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, *self.grid, backbone.dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            make_block(
                dim=backbone.dim,
                heads=backbone.heads,
                mlp_ratio=backbone.mlp_ratio,
                window=0 if index in backbone.global_attn_indexes else backbone.window,
                grid=self.grid,
            )
            for index in range(backbone.depth)
        )
        self.neck = build_neck(backbone.dim, backbone.out_chans)

    def position_tables(self) -> set[str]:
        """Absolute positions, and the relative ones of the global blocks."""
        indexes = self.backbone.global_attn_indexes
        return {"pos_embed"} | {f"blocks.{index}.attn.rel_pos_{axis}" for index in indexes for axis in "hw"}

    def forward(self, images: Tensor, *context: Any) -> Tensor:
        """images [N, 3, H, W] -> embedding [N, out_chans, h, w]; `context` goes to every block as it is."""
        tokens = self.patch_embed(images) + self.pos_embed
        *_, tokens = self.each_block(tokens, *context)
        return self.neck(tokens.permute(0, 3, 1, 2))

    def each_block(self, tokens: Tensor, *context: Any) -> Iterator[Tensor]:
        """The tokens behind every block."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, *context, use_reentrant=False)
            else:
                tokens = block(tokens, *context)
            yield tokens

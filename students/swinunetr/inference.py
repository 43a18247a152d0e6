"""SwinUNETR rewritten for inference on one patch size: the same function, fewer passes over memory.

What the rewrite uses is exact up to rounding:

- rolling, padding and cutting into windows are two gathers each way, their tables a few kilobytes;
- the mask of shifted windows is three more channels of queries and keys instead of a matrix for every window;
- a transposed convolution, a concatenation and the convolutions that read it become one transposed and one plain
  convolution, so that the widest tensor is never made and 8 taps take the place of 27;
- everything between the convolutions is a matrix [tokens, channels].
"""

import copy
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from monai.networks.blocks.unetr_block import UnetrUpBlock
from monai.networks.nets import swin_unetr as monai
from torch import Tensor, nn
from torch.nn.functional import conv3d, conv_transpose3d, layer_norm, pad, scaled_dot_product_attention

APART = 100.0  # what MONAI's mask subtracts from the score of two tokens that are no neighbours


class InferenceSwinUNETR(nn.Module):
    """`network`, with the defaults of MONAI that SwinUNETR leaves, for images [B, C, *patch]. Parameters are copied."""

    def __init__(self, network: monai.SwinUNETR, *, patch: tuple[int, int, int]) -> None:
        super().__init__()
        network = copy.deepcopy(network).cpu().eval()
        swin = network.swinViT
        self.embedding = swin.patch_embed.proj
        stages: list[Any] = [swin.layers1[0], swin.layers2[0], swin.layers3[0], swin.layers4[0]]
        self.stages = nn.ModuleList(
            _Stage(layer, [size // 2 ** (i + 1) for size in patch]) for i, layer in enumerate(stages)
        )
        deep = network.decoder5, network.decoder4, network.decoder3
        # Further down, folding saves no time, and its weights are larger.
        high = _FoldedUp(network.decoder2), _FoldedUp(network.decoder1)
        self.decoders = nn.ModuleList((*deep, *high))
        self.encoders = nn.ModuleList((network.encoder1, network.encoder2, network.encoder3, network.encoder4))
        self.bottom, self.out = network.encoder10, network.out

    def forward(self, image: Tensor) -> Tensor:
        """image [B, C, *patch] -> logits [B, K, *patch]."""
        x = self.embedding(image)
        grid = x.shape[2:]
        x = x.permute(0, 2, 3, 4, 1).flatten(0, 3)
        levels = [image, _as_image(x, grid)]
        for stage in self.stages:
            x = stage(x)
            grid = [size // 2 for size in grid]
            levels.append(_as_image(x, grid))
        out = self.bottom(levels.pop())
        skips = [encode(level) for encode, level in zip(self.encoders, levels, strict=False)] + levels[-1:]
        for decode, skip in zip(self.decoders, reversed(skips), strict=True):
            out = decode(out, skip)
        return self.out(out)


def _as_image(x: Tensor, grid: Sequence[int]) -> Tensor:
    """Tokens [B * D * H * W, C], normalized -> [B, C, D, H, W]."""
    channels = x.shape[1]
    return layer_norm(x, [channels]).reshape(-1, *grid, channels).permute(0, 4, 1, 2, 3)


class _Windows(nn.Module):
    """Tokens of a grid [B * D * H * W, C] cut into windows, after the grid is padded with zeros and rolled by `-shift`.

    Every axis with a shift adds a channel to the windows: 1 for the tokens that came round its end, 0 elsewhere.
    """

    def __init__(
        self, grid: Sequence[int], window: Sequence[int], shift: Sequence[int] = (0, 0, 0), *, channels: int
    ) -> None:
        super().__init__()
        self.grid, self.window = tuple(grid), tuple(window)
        self.padded = tuple(-(-size // w) * w for size, w in zip(grid, window, strict=True))
        d, h, w = (
            ((torch.arange(size) + by) % size).reshape(-1, length)
            for size, by, length in zip(self.padded, shift, window, strict=True)
        )
        plane = (h[:, None, :, None] * self.padded[2] + w[None, :, None, :]).flatten()
        self.columns = len(h) * len(w)
        depth = (d[:, None, :] * self.columns + torch.arange(self.columns)[None, :, None]).flatten()
        back_plane = plane.argsort().reshape(self.padded[1:])[: grid[1], : grid[2]].flatten()
        back_depth = depth.argsort().reshape(self.padded[0], -1)[: grid[0]].flatten()
        for name, table in (("plane", plane), ("depth", depth), ("back_plane", back_plane), ("back_depth", back_depth)):
            self.register_buffer(name, table.int())
        rolled = [axis for axis in range(3) if shift[axis]]
        self.channels, self.codes = channels, len(rolled)
        code = torch.zeros(3, *self.padded, self.codes)
        for channel, axis in enumerate(rolled):
            code[axis].movedim(axis, 0)[: shift[axis], ..., channel] = 1
        # Apart, because added up beforehand they would be one large constant.
        self.register_buffer("code_depth", code[0, :, :1, 0].clone())
        self.register_buffer("code_plane", (code[1] + code[2])[:1].flatten(1, 2))

    def cut(self, x: Tensor) -> Tensor:
        """[B * D * H * W, C] -> [B * windows * tokens of one, C + codes]."""
        width = self.channels + self.codes
        ends = [after - before for before, after in zip(self.grid, self.padded, strict=True)]
        x = pad(x.reshape(-1, *self.grid, self.channels), (0, self.codes, 0, ends[2], 0, ends[1], 0, ends[0]))
        x = x.reshape(-1, self.padded[0], self.padded[1] * self.padded[2], width)
        if self.codes:
            x = x + pad(self.get_buffer("code_plane"), (self.channels, 0))
        x = x.index_select(2, self.get_buffer("plane"))
        if self.codes:
            x = x + pad(self.get_buffer("code_depth"), (self.channels, 0))
        x = x.reshape(-1, self.padded[0] * self.columns, self.window[1] * self.window[2] * width)
        return x.index_select(1, self.get_buffer("depth")).reshape(-1, width)

    def join(self, x: Tensor) -> Tensor:
        """[B * windows * tokens of one, C] -> [B * D * H * W, C], rolled forth and without the padding."""
        x = x.reshape(-1, self.padded[0] * self.columns, self.window[1] * self.window[2] * self.channels)
        x = x.index_select(1, self.get_buffer("back_depth"))
        x = x.reshape(-1, self.grid[0], self.padded[1] * self.padded[2], self.channels)
        return x.index_select(2, self.get_buffer("back_plane")).reshape(-1, self.channels)


class _Stage(nn.Module):
    """Two or more blocks and the patch merging after them: tokens [B * D * H * W, C] -> [B * D * H * W / 8, 2 C]."""

    def __init__(self, layer: Any, grid: Sequence[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(block, grid) for block in layer.blocks)
        self.cubes = _Windows(grid, (2, 2, 2), channels=layer.blocks[0].dim)
        self.norm, self.reduction = layer.downsample.norm, layer.downsample.reduction
        # MONAI concatenates the eight voxels of a cube in this order, a window holds them in raster order.
        theirs: list[tuple[int, ...]] = [
            (0, 0, 0),
            (1, 0, 0),
            (0, 1, 0),
            (0, 0, 1),
            (1, 1, 0),
            (1, 0, 1),
            (0, 1, 1),
            (1, 1, 1),
        ]
        order = [theirs.index(corner) for corner in product((0, 1), repeat=3)]
        with torch.no_grad():
            for parameter in (self.norm.weight, self.norm.bias, self.reduction.weight):
                by_corner = parameter.unflatten(-1, (8, -1))
                parameter.copy_(by_corner[..., order, :].flatten(-2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = self.cubes.cut(x).reshape(-1, 8 * x.shape[1])
        return self.reduction(self.norm(x))


class _Block(nn.Module):
    """monai.SwinTransformerBlock on tokens [B * D * H * W, C]."""

    def __init__(self, block: Any, grid: Sequence[int]) -> None:
        super().__init__()
        window, shift = monai.get_window_size(grid, block.window_size, block.shift_size)
        self.windows = _Windows(grid, window, shift, channels=block.dim)
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn = _Attention(block.attn, window=window, codes=self.windows.codes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.windows.join(self.attn(self.windows.cut(self.norm1(x))))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Window attention on [B * windows * n, C + codes] -> [B * windows * n, C]; the codes do what MONAI's mask does.

    On every rolled axis the score of a query (code a) and a key (code b) gets 100 (2 a - 1) b: -100 or 100 for keys
    that came round the end, by whether the query did too, and 0 for the others. The softmax sees tokens of different
    codes 100 apart, as with MONAI's mask.
    """

    def __init__(self, attn: Any, *, window: Sequence[int], codes: int) -> None:
        super().__init__()
        self.heads, self.tokens = attn.num_heads, window[0] * window[1] * window[2]
        query, key, value = attn.qkv.weight.detach().chunk(3)
        of_query, of_key, of_value = attn.qkv.bias.detach().chunk(3)
        self.query = self._linear(query * attn.scale, of_query * attn.scale, codes, slope=2 * APART, offset=-APART)
        self.key = self._linear(key, of_key, codes, slope=1.0, offset=0.0)
        self.value = nn.Linear(attn.dim + codes, attn.dim)
        with torch.no_grad():
            self.value.weight.copy_(pad(value, (0, codes)))
            self.value.bias.copy_(of_value)
        self.proj = attn.proj
        index = attn.relative_position_index[: self.tokens, : self.tokens]
        bias = attn.relative_position_bias_table.detach()[index].permute(2, 0, 1)
        self.register_buffer("bias", bias[None].contiguous())

    def _linear(self, weight: Tensor, bias: Tensor, codes: int, *, slope: float, offset: float) -> nn.Linear:
        """A layer that also passes the codes on to every head, after its own channels, as slope * code + offset."""
        rows, columns = weight.shape
        passed = slope * pad(torch.eye(codes), (columns, 0)).expand(self.heads, codes, columns + codes)
        made = nn.Linear(columns + codes, rows + self.heads * codes)
        with torch.no_grad():
            own = pad(weight, (0, codes)).unflatten(0, (self.heads, -1))
            made.weight.copy_(torch.cat((own, passed), 1).flatten(0, 1))
            made.bias.copy_(pad(bias.unflatten(0, (self.heads, -1)), (0, codes), value=offset).flatten())
        return made

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.reshape(-1, self.tokens, self.heads, part.shape[1] // self.heads).transpose(1, 2)
            for part in (self.query(x), self.key(x), self.value(x))
        )
        out = scaled_dot_product_attention(q, k, v, attn_mask=self.get_buffer("bias"), scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(x.shape[0], -1))


class _FoldedUp(nn.Module):
    """monai.UnetrUpBlock without the concatenation; the transposed convolution goes into both convolutions after it."""

    def __init__(self, block: UnetrUpBlock) -> None:
        super().__init__()
        self.tail: Any = block.conv_block
        transposed: Any = block.transp_conv.conv
        up = transposed.weight.detach()  # [in, out, 2, 2, 2]
        out = up.shape[1]
        wide, point = self.tail.conv1.conv.weight.detach(), self.tail.conv3.conv.weight.detach()
        self.register_buffer("up_wide", _compose(up, wide[:, :out]))
        self.register_buffer("side_wide", wide[:, out:].contiguous())
        self.register_buffer("up_point", _compose(up, point[:, :out]))
        self.register_buffer("side_point", point[:, out:].contiguous())

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        tail = self.tail
        out = conv_transpose3d(x, self.get_buffer("up_wide"), stride=2, padding=1)
        out = out + conv3d(skip, self.get_buffer("side_wide"), padding=1)
        residual = conv_transpose3d(x, self.get_buffer("up_point"), stride=2)
        residual = residual + conv3d(skip, self.get_buffer("side_point"))
        out = tail.norm2(tail.conv2(tail.lrelu(tail.norm1(out))))
        return tail.lrelu(out + tail.norm3(residual))


def _compose(up: Tensor, conv: Tensor) -> Tensor:
    """`up` [in, middle, 2, ...], transposed, then `conv` [out, middle, k, ...], as one: [in, out, k + 1, ...]."""
    size = conv.shape[-1]
    whole = up.new_zeros(up.shape[0], conv.shape[0], *[size + 1] * 3, dtype=torch.float64)
    for d, h, w in product((0, 1), repeat=3):
        part = torch.einsum("im,omxyz->ioxyz", up[:, :, d, h, w].double(), conv.flip(2, 3, 4).double())
        whole[:, :, d : d + size, h : h + size, w : w + size] += part
    return whole.float()

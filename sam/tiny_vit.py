"""MobileSAM's image encoder: TinyViT (Wu et al. 2022) with SAM's neck (Zhang et al. 2023)."""

from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .base import Encoder, build_neck
from .presets import TinyViTSize


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


class PatchEmbed(nn.Module):
    """Two convolutions: [N, 3, H, W] -> [N, dim, H / stride**2, W / stride**2]."""

    def __init__(self, dim: int, *, kernel: int, stride: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, dim // 2, kernel, stride=stride), nn.GELU(), ConvNorm(dim // 2, dim, kernel, stride=stride)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.seq(images)


class MBConv(nn.Module):
    """Inverted bottleneck; the last activation comes after the residual."""

    def __init__(self, dim: int, *, expand_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * expand_ratio)
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]."""
        y = self.act(self.conv2(self.act(self.conv1(x))))
        return self.act(x + self.conv3(y))


class PatchMerging(nn.Module):
    """To the next stage's width, at 1 / `stride` of the resolution."""

    def __init__(self, dim: int, out_dim: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out_dim)
        self.conv2 = ConvNorm(out_dim, out_dim, 3, stride=stride, groups=out_dim)
        self.conv3 = ConvNorm(out_dim, out_dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))


class Attention(nn.Module):
    """Attention over a window of tokens with one learned bias per head and offset (|dy|, |dx|).

    It normalises its own input, after the padding to whole windows: a padded token is the norm's bias, and is attended.
    """

    index: Tensor

    def __init__(self, dim: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        y, x = y.flatten(), x.flatten()
        index = (y[:, None] - y).abs() * window + (x[:, None] - x).abs()
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Windows [M, window, window, C] -> the same shape. The heads' q, k and v lie beside each other in qkv."""
        m, h, w, c = x.shape
        qkv = self.qkv(self.norm(x)).reshape(m, h * w, self.heads, 3, c // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        bias = self.attention_biases[:, self.index].to(q.dtype)
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(m, h, w, c))


class MLP(nn.Module):
    """Norm, expansion, exact GELU, projection."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x))))


class TinyBlock(nn.Module):
    """Windowed attention, a depthwise convolution (no residual), an MLP: three parts that can be called apart."""

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float, window: int, local_conv: int) -> None:
        super().__init__()
        self.attn = Attention(dim, heads=heads, window=window)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.local_conv = ConvNorm(dim, dim, local_conv, groups=dim)
        self.window = window

    def look(self, x: Tensor) -> Tensor:
        """What the attention finds, without the residual: [N, h, w, C] -> [N, h, w, C]."""
        windows, padded = window_partition(x, self.window)
        h, w = x.shape[1:3]
        return window_unpartition(self.attn(windows), self.window, padded, (h, w))

    def attend(self, x: Tensor) -> Tensor:
        """The attention part, residual included."""
        return x + self.look(x)

    def mix(self, x: Tensor) -> Tensor:
        """The depthwise convolution over the token grid."""
        return self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def feed(self, x: Tensor) -> Tensor:
        """The MLP part, residual included."""
        return x + self.mlp(x)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [N, h, w, C] -> [N, h, w, C]."""
        return self.feed(self.mix(self.attend(x)))


class ConvStage(nn.Module):
    """The first stage: MBConv blocks, then the merge into the second."""

    def __init__(self, blocks: list[MBConv], downsample: PatchMerging) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C', h / 2, w / 2]."""
        return self.downsample(self.blocks(x))


class AttentionStage(nn.Module):
    """A later stage: transformer blocks, then the merge into the next one, if there is one."""

    def __init__(self, blocks: list[TinyBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """[N, C, h, w] -> [N, C', h', w']; `context` goes to every block as it is."""
        tokens = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            tokens = block(tokens, *context)
        x = tokens.permute(0, 3, 1, 2)
        return self.downsample(x) if self.downsample is not None else x


class TinyViT(Encoder):
    """MobileSAM's and LiteMedSAM's image encoder; keys are those of the published files, without the unused classifier.

    `image_size` is (H, W), multiples of a token: no parameter depends on it, windows are padded where they must be.
    `make_block` builds each transformer block: `TinyBlock`, or a subclass with adapters that takes the same keywords.
    """

    unused = ("norm_head.", "head.")

    def __init__(
        self, size: TinyViTSize, *, image_size: tuple[int, int], make_block: Callable[..., TinyBlock] = TinyBlock
    ) -> None:
        super().__init__(name=size.name, image_size=image_size, token=size.patch_size, out_chans=size.out_chans)
        self.patch_embed = PatchEmbed(size.dims[0], kernel=size.stem_kernel, stride=size.stem_stride)
        merges = [
            PatchMerging(dim, out_dim, stride=stride)
            for dim, out_dim, stride in zip(size.dims, size.dims[1:], size.merge_strides, strict=False)
        ]
        stages: list[nn.Module] = [
            ConvStage([MBConv(size.dims[0], expand_ratio=size.expand_ratio) for _ in range(size.depths[0])], merges[0])
        ]
        for index in range(1, len(size.dims)):
            blocks = [
                make_block(
                    dim=size.dims[index],
                    heads=size.heads[index],
                    mlp_ratio=size.mlp_ratio,
                    window=size.windows[index],
                    local_conv=size.local_conv,
                )
                for _ in range(size.depths[index])
            ]
            stages.append(AttentionStage(blocks, merges[index] if index < len(merges) else None))
        self.layers = nn.ModuleList(stages)
        self.neck = build_neck(size.dims[-1], size.out_chans)

    def forward(self, images: Tensor, *context: Any) -> Tensor:
        """images [N, 3, H, W] -> embedding [N, out_chans, h, w]; `context` goes to every transformer block as it is."""
        first, *others = self.layers
        x = first(self.patch_embed(images))
        for stage in others:
            x = stage(x, *context)
        return self.neck(x)

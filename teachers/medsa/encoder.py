"""Medical SAM Adapter's image encoders: the blocks of SAM's, EfficientSAM's or MobileSAM's with adapters in them."""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ...errors import UsageError
from ...sam.base import Encoder
from ...sam.build import build_image_encoder
from ...sam.efficient_vit import EfficientBlock
from ...sam.presets import Backbone, EfficientViTSize, EncoderSize, TinyViTSize
from ...sam.tiny_vit import TinyBlock
from ...sam.vit import Block
from ..masam.lora import LoRA
from .adapters import Bottleneck, Combination, Places, SpaceDepthAdapter


class Adapters(nn.Module):
    """The adapters of one block: behind the attention, and parallel to the MLP at `scale`.

    `places` keeps one of the two, or both; None leaves the block without any.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        *,
        scale: float,
        combination: Combination,
        zero_init: bool,
        places: Places | None = "both",
    ) -> None:
        super().__init__()
        self.attention = self.mlp = None
        if places in ("attention", "both"):
            self.attention = SpaceDepthAdapter(dim, rank, combination=combination, zero_init=zero_init)
        if places in ("mlp", "both"):
            self.mlp = Bottleneck(dim, rank, zero_init=zero_init)
        self.scale = scale
        self.sums_outputs = combination == "add_output"

    @property
    def looks_along_depth(self) -> bool:
        """Whether the depth branch has a place to enter this block."""
        return self.sums_outputs or self.attention is not None

    def after_attention(self, output: Tensor, along_depth: Tensor | None) -> Tensor:
        """The attention's output in space [B * D, h, w, C] and along the slices [B, D, h, w, C], adapted."""
        if along_depth is not None and self.sums_outputs:
            output, along_depth = output + along_depth.flatten(0, 1), None
        if self.attention is None:
            return output
        if along_depth is None:
            return output + self.attention(output)
        space = output.view(along_depth.shape)
        return output + self.attention(space, along_depth).flatten(0, 1)

    def beside_mlp(self, x: Tensor) -> Tensor | float:
        """The change beside the MLP, for x [..., C]; 0 without an adapter there."""
        return 0.0 if self.mlp is None else self.scale * self.mlp(x)


def slices_last(x: Tensor, depth: int) -> Tensor:
    """Tokens [B * D, h, w, C] -> a sequence of slices for every place, [B * h * w, D, 1, C]."""
    return x.unflatten(0, (-1, depth)).permute(0, 2, 3, 1, 4).flatten(0, 2).unsqueeze(2)


def slices_first(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B * h * w, D, 1, C] -> [B, D, h, w, C]."""
    return x.squeeze(2).unflatten(0, (-1, *grid)).permute(0, 3, 1, 2, 4).contiguous()


class AdaptedViTBlock(nn.Module):
    """What adapters do in a ViT's block; the block, of SAM or EfficientSAM, is the next base class."""

    attn: Any
    norm1: Any
    norm2: Any
    look: Callable[[Tensor], Tensor]
    feed: Callable[[Tensor], Tensor]

    def __init__(self, *, make_adapters: Callable[[int], Adapters], dim: int, **size: Any) -> None:
        super().__init__(dim=dim, **size)
        self.adapters = make_adapters(dim)

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        """Tokens [B * depth, h, w, C] -> the same shape; without `depth` there is no depth branch."""
        along = None
        if depth is not None and self.adapters.looks_along_depth:
            along = along_depth(self.attn, self.norm1(x), depth)
        x = x + self.adapters.after_attention(self.look(x), along)
        return self.feed(x) + self.adapters.beside_mlp(self.norm2(x))


class AdaptedBlock(AdaptedViTBlock, Block):
    """SAM's block; its attention's depth branch takes the slices for rows, with the table of relative rows resized."""


class AdaptedEfficientBlock(AdaptedViTBlock, EfficientBlock):
    """EfficientSAM's block; it knows no relative positions, so the depth branch does not know the slices' order."""


class AdaptedTinyBlock(TinyBlock):
    """MobileSAM's block. Its positional biases end with its window, so the depth branch goes without them."""

    def __init__(self, *, make_adapters: Callable[[int], Adapters], dim: int, **size: Any) -> None:
        super().__init__(dim=dim, **size)
        self.adapters = make_adapters(dim)

    def forward(self, x: Tensor, depth: int | None = None) -> Tensor:
        """As `AdaptedBlock`."""
        along = None
        if depth is not None and self.adapters.looks_along_depth:
            along = along_depth(self._without_biases, x, depth)
        x = self.mix(x + self.adapters.after_attention(self.look(x), along))
        return self.feed(x) + self.adapters.beside_mlp(self.mlp.norm(x))

    def _without_biases(self, x: Tensor) -> Tensor:
        attn = self.attn
        qkv = attn.qkv(attn.norm(x)).squeeze(2).unflatten(-1, (attn.heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        out = scaled_dot_product_attention(q, k, v, scale=attn.scale)
        return attn.proj(out.transpose(1, 2).flatten(2).unsqueeze(2))


def along_depth(attention: Any, x: Tensor, depth: int) -> Tensor:
    """SD-Trans's depth branch: the block's own attention over the slices at each place.

    Tokens [B * D, h, w, C] -> [B, D, h, w, C]. Windows do not matter here, and volumes of a batch do not mix (in the
    authors' code windows pass for slices, and the whole batch for one volume).
    """
    return slices_first(attention(slices_last(x, depth)), (x.shape[1], x.shape[2]))


def adapted_encoder(
    size: EncoderSize,
    *,
    image_size: tuple[int, int],
    rank: int,
    scale: float,
    combination: Combination,
    zero_init: bool,
    checkpointing: bool,
    places: Places = "both",
    layers: tuple[int, int] | None = None,
) -> Encoder:
    """The image encoder with adapters in its transformer blocks (TinyViT's first stage has none).

    `layers` are the first and the last block that has them, counted from 1 among those that can; without, all have.
    """
    block = {Backbone: AdaptedBlock, EfficientViTSize: AdaptedEfficientBlock, TinyViTSize: AdaptedTinyBlock}[type(size)]
    adapters = partial(Adapters, rank=rank, scale=scale, combination=combination, zero_init=zero_init)
    numbers = count(1)

    def make_block(**options: Any) -> nn.Module:
        number = next(numbers)
        here = places if layers is None or layers[0] <= number <= layers[1] else None
        return block(make_adapters=partial(adapters, places=here), **options)

    encoder = build_image_encoder(size, image_size=image_size, make_block=make_block, checkpointing=checkpointing)
    blocks = next(numbers) - 1
    if layers is not None and not 1 <= layers[0] <= layers[1] <= blocks:
        raise UsageError(f"medsa's option layers is {list(layers)}: {size.name} has the blocks 1 to {blocks}")
    return encoder


def lora_encoder(
    size: EncoderSize, *, image_size: tuple[int, int], rank: int, zero_init: bool, checkpointing: bool
) -> Encoder:
    """The image encoder with LoRA in every attention and no adapters; UsageError for MobileSAM's."""
    if isinstance(size, TinyViTSize):
        raise UsageError(
            f"backbone {size.name}: its attentions do not hold q, k and v apart, as LoRA needs; "
            "use medsa's option adapter='bottleneck', or another backbone"
        )
    family = Block if isinstance(size, Backbone) else EfficientBlock

    def make_block(*, dim: int, **options: Any) -> Block | EfficientBlock:
        block = family(dim=dim, **options)
        block.attn.qkv = LoRA(dim, rank, zero_init=zero_init)
        return block

    return build_image_encoder(size, image_size=image_size, make_block=make_block, checkpointing=checkpointing)

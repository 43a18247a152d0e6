"""The sizes of the image encoders of SAM and its small relatives, and of the decoder that goes with each."""

from dataclasses import dataclass, replace

from ..errors import UsageError


@dataclass(frozen=True)
class DecoderSize:
    """Sizes of SAM's prompt encoder and mask decoder; the defaults are the published ones."""

    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    iou_hidden: int = 256
    mask_in_chans: int = 16


@dataclass(frozen=True)
class Backbone:
    """Sizes of one plain ViT image encoder (Kirillov et al. 2023, appendix A; Li et al. 2022, ViTDet).

    Blocks named in `global_attn_indexes` attend over the whole token grid, the others within windows of
    `window` x `window` tokens (0: every block is global). `adapter_channels` is the width of a 3-D adapter.
    """

    name: str
    dim: int
    depth: int
    heads: int
    global_attn_indexes: tuple[int, ...]
    window: int = 14
    patch_size: int = 16
    out_chans: int = 256
    mlp_ratio: float = 4.0
    adapter_channels: int = 384
    decoder: DecoderSize = DecoderSize()


@dataclass(frozen=True)
class TinyViTSize:
    """Sizes of a TinyViT, one number per stage; the first stage is convolutional, its head and window unused.

    The last merge keeps the resolution (stride 1). The stem is two convolutions of `stem_kernel` and `stem_stride`:
    MobileSAM's of stride 2 make tokens of SAM's 16 x 16 pixels, LiteMedSAM's of stride 1 tokens of 4 x 4.
    """

    name: str
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    expand_ratio: float = 4.0
    local_conv: int = 3
    stem_kernel: int = 3
    stem_stride: int = 2
    mlp_ratio: float = 4.0
    out_chans: int = 256
    decoder: DecoderSize = DecoderSize()

    @property
    def merge_strides(self) -> tuple[int, ...]:
        return (2,) * (len(self.dims) - 2) + (1,)

    @property
    def patch_size(self) -> int:
        return self.stem_stride**2 * 2 ** (len(self.dims) - 2)


@dataclass(frozen=True)
class EfficientViTSize:
    """Sizes of EfficientSAM's plain ViT: every block is global, without relative positions.

    `upscaling` holds the widths of its own mask decoder's x2 stages, `max_points` the points of one prompt.
    """

    name: str
    dim: int
    depth: int
    heads: int
    patch_size: int = 16
    mlp_ratio: float = 4.0
    out_chans: int = 256
    decoder: DecoderSize = DecoderSize()
    upscaling: tuple[int, ...] = (64, 32)
    max_points: int = 6


@dataclass(frozen=True)
class FineSize:
    """Sizes of a coarse encoder of tokens of 16 x 16 pixels that gives an embedding of tokens of 4 x 4.

    So it can take the place of LiteMedSAM's encoder, before the same prompt encoder and mask decoder. `width` is that
    of the layers between.
    """

    name: str
    coarse: TinyViTSize | EfficientViTSize
    width: int = 128
    patch_size: int = 4

    @property
    def out_chans(self) -> int:
        return self.coarse.out_chans

    @property
    def decoder(self) -> DecoderSize:
        return self.coarse.decoder


EncoderSize = Backbone | TinyViTSize | EfficientViTSize | FineSize


def _tiny(name: str, patch_size: int) -> Backbone:
    return Backbone(
        name,
        dim=96,
        depth=4,
        heads=3,
        global_attn_indexes=(1, 3),
        window=7,
        patch_size=patch_size,
        out_chans=128,
        adapter_channels=32,
        decoder=DecoderSize(heads=4, mlp_dim=256, iou_hidden=64),
    )


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("vit_b", dim=768, depth=12, heads=12, global_attn_indexes=(2, 5, 8, 11)),
        Backbone("vit_l", dim=1024, depth=24, heads=16, global_attn_indexes=(5, 11, 17, 23)),
        Backbone("vit_h", dim=1280, depth=32, heads=16, global_attn_indexes=(7, 15, 23, 31)),
        _tiny("vit_tiny", patch_size=16),
        _tiny("vit_tiny_p8", patch_size=8),
    )
}


MOBILE_VIT_T = TinyViTSize(
    "mobile_vit_t", dims=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(2, 4, 5, 10), windows=(7, 7, 14, 7)
)
TINY_VITS = {
    size.name: size for size in (MOBILE_VIT_T, replace(MOBILE_VIT_T, name="litemedsam", stem_kernel=1, stem_stride=1))
}

EFFICIENT_VITS = {
    size.name: size
    for size in (
        EfficientViTSize("efficient_vit_ti", dim=192, depth=12, heads=3),
        EfficientViTSize("efficient_vit_s", dim=384, depth=12, heads=6),
    )
}

FINE_SIZES = {
    size.name: size
    for size in (
        FineSize("mobile_vit_t_p4", MOBILE_VIT_T),
        FineSize("efficient_vit_ti_p4", EFFICIENT_VITS["efficient_vit_ti"]),
    )
}

ENCODERS: dict[str, EncoderSize] = {**BACKBONES, **TINY_VITS, **EFFICIENT_VITS, **FINE_SIZES}


def get_encoder_size(encoder: str | EncoderSize) -> EncoderSize:
    """The sizes behind the name of any image encoder; sizes given as such come back. UsageError for an unknown name."""
    if not isinstance(encoder, str):
        return encoder
    if encoder not in ENCODERS:
        raise UsageError(f"unknown backbone {encoder!r}: choose one of {', '.join(ENCODERS)}")
    return ENCODERS[encoder]


def get_backbone(backbone: str | EncoderSize) -> Backbone:
    """The sizes of a plain SAM ViT, for models that adapt its blocks; sizes given as such come back unchanged.

    UsageError for an unknown name, and for the encoders of its small relatives.
    """
    if isinstance(backbone, str) and backbone not in ENCODERS:
        raise UsageError(f"unknown backbone {backbone!r}: choose one of {', '.join(BACKBONES)}")
    size = get_encoder_size(backbone)
    if not isinstance(size, Backbone):
        raise UsageError(
            f"backbone {size.name!r} is not one of SAM's own ViTs, which this model adapts: "
            f"choose one of {', '.join(BACKBONES)}"
        )
    return size

"""The sizes of SAM's image encoders and of the decoder that goes with each."""

from dataclasses import dataclass

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


def get_backbone(backbone: str | Backbone) -> Backbone:
    """The sizes behind a name; sizes given as such come back unchanged. UsageError for an unknown name."""
    if isinstance(backbone, Backbone):
        return backbone
    if backbone not in BACKBONES:
        raise UsageError(f"unknown backbone {backbone!r}: choose one of {', '.join(BACKBONES)}")
    return BACKBONES[backbone]

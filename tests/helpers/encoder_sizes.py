"""Sizes of small MobileSAMs and EfficientSAMs."""

from samkd.sam.presets import DecoderSize, EfficientViTSize, TinyViTSize

TINY = TinyViTSize(
    "tiny",
    dims=(8, 12, 16, 24),
    depths=(1, 1, 1, 1),
    heads=(1, 2, 2, 3),
    windows=(3, 3, 4, 3),
    out_chans=64,
    decoder=DecoderSize(heads=4, mlp_dim=48, iou_hidden=16),
)
EFFICIENT = EfficientViTSize(
    "efficient", dim=24, depth=2, heads=2, out_chans=64, upscaling=(32, 16), decoder=TINY.decoder
)

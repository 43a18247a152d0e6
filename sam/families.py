"""Whose weights these are, by keys and shapes."""

import re
from collections.abc import Mapping

from torch import Tensor

from .presets import BACKBONES, EFFICIENT_VITS, FINE_SIZES, TINY_VITS

# Keys that only one family's encoder has. MedSAM's files are SAM's in keys and shapes, and count as SAM; LiteMedSAM's
# have MobileSAM's keys, and another stem.
MARKS = {
    "SAM": re.compile(r"image_encoder\.blocks\.\d+\.mlp\.lin1\."),
    "MobileSAM": re.compile(r"image_encoder\.layers\.\d+\.blocks\.\d+\.mlp\.fc1\."),
    "EfficientSAM": re.compile(r"image_encoder\.blocks\.\d+\.mlp\.fc1\."),
}


COARSE = "image_encoder.coarse."  # the encoder inside that of a small student of LiteMedSAM


def family(state: Mapping[str, Tensor]) -> str | None:
    """SAM, MobileSAM, LiteMedSAM, EfficientSAM, or "small student" of one; None if it is none of them."""
    if any(key.startswith(COARSE) for key in state):
        return "small student"
    families = [name for name, mark in MARKS.items() if any(mark.match(key) for key in state)]
    if families == ["MobileSAM"] and _stem_kernel(state) == TINY_VITS["litemedsam"].stem_kernel:
        return "LiteMedSAM"
    return families[0] if len(families) == 1 else None


def recognise(state: Mapping[str, Tensor]) -> str:
    """The name of the image encoder these weights belong to; a description if it is none of ours."""
    whose = family(state)
    if whose is None:
        return "not a SAM image encoder"
    if whose == "small student":
        coarse = recognise({key.replace(COARSE, "image_encoder."): value for key, value in state.items()})
        named = [size.name for size in FINE_SIZES.values() if size.coarse.name == coarse]
        return named[0] if named else f"a small student around {coarse}"
    return _tiny_vit(state) if whose in ("MobileSAM", "LiteMedSAM") else _plain_vit(state, whose)


def _plain_vit(state: Mapping[str, Tensor], whose: str) -> str:
    patch = state.get("image_encoder.patch_embed.proj.weight")
    depth = _count(state, r"image_encoder\.blocks\.(\d+)\.")
    if patch is None:
        return f"{whose}'s ViT of depth {depth} without its patch embedding"
    dim, token = patch.shape[0], patch.shape[-1]
    for size in (BACKBONES if whose == "SAM" else EFFICIENT_VITS).values():
        if (size.dim, size.depth, size.patch_size) == (dim, depth, token):
            return size.name
    return f"a ViT of width {dim}, depth {depth}, patch size {token}"


def _tiny_vit(state: Mapping[str, Tensor]) -> str:
    stages = _count(state, r"image_encoder\.layers\.(\d+)\.")
    depths = tuple(_count(state, rf"image_encoder\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(stages))
    widths = {  # of every stage but the first, by its blocks
        int(match[1]): value.shape[0]
        for key, value in state.items()
        if (match := re.fullmatch(r"image_encoder\.layers\.(\d+)\.blocks\.0\.mlp\.fc2\.bias", key))
    }
    for size in TINY_VITS.values():
        same_stem = _stem_kernel(state) in (None, size.stem_kernel)
        if same_stem and size.depths == depths and widths == dict(enumerate(size.dims[1:], start=1)):
            return size.name
    return f"a TinyViT of widths {list(widths.values())}, depths {list(depths)}"


def _stem_kernel(state: Mapping[str, Tensor]) -> int | None:
    """The side of a TinyViT's first kernel in pixels; None where the stem is not among the weights."""
    stem = state.get("image_encoder.patch_embed.seq.0.c.weight")
    return None if stem is None else stem.shape[-1]


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})
